// The position of the rows of an item in shared memory, and the part of the planes that it covers.
#pragma once
#include "core/tiles.h"

namespace depthwise {

// Sizes and offsets in elements. An image of the item has groups * GroupRows rows and `halo` more. From
// row group to row group it is an odd multiple of 16 bytes (modulo 128 bytes), within an image and
// across images, so that loading a matrix meets no bank conflict.
template <int GroupRows, int Columns>
struct ItemRows {
  static_assert(Columns % 8 == 0);
  static constexpr int group_rows = GroupRows;
  static constexpr int group_pitch = GroupRows * Columns + (GroupRows * Columns / 8 % 2 ? 0 : 8);

  __host__ __device__ static constexpr int at(int row, int column) {
    return row / GroupRows * group_pitch + row % GroupRows * Columns + column;
  }
  __host__ __device__ static constexpr int image(int groups, int halo) {
    const int least = (groups + (halo + GroupRows - 1) / GroupRows) * group_pitch;
    return least + ((groups * group_pitch - least) & 63);
  }
  __host__ __device__ static constexpr int elements(int groups, int halo) {
    return mma_rows / groups * image(groups, halo);
  }
  __device__ static int group_at(int number, int groups_log2, int image_pitch) {
    return (number >> groups_log2) * image_pitch +
           (number & ((1 << groups_log2) - 1)) * group_pitch;
  }
};

// An item by its number. Items follow each other from left to right, then from top to bottom, then by
// image. Where column blocks overlap, the outermost tiles of each serve as halo only.
template <int GroupRows, int Tiles>
class Item {
 public:
  __host__ __device__ __forceinline__ Item(int number, const Tiling& tiling)
      : column_block_(number % tiling.column_blocks),
        row_block_(number / tiling.column_blocks % tiling.row_blocks),
        image_(number / tiling.column_blocks / tiling.row_blocks *
               (mma_rows >> tiling.groups_log2)) {}

  __host__ __device__ __forceinline__ void advance(const Tiling& tiling) {
    if (++column_block_ < tiling.column_blocks) return;
    column_block_ = 0;
    if (++row_block_ < tiling.row_blocks) return;
    row_block_ = 0;
    image_ += mma_rows >> tiling.groups_log2;
  }

  __host__ __device__ __forceinline__ int image() const { return image_; }
  __host__ __device__ __forceinline__ int top(const Tiling& tiling) const {
    return row_block_ * (GroupRows << tiling.groups_log2);
  }
  __host__ __device__ __forceinline__ int left() const {
    return column_block_ * column_block_step(Tiles);
  }
  // The tiles [first_tile, last_tile) whose outputs belong to this item.
  __host__ __device__ __forceinline__ int first_tile() const { return column_block_ == 0 ? 0 : 1; }
  __host__ __device__ __forceinline__ int last_tile(const Tiling& tiling) const {
    return column_block_ + 1 == tiling.column_blocks ? Tiles : Tiles - 1;
  }

 private:
  int column_block_, row_block_, image_;
};

}  // namespace depthwise
