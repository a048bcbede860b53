// PTX ISA, "Data Movement and Conversion Instructions": cvt, cvta, mov.
#include "block.h"
#include "lanes.h"
#include "memory_access.h"
#include "opcodes.h"

namespace ptx {
namespace {

// ---- mov ----------------------------------------------------------------------------------------

template <class T>
void move(Warp& warp, const Instruction& in, LaneMask lanes) {
  Row<T> values;
  std::memcpy(values.data(), warp.row<T>(in.sources[0]), sizeof(values));
  warp.write(in.destinations[0], values, lanes);
}

void move_predicate(Warp& warp, const Instruction& in, LaneMask lanes) {
  warp.write_predicate(in.destinations[0], warp.predicate(in.sources[0]), lanes);
}

// mov.b32 d, {a, b}: the first part becomes the lowest.
template <class Part, class T>
void pack(Warp& warp, const Instruction& in, LaneMask lanes) {
  Row<T> values{};
  for (unsigned part = 0; part < sizeof(T) / sizeof(Part); ++part) {
    const Part* const source = warp.row<Part>(in.sources[part]);
    for (unsigned l = 0; l < lanes_per_warp; ++l)
      values[l] |= static_cast<T>(T{source[l]} << (8 * sizeof(Part) * part));
  }
  warp.write(in.destinations[0], values, lanes);
}

// mov.b32 {d, e}, a
template <class Part, class T>
void unpack(Warp& warp, const Instruction& in, LaneMask lanes) {
  Row<T> source;  // a destination may be the source
  std::memcpy(source.data(), warp.row<T>(in.sources[0]), sizeof(source));
  for (unsigned part = 0; part < sizeof(T) / sizeof(Part); ++part) {
    Row<Part> values;
    for (unsigned l = 0; l < lanes_per_warp; ++l)
      values[l] = static_cast<Part>(source[l] >> (8 * sizeof(Part) * part));
    warp.write(in.destinations[part], values, lanes);
  }
}

// The parts of a vector must fill it: two or four of 16 bits, or two of 32.
Execute choose_parts(Statement& s, int bits, int parts, const Execute (&choices)[3]) {
  for (int part = 0; part < parts; ++part)
    if (8 * s.instruction.register_bytes[part] * parts != bits) s.refuse("the width of its parts");
  if (bits == 32 && parts == 2) return choices[0];
  if (bits == 64 && parts == 4) return choices[1];
  if (bits == 64 && parts == 2) return choices[2];
  s.refuse("the number of its parts");
}

// "Data Movement and Conversion Instructions: mov"
void decode_mov(Statement& s) {
  const Type type = s.take_type();
  const int bits = bits_of(type);
  if (s.next_is('{')) {
    const int parts = s.write_list(0, 4, Type::b16);
    s.comma();
    s.read(0, type);
    s.instruction.execute = choose_parts(
        s, bits, parts,
        {unpack<uint16_t, uint32_t>, unpack<uint16_t, uint64_t>, unpack<uint32_t, uint64_t>});
    return;
  }
  s.write(0, type);
  s.comma();
  if (s.next_is('{')) {
    const int parts = s.read_list(0, 4, Type::b16);
    s.instruction.execute = choose_parts(
        s, bits, parts,
        {pack<uint16_t, uint32_t>, pack<uint16_t, uint64_t>, pack<uint32_t, uint64_t>});
    return;
  }
  s.read(0, type);
  switch (bits) {
    case 1: s.instruction.execute = move_predicate; break;
    case 16: s.instruction.execute = move<uint16_t>; break;
    case 32: s.instruction.execute = move<uint32_t>; break;
    case 64: s.instruction.execute = move<uint64_t>; break;
    default: s.refuse("its type is not known");
  }
}

// ---- cvt ----------------------------------------------------------------------------------------

// From integer to integer. The types are narrower than their registers or as wide: bits above the
// source type are not looked at, the result is extended as its type says.
template <class To, class From>
void convert_integer(Warp& warp, const Instruction& in, LaneMask lanes) {
  const From* const a = warp.row<From>(in.sources[0]);
  const Type source = static_cast<Type>(in.offset), target = static_cast<Type>(in.second_offset);
  const int unused_source = 64 - bits_of(source), unused_target = 64 - bits_of(target);
  const auto extended = [](uint64_t value, int unused, bool with_sign) {
    const uint64_t top = value << unused;
    return with_sign ? static_cast<uint64_t>(static_cast<int64_t>(top) >> unused) : top >> unused;
  };
  Row<To> result;
  for (unsigned l = 0; l < lanes_per_warp; ++l) {
    const uint64_t value = extended(a[l], unused_source, is_signed(source));
    result[l] = static_cast<To>(extended(value, unused_target, is_signed(target)));
  }
  warp.write(in.destinations[0], result, lanes);
}

template <class To>
Execute from_integer_of(int source_bits) {
  return source_bits == 16   ? convert_integer<To, uint16_t>
         : source_bits == 32 ? convert_integer<To, uint32_t>
                             : convert_integer<To, uint64_t>;
}

void decode_integers(Statement& s, Type to, Type from) {
  const int target_bits = s.write_any(0, to);
  s.comma();
  const int source_bits = s.read_any(0, from);
  // A constant is as narrow as its type, for which there is no row.
  if (source_bits == 8) s.refuse("a constant of 8 bits");
  s.instruction.offset = static_cast<int64_t>(from);
  s.instruction.second_offset = static_cast<int64_t>(to);
  s.instruction.execute = target_bits == 16   ? from_integer_of<uint16_t>(source_bits)
                          : target_bits == 32 ? from_integer_of<uint32_t>(source_bits)
                                              : from_integer_of<uint64_t>(source_bits);
}

// From an integer to the nearest float.
constexpr auto as_float = [](auto a) { return static_cast<float>(a); };

void decode_integer_to_float(Statement& s, Type from) {
  s.require("rn");
  switch (from) {
    case Type::u32: s.instruction.execute = unary<float, uint32_t, as_float>; break;
    case Type::s32: s.instruction.execute = unary<float, int32_t, as_float>; break;
    case Type::u64: s.instruction.execute = unary<float, uint64_t, as_float>; break;
    case Type::s64: s.instruction.execute = unary<float, int64_t, as_float>; break;
    default: s.refuse("the types are not known");
  }
  s.write_then_read(Type::f32, {from});
}

// From 16 bits to 32: every value has a float.
constexpr auto f16_to_f32 = [](uint16_t a) { return canonical(from_f16(a)); };
constexpr auto bf16_to_f32 = [](uint16_t a) { return canonical(from_bf16(a)); };

// From 32 bits to 16, rounded once.
template <auto to, Rounding rounding>
constexpr auto rounded = [](float a) { return to(a, rounding); };
// The first source becomes the upper half.
template <auto to, Rounding rounding>
constexpr auto rounded_pair =
    [](float a, float b) { return uint32_t{to(a, rounding)} << 16 | to(b, rounding); };

template <auto to>
void decode_rounding(Statement& s, Type target) {
  constexpr Rounding nearest = Rounding::nearest_even, zero = Rounding::toward_zero;
  const bool is_nearest = s.take("rn");
  if (!is_nearest) s.require("rz");
  if (bits_of(target) == 16) {
    s.instruction.execute = is_nearest ? unary<uint16_t, float, rounded<to, nearest>>
                                       : unary<uint16_t, float, rounded<to, zero>>;
    s.write_then_read(target, {Type::f32});
  } else {
    s.instruction.execute = is_nearest ? binary<uint32_t, float, float, rounded_pair<to, nearest>>
                                       : binary<uint32_t, float, float, rounded_pair<to, zero>>;
    s.write_then_read(target, {Type::f32, Type::f32});
  }
}

// "Data Movement and Conversion Instructions: cvt"
void decode_cvt(Statement& s) {
  const Type to = s.take_type(), from = s.take_type();
  if (!is_floating(to) && !is_floating(from)) {
    decode_integers(s, to, from);
  } else if (to == Type::f32 && !is_floating(from)) {
    decode_integer_to_float(s, from);
  } else if (to == Type::f32 && (from == Type::f16 || from == Type::bf16)) {
    s.instruction.execute = from == Type::f16 ? unary<float, uint16_t, f16_to_f32>
                                              : unary<float, uint16_t, bf16_to_f32>;
    s.write_then_read(to, {from});
  } else if (from == Type::f32 && (to == Type::f16 || to == Type::f16x2)) {
    decode_rounding<to_f16>(s, to);
  } else if (from == Type::f32 && (to == Type::bf16 || to == Type::bf16x2)) {
    decode_rounding<to_bf16>(s, to);
  } else {
    s.refuse("the types are not known");
  }
}

// ---- cvta ---------------------------------------------------------------------------------------

// Adds to an address what lies between its window and generic addresses; a space without a window
// of its own has generic addresses.
void shift_address(Warp& warp, const Instruction& in, LaneMask lanes) {
  const uint64_t* const a = warp.row<uint64_t>(in.sources[0]);
  Row<uint64_t> result;
  for (unsigned l = 0; l < lanes_per_warp; ++l) result[l] = a[l] + static_cast<uint64_t>(in.offset);
  warp.write(in.destinations[0], result, lanes);
}

// "Data Movement and Conversion Instructions: cvta"
void decode_cvta(Statement& s) {
  const bool to = s.take("to");
  uint64_t window = 0;
  if (s.take("shared") || s.take("shared::cta")) window = shared_window;
  else if (s.take("local")) window = local_window;
  else s.require("global");
  s.require("u64");
  s.write_then_read(Type::u64, {Type::u64});
  s.instruction.offset = static_cast<int64_t>(to ? 0 - window : window);
  s.instruction.execute = shift_address;
}

constexpr OpcodeDecoder opcodes[] = {
    {"mov", decode_mov}, {"cvt", decode_cvt}, {"cvta", decode_cvta}};

}  // namespace

std::span<const OpcodeDecoder> conversion_opcodes() { return opcodes; }

}  // namespace ptx
