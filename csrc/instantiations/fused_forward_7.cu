#include "../launch_fused.cuh"

namespace depthwise {

template cudaError_t launch_fused_forward<7>(const FusedForwardArguments&, Type, const Plan&,
                                             cudaStream_t);
template cudaError_t launch_moments_forward<7>(const MomentsForwardArguments&, Type, const Plan&,
                                               cudaStream_t);

}  // namespace depthwise
