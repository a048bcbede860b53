// How planes of a contiguous tensor enter and leave shared memory, one item and one warp at a time.
#pragma once
#include <type_traits>

#include "arguments.h"
#include "device.h"
#include "plan.h"

namespace depthwise {

// Where the rows of an item lie in shared memory, in elements. An image of the item has
// groups * Step rows and `halo` more. Job after job lies an odd multiple of 16 bytes on (modulo 128
// bytes), within an image and across images, so that loading a matrix meets no bank conflict.
template <int Step, int Columns>
struct ItemLayout {
  static_assert(Columns % 8 == 0);
  static constexpr int columns = Columns;
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

// The part of the planes of one channel that an item covers.
struct Item {
  int image, top, left;

  __device__ __forceinline__ Item(int number, const Tiling& tiling, int step, int columns) {
    const int window = number % tiling.windows;
    const int rest = number / tiling.windows;
    left = window * columns;
    top = rest % tiling.strips * (step << tiling.groups_log2);
    image = rest / tiling.strips * (jobs >> tiling.groups_log2);
  }
};

// Brings one piece of a row to shared memory; zeros stand in for what is outside the plane.
template <int Piece, class T>
__device__ __forceinline__ void fetch_piece(T* to, const T* row, int column, int width,
                                            bool row_exists) {
  device::copy_async<Piece * 2>(to, row + column, row_exists && unsigned(column) < unsigned(width));
}

// Rows whose pieces are not aligned to 4 bytes go through registers.
template <class T>
__device__ __forceinline__ void fetch_elements(T* to, const T* row, int column, int width,
                                               bool row_exists) {
  const unsigned short* const bits = reinterpret_cast<const unsigned short*>(row);
  uint32_t word[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int x = column + 2 * i;
    const bool low = row_exists && unsigned(x) < unsigned(width);
    const bool high = row_exists && unsigned(x + 1) < unsigned(width);
    word[i] = (low ? uint32_t(device::load_global(bits + x)) : 0u) |
              (high ? uint32_t(device::load_global(bits + x + 1)) << 16 : 0u);
  }
  device::store_shared(to, make_uint2(word[0], word[1]));
}

// Brings `rows` rows of one image, from `top` and `left` on, to shared memory, a warp together.
template <class Layout, int Piece, bool Async, class T>
__device__ __forceinline__ void fetch_image(T* to, const T* plane, int rows, int top, int left,
                                            int height, int width, bool exists, int lane) {
  constexpr int per_row = Layout::columns / Piece;
  int row = lane / per_row, piece = lane % per_row;
  // Not unrolled in full, or the compiler keeps every address in a register of its own.
#pragma unroll 2
  for (; row < rows; row += 32 / per_row) {
    const int y = top + row, column = left + piece * Piece;
    const bool row_exists = exists && unsigned(y) < unsigned(height);
    T* const target = to + Layout::at(row, piece * Piece);
    const T* const source = plane + ptrdiff_t(y) * width;
    if constexpr (Async)
      fetch_piece<Piece>(target, source, column, width, row_exists);
    else
      fetch_elements(target, source, column, width, row_exists);
    if constexpr (32 % per_row != 0) {
      piece += 32 % per_row;
      if (piece >= per_row) piece -= per_row, ++row;
    }
  }
}

// Brings an item to shared memory: all its images, rows from `top` and columns from `left` on.
// Shift is a multiple of 4 that divides `left`.
template <class Layout, int Shift, class T>
__device__ __forceinline__ void fetch_item(T* to, const T* planes, ptrdiff_t image_stride,
                                           const Item& item, int top, int left, int rows,
                                           const Shape& shape, const Tiling& tiling,
                                           int image_pitch, int alignment, int lane) {
  // Each of the four ways below would keep its addresses in registers of its own.
  lane = device::opaque(lane);
  const auto fetch = [&](auto fetch_one) {
    const int images = jobs >> tiling.groups_log2;
#pragma unroll 1
    for (int i = 0; i < images; ++i)
      fetch_one(to + i * image_pitch, planes + (item.image + i) * image_stride,
                item.image + i < shape.images);
  };
  const auto with = [&](auto piece, auto async) {
    fetch([&](T* target, const T* plane, bool exists) {
      fetch_image<Layout, decltype(piece)::value, decltype(async)::value>(
          target, plane, rows, top, left, shape.height, shape.width, exists, lane);
    });
  };
  using std::integral_constant;
  if (Shift % 8 == 0 && alignment == 8)
    with(integral_constant<int, Shift % 8 == 0 ? 8 : 4>(), std::true_type());
  else if (alignment >= 4)
    with(integral_constant<int, 4>(), std::true_type());
  else if (alignment == 2)
    with(integral_constant<int, 2>(), std::true_type());
  else
    with(integral_constant<int, 4>(), std::false_type());
}

// Writes the finished rows of an item, 8 columns a lane at a time.
template <class Layout, int Step, int Tiles, int Piece, class T>
__device__ __forceinline__ void store_pieces(T* planes, ptrdiff_t image_stride, const T* from,
                                             const Item& item, const Shape& shape,
                                             const Tiling& tiling, int image_pitch, int lane) {
  constexpr int per_job = Step * Tiles;
#pragma unroll 4
  for (int n = lane; n < jobs * per_job; n += 32) {
    const int job = n / per_job, s = n % per_job / Tiles, column = n % Tiles * 8;
    const int image = item.image + (job >> tiling.groups_log2);
    const int y = item.top + (job & ((1 << tiling.groups_log2) - 1)) * Step + s;
    const int x = item.left + column;
    if (image >= shape.images || y >= shape.height || x >= shape.width) continue;
    const uint4 value = *reinterpret_cast<const uint4*>(
        from + Layout::job(job, tiling.groups_log2, image_pitch) + Layout::at(s, column));
    T* const to = planes + image * image_stride + ptrdiff_t(y) * shape.width + x;
    const uint32_t word[4] = {value.x, value.y, value.z, value.w};
    if constexpr (Piece == 8) {
      device::store_global(reinterpret_cast<uint4*>(to), value);
    } else if constexpr (Piece == 4) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (x + 4 * i < shape.width)
          device::store_global(reinterpret_cast<uint2*>(to + 4 * i),
                               make_uint2(word[2 * i], word[2 * i + 1]));
    } else if constexpr (Piece == 2) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (x + 2 * i < shape.width)
          device::store_global(reinterpret_cast<uint32_t*>(to + 2 * i), word[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (x + i < shape.width)
          device::store_global(reinterpret_cast<unsigned short*>(to) + i,
                               static_cast<unsigned short>(word[i / 2] >> i % 2 * 16));
    }
  }
}

template <class Layout, int Step, int Tiles, class T>
__device__ __forceinline__ void store_item(T* planes, ptrdiff_t image_stride, const T* from,
                                           const Item& item, const Shape& shape,
                                           const Tiling& tiling, int image_pitch, int alignment,
                                           int lane) {
  const auto store = [&](auto piece) {
    store_pieces<Layout, Step, Tiles, decltype(piece)::value>(planes, image_stride, from, item,
                                                              shape, tiling, image_pitch, lane);
  };
  using std::integral_constant;
  if (alignment == 8)
    store(integral_constant<int, 8>());
  else if (alignment == 4)
    store(integral_constant<int, 4>());
  else if (alignment == 2)
    store(integral_constant<int, 2>());
  else
    store(integral_constant<int, 1>());
}

}  // namespace depthwise
