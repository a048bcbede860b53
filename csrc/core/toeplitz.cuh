// The compute core: a convolution along rows as a product with banded Toeplitz matrices.
//
// For one channel and one filter row r, eight neighbouring outputs are
//   out[j] = sum over i of input_window[i] * band_r[i][j],   band_r[i][j] = filter[r][i - j - margin],
// with zeros outside the filter. The columns of the input window are K of an mma, the eight outputs are
// its N, and its M are the same columns of 16 row groups, which may lie anywhere in shared memory.
//
// Planes in shared memory have exactly 8 * Tiles columns. Columns left and right of them count as zero
// and take no room: input windows that would reach over an edge are cut off there.
#pragma once
#include "core/device.h"
#include "core/tiles.h"

namespace depthwise {

// The input columns that the outputs of a tile depend on, in whole chunks of 8 columns, which ldmatrix
// finds on 16-byte boundaries. The window begins `shift` columns left of the outputs. With two chunks,
// tile q is therefore columns 8q - 4 to 8q + 3, and the first tile, of which four columns lie outside,
// also takes the last four of the plane.
template <int Size, int Tiles>
struct InputWindow {
  static_assert(Size % 2 == 1 && Size >= 3, "even filters are served by the next odd size");
  static constexpr int pad = Size / 2;
  static constexpr int chunks = Tiles == 1 ? 1 : Size <= 9 ? 2 : 3;
  static constexpr int shift = 4 * (chunks - 1);
  static constexpr int margin = shift - pad;
  static constexpr int first_column = chunks == 2 ? -4 : 0;  // of tile 0
  static_assert(Tiles == 1 || (margin >= 0 && margin + Size + 7 <= 8 * chunks),
                "the input window holds every column that a filter row reaches from eight outputs");
};

// The bands of one channel as B fragments of mma, held in registers for the life of a warp.
template <class T, int Size, int Tiles>
struct Bands {
  using Window = InputWindow<Size, Tiles>;
  // Room for a filter row between the zeros that surround it in a band.
  static constexpr int scratch_row = 8 * Window::chunks + 8;
  static constexpr int scratch_elements = Size * scratch_row;

  uint32_t row[Size][Window::chunks];

  // Reads the filter of a channel by way of `scratch`, shared memory of this warp. Where filter_size is
  // even, it is Size - 1, and the first row and column are zero.
  __device__ __forceinline__ void load(const T* filter, int filter_size, bool flipped,
                                       unsigned short* scratch, int lane) {
    const int even = Size - filter_size;
    for (int i = lane; i < scratch_elements; i += 32) {
      int r = i / scratch_row, j = i % scratch_row - 7 - Window::margin;
      const bool inside = j >= 0 && j < Size;
      if (flipped) r = Size - 1 - r, j = Size - 1 - j;
      r -= even, j -= even;
      scratch[i] =
          inside && r >= 0 && j >= 0
              ? __ldg(reinterpret_cast<const unsigned short*>(filter) + r * filter_size + j)
              : static_cast<unsigned short>(0);
    }
    __syncwarp();
    // Lane l holds rows l % 4 * 2 and l % 4 * 2 + 1 of column l / 4 of each chunk.
    const unsigned short* const first = scratch + (lane % 4 * 2 - lane / 4 + 7);
#pragma unroll
    for (int r = 0; r < Size; ++r)
#pragma unroll
      for (int q = 0; q < Window::chunks; ++q) {
        const unsigned short* const at = first + r * scratch_row + 8 * q;
        row[r][q] = at[0] | uint32_t(at[1]) << 16;
      }
    __syncwarp();
  }
};

// Keeps ptxas from loading all rows first, which takes more registers than there are (over 250 instead
// of 168 in a weight gradient of size 11).
__device__ __forceinline__ void load_no_further() { __syncwarp(); }

// Loads Count chunks of 8 columns of a row of 16 row groups as A fragments: chunk q of row groups 0 to 7
// in chunks[q][0], of row groups 8 to 15 in chunks[q][1]. `row` is where this lane finds its row of a
// matrix: row group lane % 16, chunk lane / 16.
template <int Count, class T>
__device__ __forceinline__ void load_chunks(uint32_t (&chunks)[Count][2], const T* row, int lane) {
#pragma unroll
  for (int q = 0; q + 1 < Count; q += 2) {
    uint32_t pair[4];
    device::load_matrices<false>(pair, row + 8 * q);
    chunks[q][0] = pair[0], chunks[q][1] = pair[1];
    chunks[q + 1][0] = pair[2], chunks[q + 1][1] = pair[3];
  }
  if constexpr (Count % 2)
    device::load_matrices<false>(chunks[Count - 1], row - lane / 16 * 8 + 8 * (Count - 1));
}

// The number of input rows to load at a time, where nothing else needs the registers.
constexpr int rows_ahead(int size) { return size <= 9 ? 4 : size < 15 ? 2 : 1; }

// Adds to accumulator[s][q] the outputs of row s and tile q of 16 row groups. `rows` is where this lane
// finds its row of a matrix in the first of GroupRows + Size - 1 input rows: row group lane % 16, chunk
// lane / 16. One load of an input row serves every filter row that meets it.
//
// With Shifted, and input windows of two chunks, planes lie four columns further right, between zeros:
// tile q is columns 8q to 8q + 7. About Ahead input rows are loaded at a time.
template <class T, int Size, int GroupRows, int Tiles, class Rows, bool Shifted = false,
          int Ahead = rows_ahead(Size)>
__device__ __forceinline__ void multiply(float (&accumulator)[GroupRows][Tiles][4], const T* rows,
                                         const Bands<T, Size, Tiles>& bands, int lane) {
  constexpr int chunks = InputWindow<Size, Tiles>::chunks;
  constexpr bool between_zeros = Shifted && chunks == 2;
  constexpr int loaded = Tiles + (between_zeros ? 1 : 0);
#pragma unroll
  for (int d = 0; d < GroupRows + Size - 1; ++d) {
    if (d % Ahead == 0) load_no_further();
    uint32_t a[loaded][2];
    load_chunks(a, rows + Rows::at(d, 0), lane);
    const auto each_accumulator = [&](int q, auto add) {
#pragma unroll
      for (int s = 0; s < GroupRows; ++s)
        if (d - s >= 0 && d - s < Size) add(accumulator[s][q], bands.row[d - s]);
    };
    // An mma of two chunks takes them from four neighbouring registers. Chunks 2n and 2n + 1, which one
    // instruction loaded, lie there; any other two would first have to be copied. Their bands lie in
    // neighbouring registers, too: of three, the last two need a copy of the middle one, for which
    // three tiles leave no room.
    const auto pair_begins = [](int chunk, int i) {
      return chunk >= 0 && chunk % 2 == 0 && chunk + 1 < loaded && i + 1 < chunks &&
             (i == 0 || Tiles != 3);
    };
    // One tile after the other: chunk i of its input window, with the next one or by itself.
#pragma unroll
    for (int q = chunks == 2 && !Shifted ? 1 : 0; q < Tiles; ++q) {
      const int first = chunks == 1 || between_zeros ? q : q - 1;
#pragma unroll
      for (int i = 0; i < chunks; ++i) {
        const int chunk = first + i;
        if (chunk < 0 || chunk >= loaded || (i > 0 && pair_begins(chunk - 1, i - 1))) continue;
        each_accumulator(q, [&](float (&to)[4], const uint32_t* band) {
          if (pair_begins(chunk, i)) {
            const uint32_t both[4] = {a[chunk][0], a[chunk][1], a[chunk + 1][0], a[chunk + 1][1]};
            device::mma<T, 2>(to, both, band + i, to);
          } else {
            device::mma<T, 1>(to, a[chunk], band + i, to);
          }
        });
      }
    }
    if constexpr (chunks == 2 && !Shifted) {
      each_accumulator(0, [&](float (&to)[4], const uint32_t* band) {
        // Outputs 0 to 3 are the last four of the plane, outputs 4 to 7 the first four.
        const uint32_t masked[2] = {lane < 16 ? band[0] : 0u, lane < 16 ? 0u : band[1]};
        device::mma<T, 1>(to, a[Tiles - 1], masked, to);
        device::mma<T, 1>(to, a[0], masked + 1, to);
      });
    }
  }
}

// Adds a residual to the accumulators as the product of its rows with a unit matrix, which is exact: an
// mma or two for four values of a lane, which would take eight instructions. `rows` is where this lane
// finds its row of a matrix in the first row of the residual, as in load_chunks.
//
// A residual that is not finite turns the other outputs of its row in an input window into NaN, since zero
// times infinity is NaN. The convolution does the same to them.
template <class T, int Size, class Rows, bool Shifted = false, int GroupRows, int Tiles>
__device__ __forceinline__ void add_residual(float (&accumulator)[GroupRows][Tiles][4],
                                             const T* rows, int lane) {
  constexpr bool between_chunks = InputWindow<Size, Tiles>::chunks == 2 && !Shifted;
  constexpr uint32_t one = std::is_same_v<T, __half> ? 0x3c00u : 0x3f80u;
  // A tile between two chunks is the second half of one and the first half of the next: the unit matrix
  // changes places by halves.
  const int column = lane / 4 ^ (between_chunks ? 4 : 0);
  const uint32_t unit = column / 2 == lane % 4 ? one << column % 2 * 16 : 0;
  const uint32_t halves[2] = {lane < 16 ? unit : 0, lane < 16 ? 0 : unit};
#pragma unroll
  for (int s = 0; s < GroupRows; ++s) {
    uint32_t a[Tiles][2];
    load_chunks(a, rows + Rows::at(s, 0), lane);
#pragma unroll
    for (int q = 0; q < Tiles; ++q) {
      float (&to)[4] = accumulator[s][q];
      if constexpr (between_chunks) {
        const int left = q == 0 ? Tiles - 1 : q - 1;
        if (q % 2) {
          const uint32_t both[4] = {a[left][0], a[left][1], a[q][0], a[q][1]};
          device::mma<T, 2>(to, both, halves, to);
        } else {
          device::mma<T, 1>(to, a[left], halves, to);
          device::mma<T, 1>(to, a[q], halves + 1, to);
        }
      } else {
        device::mma<T, 1>(to, a[q], &unit, to);
      }
    }
  }
}

// The first of the two columns of the plane that this lane's accumulators of tile q belong to.
template <int Size, int Tiles, bool Shifted = false>
__device__ __forceinline__ int column_of(int q, int lane) {
  const int first = Shifted ? 0 : InputWindow<Size, Tiles>::first_column;
  const int column = 8 * q + lane % 4 * 2 + first;
  return column < 0 ? column + 8 * Tiles : column;
}

// Loads the output gradient of 16 row groups as B fragments. `rows` is where this lane finds the first
// row of group lane % 16.
template <class Rows, int GroupRows, int Tiles, class T>
__device__ __forceinline__ void load_gradient(uint32_t (&gradient)[GroupRows][Tiles][2],
                                              const T* rows, int lane) {
#pragma unroll
  for (int s = 0; s < GroupRows; ++s) {
#pragma unroll
    for (int q = 0; q + 1 < Tiles; q += 2) {
      uint32_t pair[4];
      device::load_matrices<true>(pair, rows + Rows::at(s, 8 * q) + lane / 16 * 8);
      gradient[s][q][0] = pair[0], gradient[s][q][1] = pair[1];
      gradient[s][q + 1][0] = pair[2], gradient[s][q + 1][1] = pair[3];
    }
    if constexpr (Tiles % 2)
      device::load_matrices<true>(gradient[s][Tiles - 1], rows + Rows::at(s, 8 * (Tiles - 1)));
  }
}

// The bias gradient: products of ones with the output gradient add it up over row groups.
template <class T>
class BiasSum {
 public:
  template <int GroupRows, int Tiles>
  __device__ __forceinline__ void add(const uint32_t (&gradient)[GroupRows][Tiles][2]) {
    constexpr uint32_t one = std::is_same_v<T, __half> ? 0x3c003c00u : 0x3f803f80u;  // two of them
    const uint32_t ones[4] = {one, one, one, one};
#pragma unroll
    for (int s = 0; s < GroupRows; ++s)
#pragma unroll
      for (int q = 0; q < Tiles; ++q) device::mma<T, 2>(sum_, ones, gradient[s][q], sum_);
  }
  // Returns the sum, called by the whole warp. Every row of the product holds the sums of 8 columns.
  __device__ __forceinline__ float total() const {
    float total = sum_[0] + sum_[1];
    total += __shfl_xor_sync(~0u, total, 1);
    return total + __shfl_xor_sync(~0u, total, 2);
  }

 private:
  float sum_[4] = {};
};

// The transposed products of the weight gradient: for one filter row, input window times output
// columns, summed over row groups. Element (i, j) belongs to filter column i - j - margin; elements
// outside the band are computed and not used.
//
// With input windows of two chunks the input lies four columns to the right, between zeros, so that its
// chunks q and q + 1 are the window of tile q.
template <class T, int Size, int Tiles>
struct DiagonalSums {
  using Window = InputWindow<Size, Tiles>;
  static constexpr int input_shift = Window::chunks == 2 ? 4 : 0;
  static constexpr int input_chunks = Tiles + (input_shift ? 1 : 0);
  static constexpr bool paired = Window::chunks > 1;  // two chunks of a window in one mma
  static constexpr bool single = Window::chunks % 2;  // one chunk for two filter rows in one mma
  static constexpr int scratch_floats = 8 * Window::chunks * 8;

  float pair_sum[paired ? Size : 1][4] = {};
  float single_sum[single ? (Size + 1) / 2 : 1][4] = {};

  // Adds the products of `gradient`, from load_gradient, with the input. `pairs` is where the lane
  // finds its row for four matrices (row groups 0-7 of a chunk and of the next, groups 8-15 of both),
  // `singles` for two (groups 0-15 of one chunk). About Ahead input rows are loaded at a time.
  template <int GroupRows, int Ahead, class Rows>
  __device__ __forceinline__ void multiply(const uint32_t (&gradient)[GroupRows][Tiles][2],
                                           const T* pairs, const T* singles) {
    uint32_t x[input_chunks][2], before[input_chunks][2] = {};
#pragma unroll
    for (int d = 0; d < GroupRows + Size - 1; ++d) {
      if (d % Ahead == 0) load_no_further();
#pragma unroll
      for (int q = 0; q < input_chunks; ++q)
        if (d > 0) before[q][0] = x[q][0], before[q][1] = x[q][1];
#pragma unroll
      for (int q = 0; q + 1 < input_chunks; q += 2) {
        uint32_t pair[4];
        device::load_matrices<true>(pair, pairs + Rows::at(d, 8 * q));
        x[q][0] = pair[0], x[q + 1][0] = pair[1], x[q][1] = pair[2], x[q + 1][1] = pair[3];
      }
      if constexpr (input_chunks % 2)
        device::load_matrices<true>(x[input_chunks - 1],
                                    singles + Rows::at(d, 8 * (input_chunks - 1)));
#pragma unroll
      for (int q = 0; q < Tiles; ++q)
#pragma unroll
        for (int s = 0; s < GroupRows; ++s) {
          const int r = d - s;
          if (r < 0 || r >= Size) continue;
          if constexpr (paired) {
            const int left = Window::chunks == 2 ? q : q - 1;
            const uint32_t a[4] = {left < 0 ? 0u : x[left < 0 ? 0 : left][0], x[left + 1][0],
                                   left < 0 ? 0u : x[left < 0 ? 0 : left][1], x[left + 1][1]};
            device::mma<T, 2>(pair_sum[r], a, gradient[s][q], pair_sum[r]);
          }
          if constexpr (single) {
            // Filter rows r - 1 and r meet the same gradient in input rows d - 1 and d. The last
            // filter row has an even number and no partner: it fills both halves.
            const int chunk = Window::chunks == 1 ? q : q + 1;
            if (chunk == Tiles || (r % 2 == 0 && r != Size - 1)) continue;
            const auto& low = r % 2 ? before[chunk] : x[chunk];
            const uint32_t a[4] = {low[0], x[chunk][0], low[1], x[chunk][1]};
            device::mma<T, 2>(single_sum[r / 2], a, gradient[s][q], single_sum[r / 2]);
          }
        }
    }
  }

  // Adds the sums up along their diagonals and writes the gradient of the filter, one value a lane, by
  // way of `scratch`, shared memory of this warp. With Turned, input and output gradient had changed
  // roles, which turns the filter by half a turn.
  template <bool Turned = false>
  __device__ __forceinline__ void store(float* to, int filter_size, float* scratch,
                                        int lane) const {
    const int even = Size - filter_size;
    const int at = lane / 4 * 8 + lane % 4 * 2;
#pragma unroll
    for (int r = 0; r < Size; ++r) {
      if constexpr (paired) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scratch[at + i / 2 * 64 + i % 2] = pair_sum[r][i];
      }
      if constexpr (single) {
        const int half = r == Size - 1 ? 0 : r % 2 * 2;
        scratch[at + (paired ? 128 : 0)] = single_sum[r / 2][half];
        scratch[at + (paired ? 129 : 1)] = single_sum[r / 2][half + 1];
      }
      __syncwarp();
      const int row = Turned ? Size - 1 - r : r, column = Turned ? Size - 1 - lane : lane;
      if (lane < Size && column >= even && row >= even) {
        float total = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int i = j + lane + Window::margin;
          if (Window::chunks > 1 || (i >= 0 && i < 8)) total += scratch[i * 8 + j];
        }
        to[(row - even) * filter_size + column - even] = total;
      }
      __syncwarp();
    }
  }
};

}  // namespace depthwise
