// Two 16-bit values in one register, and what is done with them.
#pragma once
#include "device.h"

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

// Element by element, rounded once.
template <class T>
__device__ __forceinline__ uint32_t add_pairs(uint32_t a, uint32_t b) {
  const float2 left = unpack<T>(a), right = unpack<T>(b);
  return pack<T>(left.x + right.x, left.y + right.y);
}

template <class T>
__device__ __forceinline__ uint4 add_pairs(uint4 a, uint4 b) {
  return make_uint4(add_pairs<T>(a.x, b.x), add_pairs<T>(a.y, b.y), add_pairs<T>(a.z, b.z),
                    add_pairs<T>(a.w, b.w));
}

// A tensor of the same strides as another is found by the distance between the two; none is 0.
__device__ __forceinline__ ptrdiff_t bytes_between(const void* from, const void* to) {
  return to ? static_cast<const char*>(to) - static_cast<const char*>(from) : 0;
}
template <class T>
__device__ __forceinline__ const T* offset_by(const T* at, ptrdiff_t bytes) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(at) + bytes);
}

}  // namespace depthwise
