// What the host hands to the kernels: pointers, sizes and strides, no PyTorch.
#pragma once
#include <cstddef>
#include <cstdint>

namespace depthwise {

struct Shape {
  int images, channels, height, width;
};

// Planes are height x width contiguous elements; where they begin is free. In elements.
struct Strides {
  ptrdiff_t image, channel;
};

// Channels last: the channels of a pixel are adjacent; where pixels, rows and images begin is free.
// In elements.
struct PixelStrides {
  ptrdiff_t image, row, pixel;
};

// How the planes of one channel fall into items, each the work of one warp at a time. The 16 rows
// of an mma are 16 jobs: job j is group j % groups (some consecutive rows) of image j / groups of
// the item.
struct Tiling {
  int groups_log2;  // groups of rows of one image in an item; 16 / groups images share it
  int strips;       // items from top to bottom of an image
  int windows;      // items from left to right
  int items;        // of one channel
};

enum class Type : int { half, bfloat16 };

enum class Activation : int { gelu, relu, identity };

// Batch normalisation of activation(value), which is (activation(value) - mean) scale + shift: rows
// of one float a channel, in this order. `count` is how many values the mean and rstd are of,
// infinite where they are not of these values but running statistics.
struct Normalisation {
  const float* rows;
  ptrdiff_t channels;

  constexpr const float* mean() const { return rows; }
  constexpr const float* scale() const { return rows + channels; }
  constexpr const float* shift() const { return rows + 2 * channels; }
  constexpr const float* rstd() const { return rows + 3 * channels; }
  constexpr const float* count() const { return rows + 4 * channels; }
};

// Input and output of the convolution, or output gradient and input gradient with `flipped` set.
template <class Layout>
struct ForwardArgumentsOf {
  const void* input;
  const void* weight;  // [channel][size][size]
  const float* bias;   // [channel], or null
  void* output;
  Shape shape;
  Layout input_strides, output_strides;
  int filter_size;
  bool flipped;  // correlate with the filter turned by half a turn
};
using ForwardArguments = ForwardArgumentsOf<Strides>;
using ChannelsLastForwardArguments = ForwardArgumentsOf<PixelStrides>;

// Forward pass with what follows it: output = normalised activation(convolution + bias), in one.
template <class Layout>
struct FusedForwardArgumentsOf : ForwardArgumentsOf<Layout> {
  Normalisation normalisation;  // without rows: the convolution as it is
  Activation activation;
  bool residual;      // add the input
  const void* added;  // a tensor of the output's strides to add to the convolution alone, or null
};
using FusedForwardArguments = FusedForwardArgumentsOf<Strides>;
using ChannelsLastFusedForwardArguments = FusedForwardArgumentsOf<PixelStrides>;

// Forward pass that also takes the moments of activation(output), of the rounded output.
struct MomentsForwardArguments : ForwardArguments {
  Activation activation;
  float* moments;  // [share][3][channel]
};

template <class Layout>
struct WeightGradientArgumentsOf {
  const void* input;
  const void* output_gradient;
  float* weight_sums;  // [share][channel][size][size]
  float* bias_sums;    // [share][channel], or null
  Shape shape;
  Layout input_strides, gradient_strides;
  int filter_size;
};
using WeightGradientArguments = WeightGradientArgumentsOf<Strides>;
using ChannelsLastWeightGradientArguments = WeightGradientArgumentsOf<PixelStrides>;

// Backward pass of convolution, activation, normalisation and residual. `value` is what the
// convolution gave, with its bias.
struct BackwardArguments {
  const void* input;  // null: no weight gradient
  const void* value;
  const void* output_gradient;
  const void* weight;
  Normalisation normalisation;
  const float* gradient_sums;  // [2][channel]: of the output gradient, and of its products with
                               // activation(value) - mean
  void* input_gradient;
  void* value_gradient;  // or null
  float* weight_sums;    // [share][channel][size][size], or null
  float* bias_sums;      // [share][channel], or null
  Shape shape;
  Strides input_strides, value_strides, output_gradient_strides;
  Strides input_gradient_strides, value_gradient_strides;
  Activation activation;
  int filter_size;
  bool residual;  // the input was added to the output
};

// Where the values of a tensor lie that is read once from end to end: element
// outer * Steps::outer + channel * Steps::channel and what follows it. In planes, `outer` counts
// images and the values that follow are of one channel; channels last, it counts pixels and they are
// of as many channels. In elements.
struct Steps {
  ptrdiff_t outer, channel;
};

// Passes over the values of a convolution that need nothing but them.
struct StreamArguments {
  const void* value;
  const float* bias;  // [channel], added to the value, or null
  const void* other;  // a residual, or null; in the backward pass the output gradient
  void* output;       // of a pass that writes a tensor
  float* sums;        // [share][...][channel], or null where not wanted
  Normalisation normalisation;
  const float* gradient_sums;  // as in BackwardArguments
  Steps value_steps, other_steps, output_steps;
  int channels, outer, inner;  // inner: values of an outer index and channel, 1 channels last
  Activation activation;
};

// Statistics become a normalisation.
struct NormalisationArguments {
  const float* moments;  // [parts][3][channel]
  int parts, channels;
  const float *gamma, *beta;               // null: 1 and 0
  float *running_mean, *running_variance;  // updated in place, or null
  float momentum, epsilon;
  float* normalisation;  // [5][channel]
};

}  // namespace depthwise
