// The epilogues: from the accumulators in registers to outputs in shared memory.
#pragma once
#include "core/activation.cuh"
#include "core/toeplitz.cuh"

namespace depthwise {

// Stores make(low, high, group) for each pair of neighbouring accumulators, a word of two 16-bit values.
// `group` is 0 or 1, one of this lane's two row groups, which begin at `first` and `second`.
template <class T, int Size, class Rows, bool Shifted = false, int GroupRows, int Tiles, class Make>
__device__ __forceinline__ void store_accumulators(T* first, T* second,
                                                   const float (&accumulator)[GroupRows][Tiles][4],
                                                   int lane, Make make) {
#pragma unroll
  for (int q = 0; q < Tiles; ++q) {
    const int column = column_of<Size, Tiles, Shifted>(q, lane);
#pragma unroll
    for (int s = 0; s < GroupRows; ++s) {
      const float (&value)[4] = accumulator[s][q];
      *reinterpret_cast<uint32_t*>(first + Rows::at(s, 0) + column) = make(value[0], value[1], 0);
      *reinterpret_cast<uint32_t*>(second + Rows::at(s, 0) + column) = make(value[2], value[3], 1);
    }
  }
}

// Stores the accumulators as they are.
template <class T, int Size, class Rows, bool Shifted = false, int GroupRows, int Tiles>
__device__ __forceinline__ void store_accumulators(T* first, T* second,
                                                   const float (&accumulator)[GroupRows][Tiles][4],
                                                   int lane) {
  store_accumulators<T, Size, Rows, Shifted>(
      first, second, accumulator, lane,
      [](float low, float high, int) { return device::pack<T>(low, high); });
}

// Loads the bias of a channel, if there are any.
__device__ __forceinline__ float bias_of(const float* bias, int channel) {
  return bias ? __ldg(bias + channel) : 0.f;
}

// The bias of a channel, which the sums of each item start from: this takes no instruction where the
// first mma of each tile reads it from the same four registers. They come from four lanes, so that the
// compiler does not take them for one register, which it would copy for each mma.
struct Start {
  float four[4];

  __device__ __forceinline__ explicit Start(float bias) {
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = __shfl_sync(~0u, bias, i);
  }
  template <int GroupRows, int Tiles>
  __device__ __forceinline__ void fill(float (&accumulator)[GroupRows][Tiles][4]) const {
#pragma unroll
    for (int s = 0; s < GroupRows; ++s)
#pragma unroll
      for (int q = 0; q < Tiles; ++q)
#pragma unroll
        for (int i = 0; i < 4; ++i) accumulator[s][q][i] = four[i];
  }
};

// A residual in shared memory, at `rows` as add_residual takes it.
template <class T, class ResidualRows>
struct Residual {
  using Rows = ResidualRows;
  const T* rows;
  bool wanted;
};

// An epilogue has
//   bias          null or the bias of all channels, which the accumulators start from;
//   of(channel)   which loads the other parameters of a channel and returns an object with
//     store(...)    which is called with the accumulators of each item, and
//     finish(lane)  which is called after the last one;
//   adds          whether the kernel may add another tensor to the bare accumulators instead;
//   rows_ahead    the number of input rows that `multiply` may load at a time beside it.

// Leaves the sums as they are.
struct PlainEpilogue {
  static constexpr bool adds = false;
  static constexpr int rows_ahead(int size, int) { return depthwise::rows_ahead(size); }
  const float* bias;

  struct OfChannel {
    template <class T, int Size, class Rows, int GroupRows, int Tiles, class Other>
    __device__ __forceinline__ void store(T* first, T* second,
                                          float (&accumulator)[GroupRows][Tiles][4], const Other&,
                                          int, int lane) const {
      store_accumulators<T, Size, Rows>(first, second, accumulator, lane);
    }
    __device__ __forceinline__ void finish(int) const {}
  };
  __device__ __forceinline__ OfChannel of(int) const { return {}; }
};

// Applies activation, normalisation and residual.
struct FusedEpilogue {
  static constexpr bool adds = true;
  static constexpr int rows_ahead(int size, int tiles) {
    return size > 9 ? 1 : tiles > 4 ? 2 : depthwise::rows_ahead(size);
  }
  const float* bias;
  Normalisation normalisation;
  Activation activation;

  struct OfChannel {
    float scale, shift;
    Activation activation;

    template <class T, int Size, class Rows, int GroupRows, int Tiles, class Other>
    __device__ __forceinline__ void store(T* first, T* second,
                                          float (&accumulator)[GroupRows][Tiles][4],
                                          const Other& residual, int, int lane) const {
      with_activation(activation, [&](auto activate) {
#pragma unroll
        for (int s = 0; s < GroupRows; ++s)
#pragma unroll
          for (int q = 0; q < Tiles; ++q)
#pragma unroll
            for (float& value : accumulator[s][q]) value = fmaf(activate.of(value), scale, shift);
      });
      if (residual.wanted) {
        add_residual<T, Size, typename Other::Rows>(accumulator, residual.rows, lane);
        // Outputs may take the place of the residual.
        __syncwarp();
      }
      store_accumulators<T, Size, Rows>(first, second, accumulator, lane);
    }
    __device__ __forceinline__ void finish(int) const {}
  };
  // (a - mean) scale + shift becomes a scale + (shift - mean scale), an instruction less. It is off by
  // 2^-24 of the mean, as the sums are, which are as large as the mean.
  __device__ __forceinline__ OfChannel of(int channel) const {
    float scale = 1, shift = 0;
    if (normalisation.rows) {
      scale = __ldg(normalisation.scale() + channel);
      shift = fmaf(-__ldg(normalisation.mean() + channel), scale,
                   __ldg(normalisation.shift() + channel));
    }
    return {scale, shift, activation};
  }
};

// Gathers the moments of the activation of each split. They are those of the rounded
// values, which normalisation and backward pass read: where a bias is large, those of bfloat16
// accumulators would miss the variance by a quarter.
struct MomentsEpilogue {
  static constexpr bool adds = false;
  static constexpr int rows_ahead(int size, int) { return depthwise::rows_ahead(size); }
  const float* bias;
  Activation activation;
  float* moments;  // [split][3][channel]
  Shape shape;

  struct OfChannel {
    Activation activation;
    float* to;
    const Shape& shape;
    Moments moments;

    // Whole planes only.
    template <class T, int Size, class Rows, int GroupRows, int Tiles, class Other>
    __device__ __forceinline__ void store(T* first, T* second,
                                          float (&accumulator)[GroupRows][Tiles][4], const Other&,
                                          int number, int lane) {
      constexpr int groups = 8 * Tiles / GroupRows, images = mma_rows / groups;
      bool exists[2] = {true, true};
      if constexpr (images > 1) {
        const int left = shape.images - number * images;
        exists[0] = lane / 4 / groups < left, exists[1] = (lane / 4 + 8) / groups < left;
      }
      with_activation(activation, [&](auto activate) {
        const float pivot = moments.count == 0 ? activate.of(accumulator[0][0][0]) : moments.mean;
        float total = 0, squares = 0;
        const auto gather = [&](float value) {
          const float difference = activate.minus(value, pivot);
          total += difference;
          squares = fmaf(difference, difference, squares);
        };
        store_accumulators<T, Size, Rows>(first, second, accumulator, lane,
                                          [&](float low, float high, int group) {
                                            const uint32_t word = device::pack<T>(low, high);
                                            const float2 rounded = device::unpack<T>(word);
                                            if (exists[group]) gather(rounded.x), gather(rounded.y);
                                            return word;
                                          });
        const float count = float(2 * GroupRows * Tiles);
        moments.add((exists[0] ? count : 0) + (exists[1] ? count : 0), pivot, total, squares);
      });
    }
    __device__ __forceinline__ void finish(int lane) {
      moments.merge_lanes();
      if (lane == 0) moments.write(to, shape.channels);
    }
  };
  __device__ __forceinline__ OfChannel of(int channel) const {
    return {activation, moments + ptrdiff_t(blockIdx.y) * 3 * shape.channels + channel, shape, {}};
  }
};

}  // namespace depthwise
