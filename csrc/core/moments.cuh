// Count, mean and sum of squared deviations of a set of numbers, without differences of large sums.
// Merging follows Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
// sample variances" (1979), equation 1.5.
#pragma once
#include "core/device.h"

namespace depthwise {

struct Moments {
  float count = 0, mean = 0, squares = 0;

  // Adds `more` numbers, given the sums of their differences from `pivot` and of the squares of these.
  // The pivot is the mean so far or, for the first numbers, any number close to them.
  __device__ __forceinline__ void add(float more, float pivot, float sum, float sum_of_squares) {
    if (more == 0) return;
    count += more;
    const float step = sum * device::reciprocal(count);
    squares += fmaf(-sum, step, sum_of_squares);
    mean = pivot + step;
  }

  __device__ __forceinline__ void merge(const Moments& other) {
    const float total = count + other.count, apart = other.mean - mean;
    // This is exactly 1 if `this` is empty, so that the mean of the other is taken over as it is, and 0
    // if both are.
    const float part = count == 0 ? fminf(total, 1) : other.count * device::reciprocal(total);
    mean = fmaf(apart, part, mean);
    squares += fmaf(apart * apart, count * part, other.squares);
    count = total;
  }

  // Merges all lanes of a warp, always in the same order.
  __device__ __forceinline__ void merge_lanes() {
#pragma unroll
    for (int by = 16; by > 0; by /= 2)
      merge({__shfl_xor_sync(~0u, count, by), __shfl_xor_sync(~0u, mean, by),
             __shfl_xor_sync(~0u, squares, by)});
  }

  // Both take the address of a channel in a tensor [3][channels].
  __device__ __forceinline__ void write(float* to, ptrdiff_t channels) const {
    to[0] = count, to[channels] = mean, to[2 * channels] = squares;
  }
  __device__ __forceinline__ static Moments read(const float* from, ptrdiff_t channels) {
    return {from[0], from[channels], from[2 * channels]};
  }
};

}  // namespace depthwise
