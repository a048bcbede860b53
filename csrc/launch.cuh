// From run-time tile and type to the instantiation of a kernel. Included by the files that
// instantiate the launchers, one for each filter size and role.
#pragma once
#include "depthwise_forward.cuh"
#include "depthwise_weight_gradient.cuh"
#include "launch.h"

namespace depthwise {

// Calls `launch` with a value of the element type and the constants Step and Tiles.
template <class Launch>
cudaError_t with_tile(Type type, TileShape tile, Launch launch) {
  const auto with = [&](auto step, auto tiles) {
    return type == Type::half ? launch(__half(), step, tiles) : launch(__nv_bfloat16(), step, tiles);
  };
  using std::integral_constant;
  switch (tile) {
    case TileShape::rows4_columns8:
      return with(integral_constant<int, 4>(), integral_constant<int, 1>());
    case TileShape::rows4_columns16:
      return with(integral_constant<int, 4>(), integral_constant<int, 2>());
    case TileShape::rows2_columns32:
      return with(integral_constant<int, 2>(), integral_constant<int, 4>());
  }
  return cudaErrorInvalidValue;
}

// A block has as many warps, each with a channel, as find room in shared memory.
template <class Layout, class T, class... Parameters, class Arguments>
cudaError_t launch_by_channels(void (*kernel)(Arguments, Tiling, Parameters...), const Plan& plan,
                               cudaStream_t stream, const Arguments& arguments,
                               Parameters... parameters) {
  const int groups = 1 << plan.tiling.groups_log2;
  int warps = most_warps;
  while (warps > 1 && Layout::template shared_bytes<T>(warps, groups) > most_shared_bytes) warps /= 2;
  const dim3 grid(unsigned(divide_up(arguments.shape.channels, warps)), unsigned(plan.shares));
  return device::launch(kernel, grid, unsigned(32 * warps),
                        Layout::template shared_bytes<T>(warps, groups), stream, arguments,
                        plan.tiling, parameters...);
}

template <int Size>
cudaError_t launch_forward(const ForwardArguments& p, Type type, const Plan& plan,
                           cudaStream_t stream) {
  const int width = p.shape.width;
  const int input = alignment(uintptr_t(p.input), width, p.input_strides);
  const int output = alignment(uintptr_t(p.output), width, p.output_strides);
  return with_tile(type, plan.tile, [&](auto element, auto step, auto tiles) {
    using T = decltype(element);
    constexpr int Step = decltype(step)::value, Tiles = decltype(tiles)::value;
    return launch_by_channels<ForwardLayout<Size, Step, Tiles>, T>(
        depthwise_forward<T, Size, Step, Tiles>, plan, stream, p, input, output);
  });
}

template <int Size>
cudaError_t launch_weight_gradient(const WeightGradientArguments& p, Type type, const Plan& plan,
                                   cudaStream_t stream) {
  const int width = p.shape.width;
  const int input = alignment(uintptr_t(p.input), width, p.input_strides);
  const int gradient = alignment(uintptr_t(p.output_gradient), width, p.gradient_strides);
  return with_tile(type, plan.tile, [&](auto element, auto step, auto tiles) {
    using T = decltype(element);
    constexpr int Step = decltype(step)::value, Tiles = decltype(tiles)::value;
    return launch_by_channels<WeightGradientLayout<Size, Step, Tiles>, T>(
        depthwise_weight_gradient<T, Size, Step, Tiles>, plan, stream, p, input, gradient);
  });
}

}  // namespace depthwise
