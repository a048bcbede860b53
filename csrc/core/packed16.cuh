// Conversions between two floats and two 16-bit values in one register.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace depthwise {

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 both = __floats2half2_rn(low, high);
    memcpy(&bits, &both, sizeof(bits));
  } else {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &both, sizeof(bits));
  }
  return bits;
}

template <class T>
__device__ __forceinline__ float2 unpack(uint32_t bits) {
  std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162> both;
  memcpy(static_cast<void*>(&both), &bits, sizeof(bits));
  if constexpr (std::is_same_v<T, __half>) return __half22float2(both);
  else return __bfloat1622float2(both);
}

// The bits of 8, 4, 2 or 1 neighbouring elements, which one access moves.
template <int Elements>
using Bits = std::conditional_t<
    Elements == 8, uint4,
    std::conditional_t<Elements == 4, uint2,
                       std::conditional_t<Elements == 2, uint32_t, unsigned short>>>;

}  // namespace depthwise
