// PTX ISA, "Integer Arithmetic Instructions" and "Logic and Shift Instructions". The functions that
// decode are headed by the names of their sections there.
#include <algorithm>
#include <bit>
#include <type_traits>

#include "block.h"
#include "lanes.h"
#include "opcodes.h"

namespace ptx {
namespace {

// ---- functions of values ------------------------------------------------------------------------

// Results of more bits than the type lose the highest.
constexpr auto sum = [](auto a, auto b) {
  using T = decltype(a);
  return static_cast<T>(Unsigned<T>(a) + Unsigned<T>(b));
};
constexpr auto difference = [](auto a, auto b) {
  using T = decltype(a);
  return static_cast<T>(Unsigned<T>(a) - Unsigned<T>(b));
};
constexpr auto low_product = [](auto a, auto b) {
  using T = decltype(a);
  return static_cast<T>(Unsigned<T>(a) * Unsigned<T>(b));
};
constexpr auto low_product_sum = [](auto a, auto b, auto c) {
  using T = decltype(a);
  return static_cast<T>(Unsigned<T>(a) * Unsigned<T>(b) + Unsigned<T>(c));
};

// The type with twice the bits.
template <class T>
using Wide = std::conditional_t<
    sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                       std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;

constexpr auto high_product = [](auto a, auto b) {
  using T = decltype(a);
  return static_cast<T>(static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b) >> (8 * sizeof(T)));
};
constexpr auto wide_product = [](auto a, auto b) {
  using T = Wide<decltype(a)>;
  return static_cast<T>(static_cast<T>(a) * static_cast<T>(b));
};
constexpr auto wide_product_sum = [](auto a, auto b, auto c) { return sum(wide_product(a, b), c); };

constexpr auto least = [](auto a, auto b) { return std::min(a, b); };
constexpr auto greatest = [](auto a, auto b) { return std::max(a, b); };
constexpr auto negated = [](auto a) { return difference(decltype(a){0}, a); };
constexpr auto magnitude = [](auto a) { return a < 0 ? negated(a) : a; };

// The least integer divided by -1 is itself; division by zero gives ones and is reported.
constexpr auto quotient = [](auto a, auto b) {
  using T = decltype(a);
  if (b == 0) return static_cast<T>(~T{0});
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return negated(a);
  return static_cast<T>(a / b);
};
constexpr auto remainder_of = [](auto a, auto b) {
  using T = decltype(a);
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return T{0};
  return static_cast<T>(a % b);
};

constexpr auto conjunction = [](auto a, auto b) { return static_cast<decltype(a)>(a & b); };
constexpr auto disjunction = [](auto a, auto b) { return static_cast<decltype(a)>(a | b); };
constexpr auto exclusion = [](auto a, auto b) { return static_cast<decltype(a)>(a ^ b); };
constexpr auto complement = [](auto a) { return static_cast<decltype(a)>(~a); };

// Amounts beyond the width shift everything out.
constexpr auto shifted_left = [](auto a, uint32_t amount) {
  using T = decltype(a);
  const uint32_t bits = 8 * sizeof(T);
  const auto shifted = Unsigned<T>(a) << (amount & (sizeof(T) == 8 ? 63u : 31u));
  return amount >= bits ? T{0} : static_cast<T>(shifted);
};
constexpr auto shifted_right = [](auto a, uint32_t amount) {
  using T = decltype(a);
  const uint32_t bits = 8 * sizeof(T);
  if constexpr (std::is_signed_v<T>) return static_cast<T>(a >> std::min(amount, bits - 1));
  else return amount >= bits ? T{0} : static_cast<T>(a >> std::min(amount, bits - 1));
};

// shf: the upper or lower word of two words, b over a, shifted together.
uint64_t both(uint32_t a, uint32_t b) { return uint64_t{b} << 32 | a; }
constexpr auto funnel_left_wrap = [](uint32_t a, uint32_t b, uint32_t c) {
  return static_cast<uint32_t>(both(a, b) << (c & 31) >> 32);
};
constexpr auto funnel_right_wrap = [](uint32_t a, uint32_t b, uint32_t c) {
  return static_cast<uint32_t>(both(a, b) >> (c & 31));
};
constexpr auto funnel_left_clamp = [](uint32_t a, uint32_t b, uint32_t c) {
  return static_cast<uint32_t>(both(a, b) << std::min(c, 32u) >> 32);
};
constexpr auto funnel_right_clamp = [](uint32_t a, uint32_t b, uint32_t c) {
  return static_cast<uint32_t>(both(a, b) >> std::min(c, 32u));
};

constexpr auto count_of_ones = [](auto a) { return static_cast<uint32_t>(std::popcount(a)); };
constexpr auto leading_zeros = [](auto a) { return static_cast<uint32_t>(std::countl_zero(a)); };

// bfe: `length` bits from `position` on. Above the highest bit there are zeros or copies of the
// sign, which is the highest bit of the field, or of `a` if the field ends beyond it.
constexpr auto extracted = [](auto a, uint32_t position, uint32_t length) {
  using T = decltype(a);
  constexpr uint32_t bits = 8 * sizeof(T);
  position &= 0xff;
  length &= 0xff;
  if (length == 0) return T{0};
  const T moved = shifted_right(a, position);
  if (length >= bits) return moved;
  return static_cast<T>(shifted_right(shifted_left(moved, bits - length), bits - length));
};

// bfi: the low `length` bits of a in place of those of b from `position` on.
template <class T>
T inserted(T a, T b, uint32_t position, uint32_t length) {
  position &= 0xff;
  length &= 0xff;
  const T field = length >= 8 * sizeof(T) ? static_cast<T>(~T{0})
                                          : difference(shifted_left(T{1}, length), T{1});
  const T mask = shifted_left(field, position);
  return (b & ~mask) | (shifted_left(a, position) & mask);
}

// prmt without a mode: each four bits of c choose one of the eight bytes of b over a; the fourth
// bit puts copies of that byte's sign in its place.
constexpr auto permuted = [](uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const uint32_t choice = c >> (4 * i) & 0xf;
    const uint32_t byte = static_cast<uint32_t>(both(a, b) >> (8 * (choice & 7))) & 0xff;
    const uint32_t sign = byte & 0x80 ? 0xff : 0;
    result |= (choice & 8 ? sign : byte) << (8 * i);
  }
  return result;
};

// ---- functions of rows --------------------------------------------------------------------------

template <class T, auto function>
void division(Warp& warp, const Instruction& in, LaneMask lanes) {
  const T* const divisor = warp.row<T>(in.sources[1]);
  for (unsigned l = 0; l < lanes_per_warp; ++l)
    if (lanes >> l & 1 && divisor[l] == 0) warp.report(in, l, kind::division_by_zero, "");
  binary<T, T, T, function>(warp, in, lanes);
}

template <class T>
void insert_bits(Warp& warp, const Instruction& in, LaneMask lanes) {
  const T* const a = warp.row<T>(in.sources[0]);
  const T* const b = warp.row<T>(in.sources[1]);
  const uint32_t* const position = warp.row<uint32_t>(in.sources[2]);
  const uint32_t* const length = warp.row<uint32_t>(in.sources[3]);
  Row<T> result;
  for (unsigned l = 0; l < lanes_per_warp; ++l)
    result[l] = inserted(a[l], b[l], position[l], length[l]);
  warp.write(in.destinations[0], result, lanes);
}

// lop3: bit i of the table is the result where the bits of a, b, c are those of i, a the highest.
void look_up_logic(Warp& warp, const Instruction& in, LaneMask lanes) {
  const uint32_t* const a = warp.row<uint32_t>(in.sources[0]);
  const uint32_t* const b = warp.row<uint32_t>(in.sources[1]);
  const uint32_t* const c = warp.row<uint32_t>(in.sources[2]);
  Row<uint32_t> result{};
  for (unsigned i = 0; i < 8; ++i) {
    if (!(in.offset >> i & 1)) continue;
    const uint32_t not_a = i & 4 ? 0 : ~0u, not_b = i & 2 ? 0 : ~0u, not_c = i & 1 ? 0 : ~0u;
    for (unsigned l = 0; l < lanes_per_warp; ++l)
      result[l] |= (a[l] ^ not_a) & (b[l] ^ not_b) & (c[l] ^ not_c);
  }
  warp.write(in.destinations[0], result, lanes);
}

// Operations on predicates work on all lanes at once.
template <auto function>
void binary_predicate(Warp& warp, const Instruction& in, LaneMask lanes) {
  const LaneMask a = warp.predicate(in.sources[0]), b = warp.predicate(in.sources[1]);
  warp.write_predicate(in.destinations[0], function(a, b), lanes);
}
void not_predicate(Warp& warp, const Instruction& in, LaneMask lanes) {
  warp.write_predicate(in.destinations[0], ~warp.predicate(in.sources[0]), lanes);
}

// ---- which function for which type --------------------------------------------------------------

// Calls `use` with a value of the C++ type: the sign matters.
template <class Use>
Execute with_sign(Statement& statement, Type type, Use use) {
  switch (type) {
    case Type::u16: return use(uint16_t{});
    case Type::u32: return use(uint32_t{});
    case Type::u64: return use(uint64_t{});
    case Type::s16: return use(int16_t{});
    case Type::s32: return use(int32_t{});
    case Type::s64: return use(int64_t{});
    default: statement.refuse("its type is not known");
  }
}

// Only the width matters.
template <class Use>
Execute with_width(Statement& statement, Type type, Use use) {
  if (is_floating(type)) statement.refuse("its type is not known");
  switch (bits_of(type)) {
    case 16: return use(uint16_t{});
    case 32: return use(uint32_t{});
    case 64: return use(uint64_t{});
    default: statement.refuse("its type is not known");
  }
}

template <auto function>
void decode_unary(Statement& s, Type type) {
  s.instruction.execute = with_sign(
      s, type, [](auto t) -> Execute { return unary<decltype(t), decltype(t), function>; });
  s.write_then_read(type, {type});
}

template <auto function>
void decode_binary(Statement& s, Type type) {
  s.instruction.execute = with_sign(s, type, [](auto t) -> Execute {
    return binary<decltype(t), decltype(t), decltype(t), function>;
  });
  s.write_then_read(type, {type, type});
}

// "Logic and Shift Instructions: and", "... or", "... xor"
template <auto function>
void decode_bits(Statement& s) {
  const Type type = s.take_type();
  if (type == Type::pred) {
    s.instruction.execute = binary_predicate<function>;
  } else {
    s.instruction.execute = with_width(s, type, [](auto t) -> Execute {
      return binary<decltype(t), decltype(t), decltype(t), function>;
    });
  }
  s.write_then_read(type, {type, type});
}

Type doubled(Statement& s, Type type) {
  switch (type) {
    case Type::u16: return Type::u32;
    case Type::s16: return Type::s32;
    case Type::u32: return Type::u64;
    case Type::s32: return Type::s64;
    default: s.refuse(".wide is not known for its type");
  }
}

// "Integer Arithmetic Instructions: add", "... sub"
void decode_add(Statement& s) {
  const Type type = s.take_type();
  if (type == Type::f32) decode_float_add(s);
  else decode_binary<sum>(s, type);
}
void decode_sub(Statement& s) {
  const Type type = s.take_type();
  if (type == Type::f32) decode_float_sub(s);
  else decode_binary<difference>(s, type);
}

// "Integer Arithmetic Instructions: mul": .lo, .hi or .wide
void decode_mul(Statement& s) {
  const Type type = s.take_type();
  if (type == Type::f32) return decode_float_mul(s);
  if (s.take("wide")) {
    const Type wide = doubled(s, type);
    s.write_then_read(wide, {type, type});
    switch (type) {
      case Type::u16:
        s.instruction.execute = binary<uint32_t, uint16_t, uint16_t, wide_product>;
        break;
      case Type::s16:
        s.instruction.execute = binary<int32_t, int16_t, int16_t, wide_product>;
        break;
      case Type::u32:
        s.instruction.execute = binary<uint64_t, uint32_t, uint32_t, wide_product>;
        break;
      default: s.instruction.execute = binary<int64_t, int32_t, int32_t, wide_product>;
    }
  } else if (s.take("hi")) {
    decode_binary<high_product>(s, type);
  } else {
    s.require("lo");
    decode_binary<low_product>(s, type);
  }
}

// "Integer Arithmetic Instructions: mad": .lo or .wide
void decode_mad(Statement& s) {
  const Type type = s.take_type();
  if (s.take("wide")) {
    const Type wide = doubled(s, type);
    s.write_then_read(wide, {type, type, wide});
    switch (type) {
      case Type::u16:
        s.instruction.execute = ternary<uint32_t, uint16_t, uint16_t, uint32_t, wide_product_sum>;
        break;
      case Type::s16:
        s.instruction.execute = ternary<int32_t, int16_t, int16_t, int32_t, wide_product_sum>;
        break;
      case Type::u32:
        s.instruction.execute = ternary<uint64_t, uint32_t, uint32_t, uint64_t, wide_product_sum>;
        break;
      default:
        s.instruction.execute = ternary<int64_t, int32_t, int32_t, int64_t, wide_product_sum>;
    }
  } else {
    s.require("lo");
    s.instruction.execute = with_sign(s, type, [](auto t) -> Execute {
      using T = decltype(t);
      return ternary<T, T, T, T, low_product_sum>;
    });
    s.write_then_read(type, {type, type, type});
  }
}

// "Integer Arithmetic Instructions: div", "... rem"
void decode_div(Statement& s) {
  const Type type = s.take_type();
  if (type == Type::f32) return decode_float_div(s);
  s.instruction.execute =
      with_sign(s, type, [](auto t) -> Execute { return division<decltype(t), quotient>; });
  s.write_then_read(type, {type, type});
}
void decode_rem(Statement& s) {
  const Type type = s.take_type();
  s.instruction.execute =
      with_sign(s, type, [](auto t) -> Execute { return division<decltype(t), remainder_of>; });
  s.write_then_read(type, {type, type});
}

// "Integer Arithmetic Instructions: min", "... max"
void decode_min(Statement& s) {
  const Type type = s.take_type();
  if (type == Type::f32) decode_float_min(s);
  else decode_binary<least>(s, type);
}
void decode_max(Statement& s) {
  const Type type = s.take_type();
  if (type == Type::f32) decode_float_max(s);
  else decode_binary<greatest>(s, type);
}

// "Integer Arithmetic Instructions: neg", "... abs"
void decode_neg(Statement& s) {
  const Type type = s.take_type();
  if (type == Type::f32) return decode_float_neg(s);
  if (!is_signed(type)) s.refuse("its type must be signed");
  decode_unary<negated>(s, type);
}
void decode_abs(Statement& s) {
  const Type type = s.take_type();
  if (type == Type::f32) return decode_float_abs(s);
  if (!is_signed(type)) s.refuse("its type must be signed");
  decode_unary<magnitude>(s, type);
}

// "Logic and Shift Instructions: not"
void decode_not(Statement& s) {
  const Type type = s.take_type();
  s.write_then_read(type, {type});
  if (type == Type::pred) {
    s.instruction.execute = not_predicate;
  } else {
    s.instruction.execute = with_width(
        s, type, [](auto t) -> Execute { return unary<decltype(t), decltype(t), complement>; });
  }
}

// "Logic and Shift Instructions: shl", "... shr": the amount always has 32 bits.
void decode_shl(Statement& s) {
  const Type type = s.take_type();
  s.write_then_read(type, {type, Type::u32});
  s.instruction.execute = with_width(s, type, [](auto t) -> Execute {
    return binary<decltype(t), decltype(t), uint32_t, shifted_left>;
  });
}
void decode_shr(Statement& s) {
  const Type type = s.take_type();
  s.write_then_read(type, {type, Type::u32});
  const auto choose = [](auto t) -> Execute {
    return binary<decltype(t), decltype(t), uint32_t, shifted_right>;
  };
  s.instruction.execute =
      is_signed(type) ? with_sign(s, type, choose) : with_width(s, type, choose);
}

// "Logic and Shift Instructions: shf"
void decode_shf(Statement& s) {
  const bool left = s.take("l");
  if (!left) s.require("r");
  const bool clamp = s.take("clamp");
  if (!clamp) s.require("wrap");
  s.require("b32");
  using T = uint32_t;
  s.instruction.execute =
      left
          ? (clamp ? ternary<T, T, T, T, funnel_left_clamp> : ternary<T, T, T, T, funnel_left_wrap>)
          : (clamp ? ternary<T, T, T, T, funnel_right_clamp>
                   : ternary<T, T, T, T, funnel_right_wrap>);
  s.write_then_read(Type::b32, {Type::b32, Type::b32, Type::u32});
}

// "Logic and Shift Instructions: lop3"
void decode_lop3(Statement& s) {
  s.require("b32");
  s.write_then_read(Type::b32, {Type::b32, Type::b32, Type::b32});
  s.comma();
  s.instruction.offset = s.number();
  s.instruction.execute = look_up_logic;
}

// "Data Movement and Conversion Instructions: prmt"
void decode_prmt(Statement& s) {
  s.require("b32");
  s.write_then_read(Type::b32, {Type::b32, Type::b32, Type::b32});
  s.instruction.execute = ternary<uint32_t, uint32_t, uint32_t, uint32_t, permuted>;
}

// "Integer Arithmetic Instructions: popc", "... clz"
void decode_popc(Statement& s) {
  const Type type = s.take_type();
  s.write_then_read(Type::u32, {type});
  s.instruction.execute = with_width(
      s, type, [](auto t) -> Execute { return unary<uint32_t, decltype(t), count_of_ones>; });
}
void decode_clz(Statement& s) {
  const Type type = s.take_type();
  s.write_then_read(Type::u32, {type});
  s.instruction.execute = with_width(
      s, type, [](auto t) -> Execute { return unary<uint32_t, decltype(t), leading_zeros>; });
}

// "Integer Arithmetic Instructions: bfe", "... bfi"
void decode_bfe(Statement& s) {
  const Type type = s.take_type();
  s.write_then_read(type, {type, Type::u32, Type::u32});
  s.instruction.execute = with_sign(s, type, [](auto t) -> Execute {
    return ternary<decltype(t), decltype(t), uint32_t, uint32_t, extracted>;
  });
}
void decode_bfi(Statement& s) {
  const Type type = s.take_type();
  s.write_then_read(type, {type, type, Type::u32, Type::u32});
  s.instruction.execute =
      with_width(s, type, [](auto t) -> Execute { return insert_bits<decltype(t)>; });
}

constexpr OpcodeDecoder opcodes[] = {{"add", decode_add},
                                     {"sub", decode_sub},
                                     {"mul", decode_mul},
                                     {"mad", decode_mad},
                                     {"div", decode_div},
                                     {"rem", decode_rem},
                                     {"min", decode_min},
                                     {"max", decode_max},
                                     {"neg", decode_neg},
                                     {"abs", decode_abs},
                                     {"and", decode_bits<conjunction>},
                                     {"or", decode_bits<disjunction>},
                                     {"xor", decode_bits<exclusion>},
                                     {"not", decode_not},
                                     {"shl", decode_shl},
                                     {"shr", decode_shr},
                                     {"shf", decode_shf},
                                     {"lop3", decode_lop3},
                                     {"prmt", decode_prmt},
                                     {"popc", decode_popc},
                                     {"clz", decode_clz},
                                     {"bfe", decode_bfe},
                                     {"bfi", decode_bfi}};

}  // namespace

std::span<const OpcodeDecoder> integer_opcodes() { return opcodes; }

}  // namespace ptx
