// The entrance to what surrounds a convolution in a network, and to the convolution fused with it; as
// dispatch.h.
#pragma once
#include <cuda_runtime_api.h>

#include "arguments.h"
#include "host/launch_fused.h"
#include "host/plan.h"

namespace depthwise {

cudaError_t fused_forward(const FusedForwardArguments&, Type, const Chip&, cudaStream_t);
cudaError_t fused_forward(const ChannelsLastFusedForwardArguments&, Type, const Chip&,
                          cudaStream_t);

// How many shares the next two sum apart. They take whole planes on 16-byte boundaries.
int whole_plane_shares(const Shape&, int filter_size, Pass, const Chip&);

// The moments [3][channel] of the activation go to `merged`; `p.moments` is room for those of the
// shares.
cudaError_t moments_forward(const MomentsForwardArguments& p, Type, const Chip&, float* merged,
                            cudaStream_t);

// Whether one kernel gives the input gradient and those of weight and bias.
bool backward_gives_weight_gradient(int filter_size);

// The sums go to weight_gradient [channel][size][size], unless null, and bias_gradient [channel];
// `workspace` is room for those of the shares, shares * channels * (size * size + 1) floats.
cudaError_t backward(BackwardArguments, Type, const Chip&, float* weight_gradient,
                     float* bias_gradient, float* workspace, cudaStream_t);

// Passes over values. Floats of one channel in a share: three moments, two sums, one bias gradient.
constexpr int stream_rows(Stream stream) {
  return stream == Stream::moments ? 3 : stream == Stream::sum_gradients ? 2 : 1;
}
int stream_shares(const StreamArguments&, bool channels_last, const Chip&);
// What is summed goes to `merged`; `p.sums` is room for the sums of the shares, or null.
cudaError_t stream(Stream, const StreamArguments& p, Type, bool channels_last, const Chip&,
                   float* merged, cudaStream_t);

cudaError_t normalisation(const NormalisationArguments&, cudaStream_t);

}  // namespace depthwise
