// Copies of images between channels last and planes. Both are matrices of pixels and channels, and one is
// the transpose of the other: a block brings a tile of 64 x 64 through shared memory, so that it reads
// runs of channels and writes runs of pixels, or the other way round. Pixels are counted through all images,
// so that small planes fill tiles as large ones do.
#include <cstring>

#include "core/device.h"
#include "core/tiles.h"
#include "host/launch.h"
#include "host/layouts.h"

namespace depthwise {

using Element = unsigned short;

constexpr int tile_size = 64;
constexpr int tile_threads = 128;
constexpr int tile_warps = tile_threads / 32;
constexpr int tile_blocks = 12;  // of a multiprocessor at a time
// A line of a tile takes this many words: an odd number, so that words of one column lie in different banks.
constexpr int pitch = tile_size / 2 + 1;

// The parameters of a kernel.
struct LayoutTiles {
  LayoutCopy copy;
  int64_t pixels;  // of all images
  int plane;       // pixels of an image
  int row;         // pixels that follow each other at one distance: those of a row, or of an image
  int channel_tiles;   // of a pixel
  int pixel_vector;    // pixels of a plane that one access moves
  int channel_vector;  // channels of a pixel that one access moves
};

// The offsets of the pixels of a tile from the beginning of either tensor, in elements.
class PixelOffsets {
 public:
  static constexpr size_t bytes = 2 * device::SharedMemory::bytes<ptrdiff_t>(tile_size);

  __device__ __forceinline__ explicit PixelOffsets(device::SharedMemory& memory)
      : in_pixels_(memory.take<ptrdiff_t>(tile_size)),
        in_planes_(memory.take<ptrdiff_t>(tile_size)) {}

  // Fills the place of pixel number `i`, which is `pixel` of all images.
  __device__ __forceinline__ void set(int i, int64_t pixel, const LayoutTiles& p) {
    const int64_t image = int64_t(uint64_t(pixel) / unsigned(p.plane));
    const int at = int(pixel - image * p.plane), row = at / p.row;
    const PixelStrides& strides = p.copy.pixel_strides;
    in_pixels_[i] = image * strides.image + row * strides.row + (at - row * p.row) * strides.pixel;
    in_planes_[slot(i)] = image * p.copy.plane_strides.image + at;
  }

  __device__ __forceinline__ ptrdiff_t in_pixels(int i) const { return in_pixels_[i]; }
  __device__ __forceinline__ ptrdiff_t in_planes(int i) const { return in_planes_[slot(i)]; }

 private:
  // Lanes ask for every pixel of a plane, or every fourth or eighth: these lie in different banks.
  __device__ __forceinline__ static int slot(int i) { return i ^ (i >> 4); }

  ptrdiff_t *const in_pixels_, *const in_planes_;
};

// Brings `lines` x `columns` elements to shared memory, and zeros for the others of a tile. The elements of
// a line are neighbours at from(line, column).
template <int Vector, class From>
__device__ __forceinline__ void read_tile(uint32_t* words, int lines, int columns, From from) {
  using Bits = device::Bits<Vector>;
  constexpr int vectors = tile_size / Vector;  // of a line
  constexpr int step = tile_threads / vectors;
  const int first_line = int(threadIdx.x / unsigned(vectors));
  const int column = int(threadIdx.x % unsigned(vectors)) * Vector;
  Bits bits[tile_size / step] = {};
#pragma unroll
  for (int i = 0; i < tile_size / step; ++i) {
    const int line = first_line + i * step;
    if (line < lines && column < columns)
      bits[i] = __ldg(reinterpret_cast<const Bits*>(from(line, column)));
  }
  uint32_t* const first = words + first_line * pitch + column / 2;
#pragma unroll
  for (int i = 0; i < tile_size / step; ++i) {
    uint32_t* const to = first + i * step * pitch;
    if constexpr (Vector == 1) {
      reinterpret_cast<Element*>(to)[column % 2] = bits[i];
    } else {
      uint32_t word[Vector / 2];
      memcpy(word, &bits[i], sizeof(word));
#pragma unroll
      for (int j = 0; j < Vector / 2; ++j) to[j] = word[j];
    }
  }
}

// Writes the transpose of a tile: its columns become lines, whose elements are neighbours at
// to(column, line). A lane takes two columns of `Vector` lines at a time: a warp, 32 lines.
template <int Vector, class To>
__device__ __forceinline__ void write_transposed(const uint32_t* words, int lines, int columns,
                                                 To to) {
  using Bits = device::Bits<Vector>;
  constexpr int lanes = 32 / Vector;  // for 32 lines
  const int warp = int(threadIdx.x / 32u), lane = int(threadIdx.x % 32u);
  const int line = warp % 2 * 32 + lane % lanes * Vector;
  if (line >= lines) return;
  const int first_word = warp / 2 * Vector + lane / lanes;
  constexpr int step = tile_warps / 2 * Vector;
  words += line * pitch + first_word;
#pragma unroll
  for (int first = 0; first < tile_size / 2; first += step) {
    const int column = 2 * (first_word + first);
    if (column >= columns) return;
    uint32_t both[Vector];
#pragma unroll
    for (int i = 0; i < Vector; ++i) both[i] = words[i * pitch + first];
    Bits bits[2];
    if constexpr (Vector == 1) {
      bits[0] = Element(both[0]), bits[1] = Element(both[0] >> 16);
    } else {
      uint32_t pairs[2][Vector / 2];
#pragma unroll
      for (int i = 0; i < Vector / 2; ++i) {
        pairs[0][i] = __byte_perm(both[2 * i], both[2 * i + 1], 0x5410);
        pairs[1][i] = __byte_perm(both[2 * i], both[2 * i + 1], 0x7632);
      }
      memcpy(bits, pairs, sizeof(bits));
    }
    *reinterpret_cast<Bits*>(to(column, line)) = bits[0];
    if (column + 1 < columns) *reinterpret_cast<Bits*>(to(column + 1, line)) = bits[1];
  }
}

template <class Use>
__device__ __forceinline__ void with_vector(int vector, Use use) {
  if (vector == 8) use(Constant<8>());
  else if (vector == 4) use(Constant<4>());
  else use(Constant<1>());
}

// Grid: the tiles of channels of the first 64 pixels, then those of the next. x alone counts so many.
template <bool ToPlanes>
__global__ void __launch_bounds__(tile_threads, tile_blocks)
    copy_layout(const __grid_constant__ LayoutTiles p) {
  device::SharedMemory memory;
  uint32_t* const words = memory.take<uint32_t>(tile_size * pitch);
  PixelOffsets offsets(memory);
  const unsigned number = blockIdx.x / unsigned(p.channel_tiles);
  const int64_t first_pixel = int64_t(number) * tile_size;
  const int first_channel = int(blockIdx.x - number * unsigned(p.channel_tiles)) * tile_size;
  const int pixels = int(min(int64_t(tile_size), p.pixels - first_pixel));
  const int channels = min(tile_size, p.copy.shape.channels - first_channel);
  const int thread = int(threadIdx.x);
  if (thread < pixels) offsets.set(thread, first_pixel + thread, p);
  __syncthreads();

  const ptrdiff_t from_channel = p.copy.plane_strides.channel;
  Element* const in_pixels = static_cast<Element*>(p.copy.pixels) + first_channel;
  Element* const in_planes = static_cast<Element*>(p.copy.planes) + first_channel * from_channel;
  const auto channels_of = [&](int pixel, int channel) {
    return in_pixels + offsets.in_pixels(pixel) + channel;
  };
  const auto pixels_of = [&](int channel, int pixel) {
    return in_planes + channel * from_channel + offsets.in_planes(pixel);
  };
  if constexpr (ToPlanes) {
    with_vector(p.channel_vector,
                [&](auto vector) { read_tile<vector>(words, pixels, channels, channels_of); });
    __syncthreads();
    with_vector(p.pixel_vector,
                [&](auto vector) { write_transposed<vector>(words, pixels, channels, pixels_of); });
  } else {
    with_vector(p.pixel_vector,
                [&](auto vector) { read_tile<vector>(words, channels, pixels, pixels_of); });
    __syncthreads();
    with_vector(p.channel_vector, [&](auto vector) {
      write_transposed<vector>(words, channels, pixels, channels_of);
    });
  }
}

cudaError_t launch_layout_copy(const LayoutCopy& copy, bool to_planes, cudaStream_t stream) {
  const Shape& shape = copy.shape;
  LayoutTiles p{copy};
  p.plane = shape.height * shape.width;
  p.pixels = int64_t(shape.images) * p.plane;
  // Without a sign, products of strides may overflow.
  const size_t width = size_t(shape.width);
  const bool even = size_t(copy.pixel_strides.row) == width * size_t(copy.pixel_strides.pixel);
  p.row = even ? p.plane : shape.width;
  p.channel_tiles = int(divide_up(shape.channels, tile_size));
  p.pixel_vector = alignment(uintptr_t(copy.planes), p.plane, copy.plane_strides);
  p.channel_vector = in_units(uintptr_t(copy.pixels), shape.channels, copy.pixel_strides) ? 8 : 1;
  const int64_t blocks = divide_up(p.pixels, tile_size) * p.channel_tiles;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  constexpr size_t shared_bytes =
      device::SharedMemory::bytes<uint32_t>(tile_size * pitch) + PixelOffsets::bytes;
  return device::launch(to_planes ? copy_layout<true> : copy_layout<false>, unsigned(blocks),
                        unsigned(tile_threads), shared_bytes, stream, p);
}

}  // namespace depthwise
