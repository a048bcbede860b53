// The epilogues: from the accumulators in registers to outputs in shared memory.
#pragma once
#include "core/activation.cuh"
#include "core/moments.cuh"
#include "core/packed16.cuh"
#include "core/tiles.h"
#include "core/toeplitz.cuh"

namespace depthwise {

// Stores make(low, high, group, row, column) for each pair of neighbouring accumulators, a word of two
// 16-bit values. `group` is 0 or 1, one of this lane's two row groups, which begin at `first` and
// `second`; `row` and `column` lie in that row group.
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
      *reinterpret_cast<uint32_t*>(first + Rows::at(s, 0) + column) =
          make(value[0], value[1], 0, s, column);
      *reinterpret_cast<uint32_t*>(second + Rows::at(s, 0) + column) =
          make(value[2], value[3], 1, s, column);
    }
  }
}

// A residual in shared memory: this lane's two row groups there, whose values are added to the
// accumulators.
template <class T, class Rows>
struct Residual {
  const T* groups[2];
  bool wanted;

  __device__ __forceinline__ float2 at(int group, int row, int column) const {
    if (!wanted) return make_float2(0.f, 0.f);
    return unpack<T>(*reinterpret_cast<const uint32_t*>(groups[group] + Rows::at(row, 0) + column));
  }
};

// Stores accumulators plus residual, possibly in the place of the residual.
template <class T, int Size, class Rows, bool Shifted = false, int GroupRows, int Tiles,
          class Other>
__device__ __forceinline__ void store_with_residual(const Residual<T, Other>& residual, T* first,
                                                    T* second,
                                                    const float (&accumulator)[GroupRows][Tiles][4],
                                                    int lane) {
  store_accumulators<T, Size, Rows, Shifted>(
      first, second, accumulator, lane, [&](float low, float high, int group, int row, int column) {
        const float2 other = residual.at(group, row, column);
        return pack<T>(low + other.x, high + other.y);
      });
}

// An epilogue has
//   of(channel)   which loads the parameters of a channel and returns an object with
//     store(...)    which is called with the accumulators of each item, and
//     finish(lane)  which is called after the last one;
//   adds          whether the kernel may add another tensor to the bare accumulators instead;
//   rows_ahead    the number of input rows that `multiply` may load at a time beside it.

// Adds the bias.
struct BiasEpilogue {
  static constexpr bool adds = false;
  static constexpr int rows_ahead(int size, int) { return depthwise::rows_ahead(size); }
  const float* bias;

  struct OfChannel {
    float bias;

    template <class T, int Size, class Rows, int GroupRows, int Tiles, class Other>
    __device__ __forceinline__ void store(T* first, T* second,
                                          const float (&accumulator)[GroupRows][Tiles][4],
                                          const Other&, int, int lane) const {
      store_accumulators<T, Size, Rows>(first, second, accumulator, lane,
                                        [bias = bias](float low, float high, int, int, int) {
                                          return pack<T>(low + bias, high + bias);
                                        });
    }
    __device__ __forceinline__ void finish(int) const {}
  };
  __device__ __forceinline__ OfChannel of(int channel) const {
    return {bias ? __ldg(bias + channel) : 0.f};
  }
};

// Adds the bias, then applies activation, normalisation and residual; without a normalisation, its mean
// is 0 and its scale 1. The parameters of the channel are loaded again for each item, from the cache:
// held in registers they would cost more.
struct FusedEpilogue {
  static constexpr bool adds = true;
  static constexpr int rows_ahead(int size, int tiles) {
    return size > 9 ? 1 : tiles > 4 ? 2 : depthwise::rows_ahead(size);
  }
  const float* bias;
  Normalisation normalisation;
  Activation activation;

  struct OfChannel {
    const FusedEpilogue& all;
    int channel;

    template <class T, int Size, class Rows, int GroupRows, int Tiles, class Other>
    __device__ __forceinline__ void store(T* first, T* second,
                                          const float (&accumulator)[GroupRows][Tiles][4],
                                          const Other& residual, int, int lane) const {
      const int channel_in_loop = device::keep_in_loop(channel);
      const float bias = all.bias ? __ldg(all.bias + channel_in_loop) : 0.f;
      float mean = 0, scale = 1, shift = 0;
      if (all.normalisation.rows) {
        mean = __ldg(all.normalisation.mean() + channel_in_loop);
        scale = __ldg(all.normalisation.scale() + channel_in_loop);
        shift = __ldg(all.normalisation.shift() + channel_in_loop);
      }
      with_activation(all.activation, [&](auto activate) {
        const auto normalised = [&](float value) {
          return fmaf(activate.minus(value + bias, mean), scale, shift);
        };
        store_accumulators<T, Size, Rows>(
            first, second, accumulator, lane,
            [&](float low, float high, int group, int row, int column) {
              const float2 other = residual.at(group, row, column);
              return pack<T>(normalised(low) + other.x, normalised(high) + other.y);
            });
      });
    }
    __device__ __forceinline__ void finish(int) const {}
  };
  __device__ __forceinline__ OfChannel of(int channel) const { return {*this, channel}; }
};

// Adds the bias, and gathers the moments of the activation of each split. They are those of the rounded
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
    float bias;
    Activation activation;
    float* to;
    const Shape& shape;
    Moments moments;

    // Whole planes only.
    template <class T, int Size, class Rows, int GroupRows, int Tiles, class Other>
    __device__ __forceinline__ void store(T* first, T* second,
                                          const float (&accumulator)[GroupRows][Tiles][4],
                                          const Other&, int number, int lane) {
      constexpr int groups = 8 * Tiles / GroupRows, images = mma_rows / groups;
      bool exists[2] = {true, true};
      if constexpr (images > 1) {
        const int left = shape.images - number * images;
        exists[0] = lane / 4 / groups < left, exists[1] = (lane / 4 + 8) / groups < left;
      }
      with_activation(activation, [&](auto activate) {
        const float pivot =
            moments.count == 0 ? activate.minus(accumulator[0][0][0] + bias, 0) : moments.mean;
        float total = 0, squares = 0;
        const auto gather = [&](float value) {
          const float difference = activate.minus(value, pivot);
          total += difference;
          squares = fmaf(difference, difference, squares);
        };
        store_accumulators<T, Size, Rows>(first, second, accumulator, lane,
                                          [&](float low, float high, int group, int, int) {
                                            const uint32_t word = pack<T>(low + bias, high + bias);
                                            const float2 rounded = unpack<T>(word);
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
    return {bias ? __ldg(bias + channel) : 0.f,
            activation,
            moments + ptrdiff_t(blockIdx.y) * 3 * shape.channels + channel,
            shape,
            {}};
  }
};

}  // namespace depthwise
