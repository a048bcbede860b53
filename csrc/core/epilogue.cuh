// What happens to a sum between its register and shared memory.
#pragma once
#include "core/activation.cuh"
#include "core/moments.cuh"
#include "core/packed16.cuh"
#include "core/toeplitz.cuh"
#include "host/plan.h"

namespace depthwise {

// Writes to shared memory what `make` makes of the sums that `multiply` left, two neighbours at a
// time; this lane's first job begins at `first`, its second at `second`. `make` is given the two
// sums, which of the jobs they belong to, and their row and column in it.
template <class T, int Size, class Layout, bool Shifted = false, int Step, int Tiles, class Make>
__device__ __forceinline__ void write_sums(T* first, T* second, const float (&sum)[Step][Tiles][4],
                                           int lane, Make make) {
#pragma unroll
  for (int q = 0; q < Tiles; ++q) {
    const int column = column_of<Size, Tiles, Shifted>(q, lane);
#pragma unroll
    for (int s = 0; s < Step; ++s) {
      const float (&value)[4] = sum[s][q];
      *reinterpret_cast<uint32_t*>(first + Layout::at(s, 0) + column) =
          make(value[0], value[1], 0, s, column);
      *reinterpret_cast<uint32_t*>(second + Layout::at(s, 0) + column) =
          make(value[2], value[3], 1, s, column);
    }
  }
}

// This lane's two jobs in another tile of shared memory, whose values are added to the sums.
template <class T, class Layout>
struct Residual {
  const T* jobs[2];
  bool wanted;

  __device__ __forceinline__ float2 at(int job, int row, int column) const {
    if (!wanted) return make_float2(0.f, 0.f);
    uint32_t bits;
    memcpy(&bits, jobs[job] + Layout::at(row, 0) + column, sizeof(bits));
    return unpack<T>(bits);
  }
};

// Writes the sums plus the residual to shared memory, which may be the place of the residual.
template <class T, int Size, class Layout, bool Shifted = false, int Step, int Tiles, class Other>
__device__ __forceinline__ void write_sums_with(const Residual<T, Other>& residual, T* first,
                                                T* second, const float (&sum)[Step][Tiles][4],
                                                int lane) {
  write_sums<T, Size, Layout, Shifted>(first, second, sum, lane,
                                       [&](float low, float high, int job, int row, int column) {
                                         const float2 also = residual.at(job, row, column);
                                         return pack<T>(low + also.x, high + also.y);
                                       });
}

// An epilogue is what a kernel does with the sums of a channel. `of` reads what belongs to the
// channel; what it gives is called with the sums of one item after the other and told of the end.
// Where it `adds`, the kernel can also add a tensor to the bare sums. `rows_ahead` is how many input
// rows `multiply` may load at a time beside it.

// The convolution with its bias.
struct BiasEpilogue {
  static constexpr bool adds = false;
  static constexpr int rows_ahead(int size, int) { return depthwise::rows_ahead(size); }
  const float* bias;

  struct OfChannel {
    float bias;

    template <class T, int Size, class Layout, int Step, int Tiles, class Other>
    __device__ __forceinline__ void operator()(T* first, T* second,
                                               const float (&sum)[Step][Tiles][4], const Other&,
                                               int, int lane) const {
      write_sums<T, Size, Layout>(first, second, sum, lane,
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

// The same, then activation, normalisation and residual; without a normalisation the sums as they
// are. What belongs to the channel is read anew for each item: registers are scarcer than reads that
// hit the cache.
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

    template <class T, int Size, class Layout, int Step, int Tiles, class Other>
    __device__ __forceinline__ void operator()(T* first, T* second,
                                               const float (&sum)[Step][Tiles][4],
                                               const Other& residual, int, int lane) const {
      const int own = device::opaque(channel);
      const float bias = all.bias ? __ldg(all.bias + own) : 0.f;
      float mean = 0, scale = 1, shift = 0;
      if (all.normalisation.rows) {
        mean = __ldg(all.normalisation.mean() + own);
        scale = __ldg(all.normalisation.scale() + own);
        shift = __ldg(all.normalisation.shift() + own);
      }
      with_activation(all.activation, [&](auto activate) {
        const auto normalised = [&](float value) {
          return fmaf(activate.less(value + bias, mean), scale, shift);
        };
        write_sums<T, Size, Layout>(
            first, second, sum, lane, [&](float low, float high, int job, int row, int column) {
              const float2 also = residual.at(job, row, column);
              return pack<T>(normalised(low) + also.x, normalised(high) + also.y);
            });
      });
    }
    __device__ __forceinline__ void finish(int) const {}
  };
  __device__ __forceinline__ OfChannel of(int channel) const { return {*this, channel}; }
};

// The convolution with its bias, and the moments of its activation per share: of the rounded values,
// which are what the normalisation and the backward pass read. In bfloat16 those of the sums
// themselves would miss the variance by a quarter where a bias is large.
struct MomentsEpilogue {
  static constexpr bool adds = false;
  static constexpr int rows_ahead(int size, int) { return depthwise::rows_ahead(size); }
  const float* bias;
  Activation activation;
  float* to;  // [share][3][channel]
  Shape shape;

  struct OfChannel {
    float bias;
    Activation activation;
    float* to;
    const Shape& shape;
    Moments moments;

    // Whole planes only.
    template <class T, int Size, class Layout, int Step, int Tiles, class Other>
    __device__ __forceinline__ void operator()(T* first, T* second,
                                               const float (&sum)[Step][Tiles][4], const Other&,
                                               int number, int lane) {
      constexpr int groups = 8 * Tiles / Step, images = jobs / groups;
      bool exists[2] = {true, true};
      if constexpr (images > 1) {
        const int left = shape.images - number * images;
        exists[0] = lane / 4 / groups < left, exists[1] = (lane / 4 + 8) / groups < left;
      }
      with_activation(activation, [&](auto activate) {
        const float pivot =
            moments.count == 0 ? activate.less(sum[0][0][0] + bias, 0) : moments.mean;
        float total = 0, squares = 0;
        const auto see = [&](float value) {
          const float less = activate.less(value, pivot);
          total += less;
          squares = fmaf(less, less, squares);
        };
        write_sums<T, Size, Layout>(first, second, sum, lane,
                                    [&](float low, float high, int job, int, int) {
                                      const uint32_t word = pack<T>(low + bias, high + bias);
                                      const float2 rounded = unpack<T>(word);
                                      if (exists[job]) see(rounded.x), see(rounded.y);
                                      return word;
                                    });
        const float count = float(2 * Step * Tiles);
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
            to + ptrdiff_t(blockIdx.y) * 3 * shape.channels + channel,
            shape,
            {}};
  }
};

}  // namespace depthwise
