// The entrance for callers that know only run-time values: from sizes and a type to a launch.
#pragma once
#include <cuda_runtime_api.h>

#include "arguments.h"
#include "host/plan.h"

namespace depthwise {

// Whether the current device and its driver take the kernels of this build.
cudaError_t find_kernels();

cudaError_t forward(const ForwardArguments&, Type, const Chip&, cudaStream_t);

// How many shares of the items weight_gradient sums apart. With more than one it needs room for the
// sums of each, shares * channels * (size * size + 1) floats. Throws std::invalid_argument where the
// shape is too large.
int weight_gradient_shares(const Shape&, int filter_size, const Chip&);

// The results are weight_gradient [channel][size][size] and, unless null, bias_gradient [channel].
cudaError_t weight_gradient(WeightGradientArguments, Type, const Chip&, float* weight_gradient,
                            float* bias_gradient, float* workspace, cudaStream_t);

// The same for channels-last tensors.
cudaError_t forward(const ChannelsLastForwardArguments&, Type, const Chip&, cudaStream_t);
int channels_last_weight_gradient_shares(const Shape&, int filter_size, const Chip&);
cudaError_t weight_gradient(ChannelsLastWeightGradientArguments, Type, const Chip&,
                            float* weight_gradient, float* bias_gradient, float* workspace,
                            cudaStream_t);

}  // namespace depthwise
