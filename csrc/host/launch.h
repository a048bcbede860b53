// What dispatch.cpp calls: one function a filter size and role, each compiled in a file of its own.
#pragma once
#include <cuda_runtime_api.h>

#include "arguments.h"
#include "host/plan.h"

namespace depthwise {

template <int Size>
cudaError_t launch_forward(const ForwardArguments&, Type, const Plan&, cudaStream_t);

template <int Size>
cudaError_t launch_weight_gradient(const WeightGradientArguments&, Type, const Plan&, cudaStream_t);

// The same for channels-last tensors, with a plan of channels_last_plan.
template <int Size>
cudaError_t launch_forward_channels_last(const ChannelsLastForwardArguments&, Type, const Plan&,
                                         cudaStream_t);

template <int Size>
cudaError_t launch_weight_gradient_channels_last(const ChannelsLastWeightGradientArguments&, Type,
                                                 const Plan&, cudaStream_t);

// sums[i] = shares[0][i] + shares[1][i] + ..., in this order.
cudaError_t launch_add_shares(float* sums, const float* shares, int share_count, ptrdiff_t elements,
                              cudaStream_t);

}  // namespace depthwise
