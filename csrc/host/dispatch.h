// From sizes and types that are known at run time to launches. Functions that take splits or give
// gradients throw std::invalid_argument for a shape that is too large or a filter size without kernels.
#pragma once
#include <cuda_runtime_api.h>

#include "arguments.h"
#include "host/large_launch.h"
#include "host/plan.h"

namespace depthwise {

cudaError_t forward(const ForwardArguments&, ElementType, const Chip&, cudaStream_t);
cudaError_t forward(const ChannelsLastForwardArguments&, ElementType, const Chip&, cudaStream_t);

cudaError_t fused_forward(const FusedForwardArguments&, ElementType, const Chip&, cudaStream_t);
cudaError_t fused_forward(const ChannelsLastFusedForwardArguments&, ElementType, const Chip&,
                          cudaStream_t);

// ---- gradients of the filter ----------------------------------------------------------------------
//
// Each split of the items is summed apart. The results are weight_gradient [channel][size][size] and,
// unless null, bias_gradient [channel]. With more than one split, `workspace` is room for the sums of
// all: splits * channels * (size * size + 1) floats.

int weight_gradient_splits(const Shape&, int filter_size, const Chip&);
int channels_last_weight_gradient_splits(const Shape&, int filter_size, const Chip&);
cudaError_t weight_gradient(WeightGradientArguments, ElementType, const Chip&,
                            float* weight_gradient, float* bias_gradient, float* workspace,
                            cudaStream_t);
cudaError_t weight_gradient(ChannelsLastWeightGradientArguments, ElementType, const Chip&,
                            float* weight_gradient, float* bias_gradient, float* workspace,
                            cudaStream_t);

// ---- filters of up to 31 x 31 ----------------------------------------------------------------------

cudaError_t forward(const LargeForwardArguments&, ElementType, const Chip&, cudaStream_t);
int weight_gradient_splits(const Shape&, const LargeFilter&, const Chip&);
cudaError_t weight_gradient(LargeWeightGradientArguments, ElementType, const Chip&,
                            float* weight_gradient, float* bias_gradient, float* workspace,
                            cudaStream_t);

// ---- whole planes on 16-byte boundaries -----------------------------------------------------------

int whole_plane_splits(const Shape&, int filter_size, Pass, const Chip&);

// The moments [3][channel] of the activation go to `merged`; `p.moments` is room for those of the
// splits.
cudaError_t moments_forward(const MomentsForwardArguments& p, ElementType, const Chip&,
                            float* merged, cudaStream_t);

// Tells whether one kernel gives the input gradient and those of weight and bias.
bool backward_gives_weight_gradient(int filter_size);

// The gradients of weight and bias as above; weight_gradient may be null.
cudaError_t backward(BackwardArguments, ElementType, const Chip&, float* weight_gradient,
                     float* bias_gradient, float* workspace, cudaStream_t);

// ---- elementwise passes and statistics ------------------------------------------------------------

int elementwise_splits(const ElementwiseArguments&, bool channels_last, const Chip&);
// The sums of a pass go to `merged`; `p.sums` is room for those of the splits, or null.
cudaError_t elementwise(ElementwisePass, const ElementwiseArguments& p, ElementType,
                        bool channels_last, const Chip&, float* merged, cudaStream_t);

}  // namespace depthwise
