// The types of PTX and the rows of registers that hold them.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>

namespace ptx {

constexpr unsigned lanes_per_warp = 32;

// Bit l stands for lane l.
using LaneMask = uint32_t;
constexpr LaneMask all_lanes = ~LaneMask{0};

// Values of one register in all lanes of a warp. A predicate is a LaneMask instead.
template <class T>
using Row = std::array<T, lanes_per_warp>;

// PTX ISA, "Fundamental Types" and "Packed Data Types"; those that occur. `none` is no type.
enum class Type : uint8_t {
  none,
  pred,
  b8,
  b16,
  b32,
  b64,
  u8,
  u16,
  u32,
  u64,
  s8,
  s16,
  s32,
  s64,
  f16,
  f16x2,
  bf16,
  bf16x2,
  f32
};

constexpr int bits_of(Type type) {
  switch (type) {
    case Type::none: return 0;
    case Type::pred: return 1;
    case Type::b8:
    case Type::u8:
    case Type::s8: return 8;
    case Type::b16:
    case Type::u16:
    case Type::s16:
    case Type::f16:
    case Type::bf16: return 16;
    case Type::b64:
    case Type::u64:
    case Type::s64: return 64;
    default: return 32;
  }
}

constexpr bool is_signed(Type type) {
  return type == Type::s8 || type == Type::s16 || type == Type::s32 || type == Type::s64;
}

constexpr bool is_floating(Type type) { return type >= Type::f16; }

// `name` is without its dot. Type::none if it is not a type known here.
Type type_named(std::string_view name);

}  // namespace ptx
