// The gradient of a convolution's value, from the gradient of activation and normalisation that follow.
#pragma once
#include "core/activation.cuh"

namespace depthwise {

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
