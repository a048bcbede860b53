// What dispatch_fused.cpp calls; as launch.h.
#pragma once
#include <cuda_runtime_api.h>

#include "arguments.h"
#include "host/elementwise_plan.h"

namespace depthwise {

template <int Size>
cudaError_t launch_fused_forward(const FusedForwardArguments&, Type, const Plan&, cudaStream_t);

template <int Size>
cudaError_t launch_fused_forward_channels_last(const ChannelsLastFusedForwardArguments&, Type,
                                               const Plan&, cudaStream_t);

// These two take whole planes with everything on 16-byte boundaries: cudaErrorInvalidValue otherwise.
template <int Size>
cudaError_t launch_moments_forward(const MomentsForwardArguments&, Type, const Plan&, cudaStream_t);

template <int Size>
cudaError_t launch_backward(const BackwardArguments&, Type, const Plan&, cudaStream_t);

// Passes over values.
enum class Stream { moments, normalise, sum_gradients, value_gradient };

cudaError_t launch_stream(Stream, const StreamArguments&, Type, bool channels_last,
                          const StreamPlan&, cudaStream_t);

// [parts][3][channel] to [3][channel].
cudaError_t launch_merge_moments(const float* moments, int parts, int channels, float* merged,
                                 cudaStream_t);

// From moments or, where these are null, from the running statistics.
cudaError_t launch_normalisation(const NormalisationArguments&, cudaStream_t);

}  // namespace depthwise
