// How the gradient of a convolution's value follows from that of what came of it.
#pragma once
#include "core/activation.cuh"

namespace depthwise {

// For one channel: with z = (a - mean) scale + shift, a = activation(value), and the statistics a
// function of all values, the gradient of a value is
//   activation'(value) (scale grad + of_value (a - mean) + constant).
// The last two terms are what flows through variance and mean; an infinite count (running
// statistics) makes them vanish.
struct GradientOfValue {
  float mean, of_gradient, of_value, constant;

  GradientOfValue() = default;

  // gradient_sums: [2][channel] over all values of a channel, of all processes; `each` is 1 / count.
  __device__ __forceinline__ GradientOfValue(const Normalisation& normalisation,
                                             const float* gradient_sums, int channel, float each) {
    const float rstd = __ldg(normalisation.rstd() + channel);
    mean = __ldg(normalisation.mean() + channel);
    of_gradient = __ldg(normalisation.scale() + channel);
    constant = -of_gradient * __ldg(gradient_sums + channel) * each;
    of_value = -of_gradient * rstd * rstd *
               (__ldg(gradient_sums + normalisation.channels + channel) * each);
  }

  template <class Activate>
  __device__ __forceinline__ float operator()(Activate, float value, float gradient) const {
    const Slope of = Activate::with_slope(value, mean);
    return of.slope * fmaf(of_gradient, gradient, fmaf(of_value, of.less, constant));
  }
};

}  // namespace depthwise
