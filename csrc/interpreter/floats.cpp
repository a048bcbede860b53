// PTX ISA, "Floating Point Instructions", for .f32. A result that is not a number has the bits
// 0x7fffffff; abs and neg change the sign bit alone.
#include <cmath>

#include "block.h"
#include "lanes.h"
#include "opcodes.h"

namespace ptx {
namespace {

constexpr auto sum = [](float a, float b) { return canonical(a + b); };
constexpr auto difference = [](float a, float b) { return canonical(a - b); };
constexpr auto product = [](float a, float b) { return canonical(a * b); };
constexpr auto quotient = [](float a, float b) { return canonical(a / b); };
constexpr auto fused = [](float a, float b, float c) { return canonical(std::fma(a, b, c)); };
constexpr auto reciprocal = [](float a) { return canonical(1.0f / a); };
constexpr auto square_root = [](float a) { return canonical(std::sqrt(a)); };

// The number if one is none, and -0 is less than +0.
constexpr auto minimum = [](float a, float b) {
  const float zero = std::signbit(a) ? a : b;
  const float less = a == b ? zero : a < b ? a : b;
  return canonical(a != a ? b : b != b ? a : less);
};
constexpr auto maximum = [](float a, float b) {
  const float zero = std::signbit(a) ? b : a;
  const float more = a == b ? zero : a > b ? a : b;
  return canonical(a != a ? b : b != b ? a : more);
};
// .NaN: not a number if either is none.
constexpr auto minimum_nan = [](float a, float b) {
  return a != a || b != b ? float_of(nan_bits) : minimum(a, b);
};
constexpr auto maximum_nan = [](float a, float b) {
  return a != a || b != b ? float_of(nan_bits) : maximum(a, b);
};

constexpr auto negated = [](uint32_t a) { return a ^ 0x80000000u; };
constexpr auto magnitude = [](uint32_t a) { return a & 0x7fffffffu; };

// ---- approximations -----------------------------------------------------------------------------

constexpr auto power_of_two = [](float a) { return std::exp2(a); };
constexpr auto inverse_square_root = [](float a) { return 1.0f / std::sqrt(a); };
constexpr auto one_over = [](float a) { return 1.0f / a; };
constexpr auto root = [](float a) { return std::sqrt(a); };

float off_by(float value, int64_t units) {
  if (!std::isfinite(value) || value == 0) return value;
  return float_of(static_cast<uint32_t>(bits_of(value) + units));
}

// Results are off by what the settings say, as those of a GPU may be by up to 1 or 2 units in the
// last place. A random error depends on the seed and the result alone: an instruction gives the
// same for the same operands everywhere.
void add_errors(const Warp& warp, Row<float>& values) {
  const Settings& settings = warp.block->launch.settings;
  const int64_t most = settings.approximation_error;
  if (most == 0) return;
  const auto choices = static_cast<uint64_t>(2 * std::abs(most) + 1);
  for (float& value : values) {
    const uint64_t mixed = (bits_of(value) + settings.seed) * 0x9e3779b97f4a7c15;
    const auto chosen = static_cast<int64_t>((mixed >> 32) % choices) - std::abs(most);
    value = off_by(value, settings.random_approximation ? chosen : most);
  }
}

template <auto function, bool ftz>
void approximation(Warp& warp, const Instruction& in, LaneMask lanes) {
  const float* const a = warp.row<float>(in.sources[0]);
  Row<float> result;
  for (unsigned l = 0; l < lanes_per_warp; ++l) result[l] = function(ftz ? flushed(a[l]) : a[l]);
  add_errors(warp, result);
  for (float& value : result) value = canonical(ftz ? flushed(value) : value);
  warp.write(in.destinations[0], result, lanes);
}

// div.full: an approximation, too, but without .ftz.
void approximate_division(Warp& warp, const Instruction& in, LaneMask lanes) {
  const float* const a = warp.row<float>(in.sources[0]);
  const float* const b = warp.row<float>(in.sources[1]);
  Row<float> result;
  for (unsigned l = 0; l < lanes_per_warp; ++l) result[l] = a[l] / b[l];
  add_errors(warp, result);
  for (float& value : result) value = canonical(value);
  warp.write(in.destinations[0], result, lanes);
}

// ---- decoding -----------------------------------------------------------------------------------

template <auto function>
void decode_binary(Statement& s) {
  s.write_then_read(Type::f32, {Type::f32, Type::f32});
  s.instruction.execute = binary<float, float, float, function>;
}

template <auto function>
void decode_approximation(Statement& s) {
  s.instruction.execute =
      s.take("ftz") ? approximation<function, true> : approximation<function, false>;
}

// "Floating Point Instructions: ex2": .approx, with .ftz or without
void decode_ex2(Statement& s) {
  s.require("approx");
  s.require("f32");
  decode_approximation<power_of_two>(s);
  s.write_then_read(Type::f32, {Type::f32});
}

// "Floating Point Instructions: rsqrt": .approx
void decode_rsqrt(Statement& s) {
  s.require("approx");
  s.require("f32");
  decode_approximation<inverse_square_root>(s);
  s.write_then_read(Type::f32, {Type::f32});
}

// "Floating Point Instructions: rcp", "... sqrt": .rn or .approx
template <auto exact, auto approximate>
void decode_rounded_or_approximate(Statement& s) {
  s.require("f32");
  if (s.take("rn")) {
    s.instruction.execute = unary<float, float, exact>;
  } else {
    s.require("approx");
    decode_approximation<approximate>(s);
  }
  s.write_then_read(Type::f32, {Type::f32});
}

// "Floating Point Instructions: fma": .rn
void decode_fma(Statement& s) {
  s.require("rn");
  s.require("f32");
  s.write_then_read(Type::f32, {Type::f32, Type::f32, Type::f32});
  s.instruction.execute = ternary<float, float, float, float, fused>;
}

constexpr OpcodeDecoder opcodes[] = {{"fma", decode_fma},
                                     {"ex2", decode_ex2},
                                     {"rcp", decode_rounded_or_approximate<reciprocal, one_over>},
                                     {"sqrt", decode_rounded_or_approximate<square_root, root>},
                                     {"rsqrt", decode_rsqrt}};

}  // namespace

// "Floating Point Instructions: add", "... sub", "... mul". Without .rn a compiler may contract a
// product and a sum, which this machine never does.
void decode_float_add(Statement& s) {
  s.take("rn");
  decode_binary<sum>(s);
}
void decode_float_sub(Statement& s) {
  s.take("rn");
  decode_binary<difference>(s);
}
void decode_float_mul(Statement& s) {
  s.take("rn");
  decode_binary<product>(s);
}

// "Floating Point Instructions: div": .rn, or .full
void decode_float_div(Statement& s) {
  if (s.take("full")) {
    s.write_then_read(Type::f32, {Type::f32, Type::f32});
    s.instruction.execute = approximate_division;
  } else {
    s.require("rn");
    decode_binary<quotient>(s);
  }
}

// "Floating Point Instructions: min", "... max"
void decode_float_min(Statement& s) {
  s.take("NaN") ? decode_binary<minimum_nan>(s) : decode_binary<minimum>(s);
}
void decode_float_max(Statement& s) {
  s.take("NaN") ? decode_binary<maximum_nan>(s) : decode_binary<maximum>(s);
}

// "Floating Point Instructions: neg", "... abs"
void decode_float_neg(Statement& s) {
  s.write_then_read(Type::f32, {Type::f32});
  s.instruction.execute = unary<uint32_t, uint32_t, negated>;
}
void decode_float_abs(Statement& s) {
  s.write_then_read(Type::f32, {Type::f32});
  s.instruction.execute = unary<uint32_t, uint32_t, magnitude>;
}

std::span<const OpcodeDecoder> floating_opcodes() { return opcodes; }

}  // namespace ptx
