// The launchers of launch.cuh for channels-last tensors.
#pragma once
#include "host/kernel_launch.h"
#include "host/launch.h"
#include "kernels/forward_channels_last.cuh"
#include "kernels/weight_gradient_channels_last.cuh"

namespace depthwise {

// Calls `launch` with a value of the element type and the constants Step and Tiles.
template <int Size, Pass pass, class Launch>
cudaError_t with_channels_last_tile(Type type, TileShape tile, Launch launch) {
  using std::integral_constant;
  const auto with_step = [&](auto step, auto tiles) {
    return type == Type::half ? launch(__half(), step, tiles)
                              : launch(__nv_bfloat16(), step, tiles);
  };
  const auto with = [&](auto tiles) {
    // On chips with the least and with the most shared memory.
    constexpr int width = 8 * decltype(tiles)::value;
    constexpr TileShape low = channels_last_tile(width, Size, pass, {0, 0});
    constexpr TileShape high = channels_last_tile(width, Size, pass, {0, INT32_MAX});
    static_assert(low.tiles == decltype(tiles)::value && high.tiles == low.tiles);
    if constexpr (low.step != high.step)
      if (tile.step == low.step) return with_step(integral_constant<int, low.step>(), tiles);
    return with_step(integral_constant<int, high.step>(), tiles);
  };
  switch (tile.tiles) {
    case 1: return with(integral_constant<int, 1>());
    case 2: return with(integral_constant<int, 2>());
    case 3: return with(integral_constant<int, 3>());
    case 4: return with(integral_constant<int, 4>());
    case 6: return with(integral_constant<int, 6>());
    case 7: return with(integral_constant<int, 7>());
    default: return cudaErrorInvalidValue;
  }
}

// Low and wide images: fewer of them share an item than could, where their halo would not fit.
template <class Layout, class T>
constexpr Tiling fitting_tiling(Tiling tiling) {
  static_assert(Layout::template shared_bytes<T>({4, 2, 1, 1}) <= Layout::most_shared_bytes);
  while (tiling.groups_log2 < 4 &&
         Layout::template shared_bytes<T>(tiling) > Layout::most_shared_bytes)
    ++tiling.groups_log2;
  return tiling;
}

template <class Layout, class T, class Arguments, class Staged>
cudaError_t launch_by_sections(void (*kernel)(Arguments, Tiling, Staged, bool, bool),
                               const Plan& plan, cudaStream_t stream, const Arguments& arguments,
                               bool in_units, bool other_in_units) {
  const Tiling tiling = fitting_tiling<Layout, T>(plan.tiling);
  const int64_t blocks = divide_up(arguments.shape.channels, Layout::channels) * sections(tiling);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return device::launch(kernel, dim3(unsigned(blocks), unsigned(plan.shares)),
                        unsigned(32 * Layout::warps), Layout::template shared_bytes<T>(tiling),
                        stream, arguments, tiling, Layout::staged(tiling), in_units,
                        other_in_units);
}

template <int Size>
cudaError_t launch_forward_channels_last(const ChannelsLastForwardArguments& p, Type type,
                                         const Plan& plan, cudaStream_t stream) {
  const int channels = p.shape.channels;
  const bool input = in_units(uintptr_t(p.input), channels, p.input_strides);
  const bool output = in_units(uintptr_t(p.output), channels, p.output_strides);
  const auto launch = [&](auto element, auto step, auto tiles) {
    using T = decltype(element);
    constexpr int Step = decltype(step)::value, Tiles = decltype(tiles)::value;
    return launch_by_sections<ChannelsLastForwardLayout<Size, Step, Tiles>, T>(
        depthwise_forward_channels_last<T, Size, Step, Tiles>, plan, stream, p, input, output);
  };
  return with_channels_last_tile<Size, Pass::forward>(type, plan.tile, launch);
}

template <int Size>
cudaError_t launch_weight_gradient_channels_last(const ChannelsLastWeightGradientArguments& p,
                                                 Type type, const Plan& plan, cudaStream_t stream) {
  const int channels = p.shape.channels;
  const bool input = in_units(uintptr_t(p.input), channels, p.input_strides);
  const bool gradient = in_units(uintptr_t(p.output_gradient), channels, p.gradient_strides);
  const auto launch = [&](auto element, auto step, auto tiles) {
    using T = decltype(element);
    constexpr int Step = decltype(step)::value, Tiles = decltype(tiles)::value;
    return launch_by_sections<ChannelsLastWeightGradientLayout<Size, Step, Tiles>, T>(
        depthwise_weight_gradient_channels_last<T, Size, Step, Tiles>, plan, stream, p, input,
        gradient);
  };
  return with_channels_last_tile<Size, Pass::weight_gradient>(type, plan.tile, launch);
}

}  // namespace depthwise
