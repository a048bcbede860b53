// The choice of tiles, items and splits for a shape: plain C++ without CUDA, tested on its own.
#pragma once
#include <algorithm>
#include <cstdint>

#include "arguments.h"
#include "core/filter_sizes.h"
#include "core/tiles.h"
#include "host/tuning.h"

namespace depthwise {

// The properties of a GPU that the choices depend on.
struct Chip {
  int multiprocessors;
  int shared_bytes;  // the most dynamic shared memory that a block may have
  int capability;    // ten times the compute capability
};

struct Plan {
  TileShape tile;
  Tiling tiling;
  int splits;  // of the items of a channel, each worked through by one warp
};

constexpr int most_warps = 4;  // of a block; a warp works alone, so fewer do as well

// Shared memory that a block may have on every architecture from sm_80 on; sm_86 has the least.
constexpr size_t most_shared_bytes = 99 * 1024;

// ---- splits --------------------------------------------------------------------------------------

// The most items that one warp sums for a gradient of the filter. Tensor cores cut off what a sum has
// beyond a float, so that in long sums of one sign errors add up: a bias gradient of positive numbers
// is off by 8e-6 with 64 items, by 2e-5 with 256, on an emulated GPU. Splits are added with rounding.
constexpr int most_summed_items = 64;
constexpr int most_grid_splits = 65535;

// The number of splits that takes the least time, of those with at most `most_items` items. Blocks
// come and go in waves, and a split takes as long as its items and about half an item to begin.
constexpr int image_splits(int64_t blocks, int image_tiles, int64_t at_a_time,
                           int most_items = INT32_MAX) {
  if (at_a_time < 1) at_a_time = 1;
  const int fewest = std::clamp(int(divide_up(image_tiles, most_items)), 1, most_grid_splits);
  int best = fewest;
  int64_t least = INT64_MAX;
  for (int splits = fewest; splits <= image_tiles && splits <= std::max(fewest, 1024); ++splits) {
    if (splits > fewest && blocks * splits > 16 * at_a_time) break;  // as good as even
    const int64_t time =
        divide_up(blocks * splits, at_a_time) * (2 * divide_up(image_tiles, splits) + 1);
    if (time < least) least = time, best = splits;
  }
  return best;
}

constexpr int most_items_of_split(Pass pass) {
  return pass == Pass::forward ? INT32_MAX : most_summed_items;
}

// ---- planes --------------------------------------------------------------------------------------

constexpr int blocks_of_planes(const Shape& shape, int size, int tiles, Pass pass,
                               const Tuning& tuning) {
  if (pass == Pass::forward) return tuning.forward_blocks(size, tiles, whole_planes(shape));
  if (pass == Pass::weight_gradient) return tuning.weight_gradient_blocks(size, tiles);
  return tuning.backward_blocks(size, backward_with_weight(size));
}

constexpr Plan plan(Shape shape, int filter_size, Pass pass, const Chip& chip) {
  const int size = odd_size(filter_size);
  Plan result{};
  result.tile = tile_shape(shape.width);
  result.tiling = tiling_of(shape, result.tile);
  if (result.tiling.items < 0) return result;
  const int blocks_resident =
      blocks_of_planes(shape, size, result.tile.tiles, pass, tuning_of(chip.capability));
  result.splits =
      image_splits(divide_up(shape.channels, most_warps), result.tiling.items,
                   int64_t(chip.multiprocessors) * blocks_resident, most_items_of_split(pass));
  return result;
}

// ---- channels last -------------------------------------------------------------------------------
//
// A block stages the planes of several channels at once and keeps to one section of the images. Its
// splits are splits of the images.

constexpr int channels_last_blocks(int size, int tiles, Pass pass, const Tuning& tuning) {
  return pass == Pass::weight_gradient ? tuning.channels_last_weight_gradient_blocks(size, tiles)
                                       : tuning.channels_last_forward_blocks(size, tiles);
}

// The most that a block of the weight gradient takes for two wide tensors in groups of two rows.
constexpr size_t two_row_shared_bytes = 152 * 1024;

// Lower row groups than elsewhere where shared memory must hold many small planes, or two wide tensors.
// For these, groups of two rows fetch half as many halo rows as groups of one. They are chosen where a
// block can have the shared memory, and where registers leave room for one block only in any case.
constexpr TileShape channels_last_tile(int width, int size, Pass pass, const Chip& chip) {
  const TileShape tile = tile_shape(width);
  if (tile.tiles == 1) return {4, 1};
  if (tile.tiles <= 4 || pass == Pass::forward) return tile;
  const bool two_rows =
      channels_last_blocks(size, tile.tiles, pass, tuning_of(chip.capability)) == 1 &&
      size_t(chip.shared_bytes) >= two_row_shared_bytes;
  return {two_rows ? 2 : 1, tile.tiles};
}

// The most that a block with such a tile may take, on every chip that the tile is chosen for.
constexpr size_t channels_last_shared_limit(TileShape tile, Pass pass) {
  const bool two_wide_tensors = tile.tiles > 4 && pass == Pass::weight_gradient;
  return two_wide_tensors && tile.group_rows == 2 ? two_row_shared_bytes : most_shared_bytes;
}

constexpr Plan channels_last_plan(Shape shape, int filter_size, Pass pass, const Chip& chip) {
  const int size = odd_size(filter_size);
  Plan result{};
  result.tile = channels_last_tile(shape.width, size, pass, chip);
  result.tiling = tiling_of(shape, result.tile);
  if (result.tiling.items < 0) return result;
  const int tiles = result.tile.tiles, parts = sections(result.tiling);
  const int64_t blocks = divide_up(shape.channels, block_channels(size, tiles, pass)) * parts;
  const int64_t at_a_time = int64_t(chip.multiprocessors) *
                            channels_last_blocks(size, tiles, pass, tuning_of(chip.capability));
  result.splits =
      image_splits(blocks, result.tiling.items / parts, at_a_time, most_items_of_split(pass));
  return result;
}

}  // namespace depthwise
