// The choice of tiles, items and splits for filters of up to 31 x 31: plain C++ without CUDA.
#pragma once
#include "core/large_filter.h"
#include "host/plan.h"

namespace depthwise {

// From narrow to wide planes. Sixteen accumulators a lane and row group would leave no room for two rows of
// the widest.
constexpr TileShape large_tile_shapes[] = {{8, 1}, {4, 2}, {2, 4}, {2, 8}};

constexpr TileShape large_tile_shape(int width) {
  for (const TileShape tile : large_tile_shapes)
    if (width <= 8 * tile.tiles) return tile;
  return large_tile_shapes[3];
}

// Where column blocks overlap, two tiles at each seam are halo: 31 columns reach 15 columns on a side.
constexpr int large_halo_tiles = 2;
constexpr int large_column_step(int tiles) { return 8 * (tiles - 2 * large_halo_tiles); }

constexpr int large_blocks(Pass) { return 2; }

// The warps that share a channel: each sums the gradients of eight neighbouring rows of the filter.
constexpr int filter_row_groups(const LargeFilter& filter) {
  return int(divide_up(filter.rows(), 8));
}

constexpr Plan large_plan(Shape shape, const LargeFilter& filter, Pass pass, const Chip& chip) {
  Plan result{};
  result.tile = large_tile_shape(shape.width);
  result.tiling = tiling_of(shape, result.tile);
  const int widest = 8 * result.tile.tiles;
  if (shape.width > widest)
    result.tiling.column_blocks =
        1 + int(divide_up(shape.width - widest, large_column_step(result.tile.tiles)));
  const int64_t images = divide_up(shape.images, mma_rows >> result.tiling.groups_log2);
  const int64_t per_image = int64_t(result.tiling.row_blocks) * result.tiling.column_blocks;
  const bool fits = per_image == 0 || images <= INT32_MAX / per_image;
  result.tiling.items = fits ? int(images * per_image) : -1;
  if (!fits) return result;
  const int warps = pass == Pass::forward ? 1 : filter_row_groups(filter);
  result.splits = image_splits(divide_up(int64_t(shape.channels) * warps, most_warps),
                               result.tiling.items,
                               int64_t(chip.multiprocessors) * large_blocks(pass),
                               split_time(pass, false), most_items_of_split(pass));
  return result;
}

}  // namespace depthwise
