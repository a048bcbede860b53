// The gradient of a convolution's value, from the gradient of activation and normalisation that follow.
#pragma once
#include "core/activation.cuh"

namespace depthwise {

// The coefficients for one channel. With z = (a - mean) scale + shift, a = activation(value), and
// statistics that depend on all values, the gradient of a value is
//   activation'(value) (of_gradient * gradient of z + of_deviation (a - mean) + constant).
// The last two terms flow through variance and mean; an infinite count (running statistics) makes them
// vanish.
struct GradientOfValue {
  float mean, of_gradient, of_deviation, constant;

  GradientOfValue() = default;

  // gradient_sums: [2][channel], over all values of a channel in all processes.
  __device__ __forceinline__ GradientOfValue(const Normalisation& normalisation,
                                             const float* gradient_sums, int channel,
                                             float reciprocal_count) {
    const float rstd = __ldg(normalisation.rstd() + channel);
    mean = __ldg(normalisation.mean() + channel);
    of_gradient = __ldg(normalisation.scale() + channel);
    constant = -of_gradient * __ldg(gradient_sums + channel) * reciprocal_count;
    of_deviation = -of_gradient * rstd * rstd *
                   (__ldg(gradient_sums + normalisation.channels + channel) * reciprocal_count);
  }

  template <class Activate>
  __device__ __forceinline__ float operator()(Activate activate, float value,
                                              float gradient) const {
    const Slope of = activate.with_slope(value, mean);
    return of.slope * fmaf(of_gradient, gradient, fmaf(of_deviation, of.value, constant));
  }
};

}  // namespace depthwise
