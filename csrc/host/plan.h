// Which tiles, items and shares serve a shape: plain C++ without CUDA, tested on its own.
#pragma once
#include <algorithm>
#include <cstdint>

#include "arguments.h"
#include "core/filter_sizes.h"

namespace depthwise {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int jobs = 16;       // rows of an mma
constexpr int most_warps = 4;  // of a block; a warp works alone, so fewer do as well

// A job is `step` rows high, an item `tiles` tiles of 8 columns wide. Sums take 4 * step * tiles
// registers, which bounds their product.
struct TileShape {
  int step, tiles;
};
constexpr TileShape tile_shapes[] = {{8, 1}, {4, 2}, {3, 3}, {2, 4}, {2, 6}, {2, 7}};

// The narrowest tile as wide as the planes; the widest, in overlapping windows, for wider ones.
constexpr TileShape tile_shape(int width) {
  for (const TileShape tile : tile_shapes)
    if (width <= 8 * tile.tiles) return tile;
  return {2, 7};
}

// Columns from one window to the next: the outermost tiles are halo.
constexpr int window_step(int tiles) { return 8 * (tiles - 2); }

// What the choices depend on of a GPU.
struct Chip {
  int multiprocessors;
  int shared_bytes;  // the most dynamic shared memory that a block may have
};

struct Plan {
  TileShape tile;
  Tiling tiling;
  int shares;  // of the items of a channel, each worked through by one warp
};

// `items` is -1 where they would not fit an int.
constexpr Tiling tiling_of(Shape shape, TileShape tile) {
  Tiling tiling{};
  while (tiling.groups_log2 < 4 && (tile.step << tiling.groups_log2) < shape.height)
    ++tiling.groups_log2;
  const int groups = 1 << tiling.groups_log2;
  tiling.strips = int(divide_up(shape.height, groups * tile.step));
  tiling.windows = shape.width <= 8 * tile.tiles
                       ? 1
                       : 1 + int(divide_up(shape.width - 8 * tile.tiles, window_step(tile.tiles)));
  const int64_t image_tiles = divide_up(shape.images, jobs / groups);
  const int64_t per_image = int64_t(tiling.strips) * tiling.windows;
  const bool fits = per_image == 0 || image_tiles <= INT32_MAX / per_image;
  tiling.items = fits ? int(image_tiles * per_image) : -1;
  return tiling;
}

// ---- how many blocks a multiprocessor runs at a time ---------------------------------------------
//
// Registers decide. The kernels are compiled for these numbers.

enum class Pass { forward, weight_gradient, backward };

// Sums and bands alone are 32 + 18 at size 9 and 32 + 45 at size 15.
constexpr int forward_blocks(int size, int tiles, bool whole) {
  return size <= 9 && (whole || tiles <= 2) ? 4 : size > 9 && tiles > 4 ? 2 : 3;
}

// With 3, 6 and 7 tiles, 168 registers do not hold the sums of larger sizes and what is on its way.
constexpr int weight_gradient_blocks(int size, int tiles) {
  return size >= 9 && (tiles == 3 || tiles > 4) ? 2 : 3;
}

// Whether one kernel gives the gradients of input and weight. In registers it holds bands, input
// gradient and weight sums, 18 + 32 + 36 at size 9; at size 13, 39 + 32 + 80 leave no room for what is
// on its way, and the weight gradient takes a pass of its own.
constexpr bool backward_with_weight(int size) { return size <= 11; }

constexpr int backward_blocks(int size, bool with_weight) {
  return size > 9 ? 2 : with_weight ? 3 : 4;
}

// Square planes that one item covers, and that move as straight runs where everything lies on 16-byte
// boundaries.
constexpr bool whole_planes(const Shape& shape) {
  return shape.height == shape.width &&
         (shape.width == 8 || shape.width == 16 || shape.width == 32);
}

constexpr int blocks_of_planes(const Shape& shape, int size, int tiles, Pass pass) {
  if (pass == Pass::forward) return forward_blocks(size, tiles, whole_planes(shape));
  if (pass == Pass::weight_gradient) return weight_gradient_blocks(size, tiles);
  return backward_blocks(size, backward_with_weight(size));
}

// Tensor cores cut off what a sum has beyond a float, so that in long sums of one sign errors add up:
// how many items one warp sums for a gradient of the filter at most. A bias gradient of positive
// numbers is off by 8e-6 with 64 items, by 2e-5 with 256, on an emulated GPU; shares are added with
// rounding.
constexpr int most_summed_items = 64;
constexpr int most_grid_shares = 65535;

// Blocks come and go in waves, and a share takes as long as its items and about half an item to
// begin. The number of shares that takes the least time by that count, of those with at most
// `most_items` items.
constexpr int image_shares(int64_t blocks, int image_tiles, int64_t at_a_time,
                           int most_items = INT32_MAX) {
  if (at_a_time < 1) at_a_time = 1;
  const int fewest = std::clamp(int(divide_up(image_tiles, most_items)), 1, most_grid_shares);
  int best = fewest;
  int64_t least = INT64_MAX;
  for (int shares = fewest; shares <= image_tiles && shares <= std::max(fewest, 1024); ++shares) {
    if (shares > fewest && blocks * shares > 16 * at_a_time) break;  // as good as even
    const int64_t time =
        divide_up(blocks * shares, at_a_time) * (2 * divide_up(image_tiles, shares) + 1);
    if (time < least) least = time, best = shares;
  }
  return best;
}

constexpr int most_items_of_share(Pass pass) {
  return pass == Pass::forward ? INT32_MAX : most_summed_items;
}

constexpr Plan plan(Shape shape, int filter_size, Pass pass, const Chip& chip) {
  const int size = odd_size(filter_size);
  Plan result{};
  result.tile = tile_shape(shape.width);
  result.tiling = tiling_of(shape, result.tile);
  if (result.tiling.items < 0) return result;
  result.shares = image_shares(
      divide_up(shape.channels, most_warps), result.tiling.items,
      int64_t(chip.multiprocessors) * blocks_of_planes(shape, size, result.tile.tiles, pass),
      most_items_of_share(pass));
  return result;
}

// The tiling of planes that are exactly one item high and wide.
constexpr Tiling whole_tiling(int groups, int items) {
  int groups_log2 = 0;
  while (1 << groups_log2 < groups) ++groups_log2;
  return {groups_log2, 1, 1, items};
}

// Shared memory that a block may have on every architecture from sm_80 on; sm_86 has the least.
constexpr size_t most_shared_bytes = 99 * 1024;

// The largest number of elements, up to 8, that one access may move: rows, planes and images all
// begin on a multiple of it.
constexpr int alignment(uintptr_t address, int width, Strides strides) {
  const uintptr_t all =
      address / 2 | uintptr_t(width) | uintptr_t(strides.image) | uintptr_t(strides.channel);
  return all % 8 == 0 ? 8 : all % 4 == 0 ? 4 : all % 2 == 0 ? 2 : 1;
}

// ---- channels last -------------------------------------------------------------------------------
//
// A block stages the planes of several channels at once and keeps to one section of the images: a
// strip in a window. Its shares are shares of the images.

constexpr int sections(const Tiling& tiling) { return tiling.strips * tiling.windows; }

// Channels of a block: 16, which fill a sector of memory, 32 bytes, where shared memory and registers
// have room for them.
constexpr int block_channels(int size, int tiles, Pass pass) {
  const bool room = tiles <= 4 && size <= (tiles == 3 ? 9 : 11);
  return pass == Pass::forward && room ? 16 : 8;
}

// Warps of a block: one a channel, or one for two channels where registers hold both filters.
constexpr int block_warps(int size, int tiles, Pass pass) {
  return size <= 9 ? 8 : block_channels(size, tiles, pass);
}

// How many blocks a multiprocessor runs at a time: two wherever 128 registers are enough, as the
// compilers' reports say.
constexpr int blocks_resident(int size, int tiles, Pass pass) {
  if (pass == Pass::weight_gradient) return size < 9 || (size == 9 && tiles != 3) ? 2 : 1;
  return size <= 9 || (size >= 13 && tiles <= 2) || (size == 15 && tiles == 4) ? 2 : 1;
}

// What a block of the weight gradient takes at most for two wide tensors in jobs of two rows.
constexpr size_t two_row_shared_bytes = 152 * 1024;

// Lower jobs than elsewhere where shared memory must hold many small planes, or two wide tensors. For
// these, jobs of two rows fetch half as many halo rows as jobs of one. They are chosen where a block
// can have the shared memory, and where registers leave room for one block only in any case.
constexpr TileShape channels_last_tile(int width, int size, Pass pass, const Chip& chip) {
  const TileShape tile = tile_shape(width);
  if (tile.tiles == 1) return {4, 1};
  if (tile.tiles <= 4 || pass == Pass::forward) return tile;
  const bool two_rows = blocks_resident(size, tile.tiles, pass) == 1 &&
                        size_t(chip.shared_bytes) >= two_row_shared_bytes;
  return {two_rows ? 2 : 1, tile.tiles};
}

// What a block with such a tile may take, on every chip that the tile is chosen for.
constexpr size_t channels_last_shared_limit(TileShape tile, Pass pass) {
  const bool two_wide_tensors = tile.tiles > 4 && pass == Pass::weight_gradient;
  return two_wide_tensors && tile.step == 2 ? two_row_shared_bytes : most_shared_bytes;
}

constexpr Plan channels_last_plan(Shape shape, int filter_size, Pass pass, const Chip& chip) {
  const int size = odd_size(filter_size);
  Plan result{};
  result.tile = channels_last_tile(shape.width, size, pass, chip);
  result.tiling = tiling_of(shape, result.tile);
  if (result.tiling.items < 0) return result;
  const int tiles = result.tile.tiles, parts = sections(result.tiling);
  const int64_t blocks = divide_up(shape.channels, block_channels(size, tiles, pass)) * parts;
  const int64_t at_a_time = int64_t(chip.multiprocessors) * blocks_resident(size, tiles, pass);
  result.shares =
      image_shares(blocks, result.tiling.items / parts, at_a_time, most_items_of_share(pass));
  return result;
}

// Whether pixels are whole units of 8 channels on 16-byte boundaries; otherwise elements move one by
// one.
constexpr bool in_units(uintptr_t address, int channels, PixelStrides strides) {
  const uintptr_t elements = uintptr_t(channels) | uintptr_t(strides.image) |
                             uintptr_t(strides.row) | uintptr_t(strides.pixel);
  return address % 16 == 0 && elements % 8 == 0;
}

}  // namespace depthwise
