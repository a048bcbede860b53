// The planner on its own: on every architecture items tile every plane, halo included, and stay
// within what the kernels, the grid and shared memory can take. Prints the first contradiction and
// exits with 1.
//
// nvcc reads a file once for the device, where this one would only cost time.
#ifndef __CUDA_ARCH__
#include "plan.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "launch.cuh"
#include "launch_channels_last.cuh"

using namespace depthwise;

static_assert(odd_size(8) == 9 && odd_size(9) == 9);
static_assert(supported_filter(3) && supported_filter(8) && supported_filter(15));
static_assert(!supported_filter(1) && !supported_filter(6) && !supported_filter(17));
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
constexpr Architecture sm_80{"sm_80", {108, 163 << 10}}, sm_86{"sm_86", {82, 99 << 10}},
    sm_89{"sm_89", {142, 99 << 10}}, sm_90{"sm_90", {132, 227 << 10}},
    sm_100{"sm_100", {148, 227 << 10}}, sm_120{"sm_120", {170, 99 << 10}};
constexpr Architecture architectures[] = {sm_80, sm_86, sm_89, sm_90, sm_100, sm_120};

constexpr bool has_tile(const Architecture& on, int width, int size, Pass pass, TileShape tile) {
  const TileShape chosen = channels_last_tile(width, size, pass, on.chip);
  return chosen.step == tile.step && chosen.tiles == tile.tiles;
}

// Two wide tensors in jobs of two rows: where there is shared memory for them, and one block in any
// case. Elsewhere, and for one tensor, an architecture makes no difference.
static_assert(has_tile(sm_80, 56, 15, Pass::weight_gradient, {2, 7}));
static_assert(has_tile(sm_86, 56, 15, Pass::weight_gradient, {1, 7}));
static_assert(has_tile(sm_89, 56, 15, Pass::weight_gradient, {1, 7}));
static_assert(has_tile(sm_90, 56, 15, Pass::weight_gradient, {2, 7}));
static_assert(has_tile(sm_100, 56, 15, Pass::weight_gradient, {2, 7}));
static_assert(has_tile(sm_120, 56, 15, Pass::weight_gradient, {1, 7}));
static_assert(has_tile(sm_90, 44, 11, Pass::weight_gradient, {2, 6}));
static_assert(has_tile(sm_90, 56, 9, Pass::weight_gradient, {1, 7}));
static_assert(has_tile(sm_120, 56, 15, Pass::forward, {2, 7}));
static_assert(has_tile(sm_90, 32, 9, Pass::weight_gradient, {2, 4}));
static_assert(has_tile(sm_90, 7, 9, Pass::weight_gradient, {4, 1}));

// Shares: whole waves of blocks, which a multiprocessor runs four, three or two of at a time.
constexpr int shares(const Shape& shape, int size, Pass pass, const Chip& chip) {
  return plan(shape, size, pass, chip).shares;
}
static_assert(shares({64, 1536, 32, 32}, 9, Pass::forward, sm_90.chip) == 4);
static_assert(shares({64, 2112, 32, 32}, 9, Pass::forward, sm_90.chip) == 1);
static_assert(shares({64, 1536, 32, 32}, 9, Pass::weight_gradient, sm_90.chip) == 1);
static_assert(shares({64, 1536, 32, 32}, 9, Pass::backward, sm_90.chip) == 1);
static_assert(shares({256, 1536, 32, 32}, 9, Pass::forward, {1, 0}) == 1);
static_assert(shares({256, 1536, 32, 32}, 9, Pass::weight_gradient, {1, 0}) == 4);
static_assert(shares({256, 1536, 32, 32}, 9, Pass::backward, {1, 0}) == 4);
static_assert(shares({64, 96, 32, 32}, 9, Pass::forward, sm_90.chip) == 22);
static_assert(shares({64, 96, 32, 32}, 15, Pass::forward, sm_90.chip) == 16);
static_assert(shares({64, 96, 32, 32}, 9, Pass::forward, sm_120.chip) == 22);
static_assert(shares({1, 96, 32, 32}, 9, Pass::forward, sm_90.chip) == 1);
static_assert(shares({100000, 1, 8, 8}, 9, Pass::forward, {0, 0}) == 1);
static_assert(plan({2147483647, 1, 40000, 40000}, 9, Pass::forward, sm_90.chip).tiling.items == -1);

// Of channels-last tensors: whole waves of blocks.
constexpr int channels_last_shares(const Shape& shape, int size, Pass pass, const Chip& chip) {
  return channels_last_plan(shape, size, pass, chip).shares;
}
static_assert(channels_last_shares({64, 1536, 32, 32}, 9, Pass::forward, sm_80.chip) == 2);
static_assert(channels_last_shares({64, 1536, 32, 32}, 9, Pass::forward, sm_90.chip) == 8);
static_assert(channels_last_shares({64, 96, 56, 56}, 15, Pass::weight_gradient, sm_90.chip) == 11);
static_assert(channels_last_shares({64, 96, 56, 56}, 15, Pass::weight_gradient, sm_120.chip) == 7);
static_assert(channels_last_plan({2147483647, 1, 40000, 40000}, 9, Pass::forward, sm_90.chip)
                  .tiling.items == -1);

void require(bool holds, const char* what, const Architecture& on, const Shape& shape) {
  if (holds) return;
  std::printf("%s, %dx%dx%dx%d: %s\n", on.name, shape.images, shape.channels, shape.height,
              shape.width, what);
  std::exit(1);
}

template <int Step, int Tiles>
void check_items(const Architecture& on, const Shape& shape, const Tiling& tiling) {
  const auto hold = [&](bool holds, const char* what) { require(holds, what, on, shape); };
  std::vector<int> times(size_t(shape.images) * size_t(shape.height) * size_t(shape.width));
  const int groups = 1 << tiling.groups_log2;
  Item<Step, Tiles> walking(0, tiling);
  for (int number = 0; number < tiling.items; ++number, walking.advance(tiling)) {
    const Item<Step, Tiles> item(number, tiling);
    hold(item.image() == walking.image() && item.top(tiling) == walking.top(tiling) &&
             item.left() == walking.left(),
         "walking from item to item leads elsewhere than counting");
    hold(item.left() % 8 == 0, "an item does not begin at a chunk");
    // Inner windows must see a whole chunk on either side of their outputs.
    hold(item.first_tile() == 0 ? item.left() == 0 : item.first_tile() == 1, "left halo");
    hold(item.last_tile(tiling) == Tiles ? item.left() + 8 * Tiles >= shape.width
                                         : item.last_tile(tiling) == Tiles - 1,
         "right halo");
    for (int image = item.image(); image < item.image() + jobs / groups; ++image)
      for (int y = item.top(tiling); y < item.top(tiling) + groups * Step; ++y)
        for (int x = item.left() + 8 * item.first_tile();
             x < item.left() + 8 * item.last_tile(tiling); ++x)
          if (image < shape.images && y < shape.height && x < shape.width)
            ++times[(size_t(image) * size_t(shape.height) + size_t(y)) * size_t(shape.width) +
                    size_t(x)];
  }
  for (const int count : times) hold(count == 1, "a pixel is not done exactly once");
}

template <class Layout>
void check_contiguous_block(const Architecture& on, const Shape& shape, int groups) {
  const int warps = fitting_warps<Layout, __half>(groups);
  require(Layout::template shared_bytes<__half>(warps, groups) <= size_t(on.chip.shared_bytes),
          "a block takes more shared memory than there is", on, shape);
}

template <int Size>
void check_contiguous(const Architecture& on, const Shape& shape) {
  const Plan chosen = plan(shape, Size, Pass::weight_gradient, on.chip);
  const Tiling& tiling = chosen.tiling;
  const auto hold = [&](bool holds, const char* what) { require(holds, what, on, shape); };
  hold(tiling.groups_log2 >= 0 && tiling.groups_log2 <= 4, "groups");
  hold(chosen.shares >= 1 && chosen.shares <= 65535, "shares do not fit the grid");
  hold(chosen.shares <= tiling.items, "a share without items");
  const auto check = [&](auto, auto step, auto tiles, auto) {
    constexpr int Step = decltype(step)::value, Tiles = decltype(tiles)::value;
    hold(chosen.tile.step == Step, "the kernel for this tile has other jobs");
    check_contiguous_block<ForwardLayout<Size, Step, Tiles>>(on, shape, 1 << tiling.groups_log2);
    check_contiguous_block<WeightGradientLayout<Size, Step, Tiles>>(on, shape,
                                                                    1 << tiling.groups_log2);
    check_items<Step, Tiles>(on, shape, tiling);
    return cudaSuccess;
  };
  hold(with_tile(Type::half, chosen.tile, false, check) == cudaSuccess, "no kernel for this tile");
}

template <int Size, Pass pass>
void check_channels_last(const Architecture& on, const Shape& shape) {
  const Plan chosen = channels_last_plan(shape, Size, pass, on.chip);
  const auto hold = [&](bool holds, const char* what) { require(holds, what, on, shape); };
  const auto check = [&](auto, auto step, auto tiles) {
    constexpr int Step = decltype(step)::value, Tiles = decltype(tiles)::value;
    using Layout =
        std::conditional_t<pass == Pass::forward, ChannelsLastForwardLayout<Size, Step, Tiles>,
                           ChannelsLastWeightGradientLayout<Size, Step, Tiles>>;
    hold(chosen.tile.step == Step, "the kernel for this tile has other jobs");
    Tiling tiling = fitting_tiling<Layout, __half>(chosen.tiling);
    hold(Layout::template shared_bytes<__half>(tiling) <= size_t(on.chip.shared_bytes),
         "a block takes more shared memory than there is");
    hold(tiling.groups_log2 >= chosen.tiling.groups_log2 && tiling.groups_log2 <= 4, "groups");
    // The launch counts images by those of its own items.
    const int image_tiles = int(divide_up(shape.images, jobs >> tiling.groups_log2));
    tiling.items = image_tiles * sections(tiling);
    hold(chosen.shares >= 1 && chosen.shares <= image_tiles, "a share without images");
    check_items<Step, Tiles>(on, shape, tiling);
    return cudaSuccess;
  };
  hold(with_channels_last_tile<Size, pass>(Type::half, chosen.tile, check) == cudaSuccess,
       "no kernel for this tile");
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
  std::puts("every plane is tiled");
}

#endif
