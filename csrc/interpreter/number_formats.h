// 16-bit floating point formats and the rounding to them. The functions have no branches that a
// compiler could not turn into selections, so that loops over lanes become vector code.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace ptx {

enum class Rounding : uint8_t { nearest_even, toward_zero };

// PTX ISA, "Floating Point Instructions": a result that is not a number has these bits.
constexpr uint32_t nan_bits = 0x7fffffff;
constexpr uint16_t nan_bits_16 = 0x7fff;

inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

inline float canonical(float value) { return value == value ? value : float_of(nan_bits); }

// .ftz: subnormal numbers become zero of the same sign.
inline float flushed(float value) {
  return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}

inline float from_bf16(uint16_t value) { return float_of(uint32_t{value} << 16); }

// Its magnitude, put where a float has exponent and fraction, is the float 2^-112 times as large,
// since the exponents have biases of 15 and 127. That holds for subnormal numbers, too.
inline float from_f16(uint16_t value) {
  constexpr uint32_t infinite = 31u << 23, all_exponent_bits = 255u << 23;
  const uint32_t magnitude = (value & 0x7fffu) << 13;
  const uint32_t sign = (value & 0x8000u) << 16;
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  return float_of(sign | finite | (magnitude >= infinite ? all_exponent_bits : 0));
}

inline uint16_t to_bf16(float value, Rounding rounding) {
  const uint32_t bits = bits_of(value);
  const uint32_t half = rounding == Rounding::nearest_even ? 0x7fffu + (bits >> 16 & 1) : 0;
  const uint32_t rounded = (bits + half) >> 16;
  return static_cast<uint16_t>(value == value ? rounded : nan_bits_16);
}

// A float below 2^-14 is rounded to a multiple of 2^-24 by adding 0.5, whose last place that is.
inline uint16_t to_f16(float value, Rounding rounding) {
  constexpr uint32_t rebias = 112u << 23, infinite = 255u << 23;
  const bool nearest = rounding == Rounding::nearest_even;
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
  const uint32_t sign = bits >> 16 & 0x8000;

  const uint32_t half = nearest ? 0xfffu + (magnitude >> 13 & 1) : 0;
  const uint32_t normal = (magnitude + half - rebias) >> 13;

  const float absolute = float_of(magnitude);
  const uint32_t subnormal =
      nearest
          ? bits_of(absolute + 0.5f) - bits_of(0.5f)
          : static_cast<uint32_t>(static_cast<int32_t>(absolute < 1 ? absolute * 0x1p24f : 0.0f));

  const uint32_t largest = nearest ? 0x7c00 : 0x7bff;  // where a finite value is too large
  uint32_t result = absolute < 0x1p-14f ? subnormal : normal;
  result = absolute >= 65536.0f || result > 0x7c00 ? largest : result;
  result = magnitude == infinite ? 0x7c00 : result;
  return static_cast<uint16_t>(value == value ? sign | result : nan_bits_16);
}

}  // namespace ptx
