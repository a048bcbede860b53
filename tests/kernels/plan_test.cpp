// The planner on its own: on every architecture items tile every plane, halo included, and stay
// within what the kernels, the grid and shared memory can take. Prints the first contradiction and
// exits with 1.
//
// nvcc reads a file once for the device, where this one would only cost time.
#ifndef __CUDA_ARCH__
#include "host/plan.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/large_item.cuh"
#include "kernels/forward.cu"
#include "kernels/forward_channels_last.cu"
#include "kernels/weight_gradient.cu"
#include "kernels/weight_gradient_channels_last.cu"

using namespace depthwise;

static_assert(odd_size(8) == 9 && odd_size(9) == 9);
static_assert(tile_shape(1).tiles == 1 && tile_shape(8).tiles == 1 && tile_shape(9).tiles == 2);
static_assert(tile_shape(32).tiles == 4 && tile_shape(33).tiles == 6 && tile_shape(49).tiles == 7);
static_assert(tile_shape(1000).tiles == 7);
static_assert(alignment(32, 16, {256, 256}) == 8 && alignment(8, 16, {256, 256}) == 4);
static_assert(alignment(32, 14, {196, 196}) == 2 && alignment(32, 7, {49, 49}) == 1);
static_assert(alignment(32, 8, {256, 196}) == 4 && alignment(30, 8, {64, 64}) == 1);

namespace {

struct Architecture {
  const char* name;
  Chip chip;
};

// With the multiprocessors of an A100, RTX 3090, L40S, H200, B200 and RTX 5090.
constexpr Architecture sm_80{"sm_80", {108, 163 << 10, 80}}, sm_86{"sm_86", {82, 99 << 10, 86}},
    sm_89{"sm_89", {142, 99 << 10, 89}}, sm_90{"sm_90", {132, 227 << 10, 90}},
    sm_100{"sm_100", {148, 227 << 10, 100}}, sm_120{"sm_120", {170, 99 << 10, 120}};
constexpr Architecture architectures[] = {sm_80, sm_86, sm_89, sm_90, sm_100, sm_120};

constexpr bool has_tile(const Architecture& on, int width, int size, Pass pass, TileShape tile,
                        int channels) {
  return channels_last_tile(width, size, pass, on.chip) == ChannelsLastTile{tile, channels};
}

// One tensor: 16 channels on every architecture where registers or little memory allow it, else where a
// block can have the memory. Wide planes then take row groups of one row.
static_assert(has_tile(sm_120, 32, 9, Pass::forward, {2, 4}, 16));
static_assert(has_tile(sm_120, 32, 11, Pass::forward, {2, 4}, 16));
static_assert(has_tile(sm_120, 24, 11, Pass::forward, {3, 3}, 8));
static_assert(has_tile(sm_120, 32, 15, Pass::forward, {2, 4}, 8));
static_assert(has_tile(sm_120, 56, 9, Pass::forward, {1, 7}, 16));
static_assert(has_tile(sm_120, 56, 15, Pass::forward, {2, 7}, 8));
static_assert(has_tile(sm_80, 32, 15, Pass::forward, {2, 4}, 16));
static_assert(has_tile(sm_90, 56, 15, Pass::forward, {1, 7}, 16));
static_assert(has_tile(sm_90, 7, 15, Pass::forward, {4, 1}, 16));

// Two tensors: 16 channels up to size 7 for planes of more than three tiles, where a block can have most;
// beyond, two wide tensors take groups of two rows where there is shared memory for them.
static_assert(has_tile(sm_80, 32, 7, Pass::weight_gradient, {2, 4}, 8));
static_assert(has_tile(sm_90, 32, 7, Pass::weight_gradient, {2, 4}, 16));
static_assert(has_tile(sm_90, 56, 7, Pass::weight_gradient, {1, 7}, 16));
static_assert(has_tile(sm_90, 32, 9, Pass::weight_gradient, {2, 4}, 8));
static_assert(has_tile(sm_90, 16, 7, Pass::weight_gradient, {4, 2}, 8));
static_assert(has_tile(sm_90, 7, 9, Pass::weight_gradient, {4, 1}, 8));
static_assert(has_tile(sm_90, 56, 9, Pass::weight_gradient, {1, 7}, 8));
static_assert(has_tile(sm_80, 56, 15, Pass::weight_gradient, {2, 7}, 8));
static_assert(has_tile(sm_86, 56, 15, Pass::weight_gradient, {1, 7}, 8));
static_assert(has_tile(sm_89, 56, 15, Pass::weight_gradient, {1, 7}, 8));
static_assert(has_tile(sm_90, 56, 15, Pass::weight_gradient, {2, 7}, 8));
static_assert(has_tile(sm_100, 44, 11, Pass::weight_gradient, {2, 6}, 8));
static_assert(has_tile(sm_120, 56, 9, Pass::weight_gradient, {1, 7}, 8));

// Splits: whole waves of blocks, which a multiprocessor runs four, three or two of at a time, and few where
// items are few.
constexpr int splits(const Shape& shape, int size, Pass pass, const Chip& chip) {
  return plan(shape, size, pass, chip).splits;
}
static_assert(splits({64, 1536, 32, 32}, 9, Pass::forward, sm_90.chip) == 4);
static_assert(splits({64, 2112, 32, 32}, 9, Pass::forward, sm_90.chip) == 1);
static_assert(splits({64, 1536, 32, 32}, 9, Pass::weight_gradient, sm_90.chip) == 1);
static_assert(splits({64, 1536, 32, 32}, 9, Pass::backward, sm_90.chip) == 1);
static_assert(splits({256, 1536, 32, 32}, 9, Pass::forward, {1, 0, 90}) == 1);
static_assert(splits({256, 1536, 32, 32}, 9, Pass::weight_gradient, {1, 0, 90}) == 4);
static_assert(splits({256, 1536, 32, 32}, 9, Pass::backward, {1, 0, 90}) == 4);
static_assert(splits({64, 96, 32, 32}, 9, Pass::forward, sm_90.chip) == 22);
static_assert(splits({64, 96, 32, 32}, 15, Pass::forward, sm_90.chip) == 16);
static_assert(splits({64, 96, 32, 32}, 9, Pass::forward, sm_120.chip) == 22);
static_assert(splits({1, 96, 32, 32}, 9, Pass::forward, sm_90.chip) == 1);
static_assert(splits({100000, 1, 8, 8}, 9, Pass::forward, {0, 0, 90}) == 1);
static_assert(plan({2147483647, 1, 40000, 40000}, 9, Pass::forward, sm_90.chip).tiling.items == -1);

// Of channels-last tensors: whole waves of blocks.
constexpr int channels_last_splits(const Shape& shape, int size, Pass pass, const Chip& chip) {
  return channels_last_plan(shape, size, pass, chip).splits;
}
static_assert(channels_last_splits({64, 1536, 32, 32}, 9, Pass::forward, sm_80.chip) == 2);
static_assert(channels_last_splits({64, 1536, 32, 32}, 9, Pass::forward, sm_90.chip) == 8);
static_assert(channels_last_splits({64, 96, 56, 56}, 15, Pass::weight_gradient, sm_90.chip) == 5);
static_assert(channels_last_splits({64, 96, 56, 56}, 15, Pass::weight_gradient, sm_120.chip) == 7);
static_assert(channels_last_plan({2147483647, 1, 40000, 40000}, 9, Pass::forward, sm_90.chip)
                  .tiling.items == -1);

void require(bool holds, const char* what, const Architecture& on, const Shape& shape) {
  if (holds) return;
  std::printf("%s, %dx%dx%dx%d: %s\n", on.name, shape.images, shape.channels, shape.height,
              shape.width, what);
  std::exit(1);
}

template <int GroupRows, int Tiles, int HaloTiles = 1>
void check_items(const Architecture& on, const Shape& shape, const Tiling& tiling) {
  const auto hold = [&](bool holds, const char* what) { require(holds, what, on, shape); };
  std::vector<int> times(size_t(shape.images) * size_t(shape.height) * size_t(shape.width));
  const int groups = 1 << tiling.groups_log2;
  Item<GroupRows, Tiles, HaloTiles> walking(0, tiling);
  for (int number = 0; number < tiling.items; ++number, walking.advance(tiling)) {
    const Item<GroupRows, Tiles, HaloTiles> item(number, tiling);
    hold(item.image() == walking.image() && item.top(tiling) == walking.top(tiling) &&
             item.left() == walking.left(),
         "walking from item to item leads elsewhere than counting");
    hold(item.left() % 8 == 0, "an item does not begin at a chunk");
    // Inner column blocks must see whole chunks on either side of their outputs.
    hold(item.first_tile() == 0 ? item.left() == 0 : item.first_tile() == HaloTiles, "left halo");
    hold(item.last_tile(tiling) == Tiles ? item.left() + 8 * Tiles >= shape.width
                                         : item.last_tile(tiling) == Tiles - HaloTiles,
         "right halo");
    for (int image = item.image(); image < item.image() + mma_rows / groups; ++image)
      for (int y = item.top(tiling); y < item.top(tiling) + groups * GroupRows; ++y)
        for (int x = item.left() + 8 * item.first_tile();
             x < item.left() + 8 * item.last_tile(tiling); ++x)
          if (image < shape.images && y < shape.height && x < shape.width)
            ++times[(size_t(image) * size_t(shape.height) + size_t(y)) * size_t(shape.width) +
                    size_t(x)];
  }
  for (const int count : times) hold(count == 1, "a pixel is not done exactly once");
}

template <class Block>
void check_contiguous_block(const Architecture& on, const Shape& shape, int groups) {
  const int warps = fitting_warps(Block::shared_bytes, groups);
  require(Block::shared_bytes(warps, groups) <= size_t(on.chip.shared_bytes),
          "a block takes more shared memory than there is", on, shape);
}

template <int Size>
void check_contiguous(const Architecture& on, const Shape& shape) {
  const Plan chosen = plan(shape, Size, Pass::weight_gradient, on.chip);
  const Tiling& tiling = chosen.tiling;
  const auto hold = [&](bool holds, const char* what) { require(holds, what, on, shape); };
  hold(tiling.groups_log2 >= 0 && tiling.groups_log2 <= 4, "groups");
  hold(chosen.splits >= 1 && chosen.splits <= 65535, "splits do not fit the grid");
  hold(chosen.splits <= tiling.items, "a split without items");
  bool found = false;
  each_tile([&](auto group_rows, auto tiles) {
    if (!(chosen.tile == TileShape{group_rows, tiles})) return;
    found = true;
    check_contiguous_block<ForwardBlock<Size, group_rows, tiles>>(on, shape,
                                                                  1 << tiling.groups_log2);
    check_contiguous_block<WeightGradientBlock<Size, group_rows, tiles>>(on, shape,
                                                                         1 << tiling.groups_log2);
    check_items<group_rows, tiles>(on, shape, tiling);
  });
  hold(found, "no kernel for this tile");
}

template <int Size, Pass pass>
void check_channels_last(const Architecture& on, const Shape& shape) {
  const Plan chosen = channels_last_plan(shape, Size, pass, on.chip);
  const auto hold = [&](bool holds, const char* what) { require(holds, what, on, shape); };
  const ChannelsLastTile planned{chosen.tile, chosen.channels};
  bool found = false;
  each_channels_last_tile<Size, pass>([&](auto group_rows, auto tiles, auto channels) {
    if (!(planned == ChannelsLastTile{{group_rows, tiles}, channels})) return;
    found = true;
    using Block =
        std::conditional_t<pass == Pass::forward,
                           ChannelsLastForwardBlock<Size, group_rows, tiles, channels>,
                           ChannelsLastWeightGradientBlock<Size, group_rows, tiles, channels>>;
    const Variant variant{ElementType::half, chosen.tile, channels};
    Tiling tiling = fitting_tiling(channels_last_block<Block>(variant), chosen.tiling);
    hold(Block::shared_bytes(tiling) <= size_t(on.chip.shared_bytes),
         "a block takes more shared memory than there is");
    hold(tiling.groups_log2 >= chosen.tiling.groups_log2 && tiling.groups_log2 <= 4, "groups");
    // The launch counts images by those of its own items.
    const int image_tiles = int(divide_up(shape.images, mma_rows >> tiling.groups_log2));
    tiling.items = image_tiles * sections(tiling);
    hold(chosen.splits >= 1 && chosen.splits <= image_tiles, "a split without images");
    check_items<group_rows, tiles>(on, shape, tiling);
  });
  hold(found, "no kernel for this tile");
}

void check_large(const Architecture& on, const Shape& shape, const LargeFilter& filter) {
  const auto hold = [&](bool holds, const char* what) { require(holds, what, on, shape); };
  const Plan chosen = large_plan(shape, filter, Pass::weight_gradient, on.chip);
  const Tiling& tiling = chosen.tiling;
  hold(chosen.splits >= 1 && chosen.splits <= tiling.items, "a split without items");
  const int groups = 1 << tiling.groups_log2;
  bool found = false;
  each_tile<large_tile_shapes>([&](auto group_rows, auto tiles) {
    if (!(chosen.tile == TileShape{group_rows, tiles})) return;
    found = true;
    hold(LargeForwardBlock<group_rows, tiles>::shared_bytes(1, groups, filter.rows()) <=
             most_shared_bytes,
         "a warp takes more shared memory than there is");
    hold(LargeWeightGradientBlock<group_rows, tiles>::shared_bytes(1, groups) <= most_shared_bytes,
         "a warp of the weight gradient takes more shared memory than there is");
    check_items<group_rows, tiles, large_halo_tiles>(on, shape, tiling);
  });
  hold(found, "no kernel for this tile");
}

template <int Size>
void check(const Architecture& on, const Shape& shape) {
  check_contiguous<Size>(on, shape);
  check_channels_last<Size, Pass::forward>(on, shape);
  check_channels_last<Size, Pass::weight_gradient>(on, shape);
}

}  // namespace

int main() {
  size_t turn = 0;
  // Every size up to more than the widest tile, then some, up to four windows.
  for (int size = 1; size <= 141; size += size < 64 ? 1 : 7)
    for (const int other : {1, 2, 7, 8, 9, 16, 17, 31, 33, 56, 57, 100})
      for (const Shape& shape : {Shape{3, 3, size, other}, Shape{17, 1536, other, size}})
        // Architectures take turns over filter sizes, so that each meets each.
        switch (const Architecture& on = architectures[turn++ % std::size(architectures)];
                turn % 7) {
          case 0: check<3>(on, shape); break;
          case 1: check<5>(on, shape); break;
          case 2: check<7>(on, shape); break;
          case 3: check<9>(on, shape); break;
          case 4: check<11>(on, shape); break;
          case 5: check<13>(on, shape); break;
          case 6: check<15>(on, shape); break;
        }
  for (int size = 1; size <= 141; size += size < 9 ? 1 : 13)
    for (const int other : {1, 9, 33, 64, 65, 100})
      for (const Shape& shape : {Shape{3, 3, size, other}, Shape{17, 5, other, size}})
        for (const LargeFilter& filter : {LargeFilter{31, 31, 1, 1}, LargeFilter{1, 11, 1, 1}})
          check_large(architectures[turn++ % std::size(architectures)], shape, filter);
  std::puts("every plane is tiled");
}

#endif
