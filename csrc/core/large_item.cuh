// Filters of up to 31 x 31: the items of planes, their way into shared memory and out of it, blocks, and
// the choice of a kernel.
#pragma once
#include <iterator>
#include <utility>

#include "core/large_toeplitz.cuh"
#include "core/staging_contiguous.cuh"
#include "host/launch.h"

namespace depthwise {

// An item by its number, as Item, where column blocks share two tiles of halo on each side.
template <int GroupRows, int Tiles>
struct LargeItem {
  int image, top, left;
  int first_tile, last_tile;  // the tiles [first_tile, last_tile) whose outputs belong to this item

  constexpr LargeItem(int number, const Tiling& tiling, const Shape& shape) {
    const int column_block = number % tiling.column_blocks;
    const int rest = number / tiling.column_blocks;
    image = rest / tiling.row_blocks * (mma_rows >> tiling.groups_log2);
    top = rest % tiling.row_blocks * (GroupRows << tiling.groups_log2);
    left = column_block * large_column_step(Tiles);
    first_tile = column_block == 0 ? 0 : large_halo_tiles;
    last_tile = column_block + 1 == tiling.column_blocks ? int(divide_up(shape.width - left, 8))
                                                         : Tiles - large_halo_tiles;
  }
};

// Brings `rows` rows of the item's images to shared memory, from `above` rows above the item on.
template <class Rows, int GroupRows, int Tiles, class T>
__device__ __forceinline__ void fetch_large(T* to, int pitch, const Planes<const T>& planes,
                                            const LargeItem<GroupRows, Tiles>& item, int above,
                                            int rows, const Shape& shape, const Tiling& tiling,
                                            int lane) {
  lane = device::keep_in_loop(lane);
  const int images = device::keep_in_loop(mma_rows >> tiling.groups_log2);
  const Span span{images,   min(images, shape.images - item.image), 0, rows, item.top - above,
                  item.left};
  const T* const from = planes.first + item.image * planes.image_stride;
  const auto fetch = [&](auto piece) {
    fetch_rows<Rows, Tiles, 0, decltype(piece)::value>(to, pitch, planes.tensor, from,
                                                       planes.image_stride, span, shape, lane);
  };
  using std::integral_constant;
  if (planes.alignment == 8) fetch(integral_constant<int, 8>());
  else if (planes.alignment == 4) fetch(integral_constant<int, 4>());
  else if (planes.alignment == 2) fetch(integral_constant<int, 2>());
  else fetch_elements<Rows, Tiles, 0>(to, pitch, from, planes.image_stride, span, shape, lane);
}

// Writes the outputs of an item to the planes.
template <class Rows, int Piece, int GroupRows, int Tiles, class T>
__device__ __forceinline__ void store_large_pieces(T* to, ptrdiff_t image_stride, const T* from,
                                                   const LargeItem<GroupRows, Tiles>& item,
                                                   const Shape& shape, const Tiling& tiling,
                                                   int pitch, int lane) {
  using Value = device::Bits<Piece>;
  const int images = min(mma_rows >> tiling.groups_log2, shape.images - item.image);
  const int rows = min(GroupRows << tiling.groups_log2, shape.height - item.top);
  const int end = min(8 * item.last_tile, shape.width - item.left);
  to += item.image * image_stride + ptrdiff_t(item.top) * shape.width + item.left;
#pragma unroll 1
  for (int image = 0; image < images; ++image) {
    each_piece<Rows, Tiles, Piece>(to, shape.width, 0, rows, 8 * item.first_tile, end, lane,
                                   [&](T* in_plane, int in_shared, int, int) {
                                     *reinterpret_cast<Value*>(in_plane) =
                                         *reinterpret_cast<const Value*>(from + in_shared);
                                   });
    to += image_stride, from += pitch;
  }
}

template <class Rows, int GroupRows, int Tiles, class T>
__device__ __forceinline__ void store_large(T* to, ptrdiff_t image_stride, int alignment,
                                            const T* from, const LargeItem<GroupRows, Tiles>& item,
                                            const Shape& shape, const Tiling& tiling, int pitch,
                                            int lane) {
  lane = device::keep_in_loop(lane);
  const auto store = [&](auto piece) {
    store_large_pieces<Rows, decltype(piece)::value>(to, image_stride, from, item, shape, tiling,
                                                     pitch, lane);
  };
  using std::integral_constant;
  if (alignment == 8) store(integral_constant<int, 8>());
  else if (alignment == 4) store(integral_constant<int, 4>());
  else if (alignment == 2) store(integral_constant<int, 2>());
  else store(integral_constant<int, 1>());
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
  const auto with = [&](auto element) {
    [&]<size_t... I>(std::index_sequence<I...>) {
      ((tile == large_tile_shapes[I] &&
        (status = launch(element, Constant<large_tile_shapes[I].group_rows>(),
                         Constant<large_tile_shapes[I].tiles>()),
         true)) ||
       ...);
    }(std::make_index_sequence<std::size(large_tile_shapes)>());
  };
  type == ElementType::half ? with(__half()) : with(__nv_bfloat16());
  return status;
}

}  // namespace depthwise
