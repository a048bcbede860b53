// The compute core for filters of up to 31 x 31: that of toeplitz.cuh, with the bands in shared memory.
//
// Five registers a row are 155 for 31 rows, beside sums and addresses. So the rows of the filter lie in
// shared memory, each between zeros, and an input row loads the bands that it meets. The extent of the
// filter is known at run time; its rows without taps are skipped.
#pragma once
#include "core/device.h"
#include "core/toeplitz.cuh"
#include "host/plan.h"

namespace depthwise {

// The input columns that eight outputs depend on: the chunk of the outputs and two on each side.
constexpr int window_chunks = 5;
constexpr int window_shift = 8 * (window_chunks / 2);  // columns left of the outputs

// Rows of the filter of one channel in shared memory of one warp.
//
// Lane l needs elements l % 4 * 2 and l % 4 * 2 + 1 of column l / 4 of each chunk of a band, neighbours in
// a row that begin at an even or an odd element. Each row is therefore stored twice, the second time one
// element further left, so that every lane finds both in one aligned word. The copies of a row are
// 24 words apart, and eight columns are at most seven words: no load meets a bank conflict.
template <class T>
class SharedBands {
  static constexpr int copy_elements = 8 * window_chunks + 8;
  static constexpr int row_elements = 2 * copy_elements;

 public:
  static constexpr int elements(int rows) { return rows * row_elements; }

  // Stores the filter of a channel at `memory`, turned by half a turn if `flipped`. Other lanes see it
  // after a barrier.
  __device__ __forceinline__ SharedBands(unsigned short* memory, const T* weight,
                                         const LargeFilter& filter, bool flipped, int lane) {
    const int rows = filter.rows(), columns = filter.columns();
    const int margin = window_shift - filter.left(flipped);
    for (int i = lane; i < elements(rows); i += 32) {
      int row = i / row_elements, within = i % row_elements;
      int column = within % copy_elements + within / copy_elements - 7 - margin;
      const bool inside = column >= 0 && column < columns;
      if (flipped) row = rows - 1 - row, column = columns - 1 - column;
      const bool tap =
          inside && row % filter.row_dilation == 0 && column % filter.column_dilation == 0;
      memory[i] =
          tap ? __ldg(reinterpret_cast<const unsigned short*>(weight) +
                      row / filter.row_dilation * filter.width + column / filter.column_dilation)
              : static_cast<unsigned short>(0);
    }
    const int first = lane % 4 * 2 - lane / 4 + 7;
    words_ = reinterpret_cast<const uint32_t*>(memory + first % 2 * copy_elements + first / 2 * 2);
  }

  // The band of a row as B fragments, a word a chunk.
  __device__ __forceinline__ void load(uint32_t (&band)[window_chunks], int row) const {
    const uint32_t* const words = words_ + row * (row_elements / 2);
#pragma unroll
    for (int i = 0; i < window_chunks; ++i) band[i] = words[4 * i];
  }

 private:
  const uint32_t* words_;
};

// Tells whether row `row` of a filter, which may lie outside, has taps.
__device__ __forceinline__ bool has_taps(uint32_t row_mask, int row) {
  return unsigned(row) < 32 && row_mask >> row & 1;
}

// The tiles [first, last) of an item whose outputs are wanted.
struct TileRange {
  int first, last;
  __device__ __forceinline__ bool holds(int tile) const { return tile >= first && tile < last; }
};

// Adds to accumulator[s][q] the outputs of row s and tile q of 16 row groups, as `multiply` does. `rows` is
// where this lane finds its row of a matrix in the first of GroupRows + filter_rows - 1 input rows.
template <class T, class Rows, int GroupRows, int Tiles>
__device__ __forceinline__ void multiply_large(float (&accumulator)[GroupRows][Tiles][4],
                                               const T* rows, const SharedBands<T>& bands,
                                               int filter_rows, uint32_t row_mask,
                                               const TileRange& wanted, int lane) {
#pragma unroll 1
  for (int d = 0; d < GroupRows + filter_rows - 1; ++d) {
    uint32_t a[Tiles][2];
    load_chunks(a, rows + Rows::at(d, 0), lane);
#pragma unroll
    for (int s = 0; s < GroupRows; ++s) {
      if (!has_taps(row_mask, d - s)) continue;
      uint32_t band[window_chunks];
      bands.load(band, d - s);
#pragma unroll
      for (int q = 0; q < Tiles; ++q) {
        if (!wanted.holds(q)) continue;
#pragma unroll
        for (int i = 0; i < window_chunks; ++i) {
          const int chunk = q - window_chunks / 2 + i;
          if (chunk < 0 || chunk >= Tiles) continue;
          // Chunks 2n and 2n + 1 lie in neighbouring registers, as one mma of two chunks takes them.
          const auto begins_pair = [](int at, int j) {
            return at >= 0 && at % 2 == 0 && at + 1 < Tiles && j + 1 < window_chunks;
          };
          if (i > 0 && begins_pair(chunk - 1, i - 1)) continue;
          float (&to)[4] = accumulator[s][q];
          if (begins_pair(chunk, i)) {
            const uint32_t both[4] = {a[chunk][0], a[chunk][1], a[chunk + 1][0], a[chunk + 1][1]};
            device::mma<T, 2>(to, both, band + i, to);
          } else {
            device::mma<T, 1>(to, a[chunk], band + i, to);
          }
        }
      }
    }
  }
}

// The transposed products of the weight gradient, as DiagonalSums, for `filter_rows_of_warp` rows of the
// filter and input windows of five chunks. Other warps have the other rows.
template <class T>
class LargeDiagonalSums {
  static constexpr int pairs = window_chunks / 2;

 public:
  static constexpr int scratch_floats = 8 * window_chunks * 8;

  // Adds the products of `gradient`, from load_gradient, with the input rows that these rows of the
  // filter meet. `row_mask` tells which of them have taps. `paired` and `single` are where the lane
  // finds its row for four matrices and for two, as in DiagonalSums.
  template <class Rows, int GroupRows, int Tiles>
  __device__ __forceinline__ void multiply(const uint32_t (&gradient)[GroupRows][Tiles][2],
                                           const T* paired, const T* single, uint32_t row_mask,
                                           const TileRange& wanted) {
#pragma unroll
    for (int d = 0; d < GroupRows + filter_rows_of_warp - 1; ++d) {
      load_no_further();
      uint32_t x[Tiles][2];
#pragma unroll
      for (int q = 0; q + 1 < Tiles; q += 2) {
        uint32_t pair[4];
        device::load_matrices<true>(pair, paired + Rows::at(d, 8 * q));
        x[q][0] = pair[0], x[q + 1][0] = pair[1], x[q][1] = pair[2], x[q + 1][1] = pair[3];
      }
      if constexpr (Tiles % 2)
        device::load_matrices<true>(x[Tiles - 1], single + Rows::at(d, 8 * (Tiles - 1)));
      const auto input = [&](int chunk, int half) {
        return chunk >= 0 && chunk < Tiles ? x[chunk < 0        ? 0
                                               : chunk >= Tiles ? 0
                                                                : chunk][half]
                                           : 0u;
      };
#pragma unroll
      for (int q = 0; q < Tiles; ++q) {
        if (!wanted.holds(q)) continue;
#pragma unroll
        for (int s = 0; s < GroupRows; ++s) {
          const int r = d - s;
          if (r < 0 || r >= filter_rows_of_warp) continue;
          if (!(row_mask >> r & 1)) continue;
          const int first = q - window_chunks / 2;
#pragma unroll
          for (int i = 0; i < pairs; ++i) {
            const int left = first + 2 * i;
            if (left + 1 < 0 || left >= Tiles) continue;
            const uint32_t a[4] = {input(left, 0), input(left + 1, 0), input(left, 1),
                                   input(left + 1, 1)};
            device::mma<T, 2>(pair_sum_[r][i], a, gradient[s][q], pair_sum_[r][i]);
          }
          const int last = first + window_chunks - 1;
          if (last < Tiles) {
            const uint32_t a[4] = {x[last][0], 0u, x[last][1], 0u};
            device::mma<T, 2>(single_sum_[r], a, gradient[s][q], single_sum_[r]);
          }
        }
      }
    }
  }

  // Adds the sums up along their diagonals and writes the taps of these rows of the filter, of which the
  // first is `first_row`, by way of `scratch`, shared memory of this warp.
  __device__ __forceinline__ void store(float* to, const LargeFilter& filter, int first_row,
                                        float* scratch, int lane) const {
    const int at = lane / 4 * 8 + lane % 4 * 2;
    const int margin = window_shift - filter.left(false);
#pragma unroll
    for (int r = 0; r < filter_rows_of_warp; ++r) {
#pragma unroll
      for (int i = 0; i < pairs; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) scratch[at + 128 * i + j / 2 * 64 + j % 2] = pair_sum_[r][i][j];
#pragma unroll
      for (int j = 0; j < 2; ++j) scratch[at + 128 * pairs + j] = single_sum_[r][j];
      __syncwarp();
      const int row = first_row + r, column = lane;
      if (row < filter.rows() && row % filter.row_dilation == 0 && column < filter.columns() &&
          column % filter.column_dilation == 0) {
        float total = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) total += scratch[(j + column + margin) * 8 + j];
        to[row / filter.row_dilation * filter.width + column / filter.column_dilation] = total;
      }
      __syncwarp();
    }
  }

 private:
  float pair_sum_[filter_rows_of_warp][pairs][4] = {};
  float single_sum_[filter_rows_of_warp][4] = {};
};

}  // namespace depthwise
