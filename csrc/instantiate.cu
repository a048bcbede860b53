// The launchers of one family with their kernels, for one or two filter sizes. The build compiles this
// file once for each family that is named below and each pair of odd sizes in core/filter_sizes.h,
// with, for example,
//   -DFORWARD -DFIRST_SIZE=7 -DSECOND_SIZE=9
#if defined(FORWARD)
#include "kernels/forward.cuh"
#define INSTANTIATE(size)              \
  LAUNCHER(launch_forward<size>)       \
  LAUNCHER(launch_fused_forward<size>) \
  LAUNCHER(launch_moments_forward<size>)
#elif defined(WEIGHT_GRADIENT)
#include "kernels/weight_gradient.cuh"
#define INSTANTIATE(size) LAUNCHER(launch_weight_gradient<size>)
#elif defined(BACKWARD)
#include "kernels/backward.cuh"
#define INSTANTIATE(size) LAUNCHER(launch_backward<size>)
#elif defined(FORWARD_CHANNELS_LAST)
#include "kernels/forward_channels_last.cuh"
#define INSTANTIATE(size)                      \
  LAUNCHER(launch_forward_channels_last<size>) \
  LAUNCHER(launch_fused_forward_channels_last<size>)
#elif defined(WEIGHT_GRADIENT_CHANNELS_LAST)
#include "kernels/weight_gradient_channels_last.cuh"
#define INSTANTIATE(size) LAUNCHER(launch_weight_gradient_channels_last<size>)
#endif
#define LAUNCHER(name) template decltype(name) name;

namespace depthwise {

INSTANTIATE(FIRST_SIZE)
#ifdef SECOND_SIZE
INSTANTIATE(SECOND_SIZE)
#endif

}  // namespace depthwise
