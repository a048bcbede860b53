// Arguments and launchers of the kernels for filters of up to 31 x 31.
#pragma once
#include <cuda_runtime_api.h>

#include <iterator>
#include <type_traits>
#include <utility>

#include "arguments.h"
#include "core/large_filter.h"
#include "host/large_plan.h"

namespace depthwise {

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

// Calls launch(Constant<group_rows>, Constant<tiles>) for a tile of large_tile_shapes.
template <class Launch, size_t... I>
cudaError_t with_large_tile(TileShape tile, Launch launch, std::index_sequence<I...>) {
  cudaError_t status = cudaErrorInvalidValue;
  const auto matches = [&]<size_t N>(std::integral_constant<size_t, N>) {
    constexpr TileShape each = large_tile_shapes[N];
    if (tile != each) return false;
    status = launch(std::integral_constant<int, each.group_rows>(),
                    std::integral_constant<int, each.tiles>());
    return true;
  };
  (matches(std::integral_constant<size_t, I>()) || ...);
  return status;
}
template <class Launch>
cudaError_t with_large_tile(TileShape tile, Launch launch) {
  return with_large_tile(tile, launch, std::make_index_sequence<std::size(large_tile_shapes)>());
}

cudaError_t launch_forward_large(const LargeForwardArguments&, ElementType, const Plan&,
                                 cudaStream_t);
cudaError_t launch_weight_gradient_large(const LargeWeightGradientArguments&, ElementType,
                                         const Plan&, cudaStream_t);

}  // namespace depthwise
