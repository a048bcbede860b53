// The way of contiguous planes into shared memory and out of it, one item and one warp at a time.
//
// Whole planes, square and exactly as large as an item (8x8, 16x16, 32x32), move as straight runs of 16
// bytes a lane. Any other plane moves row by row, in the widest pieces that its alignment allows, with
// zeros outside the plane.
#pragma once
#include <bit>
#include <numeric>
#include <type_traits>

#include "core/device.h"
#include "core/tiles.h"

namespace depthwise {

// Zeroes `elements` elements, a multiple of 8, of this warp's shared memory.
template <class T>
__device__ __forceinline__ void clear(T* at, int elements, int lane) {
#pragma unroll 1
  for (int i = 8 * lane; i < elements; i += 8 * 32)
    device::store_shared(at + i, make_uint4(0, 0, 0, 0));
}

// The planes of a channel in global memory.
template <class T>
struct Planes {
  T* tensor;  // the first element of the tensor
  T* first;   // the plane of image 0
  ptrdiff_t image_stride;
  int alignment;  // in elements, of every row
};

// The planes of a channel of a tensor, of elements of type T or const T.
template <class T, class Address>
__device__ __forceinline__ Planes<T> planes_of(Address* tensor, const Strides& strides, int channel,
                                               int alignment) {
  T* const first = static_cast<T*>(tensor);
  return {first, first + channel * strides.channel, strides.image, alignment};
}

// ---- whole planes --------------------------------------------------------------------------------

// A whole plane moves in chunks of 8 columns, 32 at a time or as many as it has; where it has fewer, a
// warp moves several images at a time.
template <int GroupRows, int Tiles, class Rows>
struct WholePlane {
  static constexpr int size = 8 * Tiles;
  static constexpr int groups = size / GroupRows, images = mma_rows / groups;
  static constexpr int chunks = size * Tiles;
  static constexpr int at_once = chunks < 32 ? chunks : 32;
  static constexpr int images_at_once = 32 / at_once;
  static_assert(groups * images == mma_rows && 32 % at_once == 0 &&
                at_once / Tiles % GroupRows == 0);

  // The position of the first chunk of a lane.
  int image, in_plane, in_shared;

  __device__ __forceinline__ WholePlane(int first_row, int image_pitch, int lane)
      : image(lane / at_once),
        in_plane(lane % at_once * 8),
        in_shared(image * image_pitch +
                  Rows::at(first_row + lane % at_once / Tiles, lane % Tiles * 8)) {}

  // Calls visit(images on, elements on in the plane, elements on in shared memory), all constants.
  template <class Visit>
  __device__ __forceinline__ static void each_chunk(int image_pitch, Visit visit) {
#pragma unroll
    for (int i = 0; i < images; i += images_at_once)
#pragma unroll
      for (int c = 0; c < chunks; c += at_once)
        visit(i, 8 * c, i * image_pitch + c / Tiles / GroupRows * Rows::group_pitch);
  }
};

// ---- any plane -----------------------------------------------------------------------------------

// Calls visit(address in the plane, offset in shared memory, row, column) for each piece of `rows` rows,
// in columns [begin, end), that this lane moves. `plane` is the address of the first of these rows. As
// many lanes lie side by side as a row has pieces, rounded up to a power of two: then a lane keeps its
// column, and its rows follow each other at constant distances.
template <class Rows, int Tiles, int Piece, class T, class Visit>
__device__ __forceinline__ void each_piece(T* plane, int width, int first_row, int rows, int begin,
                                           int end, int lane, Visit visit) {
  constexpr int pieces = int(std::bit_ceil(unsigned(8 * Tiles / Piece)));
  constexpr int across = pieces < 32 ? pieces : 32;
  constexpr int down = 32 / across, turn = std::lcm(down, Rows::group_rows);
  // Addresses derived from the width would otherwise stay in registers from item to item.
  width = device::keep_in_loop(width);
#pragma unroll
  for (int first = 0; first < 8 * Tiles; first += across * Piece) {
    const int column = first + lane % across * Piece;
    if (column < begin || column >= end) continue;
    int in_shared[turn / down];
#pragma unroll
    for (int i = 0; i < turn / down; ++i)
      in_shared[i] = Rows::at(first_row + lane / across + i * down, column);
    T* in_plane = plane + ptrdiff_t(lane / across) * width + column;
#pragma unroll 1
    for (int row = lane / across; row < rows; row += turn)
#pragma unroll
      for (int i = 0; i < turn / down; ++i) {
        if (row + i * down < rows) visit(in_plane, in_shared[i], row + i * down, column);
        in_plane += down * width;
        in_shared[i] += turn / Rows::group_rows * Rows::group_pitch;
      }
  }
}

// The part of the planes that an item covers with its halo, and its position in shared memory.
struct Span {
  int images;     // of the item
  int existing;   // of these images: the last item may have more than the tensor
  int first_row;  // in shared memory
  int rows;       // of an image, from `top` on
  int top, left;  // in the plane
};

// Brings a span of planes to shared memory at column Shift; `from` and `to` belong to the item's first
// image. Pieces outside the planes become zeros, by copies that name the first element of `tensor`.
template <class Rows, int Tiles, int Shift, int Piece, class T>
__device__ __forceinline__ void fetch_rows(T* to, int pitch, const T* tensor, const T* from,
                                           ptrdiff_t image_stride, const Span& span,
                                           const Shape& shape, int lane) {
  from += ptrdiff_t(span.top) * shape.width + span.left;
#pragma unroll 1
  for (int image = 0; image < span.images; ++image) {
    const int height = image < span.existing ? shape.height : 0;
    each_piece<Rows, Tiles, Piece>(
        from, shape.width, span.first_row, span.rows, 0, 8 * Tiles, lane,
        [&](const T* in_plane, int in_shared, int row, int column) {
          const bool inside =
              unsigned(span.top + row) < unsigned(height) && span.left + column < shape.width;
          device::copy_async<2 * Piece>(to + Shift + in_shared, inside ? in_plane : tensor, inside);
        });
    to += pitch, from += image_stride;
  }
}

// Brings a span to shared memory where rows are not aligned to 4 bytes, which no asynchronous copy takes.
// Elements pass through registers, several pieces of a lane at a time, which wait for memory together.
template <class Rows, int Tiles, int Shift, class T>
__device__ __forceinline__ void fetch_elements(T* to, int pitch, const T* from,
                                               ptrdiff_t image_stride, const Span& span,
                                               const Shape& shape, int lane) {
  constexpr int piece = 4, per_row = 8 * Tiles / piece;
  constexpr int at_once = Tiles <= 2 ? 4 : 2;  // wide tiles leave no registers for more
  // The width is hidden from the compiler as in each_piece.
  const int width = device::keep_in_loop(shape.width);
  int image = 0, row = lane / per_row, column = lane % per_row * piece;
  const auto settle = [&] {
    while (row >= span.rows) row -= span.rows, ++image;
  };
  settle();
  while (image < span.images) {
    uint2 bits[at_once];
    int target[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int y = span.top + row, x = span.left + column;
      const bool exists = image < span.existing && unsigned(y) < unsigned(shape.height);
      const unsigned short* const source = reinterpret_cast<const unsigned short*>(
          from + image * image_stride + ptrdiff_t(y) * width + x);
      uint32_t element[piece];
#pragma unroll
      for (int e = 0; e < piece; ++e) element[e] = exists && x + e < width ? __ldg(source + e) : 0u;
      bits[i] = make_uint2(element[0] | element[1] << 16, element[2] | element[3] << 16);
      target[i] =
          image < span.images ? image * pitch + Rows::at(span.first_row + row, Shift + column) : -1;
      row += 32 / per_row;
      column += 32 % per_row * piece;
      if (column >= 8 * Tiles) column -= 8 * Tiles, ++row;
      settle();
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      if (target[i] >= 0) device::store_shared(to + target[i], bits[i]);
  }
}

// Brings a span of the images from `image` on to shared memory at column Shift, in the widest pieces that
// the planes allow.
template <class Rows, int Tiles, int Shift, class T>
__device__ __forceinline__ void fetch_span(T* to, const Planes<const T>& planes, int image,
                                           const Span& span, const Shape& shape, int pitch,
                                           int lane) {
  const T* const from = planes.first + image * planes.image_stride;
  const auto fetch = [&](auto piece) {
    fetch_rows<Rows, Tiles, Shift, decltype(piece)::value>(to, pitch, planes.tensor, from,
                                                           planes.image_stride, span, shape, lane);
  };
  using std::integral_constant;
  constexpr int widest = Shift % 8 == 0 ? 8 : 4;
  if (planes.alignment >= widest) fetch(integral_constant<int, widest>());
  else if (widest > 4 && planes.alignment == 4) fetch(integral_constant<int, 4>());
  else if (planes.alignment == 2) fetch(integral_constant<int, 2>());
  else fetch_elements<Rows, Tiles, Shift>(to, pitch, from, planes.image_stride, span, shape, lane);
}

// Brings an item of planes to shared memory at column Shift, with Pad rows of halo above and below.
template <class Rows, int Pad, int Shift, int GroupRows, int Tiles, class T>
__device__ __forceinline__ void fetch_item(T* to, const Planes<const T>& planes,
                                           const Item<GroupRows, Tiles>& item, const Shape& shape,
                                           const Tiling& tiling, int pitch, int lane) {
  // Each kind of fetch below would otherwise keep addresses in registers from item to item.
  lane = device::keep_in_loop(lane);
  const bool one_row_block = tiling.row_blocks == 1;
  // Values derived from this number would stay in registers from item to item.
  const int images = device::keep_in_loop(mma_rows >> tiling.groups_log2);
  const Span span{images,
                  min(images, shape.images - item.image()),
                  one_row_block ? Pad : 0,
                  one_row_block ? shape.height : (GroupRows << tiling.groups_log2) + 2 * Pad,
                  one_row_block ? 0 : item.top(tiling) - Pad,
                  item.left()};
  fetch_span<Rows, Tiles, Shift>(to, planes, item.image(), span, shape, pitch, lane);
}

// Writes the outputs of an item to the planes, Piece elements at a time.
template <class Rows, int Piece, int GroupRows, int Tiles, int HaloTiles, class T>
__device__ __forceinline__ void store_rows(T* planes, ptrdiff_t image_stride, const T* from,
                                           const Item<GroupRows, Tiles, HaloTiles>& item,
                                           const Shape& shape, const Tiling& tiling, int pitch,
                                           int lane) {
  using Value = device::Bits<Piece>;
  const int images = min(mma_rows >> tiling.groups_log2, shape.images - item.image());
  const int top = item.top(tiling), rows = min(GroupRows << tiling.groups_log2, shape.height - top);
  const int first = 8 * item.first_tile();
  const int end = min(8 * item.last_tile(tiling), shape.width - item.left());
  T* to = planes + item.image() * image_stride + ptrdiff_t(top) * shape.width + item.left();
#pragma unroll 1
  for (int image = 0; image < images; ++image) {
    each_piece<Rows, Tiles, Piece>(
        to, shape.width, 0, rows, first, end, lane, [&](T* in_plane, int in_shared, int, int) {
          *reinterpret_cast<Value*>(in_plane) = *reinterpret_cast<const Value*>(from + in_shared);
        });
    to += image_stride, from += pitch;
  }
}

// Writes the outputs of an item in the widest pieces that the planes allow.
template <class Rows, int GroupRows, int Tiles, int HaloTiles, class T>
__device__ __forceinline__ void store_item(const Planes<T>& planes, const T* from,
                                           const Item<GroupRows, Tiles, HaloTiles>& item,
                                           const Shape& shape, const Tiling& tiling, int pitch,
                                           int lane) {
  lane = device::keep_in_loop(lane);
  const auto store = [&](auto piece) {
    store_rows<Rows, decltype(piece)::value>(planes.first, planes.image_stride, from, item, shape,
                                             tiling, pitch, lane);
  };
  using std::integral_constant;
  if (planes.alignment == 8) store(integral_constant<int, 8>());
  else if (planes.alignment == 4) store(integral_constant<int, 4>());
  else if (planes.alignment == 2) store(integral_constant<int, 2>());
  else store(integral_constant<int, 1>());
}

// ---- readers and writers -------------------------------------------------------------------------

// Brings one item after another to shared memory. Pad rows of halo lie above and below, and the planes
// begin at column Shift there. Rows and columns that no copy overwrites must be zero before: halo rows
// where one row block covers the plane, columns beside it.
template <class T, int GroupRows, int Tiles, class Rows, int Pad, int Shift, bool Whole>
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
    fetch_item<Rows, Pad, Shift>(to, planes_, item_, shape_, tiling_, pitch_, lane);
    item_.advance(tiling_);
  }

 private:
  const Planes<const T>& planes_;
  const Shape& shape_;
  const Tiling& tiling_;
  Item<GroupRows, Tiles> item_;
  int pitch_;
};

template <class T, int GroupRows, int Tiles, class Rows, int Pad, int Shift>
class Reader<T, GroupRows, Tiles, Rows, Pad, Shift, true> {
  using Plane = WholePlane<GroupRows, Tiles, Rows>;
  static constexpr int pitch = Rows::image(Plane::groups, 2 * Pad);

 public:
  __device__ __forceinline__ Reader(const Planes<const T>& planes, int first_item,
                                    const Shape& shape, const Tiling&, int,
                                    int lane = int(threadIdx.x) % 32)
      : tensor_(planes.tensor), stride_(planes.image_stride) {
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
      const T* const from = exists ? from_ + image * stride_ + in_plane : tensor_;
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
  const T* tensor_;
  const T* from_;
  ptrdiff_t stride_;
  int in_shared_, left_;
};

// Writes one finished item after another to memory. `fetch_added` brings the next item of another
// tensor with the same strides, whose first element is `added`, to shared memory.
template <class T, int GroupRows, int Tiles, class Rows, bool Whole>
class Writer {
 public:
  __device__ __forceinline__ Writer(const Planes<T>& planes, int first_item, const Shape& shape,
                                    const Tiling& tiling, int image_pitch)
      : planes_(planes),
        shape_(shape),
        tiling_(tiling),
        item_(first_item, tiling),
        pitch_(image_pitch) {}

  __device__ __forceinline__ void fetch_added(T* to, const T* added, int lane) const {
    const Planes<const T> planes{added, added + (planes_.first - planes_.tensor),
                                 planes_.image_stride, planes_.alignment};
    fetch_item<Rows, 0, 0>(to, planes, item_, shape_, tiling_, pitch_, lane);
  }

  __device__ __forceinline__ void store_next(const T* from, int lane) {
    store_item<Rows>(planes_, from, item_, shape_, tiling_, pitch_, lane);
    item_.advance(tiling_);
  }

 private:
  const Planes<T>& planes_;
  const Shape& shape_;
  const Tiling& tiling_;
  Item<GroupRows, Tiles> item_;
  int pitch_;
};

template <class T, int GroupRows, int Tiles, class Rows>
class Writer<T, GroupRows, Tiles, Rows, true> {
  using Plane = WholePlane<GroupRows, Tiles, Rows>;
  static constexpr int pitch = Rows::image(Plane::groups, 0);

 public:
  __device__ __forceinline__ Writer(const Planes<T>& planes, int first_item, const Shape& shape,
                                    const Tiling&, int, int lane = int(threadIdx.x) % 32)
      : tensor_(planes.tensor), stride_(planes.image_stride) {
    const Plane plane(0, pitch, lane);
    const int first_image = first_item * Plane::images + plane.image;
    to_ = planes.first + first_image * stride_ + plane.in_plane;
    in_shared_ = plane.in_shared;
    left_ = shape.images - first_image;
  }

  __device__ __forceinline__ void fetch_added(T* to, const T* added, int) const {
    const T* const first = added + (to_ - tensor_);
    Plane::each_chunk(pitch, [&](int image, int in_plane, int in_shared) {
      const bool exists = Plane::images == 1 || image < left_;
      device::copy_async<16>(to + in_shared_ + in_shared,
                             exists ? first + image * stride_ + in_plane : added, exists);
    });
  }

  __device__ __forceinline__ void store_next(const T* from, int) {
    Plane::each_chunk(pitch, [&](int image, int in_plane, int in_shared) {
      if (Plane::images > 1 && image >= left_) return;
      *reinterpret_cast<uint4*>(to_ + image * stride_ + in_plane) =
          *reinterpret_cast<const uint4*>(from + in_shared_ + in_shared);
    });
    to_ += Plane::images * stride_;
    left_ -= Plane::images;
  }

 private:
  T* tensor_;
  T* to_;
  ptrdiff_t stride_;
  int in_shared_, left_;
};

}  // namespace depthwise
