#include "host/dispatch.h"

#include "host/size_dispatch.h"

namespace depthwise {

cudaError_t forward(const ForwardArguments& p, Type type, const Chip& chip, cudaStream_t stream) {
  const Plan chosen = checked(plan(p.shape, p.filter_size, Pass::forward, chip), p.shape);
  return with_size(p.filter_size, [&](auto size) {
    return launch_forward<decltype(size)::value>(p, type, chosen, stream);
  });
}

int weight_gradient_shares(const Shape& shape, int filter_size, const Chip& chip) {
  return checked(plan(shape, filter_size, Pass::weight_gradient, chip), shape).shares;
}

cudaError_t weight_gradient(WeightGradientArguments p, Type type, const Chip& chip,
                            float* weight_gradient, float* bias_gradient, float* workspace,
                            cudaStream_t stream) {
  const Plan chosen = checked(plan(p.shape, p.filter_size, Pass::weight_gradient, chip), p.shape);
  const auto launch = [&](const WeightGradientArguments& arguments) {
    return with_size(p.filter_size, [&](auto size) {
      return launch_weight_gradient<decltype(size)::value>(arguments, type, chosen, stream);
    });
  };
  return sum_shares(p, chosen.shares, weight_gradient, bias_gradient, workspace, stream, launch);
}

cudaError_t forward(const ChannelsLastForwardArguments& p, Type type, const Chip& chip,
                    cudaStream_t stream) {
  const Plan chosen =
      checked(channels_last_plan(p.shape, p.filter_size, Pass::forward, chip), p.shape);
  return with_size(p.filter_size, [&](auto size) {
    return launch_forward_channels_last<decltype(size)::value>(p, type, chosen, stream);
  });
}

int channels_last_weight_gradient_shares(const Shape& shape, int filter_size, const Chip& chip) {
  const Plan chosen =
      checked(channels_last_plan(shape, filter_size, Pass::weight_gradient, chip), shape);
  return chosen.shares * sections(chosen.tiling);
}

cudaError_t weight_gradient(ChannelsLastWeightGradientArguments p, Type type, const Chip& chip,
                            float* weight_gradient, float* bias_gradient, float* workspace,
                            cudaStream_t stream) {
  const Plan chosen =
      checked(channels_last_plan(p.shape, p.filter_size, Pass::weight_gradient, chip), p.shape);
  const auto launch = [&](const ChannelsLastWeightGradientArguments& arguments) {
    return with_size(p.filter_size, [&](auto size) {
      return launch_weight_gradient_channels_last<decltype(size)::value>(arguments, type, chosen,
                                                                         stream);
    });
  };
  const int shares = chosen.shares * sections(chosen.tiling);
  return sum_shares(p, shares, weight_gradient, bias_gradient, workspace, stream, launch);
}

}  // namespace depthwise
