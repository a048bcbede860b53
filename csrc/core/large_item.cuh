// Filters of up to 31 x 31: the items of planes, their way into shared memory, the memory of a block, and
// the choice of a kernel.
#pragma once
#include "core/large_toeplitz.cuh"
#include "core/staging_contiguous.cuh"
#include "host/launch.h"

namespace depthwise {

template <int GroupRows, int Tiles>
using LargeItem = Item<GroupRows, Tiles, large_halo_tiles>;

// The tiles of an item whose outputs are wanted: those that belong to it and to the plane.
template <int GroupRows, int Tiles>
__device__ __forceinline__ TileRange wanted_tiles(const LargeItem<GroupRows, Tiles>& item,
                                                  const Tiling& tiling, const Shape& shape) {
  return {item.first_tile(),
          min(item.last_tile(tiling), int(divide_up(shape.width - item.left(), 8)))};
}

// Brings `rows` rows of the item's images to shared memory, from `above` rows above the item on.
template <class Rows, int GroupRows, int Tiles, class T>
__device__ __forceinline__ void fetch_large(T* to, const Planes<const T>& planes,
                                            const LargeItem<GroupRows, Tiles>& item, int above,
                                            int rows, const Shape& shape, const Tiling& tiling,
                                            int pitch, int lane) {
  // Addresses would otherwise stay in registers from item to item, as in fetch_item.
  lane = device::keep_in_loop(lane);
  const int images = device::keep_in_loop(mma_rows >> tiling.groups_log2);
  const Span span{
      images,     min(images, shape.images - item.image()), 0, rows, item.top(tiling) - above,
      item.left()};
  fetch_span<Rows, Tiles, 0>(to, planes, item.image(), span, shape, pitch, lane);
}

// ---- blocks --------------------------------------------------------------------------------------

// The shared memory of a block of the forward pass.
template <int GroupRows, int Tiles>
struct LargeForwardBlock {
  static constexpr int stages = 2;
  using Rows = ItemRows<GroupRows, 8 * Tiles>;

  __host__ __device__ static constexpr int input_elements(int groups, int filter_rows) {
    return stages * Rows::elements(groups, filter_rows - 1);
  }
  __host__ __device__ static constexpr int output_elements(int groups) {
    return Rows::elements(groups, 0);
  }
  static constexpr size_t shared_bytes(int warps, int groups, int filter_rows) {
    const auto bytes = [&](int elements) {
      return device::SharedMemory::bytes<__half>(size_t(warps * elements));
    };
    return bytes(input_elements(groups, filter_rows)) + bytes(output_elements(groups)) +
           bytes(SharedBands<__half>::elements(filter_rows));
  }
};

// The shared memory of a block of the weight gradient.
template <int GroupRows, int Tiles>
struct LargeWeightGradientBlock {
  static constexpr int stages = 2;
  using Rows = ItemRows<GroupRows, 8 * Tiles>;

  __host__ __device__ static constexpr int input_elements(int groups) {
    return stages * Rows::elements(groups, filter_rows_of_warp - 1);
  }
  __host__ __device__ static constexpr int gradient_elements(int groups) {
    return stages * Rows::elements(groups, 0);
  }
  static constexpr size_t shared_bytes(int warps, int groups) {
    using device::SharedMemory;
    return SharedMemory::bytes<__half>(size_t(warps * input_elements(groups))) +
           SharedMemory::bytes<__half>(size_t(warps * gradient_elements(groups)));
  }
};

// ---- launches ------------------------------------------------------------------------------------

// Calls launch(T(), Constant<group_rows>, Constant<tiles>) for an element type and a tile of
// large_tile_shapes.
template <class Launch>
cudaError_t with_large_tile(ElementType type, TileShape tile, Launch launch) {
  cudaError_t status = cudaErrorInvalidValue;
  each_tile<large_tile_shapes>([&](auto group_rows, auto tiles) {
    if (!(tile == TileShape{group_rows, tiles})) return;
    status = type == ElementType::half ? launch(__half(), group_rows, tiles)
                                       : launch(__nv_bfloat16(), group_rows, tiles);
  });
  return status;
}

}  // namespace depthwise
