// From run-time values to constants and checked plans, for the files that dispatch.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <iterator>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "core/filter_sizes.h"
#include "host/launch.h"

namespace depthwise {

inline Plan checked(const Plan& plan, const Shape& shape) {
  if (plan.tiling.items >= 0) return plan;
  std::string text = std::to_string(shape.images);
  for (const int size : {shape.channels, shape.height, shape.width})
    text += "x" + std::to_string(size);
  throw std::invalid_argument("input of shape " + text +
                              " has more tiles in a channel than fit 32 bits");
}

// Calls `launch` with the filter size, made odd, as a constant.
template <class Launch, size_t... I>
cudaError_t with_size(int filter_size, Launch launch, std::index_sequence<I...>) {
  cudaError_t status = cudaErrorInvalidValue;
  const auto matches = [&](auto index) {
    constexpr int size = filter_sizes[decltype(index)::value];
    if constexpr (size % 2 == 1) {
      if (size != odd_size(filter_size)) return false;
      status = launch(std::integral_constant<int, size>());
      return true;
    }
    return false;
  };
  if (!(matches(std::integral_constant<size_t, I>()) || ...))
    throw std::invalid_argument("no kernel for filter size " + std::to_string(filter_size));
  return status;
}
template <class Launch>
cudaError_t with_size(int filter_size, Launch launch) {
  return with_size(filter_size, launch, std::make_index_sequence<std::size(filter_sizes)>());
}

// Calls `launch` with the arguments, in which sums now go to their place: the results themselves, or
// a workspace if there are several shares, which are added afterwards. Either result may be null.
template <class Arguments, class Launch>
cudaError_t sum_shares(Arguments p, int shares, float* weight_gradient, float* bias_gradient,
                       float* workspace, cudaStream_t stream, Launch launch) {
  const ptrdiff_t weights = ptrdiff_t(p.shape.channels) * p.filter_size * p.filter_size;
  const bool several = shares > 1;
  const auto place = [&](float* result, ptrdiff_t offset) {
    return result == nullptr ? nullptr : several ? workspace + offset : result;
  };
  p.weight_sums = place(weight_gradient, 0);
  p.bias_sums = place(bias_gradient, shares * weights);
  cudaError_t status = launch(p);
  if (!several) return status;
  if (status == cudaSuccess && weight_gradient != nullptr)
    status = launch_add_shares(weight_gradient, p.weight_sums, shares, weights, stream);
  if (status == cudaSuccess && bias_gradient != nullptr)
    status = launch_add_shares(bias_gradient, p.bias_sums, shares, p.shape.channels, stream);
  return status;
}

}  // namespace depthwise
