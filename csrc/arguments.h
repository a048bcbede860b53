// The arguments of the kernels: pointers, sizes and strides, without PyTorch.
#pragma once
#include <cstddef>
#include <cstdint>

namespace depthwise {

struct Shape {
  int images, channels, height, width;
};

// Strides in elements of planes that are height x width contiguous elements, wherever each begins.
struct Strides {
  ptrdiff_t image, channel;
};

// Strides in elements of a channels-last tensor: the channels of a pixel are adjacent, wherever pixels,
// rows and images begin.
struct PixelStrides {
  ptrdiff_t image, row, pixel;
};

enum class ElementType : int { half, bfloat16 };

enum class Activation : int { gelu, relu, identity };
constexpr const char* activations[] = {"gelu", "relu", "identity"};  // in the order of the enum

// Batch normalisation of activation(value), which is (activation(value) - mean) * scale + shift: five
// rows of one float a channel, in this order. The mean and rstd are statistics of `count` values, which
// is infinite for running statistics, since these do not depend on the values at hand.
struct Normalisation {
  const float* rows;
  ptrdiff_t channels;

  constexpr const float* mean() const { return rows; }
  constexpr const float* scale() const { return rows + channels; }
  constexpr const float* shift() const { return rows + 2 * channels; }
  constexpr const float* rstd() const { return rows + 3 * channels; }
  constexpr const float* count() const { return rows + 4 * channels; }
};

// Forward pass from input to output or, with `flipped`, from output gradient to input gradient.
template <class AnyStrides>
struct ForwardArgumentsOf {
  const void* input;
  const void* weight;  // [channel][size][size]
  const float* bias;   // [channel], or null
  void* output;
  Shape shape;
  AnyStrides input_strides, output_strides;
  int filter_size;
  bool flipped;  // turn the filter by half a turn
};
using ForwardArguments = ForwardArgumentsOf<Strides>;
using ChannelsLastForwardArguments = ForwardArgumentsOf<PixelStrides>;

// Forward pass with normalisation: output = normalised activation(convolution + bias) [+ input].
template <class AnyStrides>
struct FusedForwardArgumentsOf : ForwardArgumentsOf<AnyStrides> {
  Normalisation normalisation;  // without rows, the output is activation(convolution + bias)
  Activation activation;
  bool residual;      // add the input
  const void* added;  // a tensor with the output's strides, added to a bare convolution, or null
};
using FusedForwardArguments = FusedForwardArgumentsOf<Strides>;
using ChannelsLastFusedForwardArguments = FusedForwardArgumentsOf<PixelStrides>;

// Forward pass that also gives the moments of activation(output), taken from the rounded output.
struct MomentsForwardArguments : ForwardArguments {
  Activation activation;
  float* moments;  // [split][3][channel]
};

template <class AnyStrides>
struct WeightGradientArgumentsOf {
  const void* input;
  const void* output_gradient;
  float* weight_sums;  // [split][channel][size][size]
  float* bias_sums;    // [split][channel], or null
  Shape shape;
  AnyStrides input_strides, gradient_strides;
  int filter_size;
};
using WeightGradientArguments = WeightGradientArgumentsOf<Strides>;
using ChannelsLastWeightGradientArguments = WeightGradientArgumentsOf<PixelStrides>;

// Backward pass of convolution, activation, normalisation and residual. `value` is the saved output of
// the convolution with its bias.
struct BackwardArguments {
  const void* input;  // null: no weight gradient
  const void* value;
  const void* output_gradient;
  const void* weight;
  Normalisation normalisation;
  const float*
      gradient_sums;  // [2][channel]: sums of the output gradient, and of its products with
                      // activation(value) - mean
  void* input_gradient;
  void* value_gradient;  // or null
  float* weight_sums;    // [split][channel][size][size], or null
  float* bias_sums;      // [split][channel], or null
  Shape shape;
  Strides input_strides, value_strides, output_gradient_strides;
  Strides input_gradient_strides, value_gradient_strides;
  Activation activation;
  int filter_size;
  bool residual;  // the input was added to the output
};

// Strides in elements of a tensor that an elementwise pass reads or writes: an index `outer` of a
// channel begins at outer * Steps::outer + channel * Steps::channel. In planes, `outer` counts images,
// and the elements that follow each other are the plane of one channel; channels last, it counts
// pixels, and they are as many channels.
struct Steps {
  ptrdiff_t outer, channel;
};

enum class ElementwisePass { moments, normalise, sum_gradients, value_gradient };

struct ElementwiseArguments {
  const void* value;
  const float* bias;  // [channel], added to the value, or null
  const void* other;  // a residual, or null; in the backward pass the output gradient
  void* output;       // of a pass that writes a tensor
  float* sums;        // [split][...][channel], or null where not wanted
  Normalisation normalisation;
  const float* gradient_sums;  // as in BackwardArguments
  Steps value_steps, other_steps, output_steps;
  int channels, outer, inner;  // inner: elements of an outer index and channel, 1 channels last
  Activation activation;
};

// Sizes of the planes of a channels-last block in shared memory: as parameters they take no registers.
struct Staged {
  int image;   // elements from image to image in a plane
  int pitch;   // elements from plane to plane
  int chunks;  // of an item
};
struct StagedGradient {
  Staged input, gradient;
};

// From moments or running statistics to a normalisation.
struct NormalisationArguments {
  const float* moments;  // [parts][3][channel]
  int parts, channels;
  const float *gamma, *beta;               // null: 1 and 0
  float *running_mean, *running_variance;  // updated in place, or null
  float momentum, epsilon;
  float* normalisation;  // [5][channel]
};

// ---- filters of any height, width and dilation ---------------------------------------------------

// The largest extent of a filter, in rows or columns of the image. Eight outputs of 31 columns reach 38
// columns, which an input window of five chunks holds wherever the filter is centred.
constexpr int most_extent = 31;

// A filter of height x width taps, `row_dilation` rows and `column_dilation` columns apart.
struct LargeFilter {
  int height, width;
  int row_dilation, column_dilation;

  // The extent in the image.
  constexpr int rows() const { return (height - 1) * row_dilation + 1; }
  constexpr int columns() const { return (width - 1) * column_dilation + 1; }
  // Rows above and columns left of the output that a filter reaches: 'same' padding puts an extra line
  // at the bottom and right. Turned by half a turn, it lies at the top and left.
  constexpr int above(bool flipped) const { return (flipped ? rows() : rows() - 1) / 2; }
  constexpr int left(bool flipped) const { return (flipped ? columns() : columns() - 1) / 2; }
  // Bit r tells whether row r of the extent has taps.
  constexpr uint32_t row_mask() const {
    uint32_t mask = 0;
    for (int r = 0; r < height; ++r) mask |= 1u << r * row_dilation;
    return mask;
  }
  constexpr int taps() const { return height * width; }
};

constexpr bool fits(const LargeFilter& filter) {
  return filter.height > 0 && filter.width > 0 && filter.row_dilation > 0 &&
         filter.column_dilation > 0 && filter.height <= most_extent &&
         filter.width <= most_extent &&
         int64_t(filter.height - 1) * filter.row_dilation < most_extent &&
         int64_t(filter.width - 1) * filter.column_dilation < most_extent;
}

struct LargeForwardArguments {
  const void* input;
  const void* weight;  // [channel][height][width]
  const float* bias;   // [channel], or null
  void* output;
  Shape shape;
  Strides input_strides, output_strides;
  LargeFilter filter;
  bool flipped;
};

struct LargeWeightGradientArguments {
  const void* input;
  const void* output_gradient;
  float* weight_sums;  // [split][channel][height][width]
  float* bias_sums;    // [split][channel], or null
  Shape shape;
  Strides input_strides, gradient_strides;
  LargeFilter filter;
};

}  // namespace depthwise
