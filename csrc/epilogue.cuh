// What happens to a sum between its register and shared memory.
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

// Adds the bias and writes the sums of 16 jobs, as `multiply` leaves them, to shared memory.
template <class T, int Step, int Tiles, class Layout>
__device__ __forceinline__ void finish(T* to, const float (&sum)[Step][Tiles][4], float bias,
                                       int groups_log2, int image_pitch, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    T* const job = to + Layout::job(lane / 4 + 8 * half, groups_log2, image_pitch) + lane % 4 * 2;
#pragma unroll
    for (int s = 0; s < Step; ++s)
#pragma unroll
      for (int q = 0; q < Tiles; ++q)
        *reinterpret_cast<uint32_t*>(job + Layout::at(s, 8 * q)) =
            pack<T>(sum[s][q][2 * half] + bias, sum[s][q][2 * half + 1] + bias);
  }
}

}  // namespace depthwise
