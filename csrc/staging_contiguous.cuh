// How planes of contiguous rows enter and leave shared memory, one item and one warp at a time.
//
// Two ways. Whole planes, square and exactly as large as an item (8x8, 16x16, 32x32), move as
// straight runs of 16 bytes a lane. Any other plane moves row by row, in the widest pieces that its
// alignment allows, with zeros for what lies outside.
#pragma once
#include <type_traits>

#include "item.cuh"
#include "pairs.cuh"

namespace depthwise {

// Zeroes `elements` elements, a multiple of 8, of this warp's shared memory.
template <class T>
__device__ __forceinline__ void clear(T* at, int elements, int lane) {
#pragma unroll 1
  for (int i = 8 * lane; i < elements; i += 8 * 32)
    device::store_shared(at + i, make_uint4(0, 0, 0, 0));
}

// What readers and writers are told alike.
template <class T>
struct Planes {
  T* first;  // the plane of image 0
  ptrdiff_t image_stride;
  int alignment;  // in elements, of every row
};

// ---- whole planes --------------------------------------------------------------------------------

// A whole plane moves in chunks of 8 columns, 32 or a divisor of it at a time; where it has fewer, a
// warp moves several images at a time.
template <int Step, int Tiles, class Layout>
struct WholePlane {
  static constexpr int size = 8 * Tiles;
  static constexpr int groups = size / Step, images = jobs / groups;
  static constexpr int chunks = size * Tiles;
  static constexpr int at_once = chunks < 32 ? chunks : 32;
  static constexpr int images_at_once = 32 / at_once;
  static_assert(groups * images == jobs && 32 % at_once == 0 && at_once / Tiles % Step == 0);

  // Of the first chunk of a lane.
  int image, in_plane, in_shared;

  __device__ __forceinline__ WholePlane(int first_row, int image_pitch, int lane)
      : image(lane / at_once),
        in_plane(lane % at_once * 8),
        in_shared(image * image_pitch +
                  Layout::at(first_row + lane % at_once / Tiles, lane % Tiles * 8)) {}

  // Calls visit(images on, elements on in the plane, elements on in shared memory), all constants.
  template <class Visit>
  __device__ __forceinline__ static void each_chunk(int image_pitch, Visit visit) {
#pragma unroll
    for (int i = 0; i < images; i += images_at_once)
#pragma unroll
      for (int c = 0; c < chunks; c += at_once)
        visit(i, 8 * c, i * image_pitch + c / Tiles / Step * Layout::group);
  }
};

// ---- any plane -----------------------------------------------------------------------------------

// Brings columns [left, left + 8 * Tiles) of `rows` rows of a plane, from `top` on, to shared memory
// at column `shift`, a warp together.
template <class Layout, int Tiles, int Shift, int Piece, bool Async, class T>
__device__ __forceinline__ void fetch_rows(T* to, const T* plane, int first_row, int rows, int top,
                                           int left, int height, int width, bool exists, int lane) {
  constexpr int per_row = 8 * Tiles / Piece;
  int row = lane / per_row, piece = lane % per_row;
  // Not unrolled in full, or the compiler keeps every address in a register of its own.
#pragma unroll 2
  for (; row < rows; row += 32 / per_row) {
    const int y = top + row, x = left + piece * Piece;
    const bool row_exists = exists && unsigned(y) < unsigned(height);
    T* const target = to + Layout::at(first_row + row, Shift + piece * Piece);
    const T* const source = plane + ptrdiff_t(y) * width + x;
    if constexpr (Async) {
      device::copy_async<2 * Piece>(target, source, row_exists && x < width);
    } else {
      // Rows that are not aligned to 4 bytes go through registers.
      static_assert(Piece == 4);
      const unsigned short* const bits = reinterpret_cast<const unsigned short*>(source);
      uint32_t element[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        element[i] = row_exists && x + i < width ? device::load_global(bits + i) : 0u;
      device::store_shared(
          target, make_uint2(element[0] | element[1] << 16, element[2] | element[3] << 16));
    }
    if constexpr (32 % per_row != 0) {
      piece += 32 % per_row;
      if (piece >= per_row) piece -= per_row, ++row;
    }
  }
}

// Reads up to 8 elements of a row, of which `width` exist, in loads of Piece elements.
template <int Piece, class T>
__device__ __forceinline__ uint4 load_pieces(const T* from, int width) {
  uint32_t word[4] = {};
  if constexpr (Piece == 8) {
    return device::load_global(reinterpret_cast<const uint4*>(from));
  } else if constexpr (Piece == 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (4 * i < width) {
        const uint2 two = device::load_global(reinterpret_cast<const uint2*>(from + 4 * i));
        word[2 * i] = two.x, word[2 * i + 1] = two.y;
      }
  } else if constexpr (Piece == 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (2 * i < width)
        word[i] = device::load_global(reinterpret_cast<const uint32_t*>(from + 2 * i));
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < width)
        word[i / 2] |=
            uint32_t(device::load_global(reinterpret_cast<const unsigned short*>(from) + i))
            << i % 2 * 16;
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// Writes the finished rows of an item, 8 columns a lane at a time in stores of Piece elements. With
// Adds it adds the tensor that lies `added` bytes from them in memory, unless that is zero.
template <class Layout, int Piece, bool Adds, int Step, int Tiles, class T>
__device__ __forceinline__ void store_pieces(T* planes, ptrdiff_t image_stride, ptrdiff_t added,
                                             const T* from, const Item<Step, Tiles>& item,
                                             const Shape& shape, const Tiling& tiling,
                                             int image_pitch, int lane) {
  constexpr int per_job = Step * Tiles;
  const int first_tile = item.first_tile(), last_tile = item.last_tile(tiling);
#pragma unroll 2
  for (int n = lane; n < jobs * per_job; n += 32) {
    const int job = n / per_job, s = n % per_job / Tiles, q = n % Tiles;
    const int image = item.image() + (job >> tiling.groups_log2);
    const int y = item.top(tiling) + (job & ((1 << tiling.groups_log2) - 1)) * Step + s;
    const int x = item.left() + 8 * q;
    if (image >= shape.images || y >= shape.height || x >= shape.width || q < first_tile ||
        q >= last_tile)
      continue;
    uint4 value = *reinterpret_cast<const uint4*>(
        from + Layout::job(job, tiling.groups_log2, image_pitch) + Layout::at(s, 8 * q));
    T* const to = planes + image * image_stride + ptrdiff_t(y) * shape.width + x;
    if constexpr (Adds)
      if (added != 0)
        value = add_pairs<T>(value, load_pieces<Piece>(offset_by(to, added), shape.width - x));
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

// ---- readers and writers -------------------------------------------------------------------------

// Brings one item after another to shared memory. Pad rows of halo lie above and below, and the
// planes begin at column Shift there. Whatever no copy overwrites must be zero before: halo rows
// where one strip covers the plane, columns beside it.
template <class T, int Step, int Tiles, class Layout, int Pad, int Shift, bool Whole>
class Reader {
 public:
  __device__ __forceinline__ Reader(const Planes<const T>& planes, int first_item,
                                    const Shape& shape, const Tiling& tiling, int image_pitch)
      : planes_(planes),
        shape_(shape),
        tiling_(tiling),
        item_(first_item, tiling),
        pitch_(image_pitch) {}

  __device__ __forceinline__ void fetch_next(T* to, int lane) {
    // Each of the ways below would keep its addresses in registers of its own.
    lane = device::opaque(lane);
    using std::integral_constant;
    constexpr int widest = Shift % 8 == 0 ? 8 : 4;
    if (planes_.alignment >= widest) fetch<widest, true>(to, lane);
    else if (planes_.alignment == 4) fetch<4, true>(to, lane);
    else if (planes_.alignment == 2) fetch<2, true>(to, lane);
    else fetch<4, false>(to, lane);
    item_.advance(tiling_);
  }

 private:
  template <int Piece, bool Async>
  __device__ __forceinline__ void fetch(T* to, int lane) const {
    const bool one_strip = tiling_.strips == 1;
    const int first_row = one_strip ? Pad : 0, top = one_strip ? 0 : item_.top(tiling_) - Pad;
    const int rows = one_strip ? shape_.height : (Step << tiling_.groups_log2) + 2 * Pad;
#pragma unroll 1
    for (int i = 0; i < jobs >> tiling_.groups_log2; ++i) {
      const int image = item_.image() + i;
      fetch_rows<Layout, Tiles, Shift, Piece, Async>(
          to + i * pitch_, planes_.first + image * planes_.image_stride, first_row, rows, top,
          item_.left(), shape_.height, shape_.width, image < shape_.images, lane);
    }
  }

  const Planes<const T>& planes_;
  const Shape& shape_;
  const Tiling& tiling_;
  Item<Step, Tiles> item_;
  int pitch_;
};

template <class T, int Step, int Tiles, class Layout, int Pad, int Shift>
class Reader<T, Step, Tiles, Layout, Pad, Shift, true> {
  using Plane = WholePlane<Step, Tiles, Layout>;
  static constexpr int pitch = Layout::image(Plane::groups, 2 * Pad);

 public:
  __device__ __forceinline__ Reader(const Planes<const T>& planes, int first_item,
                                    const Shape& shape, const Tiling&, int,
                                    int lane = int(threadIdx.x) % 32)
      : stride_(planes.image_stride) {
    const Plane plane(Pad, pitch, lane);
    const int first_image = first_item * Plane::images + plane.image;
    from_ = planes.first + first_image * stride_ + plane.in_plane;
    in_shared_ = plane.in_shared + Shift;
    left_ = shape.images - first_image;
  }

  __device__ __forceinline__ void fetch_next(T* to, int) {
    Plane::each_chunk(pitch, [&](int image, int in_plane, int in_shared) {
      // An image that does not exist counts as zero.
      const bool exists = Plane::images == 1 || image < left_;
      const T* const from = from_ + image * stride_ + in_plane;
      T* const at = to + in_shared_ + in_shared;
      if constexpr (Shift % 8 == 0) {
        device::copy_async<16>(at, from, exists);
      } else {
        device::copy_async<8>(at, from, exists);
        device::copy_async<8>(at + 4, from + 4, exists);
      }
    });
    from_ += Plane::images * stride_;
    left_ -= Plane::images;
  }

 private:
  const T* from_;
  ptrdiff_t stride_;
  int in_shared_, left_;
};

// Writes one finished item after another to memory. With Adds it may add another tensor of the same
// strides to them.
template <class T, int Step, int Tiles, class Layout, bool Whole, bool Adds>
class Writer {
 public:
  __device__ __forceinline__ Writer(const Planes<T>& planes, int first_item, const Shape& shape,
                                    const Tiling& tiling, int image_pitch)
      : planes_(planes),
        shape_(shape),
        tiling_(tiling),
        item_(first_item, tiling),
        pitch_(image_pitch) {}

  __device__ __forceinline__ void add(const void* to, const void* added) {
    added_ = bytes_between(to, added);
  }

  __device__ __forceinline__ void store_next(const T* from, int lane) {
    lane = device::opaque(lane);
    const auto store = [&](auto piece) {
      store_pieces<Layout, decltype(piece)::value, Adds>(
          planes_.first, planes_.image_stride, added_, from, item_, shape_, tiling_, pitch_, lane);
    };
    using std::integral_constant;
    if (planes_.alignment == 8) store(integral_constant<int, 8>());
    else if (planes_.alignment == 4) store(integral_constant<int, 4>());
    else if (planes_.alignment == 2) store(integral_constant<int, 2>());
    else store(integral_constant<int, 1>());
    item_.advance(tiling_);
  }

 private:
  const Planes<T>& planes_;
  const Shape& shape_;
  const Tiling& tiling_;
  Item<Step, Tiles> item_;
  int pitch_;
  ptrdiff_t added_ = 0;
};

template <class T, int Step, int Tiles, class Layout, bool Adds>
class Writer<T, Step, Tiles, Layout, true, Adds> {
  using Plane = WholePlane<Step, Tiles, Layout>;
  static constexpr int pitch = Layout::image(Plane::groups, 0);

 public:
  __device__ __forceinline__ Writer(const Planes<T>& planes, int first_item, const Shape& shape,
                                    const Tiling&, int, int lane = int(threadIdx.x) % 32)
      : stride_(planes.image_stride) {
    const Plane plane(0, pitch, lane);
    const int first_image = first_item * Plane::images + plane.image;
    to_ = planes.first + first_image * stride_ + plane.in_plane;
    in_shared_ = plane.in_shared;
    left_ = shape.images - first_image;
  }

  __device__ __forceinline__ void add(const void* to, const void* added) {
    added_ = bytes_between(to, added);
  }

  __device__ __forceinline__ void store_next(const T* from, int) {
    Plane::each_chunk(pitch, [&](int image, int in_plane, int in_shared) {
      if (Plane::images > 1 && image >= left_) return;
      T* const to = to_ + image * stride_ + in_plane;
      uint4 value = *reinterpret_cast<const uint4*>(from + in_shared_ + in_shared);
      if constexpr (Adds)
        if (added_ != 0)
          value = add_pairs<T>(
              value, device::load_global(reinterpret_cast<const uint4*>(offset_by(to, added_))));
      device::store_global(reinterpret_cast<uint4*>(to), value);
    });
    to_ += Plane::images * stride_;
    left_ -= Plane::images;
  }

 private:
  T* to_;
  ptrdiff_t stride_, added_ = 0;
  int in_shared_, left_;
};

}  // namespace depthwise
