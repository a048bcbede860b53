// PTX ISA, "Comparison and Selection Instructions": setp, selp.
#include <string_view>

#include "block.h"
#include "lanes.h"
#include "opcodes.h"

namespace ptx {
namespace {

// ---- setp ---------------------------------------------------------------------------------------

constexpr auto equal = [](auto a, auto b) { return a == b; };
constexpr auto less = [](auto a, auto b) { return a < b; };
constexpr auto less_or_equal = [](auto a, auto b) { return a <= b; };
constexpr auto greater = [](auto a, auto b) { return a > b; };
constexpr auto greater_or_equal = [](auto a, auto b) { return a >= b; };
// Of integers; for floats ne is false and neu is true if one is not a number.
constexpr auto different = [](auto a, auto b) { return a != b; };
constexpr auto ordered_different = [](float a, float b) { return a < b || a > b; };
// Comparisons that also hold if one is not a number.
constexpr auto equal_or_nan = [](float a, float b) { return !(a < b || a > b); };
constexpr auto less_or_nan = [](float a, float b) { return !(a >= b); };
constexpr auto less_or_equal_or_nan = [](float a, float b) { return !(a > b); };
constexpr auto greater_or_nan = [](float a, float b) { return !(a <= b); };
constexpr auto greater_or_equal_or_nan = [](float a, float b) { return !(a < b); };
constexpr auto numbers = [](float a, float b) { return a == a && b == b; };
constexpr auto not_numbers = [](float a, float b) { return a != a || b != b; };

template <class T, auto compare>
void set_predicate(Warp& warp, const Instruction& in, LaneMask lanes) {
  const T* const a = warp.row<T>(in.sources[0]);
  const T* const b = warp.row<T>(in.sources[1]);
  const LaneMask holds = mask_where([&](unsigned l) { return compare(a[l], b[l]); });
  warp.write_predicate(in.destinations[0], holds, lanes);
}

template <auto convert, auto compare>
void set_predicate_of_halves(Warp& warp, const Instruction& in, LaneMask lanes) {
  const uint16_t* const a = warp.row<uint16_t>(in.sources[0]);
  const uint16_t* const b = warp.row<uint16_t>(in.sources[1]);
  const LaneMask holds =
      mask_where([&](unsigned l) { return compare(convert(a[l]), convert(b[l])); });
  warp.write_predicate(in.destinations[0], holds, lanes);
}

// Of pairs: the first predicate is for the lower halves, the second for the upper ones.
template <auto convert, auto compare>
void set_predicate_of_pairs(Warp& warp, const Instruction& in, LaneMask lanes) {
  const uint32_t* const a = warp.row<uint32_t>(in.sources[0]);
  const uint32_t* const b = warp.row<uint32_t>(in.sources[1]);
  for (int half = 0; half < 2; ++half) {
    const auto value = [half](uint32_t pair) {
      return convert(static_cast<uint16_t>(pair >> (16 * half)));
    };
    const LaneMask holds =
        mask_where([&](unsigned l) { return compare(value(a[l]), value(b[l])); });
    warp.write_predicate(in.destinations[half], holds, lanes);
  }
}

template <auto compare>
Execute for_integers(Type type) {
  switch (type) {
    case Type::b16:
    case Type::u16: return set_predicate<uint16_t, compare>;
    case Type::b32:
    case Type::u32: return set_predicate<uint32_t, compare>;
    case Type::b64:
    case Type::u64: return set_predicate<uint64_t, compare>;
    case Type::s16: return set_predicate<int16_t, compare>;
    case Type::s32: return set_predicate<int32_t, compare>;
    case Type::s64: return set_predicate<int64_t, compare>;
    default: return nullptr;
  }
}

template <auto compare>
Execute for_floats(Type type) {
  switch (type) {
    case Type::f32: return set_predicate<float, compare>;
    case Type::f16: return set_predicate_of_halves<from_f16, compare>;
    case Type::bf16: return set_predicate_of_halves<from_bf16, compare>;
    case Type::f16x2: return set_predicate_of_pairs<from_f16, compare>;
    case Type::bf16x2: return set_predicate_of_pairs<from_bf16, compare>;
    default: return nullptr;
  }
}

struct Comparison {
  std::string_view name;
  Execute (*for_type)(Type);
};
constexpr Comparison of_integers[] = {
    {"eq", for_integers<equal>},   {"ne", for_integers<different>},
    {"lt", for_integers<less>},    {"le", for_integers<less_or_equal>},
    {"gt", for_integers<greater>}, {"ge", for_integers<greater_or_equal>}};
constexpr Comparison of_floats[] = {{"eq", for_floats<equal>},
                                    {"ne", for_floats<ordered_different>},
                                    {"lt", for_floats<less>},
                                    {"le", for_floats<less_or_equal>},
                                    {"gt", for_floats<greater>},
                                    {"ge", for_floats<greater_or_equal>},
                                    {"equ", for_floats<equal_or_nan>},
                                    {"neu", for_floats<different>},
                                    {"ltu", for_floats<less_or_nan>},
                                    {"leu", for_floats<less_or_equal_or_nan>},
                                    {"gtu", for_floats<greater_or_nan>},
                                    {"geu", for_floats<greater_or_equal_or_nan>},
                                    {"num", for_floats<numbers>},
                                    {"nan", for_floats<not_numbers>}};

// "Comparison and Selection Instructions: setp"
void decode_setp(Statement& s) {
  const Type type = s.take_type();
  const std::span<const Comparison> comparisons =
      is_floating(type) ? std::span<const Comparison>(of_floats) : of_integers;
  for (const Comparison& comparison : comparisons)
    if (s.take(comparison.name)) {
      s.instruction.execute = comparison.for_type(type);
      break;
    }
  if (!s.instruction.execute) s.refuse("the comparison or its type is not known");
  s.write(0, Type::pred);
  if (type == Type::f16x2 || type == Type::bf16x2) {
    if (!s.take_symbol('|')) s.refuse("it needs two predicates");
    s.write(1, Type::pred);
  }
  s.comma();
  s.read(0, type);
  s.comma();
  s.read(1, type);
}

// ---- selp ---------------------------------------------------------------------------------------

template <class T>
void select(Warp& warp, const Instruction& in, LaneMask lanes) {
  const T* const a = warp.row<T>(in.sources[0]);
  const T* const b = warp.row<T>(in.sources[1]);
  const LaneMask first = warp.predicate(in.sources[2]);
  Row<T> result;
  for (unsigned l = 0; l < lanes_per_warp; ++l) result[l] = first >> l & 1 ? a[l] : b[l];
  warp.write(in.destinations[0], result, lanes);
}

// "Comparison and Selection Instructions: selp"
void decode_selp(Statement& s) {
  const Type type = s.take_type();
  s.write_then_read(type, {type, type, Type::pred});
  switch (bits_of(type)) {
    case 16: s.instruction.execute = select<uint16_t>; break;
    case 32: s.instruction.execute = select<uint32_t>; break;
    case 64: s.instruction.execute = select<uint64_t>; break;
    default: s.refuse("its type is not known");
  }
}

constexpr OpcodeDecoder opcodes[] = {{"setp", decode_setp}, {"selp", decode_selp}};

}  // namespace

std::span<const OpcodeDecoder> comparison_opcodes() { return opcodes; }

}  // namespace ptx
