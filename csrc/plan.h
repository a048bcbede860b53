// Which tiles, items and shares serve a shape: plain C++ without CUDA, tested on its own.
#pragma once
#include <cstdint>

#include "arguments.h"

namespace depthwise {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int jobs = 16;       // rows of an mma
constexpr int most_warps = 4;  // of a block; a warp works alone, so fewer do as well

// An even filter is the next odd one whose first row and column are zero: 'same' padding puts the
// extra line at the bottom and right.
constexpr int odd_size(int filter_size) { return filter_size | 1; }

constexpr bool supported_filter(int filter_size) {
  return filter_size == 8 || (filter_size % 2 == 1 && filter_size >= 3 && filter_size <= 15);
}

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

struct Plan {
  TileShape tile;
  Tiling tiling;
  int shares;  // of the items of a channel, each worked through by one warp
};

// Enough warps for `multiprocessors` to hide the latency of memory: 16 on each.
constexpr int warps_wanted(int multiprocessors) { return 16 * multiprocessors; }

// `items` of the result is -1 where they would not fit an int.
constexpr Plan plan(Shape shape, int multiprocessors) {
  Plan result{};
  result.tile = tile_shape(shape.width);
  const int step = result.tile.step, tiles = result.tile.tiles;
  Tiling& tiling = result.tiling;
  while (tiling.groups_log2 < 4 && (step << tiling.groups_log2) < shape.height)
    ++tiling.groups_log2;
  const int groups = 1 << tiling.groups_log2;
  tiling.strips = int(divide_up(shape.height, groups * step));
  tiling.windows = shape.width <= 8 * tiles
                       ? 1
                       : 1 + int(divide_up(shape.width - 8 * tiles, window_step(tiles)));
  const int64_t image_tiles = divide_up(shape.images, jobs / groups);
  const int64_t per_image = int64_t(tiling.strips) * tiling.windows;
  if (per_image > 0 && image_tiles > INT32_MAX / per_image) {
    tiling.items = -1;
    return result;
  }
  tiling.items = int(image_tiles * per_image);
  const int64_t wanted = divide_up(warps_wanted(multiprocessors), shape.channels);
  const int64_t most = tiling.items < 65535 ? tiling.items : 65535;  // grid.y
  result.shares = int(wanted < 1 ? 1 : wanted < most ? wanted : most);
  if (result.shares < 1) result.shares = 1;
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
  return address % 2 ? 0 : all % 8 == 0 ? 8 : all % 4 == 0 ? 4 : all % 2 == 0 ? 2 : 1;
}

}  // namespace depthwise
