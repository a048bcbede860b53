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

}  // namespace depthwise
