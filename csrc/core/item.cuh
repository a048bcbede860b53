// Where the rows of an item lie in shared memory, and which part of the planes it covers.
#pragma once
#include "arguments.h"
#include "core/device.h"
#include "host/plan.h"

namespace depthwise {

// Sizes and offsets in elements. An image of the item has groups * Step rows and `halo` more. Job
// after job lies an odd multiple of 16 bytes on (modulo 128 bytes), within an image and across
// images, so that loading a matrix meets no bank conflict.
template <int Step, int Columns>
struct ItemLayout {
  static_assert(Columns % 8 == 0);
  static constexpr int step = Step, columns = Columns;
  static constexpr int group = Step * Columns + (Step * Columns / 8 % 2 ? 0 : 8);

  __host__ __device__ static constexpr int at(int row, int column) {
    return row / Step * group + row % Step * Columns + column;
  }
  __host__ __device__ static constexpr int image(int groups, int halo) {
    const int least = (groups + (halo + Step - 1) / Step) * group;
    return least + ((groups * group - least) & 63);
  }
  __host__ __device__ static constexpr int elements(int groups, int halo) {
    return jobs / groups * image(groups, halo);
  }
  __device__ static int job(int number, int groups_log2, int image_pitch) {
    return (number >> groups_log2) * image_pitch + (number & ((1 << groups_log2) - 1)) * group;
  }
};

// Items follow each other from left to right, then from top to bottom, then by image. Where windows
// overlap, the outermost tiles of each serve as halo only.
template <int Step, int Tiles>
class Item {
 public:
  __host__ __device__ __forceinline__ Item(int number, const Tiling& tiling)
      : window_(number % tiling.windows),
        strip_(number / tiling.windows % tiling.strips),
        image_(number / tiling.windows / tiling.strips * (jobs >> tiling.groups_log2)) {}

  __host__ __device__ __forceinline__ void advance(const Tiling& tiling) {
    if (++window_ < tiling.windows) return;
    window_ = 0;
    if (++strip_ < tiling.strips) return;
    strip_ = 0;
    image_ += jobs >> tiling.groups_log2;
  }

  __host__ __device__ __forceinline__ int image() const { return image_; }
  __host__ __device__ __forceinline__ int top(const Tiling& tiling) const {
    return strip_ * (Step << tiling.groups_log2);
  }
  __host__ __device__ __forceinline__ int left() const { return window_ * window_step(Tiles); }
  // The tiles whose outputs belong to this item.
  __host__ __device__ __forceinline__ int first_tile() const { return window_ == 0 ? 0 : 1; }
  __host__ __device__ __forceinline__ int last_tile(const Tiling& tiling) const {
    return window_ + 1 == tiling.windows ? Tiles : Tiles - 1;
  }

 private:
  int window_, strip_, image_;
};

}  // namespace depthwise
