// The way of pixels with adjacent channels into shared memory and out of it, one item of all the
// channels of a block at a time.
//
// The core takes planes, memory holds pixels. Between them are chunks of eight neighbouring pixels of a
// row, in units of eight channels, 16 bytes:
//   memory -> chunks   asynchronous copies of units, while the core works on the item before;
//   chunks -> planes   matrices of 8 channels x 8 pixels, transposed by ldmatrix;
//   planes -> memory   the same back, straight from the registers.
// Pixels that are not whole units on 16-byte boundaries take the same way element by element.
//
// A block stays in one section of the images, so that the positions of its chunks are listed once. The
// list has every chunk of the section, also those outside the image: they are filled with zeros, and
// every item overwrites all the chunks and planes of the item before.
#pragma once
#include "core/device.h"
#include "core/tiles.h"

namespace depthwise {

// Rows of an image to stage. With several row blocks the halo is fetched with the rows of an item; with
// one, it lies outside the image.
constexpr int staged_rows(const Tiling& tiling, int group_rows, int pad) {
  return (group_rows << tiling.groups_log2) + (tiling.row_blocks > 1 ? 2 * pad : 0);
}
// Rounds up to a multiple of four chunks, which ldmatrix takes at a time.
__host__ __device__ constexpr int padded(int chunks) { return (chunks + 3) / 4 * 4; }

// The planes of a block in shared memory. The halo below an image is that above the next. Planes lie an
// odd multiple of 64 bytes apart, and 32 bytes more after eight, so that transposing meets no bank
// conflict.
template <int GroupRows, int Columns, int Channels>
struct ChannelPlanes {
  using Rows = ItemRows<GroupRows, Columns>;
  static constexpr int octets = Channels / 8;
  static constexpr int chunk = 64 * octets;  // elements

  static constexpr Staged staged(const Tiling& tiling, int tiles, int pad) {
    const int groups = 1 << tiling.groups_log2, images = mma_rows / groups;
    const int image = Rows::image(groups, pad);
    const int last_image = (groups + (2 * pad + GroupRows - 1) / GroupRows) * Rows::group_pitch;
    const int least = (images - 1) * image + last_image;
    return {image, (least + 31) / 64 * 64 + 32,
            images * staged_rows(tiling, GroupRows, pad) * tiles};
  }
  __device__ static constexpr int at(int pitch, int channel) {
    return channel * pitch + channel / 8 * 16;
  }
  __host__ __device__ static constexpr size_t elements(int pitch) {
    return size_t(Channels * pitch + (octets - 1) * 16);
  }
  __host__ __device__ static constexpr size_t raw_elements(int chunks) {
    return size_t(padded(chunks) * chunk);
  }
  // The position of a unit in the raw chunks. Units change places so that the same pixels of four
  // chunks lie in different banks.
  __device__ static constexpr int unit(int number, int pixel, int octet) {
    const int turn = octets == 2 ? (number & 1) | (number & 2) << 1 : (number & 3) << 1;
    return number * chunk + ((pixel * octets + octet) ^ turn) * 8;
  }
};

struct alignas(16) Chunk {
  ptrdiff_t bytes;   // from the first pixel of the item's first image to that of the chunk
  int plane;         // its position in a plane, in elements
  unsigned present;  // 16 * its image in the item + the number of its pixels that exist
};

// The section and channels of a block. Blocks of neighbouring channels are neighbours.
struct BlockPosition {
  int section, channel;

  __device__ __forceinline__ BlockPosition(int block, const Tiling& tiling, int channels_a_block) {
    const int channel_blocks = int(gridDim.x) / sections(tiling);
    section = block / channel_blocks;
    channel = block % channel_blocks * channels_a_block;
  }
};

// The rows and columns that an item of a section stages.
struct Section {
  int first_row;              // of the rows in the planes in shared memory
  int top, rows;              // of the image
  int left;                   // column of the image
  int first_tile, last_tile;  // the tiles [first, last); the others count as outside
};

template <int GroupRows, int Tiles>
__device__ __forceinline__ Section input_section(const Item<GroupRows, Tiles>& item,
                                                 const Tiling& tiling, int pad) {
  const int rows = GroupRows << tiling.groups_log2;
  if (tiling.row_blocks == 1) return {pad, 0, rows, item.left(), 0, Tiles};
  return {0, item.top(tiling) - pad, rows + 2 * pad, item.left(), 0, Tiles};
}

// The outputs that belong to an item and no other, in planes with `pad` rows of halo.
template <int GroupRows, int Tiles>
__device__ __forceinline__ Section output_section(const Item<GroupRows, Tiles>& item,
                                                  const Tiling& tiling, int pad) {
  return {pad,         item.top(tiling),  GroupRows << tiling.groups_log2,
          item.left(), item.first_tile(), item.last_tile(tiling)};
}

template <class Planes, int Tiles>
__device__ __forceinline__ void list_chunks(Chunk* list, const Section& section,
                                            const Staged& staged, const Shape& shape,
                                            const PixelStrides& strides, int thread) {
#pragma unroll 1
  for (int n = thread; n < staged.chunks; n += int(blockDim.x)) {
    const int q = n % Tiles, row = n / Tiles % section.rows, image = n / Tiles / section.rows;
    const int y = section.top + row, x = section.left + 8 * q;
    const bool inside =
        unsigned(y) < unsigned(shape.height) && q >= section.first_tile && q < section.last_tile;
    Chunk chunk;
    chunk.bytes = 2 * (image * strides.image + y * strides.row + x * strides.pixel);
    chunk.plane = image * staged.image + Planes::Rows::at(section.first_row + row, 8 * q);
    chunk.present = unsigned(16 * image + (inside ? max(0, min(8, shape.width - x)) : 0));
    list[n] = chunk;
  }
}

// Zeroes `elements` elements, a multiple of 8, by all threads of the block.
template <class T>
__device__ __forceinline__ void clear_together(T* at, size_t elements, int thread) {
#pragma unroll 1
  for (int i = 8 * thread; i < int(elements); i += 8 * int(blockDim.x))
    device::store_shared(at + i, make_uint4(0, 0, 0, 0));
}

// Brings the chunks of an item to shared memory, with zeros for pixels, images and channels that do not
// exist. `from` is the first channel of the block in the item's first image; copies of pixels that do
// not exist name that address.
template <class Planes, int Warps, class T>
__device__ __forceinline__ void fetch_chunks(T* raw, const Chunk* list, int count, const T* from,
                                             ptrdiff_t pixel_stride, int images, int channels,
                                             bool in_units, int thread) {
  constexpr int octets = Planes::octets, step = 32 * Warps / (8 * octets);
  static_assert(step % 4 == 0);
  // The addresses are computed again for each item: registers are scarce meanwhile.
  const unsigned number = unsigned(device::keep_in_loop(thread));
  const int pixel = number / octets % 8, octet = number % octets, first = number / (8 * octets);
  const unsigned missing = 16 * unsigned(min(images, mma_rows));
  channels -= 8 * octet;
  if (channels <= 0) return;
  const char* const origin = reinterpret_cast<const char*>(from + pixel * pixel_stride + 8 * octet);
  T* to = raw + Planes::unit(first, pixel, octet);
  list += first;
  const auto exists = [&](const Chunk& chunk) {
    return unsigned(pixel) < chunk.present % 16 && chunk.present < missing;
  };
  if (in_units) {
#pragma unroll 4
    for (int n = first; n < count; n += step, list += step, to += step * Planes::chunk) {
      const Chunk chunk = *list;
      const bool present = exists(chunk);
      device::copy_async<16>(
          to, present ? origin + chunk.bytes : reinterpret_cast<const char*>(from), present);
    }
  } else {
    // One element at a time, through registers.
#pragma unroll 1
    for (int n = first; n < count; n += step, list += step, to += step * Planes::chunk) {
      const Chunk chunk = *list;
      const auto* const bits = reinterpret_cast<const unsigned short*>(origin + chunk.bytes);
      const int existing = exists(chunk) ? channels : 0;
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t low = 2 * i < existing ? __ldg(bits + 2 * i) : 0u;
        const uint32_t high = 2 * i + 1 < existing ? __ldg(bits + 2 * i + 1) : 0u;
        word[i] = low | high << 16;
      }
      device::store_shared(to, make_uint4(word[0], word[1], word[2], word[3]));
    }
  }
}

// Transposes chunks into planes, 8 channels of four chunks a warp at a time: those of Octets octets of
// channels from `first_octet` on. The planes begin at column Shift, 0 or 4.
template <class Planes, int Warps, int Shift, int Octets = Planes::octets, class T>
__device__ __forceinline__ void chunks_to_planes(T* planes, int pitch, const T* raw,
                                                 const Chunk* list, int count, int thread,
                                                 int first_octet = 0) {
  constexpr int step = Warps / Octets * 4;
  static_assert(Warps % Octets == 0 && (Shift == 0 || Shift == 4));
  const unsigned number = unsigned(device::keep_in_loop(thread));
  const int warp = number / 32, lane = number % 32;
  const int octet = first_octet + warp % Octets, first = warp / Octets * 4;
  // Matrix m is pixels 2m and 2m + 1 of four chunks. Lane l receives channel l / 4 of chunk l % 4.
  const T* from = raw + Planes::unit(first + lane % 8 / 2, lane / 8 * 2 + lane % 2, octet);
  T* const plane = planes + Planes::at(pitch, 8 * octet + lane / 4) + Shift;
  list += first + lane % 4;
#pragma unroll 4
  for (int n = first; n < count; n += step, list += step, from += step * Planes::chunk) {
    uint32_t r[4];
    device::load_matrices<true>(r, from);
    if (n + lane % 4 < count) {
      T* const to = plane + list->plane;
      if constexpr (Shift == 0) {
        device::store_shared(to, make_uint4(r[0], r[1], r[2], r[3]));
      } else {
        // Every other pair of channels begins with the second half, in other banks.
        const bool turned = lane / 8 % 2;
        device::store_shared(to + (turned ? 4 : 0),
                             turned ? make_uint2(r[2], r[3]) : make_uint2(r[0], r[1]));
        device::store_shared(to + (turned ? 0 : 4),
                             turned ? make_uint2(r[0], r[1]) : make_uint2(r[2], r[3]));
      }
    }
  }
}

// Writes finished planes to memory. `to` is the first channel of the block in the first image.
template <class Planes, int Warps, int Count, class T>
__device__ __forceinline__ void planes_to_memory(T* to, const T* planes, int pitch,
                                                 const Chunk* list, ptrdiff_t pixel_stride,
                                                 int images, int channels, bool in_units,
                                                 int thread) {
  constexpr int octets = Planes::octets, at_once = 4 / octets, step = Warps * at_once;
  static_assert(Count % at_once == 0);
  const unsigned number = unsigned(device::keep_in_loop(thread));
  const int lane = number % 32, first = number / 32 * at_once;
  // Matrix m is channels 2m and 2m + 1 of every octet of the chunks. Lane l receives pixel l / 4 of
  // octet l % octets of chunk l % 4 / octets.
  const int quad = lane % 8 / 2, octet = lane % octets, pixel = lane / 4;
  const T* const plane = planes + Planes::at(pitch, quad % octets * 8 + lane / 8 * 2 + lane % 2);
  const Chunk* load = list + first + quad / octets;
  const Chunk* store = list + first + lane % 4 / octets;
  const unsigned missing = 16 * unsigned(min(images, mma_rows));
  channels -= 8 * octet;
  char* const origin = reinterpret_cast<char*>(to + pixel * pixel_stride + 8 * octet);
  const auto each_unit = [&](auto write) {
#pragma unroll 4
    for (int n = first; n < Count; n += step, load += step, store += step) {
      uint32_t r[4];
      device::load_matrices<true>(r, plane + load->plane);
      const Chunk chunk = *store;
      if (channels > 0 && unsigned(pixel) < chunk.present % 16 && chunk.present < missing)
        write(origin + chunk.bytes, r);
    }
  };
  if (in_units) {
    each_unit([](char* at, const uint32_t (&r)[4]) {
      *reinterpret_cast<uint4*>(at) = make_uint4(r[0], r[1], r[2], r[3]);
    });
  } else {
    each_unit([=](char* at, const uint32_t (&r)[4]) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < channels)
          reinterpret_cast<unsigned short*>(at)[i] =
              static_cast<unsigned short>(r[i / 2] >> i % 2 * 16);
    });
  }
}

}  // namespace depthwise
