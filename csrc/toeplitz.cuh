// The compute core: a convolution along rows as a product with banded Toeplitz matrices.
//
// For one channel and one filter row r, eight neighbouring outputs are
//   out[j] = sum over i of window[i] * band_r[i][j],   band_r[i][j] = filter[r][i - j - margin],
// with zeros outside the filter. The window of input columns is K of an mma, the eight outputs are
// its N, and its M are the same columns of 16 rows that lie anywhere.
#pragma once
#include "device.h"

namespace depthwise {

// The window begins `shift` columns left of the outputs, a multiple of 4, so that every chunk of 8
// columns keeps the alignment of the plane whatever the filter size.
template <int Size>
struct Window {
  static_assert(Size % 2 == 1 && Size >= 3 && Size <= 15);
  static constexpr int pad = Size / 2;
  static constexpr int chunks = Size <= 9 ? 2 : 3;  // of 8 columns
  static constexpr int shift = Size <= 9 ? 4 : 8;
  static constexpr int margin = shift - pad;
};

// The bands of one channel as B operands of mma, held in registers for the life of a warp.
template <class T, int Size>
struct Bands {
  static constexpr int chunks = Window<Size>::chunks;
  // A filter row between the zeros that surround it in a band.
  static constexpr int zeros_before = 7 + Window<Size>::margin;
  static constexpr int scratch_row = 8 * chunks + 8;
  static constexpr int scratch_elements = Size * scratch_row;

  uint32_t row[Size][chunks];

  // `scratch` is shared memory of this warp. An even filter_size is Size - 1: the first row and
  // column are zero.
  __device__ __forceinline__ void load(const T* filter, int filter_size, bool flipped,
                                       unsigned short* scratch, int lane) {
    const int even = Size - filter_size;
    for (int i = lane; i < scratch_elements; i += 32) {
      int r = i / scratch_row, j = i % scratch_row - zeros_before;
      const bool inside = j >= 0 && j < Size;
      if (flipped) r = Size - 1 - r, j = Size - 1 - j;
      r -= even, j -= even;
      scratch[i] = inside && r >= 0 && j >= 0
                       ? device::load_global(reinterpret_cast<const unsigned short*>(filter) +
                                             r * filter_size + j)
                       : static_cast<unsigned short>(0);
    }
    __syncwarp();
    // Lane l holds rows l % 4 * 2 and the next of column l / 4 of each chunk.
    const unsigned short* const first = scratch + (lane % 4 * 2 - lane / 4 + 7);
#pragma unroll
    for (int r = 0; r < Size; ++r)
#pragma unroll
      for (int q = 0; q < chunks; ++q) {
        const unsigned short* const at = first + r * scratch_row + 8 * q;
        row[r][q] = at[0] | uint32_t(at[1]) << 16;
      }
    __syncwarp();
  }
};

// Adds to sum[s][q] the outputs of row s and tile q of 16 jobs. `rows` is where this lane finds its
// row of a matrix in the first of Step + Size - 1 input rows: job lane % 16, chunk lane / 16. One
// load of an input row serves every filter row that meets it.
template <class T, int Size, int Step, int Tiles, class Layout>
__device__ __forceinline__ void multiply(float (&sum)[Step][Tiles][4], const T* rows,
                                         const Bands<T, Size>& bands, int lane) {
  constexpr int chunks = Tiles + Window<Size>::chunks - 1;
#pragma unroll
  for (int d = 0; d < Step + Size - 1; ++d) {
    const T* const row = rows + Layout::at(d, 0);
    uint32_t a[chunks][2];
#pragma unroll
    for (int q = 0; q + 1 < chunks; q += 2) {
      uint32_t pair[4];
      device::load_matrices<false>(pair, row + 8 * q);
      a[q][0] = pair[0], a[q][1] = pair[1], a[q + 1][0] = pair[2], a[q + 1][1] = pair[3];
    }
    if constexpr (chunks % 2)
      device::load_matrices<false>(a[chunks - 1], row - lane / 16 * 8 + 8 * (chunks - 1));
#pragma unroll
    for (int s = 0; s < Step; ++s) {
      const int r = d - s;
      if (r < 0 || r >= Size) continue;
#pragma unroll
      for (int q = 0; q < Tiles; ++q) {
        const uint32_t both[4] = {a[q][0], a[q][1], a[q + 1][0], a[q + 1][1]};
        device::mma<T, 2>(sum[s][q], both, bands.row[r], sum[s][q]);
      }
      if constexpr (Window<Size>::chunks == 3) {
#pragma unroll
        for (int q = 0; q < Tiles; ++q)
          device::mma<T, 1>(sum[s][q], a[q + 2], bands.row[r] + 2, sum[s][q]);
      }
    }
  }
}

// The transposed products of the weight gradient: for one filter row, window columns times output
// columns, summed over jobs. Element (i, j) belongs to filter column i - j - margin; what lies
// outside the band is computed and not used.
template <class T, int Size>
struct BandSums {
  static constexpr bool wide = Window<Size>::chunks == 3;

  float sum[Size][4] = {};                            // window columns 0 to 15
  float rest[wide ? (Size + 1) / 2 : 1][4] = {};      // columns 16 to 23, two filter rows in each

  // `gradient` holds the output gradient of `Step` rows of 16 jobs as B operands. `pairs` is where
  // the lane finds its row for four matrices (jobs 0-7 of a chunk and of the next, jobs 8-15 of
  // both), `single` for two (jobs 0-15 of one chunk).
  template <int Step, int Tiles, class Layout>
  __device__ __forceinline__ void multiply(const uint32_t (&gradient)[Step][Tiles][2],
                                           const T* pairs, const T* single) {
    constexpr int chunks = Tiles + Window<Size>::chunks - 1;
    uint32_t x[chunks][2], before[chunks][2] = {};
#pragma unroll
    for (int d = 0; d < Step + Size - 1; ++d) {
      // Keeps ptxas from loading all rows first, which takes more registers than there are (at size
      // 11 over 250 instead of 168); it costs no instruction.
      if (d % 2 == 0) __syncwarp();
#pragma unroll
      for (int q = 0; q < chunks; ++q)
        if (d > 0) before[q][0] = x[q][0], before[q][1] = x[q][1];
#pragma unroll
      for (int q = 0; q + 1 < chunks; q += 2) {
        uint32_t pair[4];
        device::load_matrices<true>(pair, pairs + Layout::at(d, 8 * q));
        x[q][0] = pair[0], x[q + 1][0] = pair[1], x[q][1] = pair[2], x[q + 1][1] = pair[3];
      }
      if constexpr (chunks % 2)
        device::load_matrices<true>(x[chunks - 1], single + Layout::at(d, 8 * (chunks - 1)));
#pragma unroll
      for (int q = 0; q < Tiles; ++q)
#pragma unroll
        for (int s = 0; s < Step; ++s) {
          const int r = d - s;
          if (r < 0 || r >= Size) continue;
          const uint32_t a[4] = {x[q][0], x[q + 1][0], x[q][1], x[q + 1][1]};
          device::mma<T, 2>(sum[r], a, gradient[s][q], sum[r]);
          if constexpr (wide) {
            // Rows r - 1 and r meet the same gradient with input rows d - 1 and d. The last, even
            // row stands alone in both halves.
            if (r % 2 == 0 && r != Size - 1) continue;
            const auto& low = r % 2 ? before[q + 2] : x[q + 2];
            const uint32_t b[4] = {low[0], x[q + 2][0], low[1], x[q + 2][1]};
            device::mma<T, 2>(rest[r / 2], b, gradient[s][q], rest[r / 2]);
          }
        }
    }
  }

  // Adds the sums up along their diagonals and writes those of the filter: one value a lane.
  // `scratch` is 24 x 8 floats of shared memory of this warp.
  __device__ __forceinline__ void store(float* to, int filter_size, float* scratch, int lane) const {
    const int even = Size - filter_size;
    const int at = lane / 4 * 8 + lane % 4 * 2;
#pragma unroll
    for (int r = 0; r < Size; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scratch[at + i / 2 * 64 + i % 2] = sum[r][i];
      if constexpr (wide) {
        const int half = r == Size - 1 ? 0 : r % 2 * 2;
        scratch[at + 128] = rest[r / 2][half];
        scratch[at + 129] = rest[r / 2][half + 1];
      }
      __syncwarp();
      if (lane >= even && lane < Size && r >= even) {
        float total = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) total += scratch[(j + lane + Window<Size>::margin) * 8 + j];
        to[(r - even) * filter_size + lane - even] = total;
      }
      __syncwarp();
    }
  }
};

}  // namespace depthwise
