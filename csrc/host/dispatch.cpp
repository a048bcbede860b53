#include "host/dispatch.h"

#include <cstddef>
#include <iterator>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "core/filter_sizes.h"
#include "host/launch.h"

namespace depthwise {
namespace {

Plan checked(const Plan& plan, const Shape& shape) {
  if (plan.tiling.items >= 0) return plan;
  std::string text = std::to_string(shape.images);
  for (const int size : {shape.channels, shape.height, shape.width})
    text += "x" + std::to_string(size);
  throw std::invalid_argument("input of shape " + text +
                              " has more tiles in a channel than fit 32 bits");
}

template <class AnyStrides>
void check_added(const FusedForwardArgumentsOf<AnyStrides>& p) {
  if (p.added &&
      (p.bias || p.normalisation.rows || p.residual || p.activation != Activation::identity))
    throw std::invalid_argument(
        "a tensor is added to a convolution alone: no bias, activation, normalisation or residual");
}

// Calls `launch` with the odd size that serves a filter size, as a constant.
template <class Launch, size_t... I>
cudaError_t with_size(int filter_size, Launch launch, std::index_sequence<I...>) {
  cudaError_t status = cudaErrorInvalidValue;
  const auto matches = [&](auto index) {
    constexpr int size = filter_sizes[index];
    if (size != filter_size) return false;
    status = launch(std::integral_constant<int, odd_size(size)>());
    return true;
  };
  if (!(matches(std::integral_constant<size_t, I>()) || ...))
    throw std::invalid_argument("no kernel for filter size " + std::to_string(filter_size));
  return status;
}
template <class Launch>
cudaError_t with_size(int filter_size, Launch launch) {
  return with_size(filter_size, launch, std::make_index_sequence<std::size(filter_sizes)>());
}

// The taps of a filter of one channel.
template <class Arguments>
int taps(const Arguments& p) {
  if constexpr (requires { p.filter; }) return p.filter.taps();
  else return p.filter_size * p.filter_size;
}

// Calls `launch` with the arguments and the target of its sums: the results themselves or, for several
// splits, the workspace, whose sums are then added. Either result may be null.
template <class Arguments, class Launch>
cudaError_t sum_splits(Arguments p, int splits, float* weight_gradient, float* bias_gradient,
                       float* workspace, cudaStream_t stream, Launch launch) {
  const ptrdiff_t weights = ptrdiff_t(p.shape.channels) * taps(p);
  const bool several = splits > 1;
  const auto target = [&](float* result, ptrdiff_t offset) {
    return result == nullptr ? nullptr : several ? workspace + offset : result;
  };
  p.weight_sums = target(weight_gradient, 0);
  p.bias_sums = target(bias_gradient, splits * weights);
  cudaError_t status = launch(p);
  if (!several) return status;
  if (status == cudaSuccess && weight_gradient != nullptr)
    status = launch_add_splits(weight_gradient, p.weight_sums, splits, weights, stream);
  if (status == cudaSuccess && bias_gradient != nullptr)
    status = launch_add_splits(bias_gradient, p.bias_sums, splits, p.shape.channels, stream);
  return status;
}

// Floats of one channel that a pass sums in a split: three moments, two sums, one bias gradient.
constexpr int summed_rows(ElementwisePass pass) {
  return pass == ElementwisePass::moments ? 3 : pass == ElementwisePass::sum_gradients ? 2 : 1;
}

}  // namespace

// ---- forward -------------------------------------------------------------------------------------

cudaError_t forward(const ForwardArguments& p, ElementType type, const Chip& chip,
                    cudaStream_t stream) {
  const Plan chosen = checked(plan(p.shape, p.filter_size, Pass::forward, chip), p.shape);
  return with_size(p.filter_size,
                   [&](auto size) { return launch_forward<size>(p, type, chosen, stream); });
}

cudaError_t forward(const ChannelsLastForwardArguments& p, ElementType type, const Chip& chip,
                    cudaStream_t stream) {
  const Plan chosen =
      checked(channels_last_plan(p.shape, p.filter_size, Pass::forward, chip), p.shape);
  return with_size(p.filter_size, [&](auto size) {
    return launch_forward_channels_last<size>(p, type, chosen, stream);
  });
}

cudaError_t fused_forward(const FusedForwardArguments& p, ElementType type, const Chip& chip,
                          cudaStream_t stream) {
  check_added(p);
  const Plan chosen = checked(plan(p.shape, p.filter_size, Pass::forward, chip), p.shape);
  return with_size(p.filter_size,
                   [&](auto size) { return launch_fused_forward<size>(p, type, chosen, stream); });
}

cudaError_t fused_forward(const ChannelsLastFusedForwardArguments& p, ElementType type,
                          const Chip& chip, cudaStream_t stream) {
  check_added(p);
  const Plan chosen =
      checked(channels_last_plan(p.shape, p.filter_size, Pass::forward, chip), p.shape);
  return with_size(p.filter_size, [&](auto size) {
    return launch_fused_forward_channels_last<size>(p, type, chosen, stream);
  });
}

// ---- gradients of the filter ---------------------------------------------------------------------

int weight_gradient_splits(const Shape& shape, int filter_size, const Chip& chip) {
  return checked(plan(shape, filter_size, Pass::weight_gradient, chip), shape).splits;
}

cudaError_t weight_gradient(WeightGradientArguments p, ElementType type, const Chip& chip,
                            float* weight_gradient, float* bias_gradient, float* workspace,
                            cudaStream_t stream) {
  const Plan chosen = checked(plan(p.shape, p.filter_size, Pass::weight_gradient, chip), p.shape);
  const auto launch = [&](const WeightGradientArguments& arguments) {
    return with_size(p.filter_size, [&](auto size) {
      return launch_weight_gradient<size>(arguments, type, chosen, stream);
    });
  };
  return sum_splits(p, chosen.splits, weight_gradient, bias_gradient, workspace, stream, launch);
}

int channels_last_weight_gradient_splits(const Shape& shape, int filter_size, const Chip& chip) {
  const Plan chosen =
      checked(channels_last_plan(shape, filter_size, Pass::weight_gradient, chip), shape);
  return chosen.splits * sections(chosen.tiling);
}

cudaError_t weight_gradient(ChannelsLastWeightGradientArguments p, ElementType type,
                            const Chip& chip, float* weight_gradient, float* bias_gradient,
                            float* workspace, cudaStream_t stream) {
  const Plan chosen =
      checked(channels_last_plan(p.shape, p.filter_size, Pass::weight_gradient, chip), p.shape);
  const auto launch = [&](const ChannelsLastWeightGradientArguments& arguments) {
    return with_size(p.filter_size, [&](auto size) {
      return launch_weight_gradient_channels_last<size>(arguments, type, chosen, stream);
    });
  };
  const int splits = chosen.splits * sections(chosen.tiling);
  return sum_splits(p, splits, weight_gradient, bias_gradient, workspace, stream, launch);
}

// ---- filters of up to 31 x 31 ----------------------------------------------------------------------

cudaError_t forward(const LargeForwardArguments& p, ElementType type, const Chip& chip,
                    cudaStream_t stream) {
  const Plan chosen = checked(large_plan(p.shape, p.filter, Pass::forward, chip), p.shape);
  return launch_forward_large(p, type, chosen, stream);
}

int weight_gradient_splits(const Shape& shape, const LargeFilter& filter, const Chip& chip) {
  return checked(large_plan(shape, filter, Pass::weight_gradient, chip), shape).splits;
}

cudaError_t weight_gradient(LargeWeightGradientArguments p, ElementType type, const Chip& chip,
                            float* weight_gradient, float* bias_gradient, float* workspace,
                            cudaStream_t stream) {
  const Plan chosen = checked(large_plan(p.shape, p.filter, Pass::weight_gradient, chip), p.shape);
  const auto launch = [&](const LargeWeightGradientArguments& arguments) {
    return launch_weight_gradient_large(arguments, type, chosen, stream);
  };
  return sum_splits(p, chosen.splits, weight_gradient, bias_gradient, workspace, stream, launch);
}

// ---- whole planes --------------------------------------------------------------------------------

int whole_plane_splits(const Shape& shape, int filter_size, Pass pass, const Chip& chip) {
  return checked(plan(shape, filter_size, pass, chip), shape).splits;
}

cudaError_t moments_forward(const MomentsForwardArguments& p, ElementType type, const Chip& chip,
                            float* merged, cudaStream_t stream) {
  const Plan chosen = checked(plan(p.shape, p.filter_size, Pass::forward, chip), p.shape);
  const cudaError_t status = with_size(p.filter_size, [&](auto size) {
    return launch_moments_forward<size>(p, type, chosen, stream);
  });
  if (status != cudaSuccess) return status;
  return launch_merge_moments(p.moments, chosen.splits, p.shape.channels, merged, stream);
}

bool backward_gives_weight_gradient(int filter_size) {
  return backward_with_weight(odd_size(filter_size));
}

cudaError_t backward(BackwardArguments p, ElementType type, const Chip& chip,
                     float* weight_gradient, float* bias_gradient, float* workspace,
                     cudaStream_t stream) {
  const Plan chosen = checked(plan(p.shape, p.filter_size, Pass::backward, chip), p.shape);
  const auto launch = [&](const BackwardArguments& arguments) {
    return with_size(p.filter_size, [&](auto size) {
      return launch_backward<size>(arguments, type, chosen, stream);
    });
  };
  return sum_splits(p, chosen.splits, weight_gradient, bias_gradient, workspace, stream, launch);
}

// ---- elementwise passes --------------------------------------------------------------------------

int elementwise_splits(const ElementwiseArguments& p, bool channels_last, const Chip& chip) {
  return elementwise_plan(p, channels_last, chip).splits;
}

cudaError_t elementwise(ElementwisePass pass, const ElementwiseArguments& p, ElementType type,
                        bool channels_last, const Chip& chip, float* merged, cudaStream_t stream) {
  const ElementwisePlan plan = elementwise_plan(p, channels_last, chip);
  const cudaError_t status = launch_elementwise(pass, p, type, channels_last, plan, stream);
  if (status != cudaSuccess || p.sums == nullptr) return status;
  if (pass == ElementwisePass::moments)
    return launch_merge_moments(p.sums, plan.splits, p.channels, merged, stream);
  return launch_add_splits(merged, p.sums, plan.splits, ptrdiff_t(p.channels) * summed_rows(pass),
                           stream);
}

}  // namespace depthwise
