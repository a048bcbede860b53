// Activations with their derivatives, the moments that a normalisation is made of, and the gradient through
// both.
#pragma once
#include "arguments.h"
#include "core/device.h"

namespace depthwise {

// ---- activations ---------------------------------------------------------------------------------
//
// `minus` subtracts a pivot, with which statistics begin. NaN stays NaN, as in PyTorch.

struct Slope {
  float value;  // activation(x)
  float slope;  // activation'(x)
};

// x Phi(x) = max(x, 0) - |x| Phi(-|x|): nothing cancels, and there is no division. In the lower tail,
// log2 Phi(-t) is nearly a parabola. The polynomial was fitted on [0, 5.8] by the largest error in
// units in the last place of a half: GELU is off by 0.01 of them at most, and by 1e-6. It takes one
// instruction of the special function unit, which starts half a warp a clock, against four warps of
// other instructions; erff takes 27 to 32 instructions.
struct Gelu {
  // Phi(-t), 0 <= t <= 8.
  __device__ __forceinline__ static float tail(float t) {
    float p = 3.29974318e-5f;
    p = fmaf(p, t, -7.55244924e-4f);
    p = fmaf(p, t, 7.97384232e-3f);
    p = fmaf(p, t, -5.31199835e-2f);
    p = fmaf(p, t, -4.59100664e-1f);
    p = fmaf(p, t, -1.15106654f);
    p = fmaf(p, t, -1.00000536f);
    return device::exp2(p);
  }
  // The tail is zero beyond 8; without a limit, infinity times 0 would be NaN.
  __device__ __forceinline__ static float limited(float x) { return fminf(fabsf(x), 8.f); }

  __device__ __forceinline__ static float of(float x) {
    const float t = limited(x);
    return fmaf(-t, tail(t), device::maximum(x, 0.f));
  }
  __device__ __forceinline__ static float minus(float x, float pivot) {
    const float t = limited(x);
    return fmaf(-t, tail(t), device::maximum(x, 0.f) - pivot);
  }
  // The slope is Phi(x) + x phi(x), phi(x) = 2^(-log2(e) / 2 x^2 - log2(2 pi) / 2).
  __device__ __forceinline__ static Slope with_slope(float x) {
    const float below = device::one_minus_if_positive(x, tail(limited(x)));  // Phi(x)
    const float phi = device::exp2(fmaf(x * x, -0.721347520f, -1.32574806f));
    return {x * below, fmaf(x, phi, below)};
  }
};

// max(x, floor): ReLU with floor 0, the identity with floor -infinity. One type for both, so that kernels
// hold their epilogue twice instead of three times.
struct Floor {
  float floor;

  __device__ __forceinline__ float of(float x) const { return device::maximum(x, floor); }
  __device__ __forceinline__ float minus(float x, float pivot) const {
    return device::maximum(x, floor) - pivot;
  }
  __device__ __forceinline__ Slope with_slope(float x) const {
    return {of(x), x > floor ? 1.f : 0.f};
  }
};

// Calls `run` with the activation as an object: one branch around a loop instead of one in it.
template <class Run>
__device__ __forceinline__ void with_activation(Activation activation, Run run) {
  if (activation == Activation::gelu) run(Gelu());
  else run(Floor{activation == Activation::relu ? 0.f : -INFINITY});
}

// ---- statistics ----------------------------------------------------------------------------------

// Count, mean and sum of squared deviations of a set of numbers, without differences of large sums.
// Merging follows Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
// sample variances" (1979), equation 1.5.
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

// ---- gradient of a convolution's value ------------------------------------------------------------

// The coefficients for one channel. With z = (a - mean) scale + shift, a = activation(value), and
// statistics that depend on all values, the gradient of a value is
//   activation'(value) (of_gradient * gradient of z + of_value a + constant).
// The gradient through the variance is of_value (a - mean), and that through the mean is a constant. Both
// constants are added up once, in `constant`, which saves an instruction a value. The error is 2^-24 of the
// mean, below the 2^-12 or more to which the values themselves are rounded. With running statistics the
// count is infinite, and of_value and constant are zero.
struct GradientOfValue {
  float of_gradient, of_value, constant;

  GradientOfValue() = default;

  // gradient_sums: [2][channel], over all values of a channel in all processes.
  __device__ __forceinline__ GradientOfValue(const Normalisation& normalisation,
                                             const float* gradient_sums, int channel,
                                             float reciprocal_count) {
    const float rstd = __ldg(normalisation.rstd() + channel);
    of_gradient = __ldg(normalisation.scale() + channel);
    of_value = -of_gradient * rstd * rstd *
               (__ldg(gradient_sums + normalisation.channels + channel) * reciprocal_count);
    constant = fmaf(-of_value, __ldg(normalisation.mean() + channel),
                    -of_gradient * __ldg(gradient_sums + channel) * reciprocal_count);
  }

  template <class Activate>
  __device__ __forceinline__ float operator()(Activate activate, float value,
                                              float gradient) const {
    const Slope of = activate.with_slope(value);
    return of.slope * fmaf(of_gradient, gradient, fmaf(of_value, of.value, constant));
  }
};

}  // namespace depthwise
