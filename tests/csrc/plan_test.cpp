// The planner on its own: items tile every plane, halo included, and stay within what the kernels and
// the grid can take. Prints the first contradiction and exits with 1.
#include "plan.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "item.cuh"

using namespace depthwise;

static_assert(odd_size(8) == 9 && odd_size(9) == 9);
static_assert(supported_filter(3) && supported_filter(8) && supported_filter(15));
static_assert(!supported_filter(1) && !supported_filter(6) && !supported_filter(17));
static_assert(tile_shape(1).tiles == 1 && tile_shape(8).tiles == 1 && tile_shape(9).tiles == 2);
static_assert(tile_shape(32).tiles == 4 && tile_shape(33).tiles == 6 && tile_shape(49).tiles == 7);
static_assert(tile_shape(1000).tiles == 7);
static_assert(alignment(32, 16, {256, 256}) == 8 && alignment(8, 16, {256, 256}) == 4);
static_assert(alignment(32, 14, {196, 196}) == 2 && alignment(32, 7, {49, 49}) == 1);
static_assert(alignment(32, 8, {256, 196}) == 4 && alignment(31, 8, {64, 64}) == 0);
static_assert(plan({2147483647, 1, 40000, 40000}, 132).tiling.items == -1);

namespace {

void require(bool holds, const char* what, const Shape& shape) {
  if (holds) return;
  std::printf("%dx%dx%dx%d: %s\n", shape.images, shape.channels, shape.height, shape.width, what);
  std::exit(1);
}

template <int Step, int Tiles>
void check_items(const Shape& shape, const Tiling& tiling) {
  std::vector<int> times(size_t(shape.images) * size_t(shape.height) * size_t(shape.width));
  const int groups = 1 << tiling.groups_log2;
  Item<Step, Tiles> walking(0, tiling);
  for (int number = 0; number < tiling.items; ++number, walking.advance(tiling)) {
    const Item<Step, Tiles> item(number, tiling);
    require(item.image() == walking.image() && item.top(tiling) == walking.top(tiling) &&
                item.left() == walking.left(),
            "walking from item to item leads elsewhere than counting", shape);
    require(item.left() % 8 == 0, "an item does not begin at a chunk", shape);
    // Inner windows must see a whole chunk on either side of their outputs.
    require(item.first_tile() == 0 ? item.left() == 0 : item.first_tile() == 1, "left halo", shape);
    require(item.last_tile(tiling) == Tiles ? item.left() + 8 * Tiles >= shape.width
                                            : item.last_tile(tiling) == Tiles - 1,
            "right halo", shape);
    for (int image = item.image(); image < item.image() + jobs / groups; ++image)
      for (int y = item.top(tiling); y < item.top(tiling) + groups * Step; ++y)
        for (int x = item.left() + 8 * item.first_tile();
             x < item.left() + 8 * item.last_tile(tiling); ++x)
          if (image < shape.images && y < shape.height && x < shape.width)
            ++times[(size_t(image) * size_t(shape.height) + size_t(y)) * size_t(shape.width) +
                    size_t(x)];
  }
  for (const int count : times) require(count == 1, "a pixel is not done exactly once", shape);
}

void check(const Shape& shape, int multiprocessors) {
  const Plan chosen = plan(shape, multiprocessors);
  const Tiling& tiling = chosen.tiling;
  require(tiling.groups_log2 >= 0 && tiling.groups_log2 <= 4, "groups", shape);
  require(chosen.shares >= 1 && chosen.shares <= 65535, "shares do not fit the grid", shape);
  require(chosen.shares <= tiling.items, "a share without items", shape);
  switch (chosen.tile.tiles) {
    case 1: return check_items<8, 1>(shape, tiling);
    case 2: return check_items<4, 2>(shape, tiling);
    case 3: return check_items<3, 3>(shape, tiling);
    case 4: return check_items<2, 4>(shape, tiling);
    case 6: return check_items<2, 6>(shape, tiling);
    case 7: return check_items<2, 7>(shape, tiling);
    default: require(false, "no kernel for this tile", shape);
  }
}

}  // namespace

int main() {
  for (int size = 1; size <= 140; ++size)
    for (const int other : {1, 2, 7, 8, 9, 16, 17, 31, 33, 56, 57, 100})
      for (const int images : {1, 3, 17}) {
        check({images, 3, size, other}, 1);
        check({images, 1536, other, size}, 132);
      }
  std::puts("every plane is tiled");
}
