// The launchers of one family with their kernels, for one or two filter sizes. The build compiles this
// file once for each family named below and each pair of sizes in core/filter_sizes.h, with
//   -DFORWARD -DFIRST_SIZE=7 -DSECOND_SIZE=9
#if defined(FORWARD)
#include "host/launch_fused.cuh"
#define INSTANTIATE(size)                                                                          \
  template cudaError_t launch_forward<size>(const ForwardArguments&, Type, const Plan&,            \
                                            cudaStream_t);                                         \
  template cudaError_t launch_fused_forward<size>(const FusedForwardArguments&, Type, const Plan&, \
                                                  cudaStream_t);                                   \
  template cudaError_t launch_moments_forward<size>(const MomentsForwardArguments&, Type,          \
                                                    const Plan&, cudaStream_t);
#elif defined(WEIGHT_GRADIENT)
#include "host/launch.cuh"
#define INSTANTIATE(size)                                                                 \
  template cudaError_t launch_weight_gradient<size>(const WeightGradientArguments&, Type, \
                                                    const Plan&, cudaStream_t);
#elif defined(BACKWARD)
#include "host/launch_fused.cuh"
#define INSTANTIATE(size)                                                                 \
  template cudaError_t launch_backward<size>(const BackwardArguments&, Type, const Plan&, \
                                             cudaStream_t);
#elif defined(FORWARD_CHANNELS_LAST)
#include "host/launch_fused_channels_last.cuh"
#define INSTANTIATE(size)                                                                      \
  template cudaError_t launch_forward_channels_last<size>(const ChannelsLastForwardArguments&, \
                                                          Type, const Plan&, cudaStream_t);    \
  template cudaError_t launch_fused_forward_channels_last<size>(                               \
      const ChannelsLastFusedForwardArguments&, Type, const Plan&, cudaStream_t);
#elif defined(WEIGHT_GRADIENT_CHANNELS_LAST)
#include "host/launch_channels_last.cuh"
#define INSTANTIATE(size)                                          \
  template cudaError_t launch_weight_gradient_channels_last<size>( \
      const ChannelsLastWeightGradientArguments&, Type, const Plan&, cudaStream_t);
#endif

namespace depthwise {

INSTANTIATE(FIRST_SIZE)
#ifdef SECOND_SIZE
INSTANTIATE(SECOND_SIZE)
#endif

}  // namespace depthwise
