#include "host/dispatch_fused.h"

#include "host/size_dispatch.h"

namespace depthwise {
namespace {

template <class Layout>
void check_added(const FusedForwardArgumentsOf<Layout>& p) {
  if (p.added &&
      (p.bias || p.normalisation.rows || p.residual || p.activation != Activation::identity))
    throw std::invalid_argument(
        "a tensor is added to a convolution alone: no bias, activation, normalisation or residual");
}

}  // namespace

cudaError_t fused_forward(const FusedForwardArguments& p, Type type, const Chip& chip,
                          cudaStream_t stream) {
  check_added(p);
  const Plan chosen = checked(plan(p.shape, p.filter_size, Pass::forward, chip), p.shape);
  return with_size(p.filter_size, [&](auto size) {
    return launch_fused_forward<decltype(size)::value>(p, type, chosen, stream);
  });
}

cudaError_t fused_forward(const ChannelsLastFusedForwardArguments& p, Type type, const Chip& chip,
                          cudaStream_t stream) {
  check_added(p);
  const Plan chosen =
      checked(channels_last_plan(p.shape, p.filter_size, Pass::forward, chip), p.shape);
  return with_size(p.filter_size, [&](auto size) {
    return launch_fused_forward_channels_last<decltype(size)::value>(p, type, chosen, stream);
  });
}

int whole_plane_shares(const Shape& shape, int filter_size, Pass pass, const Chip& chip) {
  return checked(plan(shape, filter_size, pass, chip), shape).shares;
}

cudaError_t moments_forward(const MomentsForwardArguments& p, Type type, const Chip& chip,
                            float* merged, cudaStream_t stream) {
  const Plan chosen = checked(plan(p.shape, p.filter_size, Pass::forward, chip), p.shape);
  const cudaError_t status = with_size(p.filter_size, [&](auto size) {
    return launch_moments_forward<decltype(size)::value>(p, type, chosen, stream);
  });
  if (status != cudaSuccess) return status;
  return launch_merge_moments(p.moments, chosen.shares, p.shape.channels, merged, stream);
}

bool backward_gives_weight_gradient(int filter_size) {
  return backward_with_weight(odd_size(filter_size));
}

cudaError_t backward(BackwardArguments p, Type type, const Chip& chip, float* weight_gradient,
                     float* bias_gradient, float* workspace, cudaStream_t stream) {
  const Plan chosen = checked(plan(p.shape, p.filter_size, Pass::backward, chip), p.shape);
  const auto launch = [&](const BackwardArguments& arguments) {
    return with_size(p.filter_size, [&](auto size) {
      return launch_backward<decltype(size)::value>(arguments, type, chosen, stream);
    });
  };
  return sum_shares(p, chosen.shares, weight_gradient, bias_gradient, workspace, stream, launch);
}

int stream_shares(const StreamArguments& p, bool channels_last, const Chip& chip) {
  return stream_plan(p, channels_last, chip).shares;
}

cudaError_t stream(Stream which, const StreamArguments& p, Type type, bool channels_last,
                   const Chip& chip, float* merged, cudaStream_t stream) {
  const StreamPlan plan = stream_plan(p, channels_last, chip);
  const cudaError_t status = launch_stream(which, p, type, channels_last, plan, stream);
  if (status != cudaSuccess || p.sums == nullptr) return status;
  if (which == Stream::moments)
    return launch_merge_moments(p.sums, plan.shares, p.channels, merged, stream);
  return launch_add_shares(merged, p.sums, plan.shares, ptrdiff_t(p.channels) * stream_rows(which),
                           stream);
}

cudaError_t normalisation(const NormalisationArguments& p, cudaStream_t stream) {
  return launch_normalisation(p, stream);
}

}  // namespace depthwise
