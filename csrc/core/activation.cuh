// Activations and their derivatives. `minus` subtracts a pivot, with which statistics begin. NaN stays
// NaN, as in PyTorch.
#pragma once
#include "arguments.h"
#include "core/device.h"

namespace depthwise {

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

}  // namespace depthwise
