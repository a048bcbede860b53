// The names of CUDA that kernels may use besides those of its own host headers.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "collectives.h"

#define threadIdx (::emulation::block.running->index)
#define blockIdx (::emulation::block.index)
#define blockDim (::emulation::block.shape)
#define gridDim (::emulation::block.grid)

#define __launch_bounds__(...)
#undef __shared__
#define __shared__ _Pragma("GCC error \"shared memory is taken from device::SharedMemory\"")

using std::max;
using std::min;

inline void __syncthreads(emulation::Place place = emulation::Place::current()) {
  emulation::sync_block(place);
}

// Collectives take whole warps only.
inline void __syncwarp(unsigned mask = emulation::full_warp,
                       emulation::Place place = emulation::Place::current()) {
  if (mask != emulation::full_warp) emulation::fail("__syncwarp", place, "not the whole warp");
  emulation::sync_warp(place);
}

namespace emulation {
template <class T, class Source>
T shuffle(const char* operation, const Place& place, unsigned mask, T value, int width,
          Source source) {
  if (mask != full_warp) fail(operation, place, "not the whole warp");
  if (width < 1 || width > 32 || (width & (width - 1)))
    fail(operation, place, "the width is not a power of two up to 32");
  return exchange(operation, place, value, source);
}
}  // namespace emulation

// Lanes are taken in segments of `width`.
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32,
              emulation::Place place = emulation::Place::current()) {
  return emulation::shuffle("__shfl_sync", place, mask, value, width,
                            [=](int lane) { return (lane & -width) | (from & (width - 1)); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  emulation::Place place = emulation::Place::current()) {
  return emulation::shuffle("__shfl_xor_sync", place, mask, value, width, [=](int lane) {
    const int other = lane ^ lanes;
    return other < (lane & -width) + width ? other : lane;
  });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                   emulation::Place place = emulation::Place::current()) {
  return emulation::shuffle("__shfl_down_sync", place, mask, value, width, [=](int lane) {
    const int other = lane + static_cast<int>(by);
    return other < (lane & -width) + width ? other : lane;
  });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                 emulation::Place place = emulation::Place::current()) {
  return emulation::shuffle("__shfl_up_sync", place, mask, value, width, [=](int lane) {
    const int other = lane - static_cast<int>(by);
    return other >= (lane & -width) ? other : lane;
  });
}

template <class T>
T __ldg(const T* from) {
  return *from;
}

inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
