// The launchers that dispatch.cpp calls. Those for one filter size are defined beside their kernels, in
// kernels/*.cuh, and compiled by instantiate.cu.
#pragma once
#include <cuda_runtime_api.h>

#include "arguments.h"
#include "host/elementwise_plan.h"
#include "host/plan.h"

namespace depthwise {

template <int Size>
cudaError_t launch_forward(const ForwardArguments&, ElementType, const Plan&, cudaStream_t);

template <int Size>
cudaError_t launch_fused_forward(const FusedForwardArguments&, ElementType, const Plan&,
                                 cudaStream_t);

template <int Size>
cudaError_t launch_weight_gradient(const WeightGradientArguments&, ElementType, const Plan&,
                                   cudaStream_t);

// These two take whole planes with everything on 16-byte boundaries: cudaErrorInvalidValue otherwise.
template <int Size>
cudaError_t launch_moments_forward(const MomentsForwardArguments&, ElementType, const Plan&,
                                   cudaStream_t);
template <int Size>
cudaError_t launch_backward(const BackwardArguments&, ElementType, const Plan&, cudaStream_t);

// Those for channels-last tensors take a plan of channels_last_plan.
template <int Size>
cudaError_t launch_forward_channels_last(const ChannelsLastForwardArguments&, ElementType,
                                         const Plan&, cudaStream_t);
template <int Size>
cudaError_t launch_fused_forward_channels_last(const ChannelsLastFusedForwardArguments&,
                                               ElementType, const Plan&, cudaStream_t);
template <int Size>
cudaError_t launch_weight_gradient_channels_last(const ChannelsLastWeightGradientArguments&,
                                                 ElementType, const Plan&, cudaStream_t);

// sums[i] = partial_sums[0][i] + partial_sums[1][i] + ..., in this order.
cudaError_t launch_add_splits(float* sums, const float* partial_sums, int splits,
                              ptrdiff_t elements, cudaStream_t);

cudaError_t launch_elementwise(ElementwisePass, const ElementwiseArguments&, ElementType,
                               bool channels_last, const ElementwisePlan&, cudaStream_t);

// Merges [parts][3][channel] to [3][channel].
cudaError_t launch_merge_moments(const float* moments, int parts, int channels, float* merged,
                                 cudaStream_t);

// Makes a normalisation of moments or, where these are null, of the running statistics.
cudaError_t launch_normalisation(const NormalisationArguments&, cudaStream_t);

// Says whether the current device and its driver take the kernels of this build.
cudaError_t find_kernels();

}  // namespace depthwise
