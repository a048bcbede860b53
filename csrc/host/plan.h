// The choice of tiles, items and splits for a shape, and of vectors and splits for an elementwise pass:
// plain C++ without CUDA, tested on its own.
#pragma once
#include <cstdint>

#include "arguments.h"
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
  int splits;    // of the items of a channel, each worked through by one warp
  int channels;  // of a block of channels-last tensors
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

// The time that splits take beside that of their items, in half items: to begin each of them, and to add
// up the sums of several by a kernel of its own.
struct SplitTime {
  int begin = 1;
  int add = 0;
};

// The number of splits that takes the least time, of those with at most `most_items` items. Blocks
// come and go in waves.
constexpr int image_splits(int64_t blocks, int image_tiles, int64_t at_a_time, SplitTime split = {},
                           int most_items = INT32_MAX) {
  if (at_a_time < 1) at_a_time = 1;
  int fewest = int(divide_up(image_tiles, most_items));
  if (fewest < 1) fewest = 1;
  if (fewest > most_grid_splits) fewest = most_grid_splits;
  const int most = fewest > 1024 ? fewest : 1024;
  int best = fewest;
  int64_t least = INT64_MAX;
  for (int splits = fewest; splits <= image_tiles && splits <= most; ++splits) {
    if (splits > fewest && blocks * splits > 16 * at_a_time) break;  // as good as even
    const int64_t items = divide_up(image_tiles, splits);
    const int64_t time = divide_up(blocks * splits, at_a_time) * (2 * items + split.begin) +
                         (splits > 1 ? split.add : 0);
    if (time < least) least = time, best = splits;
  }
  return best;
}

// Fitted to times of k = 9 on an H200 (benchmarks/phases/splits.cu): of 40 shapes, passes and layouts, the
// number that is chosen took at most 1.09 times as long as the fastest, and 1.01 times on average. The
// weight gradients in channels_last among them were timed with blocks of 16 channels, k = 9 has eight
// since. To add sums takes as long as four items of whole planes, and little beside slower ones.
constexpr SplitTime split_time(Pass pass, bool whole) {
  return {.begin = 3, .add = pass != Pass::forward && whole ? 8 : 0};
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
  result.splits = image_splits(divide_up(shape.channels, most_warps), result.tiling.items,
                               int64_t(chip.multiprocessors) * blocks_resident,
                               split_time(pass, whole_planes(shape)), most_items_of_split(pass));
  return result;
}

// ---- filters of up to 31 x 31 --------------------------------------------------------------------

// From narrow to wide planes. Tiles outside a plane are not multiplied, so four shapes do.
constexpr TileShape large_tile_shapes[] = {{8, 1}, {4, 2}, {2, 4}, {2, 8}};

constexpr TileShape large_tile_shape(int width) {
  TileShape widest{};
  for (const TileShape tile : large_tile_shapes) {
    widest = tile;
    if (width <= 8 * tile.tiles) break;
  }
  return widest;
}

// The tiles at each end of a column block that are halo: 31 columns reach 15 columns to a side.
constexpr int large_halo_tiles = 2;

// Blocks that a multiprocessor runs at a time, and the launch bounds of the kernels.
constexpr int large_blocks = 2;

// Neighbouring rows of the filter whose gradients a warp sums. Several warps share a channel.
constexpr int filter_rows_of_warp = 8;
constexpr int filter_row_groups(const LargeFilter& filter) {
  return int(divide_up(filter.rows(), filter_rows_of_warp));
}

// The most shared memory of one warp: two stages of its input and of outputs or their gradient, and the
// filter, 192 bytes a row. The kernels lay out items as ItemRows does; the planner's test compares.
constexpr size_t large_warp_bytes(TileShape tile, int groups, int filter_rows) {
  const int64_t group = tile.group_rows * 8 * tile.tiles + 8, images = mma_rows / groups;
  const int64_t halo = divide_up(filter_rows - 1, tile.group_rows);
  const int64_t input = images * ((groups + halo) * group + 63), output = mma_rows * group;
  return size_t(2 * (2 * input + 2 * output + 96 * filter_rows));
}

constexpr Plan large_plan(Shape shape, const LargeFilter& filter, Pass pass, const Chip& chip) {
  Plan result{};
  result.tile = large_tile_shape(shape.width);
  // An item has fewer images than could share it where low and wide ones would not fit with their halo.
  int groups_log2 = 0;
  while (groups_log2 < 4 &&
         large_warp_bytes(result.tile, 1 << groups_log2, filter.rows()) > most_shared_bytes)
    ++groups_log2;
  result.tiling = tiling_of(shape, result.tile, large_halo_tiles, groups_log2);
  if (result.tiling.items < 0) return result;
  const int warps = pass == Pass::forward ? 1 : filter_row_groups(filter);
  result.splits = image_splits(divide_up(int64_t(shape.channels) * warps, most_warps),
                               result.tiling.items, int64_t(chip.multiprocessors) * large_blocks,
                               split_time(pass, false), most_items_of_split(pass));
  return result;
}

// ---- channels last -------------------------------------------------------------------------------
//
// A block stages the planes of several channels at once and keeps to one section of the images. Its
// splits are splits of the images.

constexpr int channels_last_blocks(int size, int tiles, int channels, Pass pass,
                                   const Tuning& tuning) {
  return pass == Pass::weight_gradient
             ? tuning.channels_last_weight_gradient_blocks(size, tiles, channels)
             : tuning.channels_last_forward_blocks(size, tiles, channels);
}

// Shared memory beyond 99 KB: sm_80, sm_90 and sm_100 have the first, sm_90 and sm_100 the second.
constexpr size_t roomy_shared_bytes = 152 * 1024;
constexpr size_t roomiest_shared_bytes = 227 * 1024;

// The work of a block: items of `tile` of so many channels.
struct ChannelsLastTile {
  TileShape tile;
  int channels;
};
constexpr bool operator==(const ChannelsLastTile& a, const ChannelsLastTile& b) {
  return a.tile == b.tile && a.channels == b.channels;
}

// Sixteen channels fill a sector of memory, 32 bytes; blocks of eight read and write half of each. On an
// H200 they took 2.3 times as long for the forward pass (32x32, k = 9), which has sixteen wherever shared
// memory allows. The weight gradient only reads, and sixteen warps in one block overlap less than two
// blocks of eight: sixteen channels took 0.88 to 0.99 times as long at k = 7 on planes of 28 to 56
// columns, and 1.01 to 1.06 times on smaller ones and at k = 9.
//
// Row groups are lower than elsewhere where shared memory must hold many small planes or wide ones.
// Two rows of two wide tensors fetch half as many halo rows as one: they are chosen where a block of
// eight channels can have the shared memory.
constexpr ChannelsLastTile channels_last_tile(int width, int size, Pass pass, const Chip& chip) {
  TileShape tile = tile_shape(width);
  const bool narrow = tile.tiles <= 4;
  if (tile.tiles == 1) tile.group_rows = 4;
  const size_t shared = size_t(chip.shared_bytes);
  int channels = 16;
  if (pass == Pass::forward) {
    const bool small = size <= 9 || (size == 11 && narrow && tile.tiles != 3);
    if (!small && shared < roomy_shared_bytes) channels = 8;
    if (!narrow && channels == 16) tile.group_rows = 1;
  } else {
    if (size > 7 || tile.tiles <= 3 || shared < roomiest_shared_bytes) channels = 8;
    if (!narrow) tile.group_rows = size > 9 && shared >= roomy_shared_bytes ? 2 : 1;
  }
  return {tile, channels};
}

// The most that a block may take, on every chip that its tile is chosen for.
constexpr size_t channels_last_shared_limit(const ChannelsLastTile& block, int size, Pass pass) {
  const ChannelsLastTile least = channels_last_tile(8 * block.tile.tiles, size, pass, {0, 0, 0});
  if (block == least) return most_shared_bytes;
  return pass == Pass::forward || block.channels == 8 ? roomy_shared_bytes : roomiest_shared_bytes;
}

constexpr Plan channels_last_plan(Shape shape, int filter_size, Pass pass, const Chip& chip) {
  const int size = odd_size(filter_size);
  Plan result{};
  const ChannelsLastTile block = channels_last_tile(shape.width, size, pass, chip);
  result.tile = block.tile;
  result.channels = block.channels;
  result.tiling = tiling_of(shape, result.tile);
  if (result.tiling.items < 0) return result;
  const int tiles = result.tile.tiles, parts = sections(result.tiling);
  const int64_t blocks = divide_up(shape.channels, block.channels) * parts;
  const int64_t at_a_time =
      int64_t(chip.multiprocessors) *
      channels_last_blocks(size, tiles, block.channels, pass, tuning_of(chip.capability));
  result.splits = image_splits(blocks, result.tiling.items / parts, at_a_time,
                               split_time(pass, false), most_items_of_split(pass));
  return result;
}

// ---- elementwise passes --------------------------------------------------------------------------

constexpr int elementwise_threads(bool channels_last) { return channels_last ? 256 : 128; }

constexpr int elementwise_blocks(bool channels_last, const Tuning& tuning) {
  return channels_last ? tuning.channels_last_elementwise_blocks : tuning.elementwise_blocks;
}

// The largest number of neighbouring elements that one access may move in all three tensors, 8, 4 or 1.
constexpr int elementwise_vector(const ElementwiseArguments& p, bool channels_last) {
  uintptr_t all = uintptr_t(channels_last ? p.channels : p.inner);
  const auto include = [&](const void* tensor, const Steps& steps) {
    if (tensor == nullptr) return;
    all |= uintptr_t(tensor) / 2 | uintptr_t(steps.outer);
    if (!channels_last) all |= uintptr_t(steps.channel);
  };
  include(p.value, p.value_steps);
  include(p.other, p.other_steps);
  include(p.output, p.output_steps);
  return all % 8 == 0 ? 8 : all % 4 == 0 && !channels_last ? 4 : 1;
}

// The largest outer index: a thread goes up to a batch of warps beyond the last one.
constexpr int most_outer = INT32_MAX - 128;

struct ElementwisePlan {
  int vector;
  int blocks;  // of channels
  int splits;  // of the outer index
};

constexpr ElementwisePlan elementwise_plan(const ElementwiseArguments& p, bool channels_last,
                                           const Chip& chip) {
  ElementwisePlan plan{};
  plan.vector = elementwise_vector(p, channels_last);
  const int block_channels = !channels_last     ? elementwise_threads(false) / 32
                             : plan.vector == 8 ? 64
                                                : 32;
  plan.blocks = int(divide_up(p.channels, block_channels));
  // A pixel is less than a thread should have to itself.
  const int least = channels_last ? elementwise_threads(true) : 1;
  const int most = int(divide_up(p.outer, least));
  plan.splits = image_splits(plan.blocks, most,
                             int64_t(chip.multiprocessors) *
                                 elementwise_blocks(channels_last, tuning_of(chip.capability)));
  return plan;
}

}  // namespace depthwise
