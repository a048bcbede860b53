// The passes of the package. Each plans its work, finds its kernels and launches them; callers have
// allocated what these read and write. A pass that cannot run throws std::invalid_argument, and
// std::runtime_error if CUDA refuses a launch.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "arguments.h"
#include "host/layouts.h"
#include "host/plan.h"

namespace depthwise {

// The GPU and its stream that a pass runs on, and the type of its images.
struct Target {
  int device;
  cudaStream_t stream;
  ElementType type;
  Chip chip;
};

// Gives the reason why a device does not take the kernels, or an empty text if it does.
std::string refusal(int device);

// Throws std::invalid_argument for an input of this shape, which has more of something than can be.
[[noreturn]] void refuse(const Shape&, const std::string& has_more);

// ---- forward pass and input gradient -------------------------------------------------------------

void forward(const Target&, const ForwardArguments&);
void forward(const Target&, const ChannelsLastForwardArguments&);
void forward(const Target&, const FusedForwardArguments&);
void forward(const Target&, const ChannelsLastFusedForwardArguments&);
void forward(const Target&, const LargeForwardArguments&);

// The moments of the activation in `splits` parts of the images go to the arguments, merged to `merged`.
int splits(const Target&, const MomentsForwardArguments&);
void forward(const Target&, const MomentsForwardArguments&, float* merged);

// ---- gradients of the filter ---------------------------------------------------------------------

// The results, [channel][size][size] and [channel], either of which may be null. Several splits are
// summed apart, in a workspace of `workspace_floats`, and then added up.
struct FilterGradient {
  float *weight, *bias, *workspace;
  void* rounded;  // in place of `weight`, in the type of the images, or null; takes a workspace
};

int splits(const Target&, const WeightGradientArguments&);
int splits(const Target&, const ChannelsLastWeightGradientArguments&);
int splits(const Target&, const LargeWeightGradientArguments&);
int splits(const Target&, const BackwardArguments&);

// Room for the sums of filters of so many taps, and of biases.
constexpr ptrdiff_t workspace_floats(int splits, int channels, int taps, bool rounded) {
  return splits > 1 || rounded ? ptrdiff_t(splits) * channels * (taps + 1) : 0;
}

void weight_gradient(const Target&, WeightGradientArguments, const FilterGradient&);
void weight_gradient(const Target&, ChannelsLastWeightGradientArguments, const FilterGradient&);
void weight_gradient(const Target&, LargeWeightGradientArguments, const FilterGradient&);

// Of whole planes on 16-byte boundaries, which have a weight gradient if `backward_with_weight`.
void backward(const Target&, BackwardArguments, const FilterGradient&);

// ---- elementwise passes and statistics -----------------------------------------------------------

// Floats of one channel that a pass sums: three moments, two sums, one bias gradient.
constexpr int summed_rows(ElementwisePass pass) {
  constexpr int rows[] = {3, 0, 2, 1};
  return rows[int(pass)];
}

// Sets the sizes of a pass over an image: it counts images as the outer index of planes, and pixels as
// that of channels-last tensors.
void set_sizes(ElementwiseArguments&, const Shape&, bool channels_last);

int splits(const Target&, const ElementwiseArguments&, bool channels_last);

// The sums of a pass go to the arguments, which have room for those of the splits, and then to `merged`.
void elementwise(const Target&, ElementwisePass, const ElementwiseArguments&, bool channels_last,
                 float* merged, const Shape&);

void normalisation(const Target&, const NormalisationArguments&);

// The gradients of gamma and beta, either of which may be null, from the sums of the gradient.
void affine_gradients(const Target&, const float* gradient_sums, const Normalisation&, float* gamma,
                      float* beta);

// ---- layouts -------------------------------------------------------------------------------------

// Copies an image from channels last to planes, or back.
void copy_layout(const Target&, const LayoutCopy&, bool to_planes);

}  // namespace depthwise
