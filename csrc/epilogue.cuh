// What happens to a sum between its register and shared memory.
#pragma once
#include "toeplitz.cuh"

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

// Adds the bias and writes the sums that `multiply` left to shared memory; this lane's first job
// begins at `first`, its second at `second`.
template <class T, int Size, class Layout, int Step, int Tiles>
__device__ __forceinline__ void finish(T* first, T* second, const float (&sum)[Step][Tiles][4],
                                       float bias, int lane) {
#pragma unroll
  for (int q = 0; q < Tiles; ++q) {
    const int column = column_of<Size, Tiles>(q, lane);
#pragma unroll
    for (int s = 0; s < Step; ++s) {
      const float (&value)[4] = sum[s][q];
      *reinterpret_cast<uint32_t*>(first + Layout::at(s, 0) + column) =
          pack<T>(value[0] + bias, value[1] + bias);
      *reinterpret_cast<uint32_t*>(second + Layout::at(s, 0) + column) =
          pack<T>(value[2] + bias, value[3] + bias);
    }
  }
}

}  // namespace depthwise
