// From the tile and element type that are known at run time to an instantiation of a kernel. The
// launchers in kernels/ are written with these functions.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>
#include <utility>

#include "host/kernel_launch.h"
#include "host/launch.h"

namespace depthwise {

template <int Value>
using Constant = std::integral_constant<int, Value>;

// Calls launch(Constant<group_rows>, Constant<tiles>) for a tile of `tile_shapes`;
// cudaErrorInvalidValue for any other.
template <class Launch, size_t... I>
cudaError_t with_tile(TileShape tile, Launch launch, std::index_sequence<I...>) {
  cudaError_t status = cudaErrorInvalidValue;
  const auto matches = [&]<size_t N>(std::integral_constant<size_t, N>) {
    constexpr TileShape each = tile_shapes[N];
    if (tile != each) return false;
    status = launch(Constant<each.group_rows>(), Constant<each.tiles>());
    return true;
  };
  (matches(std::integral_constant<size_t, I>()) || ...);
  return status;
}
template <class Launch>
cudaError_t with_tile(TileShape tile, Launch launch) {
  return with_tile(tile, launch, std::make_index_sequence<tile_shape_count>());
}

// Calls launch(T()) with the element type.
template <class Launch>
cudaError_t with_element(ElementType type, Launch launch) {
  return type == ElementType::half ? launch(__half()) : launch(__nv_bfloat16());
}

// ---- planes: a warp a channel --------------------------------------------------------------------

// Tells whether planes are whole and all of them move in pieces of 16 bytes.
constexpr bool move_whole(const Shape& shape, int alignment, int other) {
  return whole_planes(shape) && alignment == 8 && other == 8;
}

// Calls launch(T(), Constant<group_rows>, Constant<tiles>, bool_constant<whole>). Kernels for whole
// planes exist for the tiles of `is_whole`.
template <class Launch>
cudaError_t with_planes(ElementType type, TileShape tile, bool whole, Launch launch) {
  return with_element(type, [&](auto element) {
    return with_tile(tile, [&](auto group_rows, auto tiles) {
      if constexpr (is_whole({group_rows, tiles}))
        if (whole) return launch(element, group_rows, tiles, std::true_type());
      return launch(element, group_rows, tiles, std::false_type());
    });
  });
}

// Calls launch(T(), Constant<group_rows>, Constant<tiles>) for whole planes, whose least alignment is
// given; cudaErrorInvalidValue for others.
template <class Launch>
cudaError_t with_whole_planes(ElementType type, const Shape& shape, TileShape tile, int alignment,
                              Launch launch) {
  if (!move_whole(shape, alignment, alignment)) return cudaErrorInvalidValue;
  return with_planes(type, tile, true, [&](auto element, auto group_rows, auto tiles, auto whole) {
    if constexpr (whole) return launch(element, group_rows, tiles);
    else return cudaErrorInvalidValue;
  });
}

// The number of warps of a block, each with a channel, that find room in shared memory.
template <class Block, class T>
constexpr int fitting_warps(int groups) {
  int warps = most_warps;
  while (warps > 1 && Block::template shared_bytes<T>(warps, groups) > most_shared_bytes)
    warps /= 2;
  return warps;
}

template <class Block, class T, class... Parameters, class Arguments>
cudaError_t launch_by_channels(void (*kernel)(Arguments, Tiling, Parameters...), const Plan& plan,
                               cudaStream_t stream, const Arguments& arguments,
                               Parameters... parameters) {
  const int groups = 1 << plan.tiling.groups_log2;
  const int warps = fitting_warps<Block, T>(groups);
  const dim3 grid(unsigned(divide_up(arguments.shape.channels, warps)), unsigned(plan.splits));
  return device::launch(kernel, grid, unsigned(32 * warps),
                        Block::template shared_bytes<T>(warps, groups), stream, arguments,
                        plan.tiling, parameters...);
}

// ---- channels last: a block a section of some channels -------------------------------------------

// Calls launch(Constant<group_rows>, Constant<tiles>, Constant<channels>) for a block of
// channels_last_tile.
template <int Size, Pass pass, class Launch>
cudaError_t with_channels_last_tile(const ChannelsLastTile& block, Launch launch) {
  return with_tile(tile_shape(8 * block.tile.tiles), [&](auto, auto tiles) {
    // On chips with the least and with the most shared memory.
    constexpr ChannelsLastTile low = channels_last_tile(8 * tiles, Size, pass, {0, 0, 0});
    constexpr ChannelsLastTile high = channels_last_tile(8 * tiles, Size, pass, {0, INT32_MAX, 0});
    static_assert(low.tile.tiles == tiles && high.tile.tiles == tiles);
    if constexpr (!(low == high))
      if (block == low)
        return launch(Constant<low.tile.group_rows>(), tiles, Constant<low.channels>());
    if (block == high)
      return launch(Constant<high.tile.group_rows>(), tiles, Constant<high.channels>());
    return cudaErrorInvalidValue;
  });
}

// Calls launch(T(), Constant<group_rows>, Constant<tiles>, Constant<channels>) for a plan of
// channels_last_plan.
template <int Size, Pass pass, class Launch>
cudaError_t with_channels_last(ElementType type, const Plan& plan, Launch launch) {
  return with_element(type, [&](auto element) {
    return with_channels_last_tile<Size, pass>(
        {plan.tile, plan.channels}, [&](auto group_rows, auto tiles, auto channels) {
          return launch(element, group_rows, tiles, channels);
        });
  });
}

// Low and wide images: fewer of them are in an item than could be, where their halo would not fit.
template <class Block, class T>
constexpr Tiling fitting_tiling(Tiling tiling) {
  static_assert(Block::template shared_bytes<T>({4, 2, 1, 1}) <= Block::most_shared_bytes);
  while (tiling.groups_log2 < 4 &&
         Block::template shared_bytes<T>(tiling) > Block::most_shared_bytes)
    ++tiling.groups_log2;
  return tiling;
}

template <class Block, class T, class Arguments, class Staged>
cudaError_t launch_by_sections(void (*kernel)(Arguments, Tiling, Staged, bool, bool),
                               const Plan& plan, cudaStream_t stream, const Arguments& arguments,
                               bool in_units, bool other_in_units) {
  const Tiling tiling = fitting_tiling<Block, T>(plan.tiling);
  const int64_t blocks = divide_up(arguments.shape.channels, Block::channels) * sections(tiling);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return device::launch(kernel, dim3(unsigned(blocks), unsigned(plan.splits)),
                        unsigned(32 * Block::warps), Block::template shared_bytes<T>(tiling),
                        stream, arguments, tiling, Block::staged(tiling), in_units, other_in_units);
}

}  // namespace depthwise
