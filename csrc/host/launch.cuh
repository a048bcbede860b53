// From run-time tile and type to the instantiation of a kernel. Included by the files that
// instantiate the launchers, one for each filter size and role.
#pragma once
#include "host/kernel_launch.h"
#include "host/launch.h"
#include "kernels/forward.cuh"
#include "kernels/weight_gradient.cuh"

namespace depthwise {

// Calls `launch` with a value of the element type and the constants Step, Tiles and Whole.
template <class Launch>
cudaError_t with_tile(Type type, TileShape tile, bool whole, Launch launch) {
  using std::integral_constant;
  const auto with = [&](auto step, auto tiles, auto is_whole) {
    return type == Type::half ? launch(__half(), step, tiles, is_whole)
                              : launch(__nv_bfloat16(), step, tiles, is_whole);
  };
  const auto try_tile = [&](auto step, auto tiles, auto can_be_whole) {
    if constexpr (can_be_whole)
      if (whole) return with(step, tiles, std::true_type());
    return with(step, tiles, std::false_type());
  };
  switch (tile.tiles) {
    case 1:
      return try_tile(integral_constant<int, 8>(), integral_constant<int, 1>(), std::true_type());
    case 2:
      return try_tile(integral_constant<int, 4>(), integral_constant<int, 2>(), std::true_type());
    case 3:
      return try_tile(integral_constant<int, 3>(), integral_constant<int, 3>(), std::false_type());
    case 4:
      return try_tile(integral_constant<int, 2>(), integral_constant<int, 4>(), std::true_type());
    case 6:
      return try_tile(integral_constant<int, 2>(), integral_constant<int, 6>(), std::false_type());
    case 7:
      return try_tile(integral_constant<int, 2>(), integral_constant<int, 7>(), std::false_type());
    default: return cudaErrorInvalidValue;
  }
}

// Whether planes are whole and all of them move in pieces of 16 bytes.
constexpr bool move_whole(const Shape& shape, int alignment, int other) {
  return whole_planes(shape) && alignment == 8 && other == 8;
}

// A block has as many warps, each with a channel, as find room in shared memory.
template <class Layout, class T>
constexpr int fitting_warps(int groups) {
  int warps = most_warps;
  while (warps > 1 && Layout::template shared_bytes<T>(warps, groups) > most_shared_bytes)
    warps /= 2;
  return warps;
}

template <class Layout, class T, class... Parameters, class Arguments>
cudaError_t launch_by_channels(void (*kernel)(Arguments, Tiling, Parameters...), const Plan& plan,
                               cudaStream_t stream, const Arguments& arguments,
                               Parameters... parameters) {
  const int groups = 1 << plan.tiling.groups_log2;
  const int warps = fitting_warps<Layout, T>(groups);
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
  const bool whole = move_whole(p.shape, input, output);
  return with_tile(type, plan.tile, whole, [&](auto element, auto step, auto tiles, auto is_whole) {
    using T = decltype(element);
    constexpr int Step = decltype(step)::value, Tiles = decltype(tiles)::value;
    constexpr bool Whole = decltype(is_whole)::value;
    return launch_by_channels<ForwardLayout<Size, Step, Tiles>, T>(
        depthwise_forward<T, Size, Step, Tiles, Whole>, plan, stream, p, input, output);
  });
}

template <int Size>
cudaError_t launch_weight_gradient(const WeightGradientArguments& p, Type type, const Plan& plan,
                                   cudaStream_t stream) {
  const int width = p.shape.width;
  const int input = alignment(uintptr_t(p.input), width, p.input_strides);
  const int gradient = alignment(uintptr_t(p.output_gradient), width, p.gradient_strides);
  const bool whole = move_whole(p.shape, input, gradient);
  return with_tile(type, plan.tile, whole, [&](auto element, auto step, auto tiles, auto is_whole) {
    using T = decltype(element);
    constexpr int Step = decltype(step)::value, Tiles = decltype(tiles)::value;
    constexpr bool Whole = decltype(is_whole)::value;
    return launch_by_channels<WeightGradientLayout<Size, Step, Tiles>, T>(
        depthwise_weight_gradient<T, Size, Step, Tiles, Whole>, plan, stream, p, input, gradient);
  });
}

}  // namespace depthwise
