// The filter sizes, and the division of planes into tiles and items: plain C++ without CUDA, which the
// planner and the kernels share. docs/kernels.md has the picture.
#pragma once
#include <cstddef>
#include <cstdint>

#include "arguments.h"

namespace depthwise {

// The filter sizes that kernels are compiled for. The build reads this table.
constexpr int filter_sizes[] = {3, 5, 7, 8, 9, 11, 13, 15};

// An even filter is the next odd one whose first row and column are zero: 'same' padding puts the
// extra line at the bottom and right.
constexpr int odd_size(int filter_size) { return filter_size | 1; }

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The rows of an mma. Each is a row group of the image: `TileShape::group_rows` neighbouring rows, as
// many as a tile is high.
constexpr int mma_rows = 16;

// A tile is 8 columns wide. An item is `tiles` tiles wide; its accumulators take
// 4 * group_rows * tiles registers, which bounds the product.
struct TileShape {
  int group_rows, tiles;
};
constexpr bool operator==(TileShape a, TileShape b) {
  return a.group_rows == b.group_rows && a.tiles == b.tiles;
}

// From narrow to wide planes.
constexpr TileShape tile_shapes[] = {{8, 1}, {4, 2}, {3, 3}, {2, 4}, {2, 6}, {2, 7}};
constexpr int tile_shape_count = sizeof(tile_shapes) / sizeof(TileShape);

// The narrowest item as wide as the planes; the widest, in overlapping column blocks, for wider ones.
constexpr TileShape tile_shape(int width) {
  for (const TileShape tile : tile_shapes)
    if (width <= 8 * tile.tiles) return tile;
  return tile_shapes[tile_shape_count - 1];
}

// Columns from one column block to the next: the outermost tiles are halo, one at each end or more.
constexpr int column_block_step(int tiles, int halo_tiles = 1) {
  return 8 * (tiles - 2 * halo_tiles);
}

// The items that the planes of one channel are cut into, each the work of one warp at a time. Row group j
// of an item is number j % groups of image j / groups of the item.
struct Tiling {
  int groups_log2;    // row groups of one image in an item; mma_rows / groups images share it
  int row_blocks;     // items from top to bottom of an image
  int column_blocks;  // items from left to right
  int items;          // of one channel; -1 where they would not fit an int
};

// An item has at least 2^least_groups_log2 row groups of an image.
constexpr Tiling tiling_of(Shape shape, TileShape tile, int halo_tiles = 1,
                           int least_groups_log2 = 0) {
  Tiling tiling{};
  tiling.groups_log2 = least_groups_log2;
  while (tiling.groups_log2 < 4 && (tile.group_rows << tiling.groups_log2) < shape.height)
    ++tiling.groups_log2;
  const int groups = 1 << tiling.groups_log2;
  tiling.row_blocks = int(divide_up(shape.height, groups * tile.group_rows));
  tiling.column_blocks = shape.width <= 8 * tile.tiles
                             ? 1
                             : 1 + int(divide_up(shape.width - 8 * tile.tiles,
                                                 column_block_step(tile.tiles, halo_tiles)));
  const int64_t image_tiles = divide_up(shape.images, mma_rows / groups);
  const int64_t per_image = int64_t(tiling.row_blocks) * tiling.column_blocks;
  const bool fits = per_image == 0 || image_tiles <= INT32_MAX / per_image;
  tiling.items = fits ? int(image_tiles * per_image) : -1;
  return tiling;
}

// ---- items ---------------------------------------------------------------------------------------

// The position of the rows of an item in shared memory. Sizes and offsets are in elements. An image of the
// item has groups * GroupRows rows and `halo` more. From row group to row group it is an odd multiple of
// 16 bytes (modulo 128 bytes), within an image and across images, so that loading a matrix meets no bank
// conflict.
template <int GroupRows, int Columns>
struct ItemRows {
  static_assert(Columns % 8 == 0);
  static constexpr int group_rows = GroupRows;
  static constexpr int group_pitch = GroupRows * Columns + (GroupRows * Columns / 8 % 2 ? 0 : 8);

  static constexpr int at(int row, int column) {
    return row / GroupRows * group_pitch + row % GroupRows * Columns + column;
  }
  static constexpr int image(int groups, int halo) {
    const int least = (groups + (halo + GroupRows - 1) / GroupRows) * group_pitch;
    return least + ((groups * group_pitch - least) & 63);
  }
  static constexpr int elements(int groups, int halo) {
    return mma_rows / groups * image(groups, halo);
  }
  static constexpr int group_at(int number, int groups_log2, int image_pitch) {
    return (number >> groups_log2) * image_pitch +
           (number & ((1 << groups_log2) - 1)) * group_pitch;
  }
};

// An item by its number. Items follow each other from left to right, then from top to bottom, then by
// image. Where column blocks overlap, the outermost HaloTiles tiles of each serve as halo only.
template <int GroupRows, int Tiles, int HaloTiles = 1>
class Item {
 public:
  constexpr Item(int number, const Tiling& tiling)
      : column_block_(number % tiling.column_blocks),
        row_block_(number / tiling.column_blocks % tiling.row_blocks),
        image_(number / tiling.column_blocks / tiling.row_blocks *
               (mma_rows >> tiling.groups_log2)) {}

  constexpr void advance(const Tiling& tiling) {
    if (++column_block_ < tiling.column_blocks) return;
    column_block_ = 0;
    if (++row_block_ < tiling.row_blocks) return;
    row_block_ = 0;
    image_ += mma_rows >> tiling.groups_log2;
  }

  constexpr int image() const { return image_; }
  constexpr int top(const Tiling& tiling) const {
    return row_block_ * (GroupRows << tiling.groups_log2);
  }
  constexpr int left() const { return column_block_ * column_block_step(Tiles, HaloTiles); }
  // The tiles [first_tile, last_tile) whose outputs belong to this item.
  constexpr int first_tile() const { return column_block_ == 0 ? 0 : HaloTiles; }
  constexpr int last_tile(const Tiling& tiling) const {
    return column_block_ + 1 == tiling.column_blocks ? Tiles : Tiles - HaloTiles;
  }

 private:
  int column_block_, row_block_, image_;
};

// ---- whole planes --------------------------------------------------------------------------------
//
// Square planes that one item covers, and that move as straight runs of memory where everything lies
// on 16-byte boundaries.

constexpr bool is_whole(TileShape tile) {
  return tile.tiles == 1 || tile.tiles == 2 || tile.tiles == 4;
}

constexpr bool whole_planes(const Shape& shape) {
  const TileShape tile = tile_shape(shape.width);
  return is_whole(tile) && shape.width == 8 * tile.tiles && shape.height == shape.width;
}

constexpr Tiling whole_tiling(int groups, int items) {
  int groups_log2 = 0;
  while (1 << groups_log2 < groups) ++groups_log2;
  return {groups_log2, 1, 1, items};
}

// The largest number of elements, up to 8, that one access may move: rows, planes and images all
// begin on a multiple of it.
constexpr int alignment(uintptr_t address, int width, Strides strides) {
  const uintptr_t all =
      address / 2 | uintptr_t(width) | uintptr_t(strides.image) | uintptr_t(strides.channel);
  return all % 8 == 0 ? 8 : all % 4 == 0 ? 4 : all % 2 == 0 ? 2 : 1;
}

// Tells whether planes are whole and move in pieces of 16 bytes, given the least alignment of the tensors.
constexpr bool move_whole(const Shape& shape, int alignment) {
  return whole_planes(shape) && alignment == 8;
}

// ---- channels last -------------------------------------------------------------------------------

// A block keeps to one section of the images: a row block in a column block.
constexpr int sections(const Tiling& tiling) { return tiling.row_blocks * tiling.column_blocks; }

// Tells whether pixels are whole units of 8 channels on 16-byte boundaries; otherwise elements move
// one by one.
constexpr bool in_units(uintptr_t address, int channels, PixelStrides strides) {
  const uintptr_t elements = uintptr_t(channels) | uintptr_t(strides.image) |
                             uintptr_t(strides.row) | uintptr_t(strides.pixel);
  return address % 16 == 0 && elements % 8 == 0;
}

}  // namespace depthwise
