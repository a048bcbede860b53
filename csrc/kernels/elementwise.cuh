// Passes over the values of a convolution, wherever they come from: the moments of their activation,
// its normalisation, the sums that the backward pass needs and the gradient of the values. Each
// reads every tensor it needs once, and none sums across blocks: shares are added up afterwards, in
// order.
#pragma once
#include "core/gradient_of_value.cuh"
#include "core/moments.cuh"
#include "core/packed16.cuh"
#include "host/elementwise_plan.h"

namespace depthwise {

// Neighbouring elements, as they are in memory.
template <class T, int Vector>
struct Pack {
  static_assert(Vector == 8 || Vector == 4 || Vector == 1);
  using Bits = depthwise::Bits<Vector>;
  uint32_t word[(Vector + 1) / 2] = {};

  __device__ __forceinline__ void read(const T* from) {
    const Bits bits = device::load_global(reinterpret_cast<const Bits*>(from));
    memcpy(word, &bits, sizeof(bits));
  }
  __device__ __forceinline__ void write(T* to) const {
    Bits bits;
    memcpy(&bits, word, sizeof(bits));
    device::store_global(reinterpret_cast<Bits*>(to), bits);
  }
  __device__ __forceinline__ float operator[](int i) const {
    const float2 two = unpack<T>(word[i / 2]);
    return i % 2 ? two.y : two.x;
  }
  __device__ __forceinline__ static Pack of(const float (&value)[Vector]) {
    Pack result;
#pragma unroll
    for (int i = 0; i < Vector; i += 2)
      result.word[i / 2] = pack<T>(value[i], Vector > 1 ? value[i + (Vector > 1)] : 0.f);
    return result;
  }
};

// Which channels and values belong to a thread. In planes a warp owns a channel, and each vector is
// of that channel. Channels last, a thread owns the channels of a vector; neighbouring threads own
// neighbouring channels, and the others of the block other pixels.
template <int Vector, bool ChannelsLast>
struct StreamPlace {
  static constexpr int threads = stream_threads(ChannelsLast);
  static constexpr int across = !ChannelsLast ? threads / 32 : Vector == 8 ? 8 : 32;
  static constexpr int lanes = threads / across;
  static constexpr int slots = ChannelsLast ? Vector : 1;  // channels of a thread
  static constexpr int block_channels = across * slots;

  int column, lane, channel;

  __device__ __forceinline__ StreamPlace()
      : column(ChannelsLast ? int(threadIdx.x) % across : int(threadIdx.x) / lanes),
        lane(ChannelsLast ? int(threadIdx.x) / across : int(threadIdx.x) % lanes),
        channel((int(blockIdx.x) * across + column) * slots) {}

  __device__ __forceinline__ static int slot(int element) { return ChannelsLast ? element : 0; }
};

// Calls visit(packs of the value, packs of the other tensor, where they lie in the output, which of
// them exist) for `Batch` vectors of this thread at a time.
template <class T, int Vector, bool ChannelsLast, int Batch, class Visit>
__device__ __forceinline__ void each_batch(const StreamArguments& p,
                                           const StreamPlace<Vector, ChannelsLast>& place,
                                           Visit visit) {
  using Place = StreamPlace<Vector, ChannelsLast>;
  const int first = int(int64_t(p.outer) * blockIdx.y / gridDim.y);
  const int last = int(int64_t(p.outer) * (blockIdx.y + 1) / gridDim.y);
  const int inner_count = ChannelsLast ? 1 : p.inner / Vector;
  const int outer_step = Place::lanes / inner_count, inner_step = Place::lanes % inner_count;
  const T* const value = static_cast<const T*>(p.value) + place.channel * p.value_steps.channel;
  const T* const other = static_cast<const T*>(p.other) + place.channel * p.other_steps.channel;
  const ptrdiff_t output = place.channel * p.output_steps.channel;
  int outer = first + place.lane / inner_count, inner = place.lane % inner_count;
  while (outer < last) {
    Pack<T, Vector> x[Batch], y[Batch];
    ptrdiff_t at[Batch];
    bool exists[Batch];
#pragma unroll
    for (int j = 0; j < Batch; ++j) {
      exists[j] = outer < last;
      if (exists[j]) {
        x[j].read(value + outer * p.value_steps.outer + inner * Vector);
        if (p.other) y[j].read(other + outer * p.other_steps.outer + inner * Vector);
      }
      at[j] = output + outer * p.output_steps.outer + inner * Vector;
      outer += outer_step;
      inner += inner_step;
      if (inner >= inner_count) inner -= inner_count, ++outer;
    }
    visit(x, y, at, exists);
  }
}

// What each thread has found out about its channels, merged over the block in the same order each
// time and written to [share][Rows][channel]. Found has merge(other) and write(to, channels).
template <int Rows, int Vector, bool ChannelsLast, class Found>
__device__ __forceinline__ void write_merged(
    float* sums, int channels, const StreamPlace<Vector, ChannelsLast>& place,
    Found (&found)[StreamPlace<Vector, ChannelsLast>::slots]) {
  using Place = StreamPlace<Vector, ChannelsLast>;
  float* const share = sums + ptrdiff_t(blockIdx.y) * Rows * channels;
  if constexpr (!ChannelsLast) {
    found[0].merge_lanes();
    if (place.lane == 0 && place.channel < channels)
      found[0].write(share + place.channel, channels);
  } else {
    device::SharedMemory memory;
    Found* const all = memory.take<Found>(Place::lanes * Place::block_channels);
#pragma unroll
    for (int i = 0; i < Place::slots; ++i)
      all[place.lane * Place::block_channels + place.column * Place::slots + i] = found[i];
    __syncthreads();
    const int i = int(threadIdx.x), channel = int(blockIdx.x) * Place::block_channels + i;
    if (i >= Place::block_channels || channel >= channels) return;
    Found total = all[i];
#pragma unroll 1
    for (int lane = 1; lane < Place::lanes; ++lane)
      total.merge(all[lane * Place::block_channels + i]);
    total.write(share + channel, channels);
  }
}

// Sums that are added as they are.
template <int Rows>
struct Totals {
  float row[Rows] = {};

  __device__ __forceinline__ void merge(const Totals& other) {
#pragma unroll
    for (int r = 0; r < Rows; ++r) row[r] += other.row[r];
  }
  __device__ __forceinline__ void merge_lanes() {
#pragma unroll
    for (int by = 16; by > 0; by /= 2)
#pragma unroll
      for (int r = 0; r < Rows; ++r) row[r] += __shfl_xor_sync(~0u, row[r], by);
  }
  __device__ __forceinline__ void write(float* to, ptrdiff_t channels) const {
#pragma unroll
    for (int r = 0; r < Rows; ++r) to[r * channels] = row[r];
  }
};

__device__ __forceinline__ float or_zero(const float* from, int channel) {
  return from ? __ldg(from + channel) : 0.f;
}

constexpr int stream_batch = 4;
static_assert(stream_batch * 32 <= INT32_MAX - most_outer);

// Grid of all passes: x counts channels by those of a block, y shares of the outer index.
#define DEPTHWISE_STREAM                                          \
  __global__ void __launch_bounds__(stream_threads(ChannelsLast), \
                                    stream_blocks_resident(ChannelsLast))

// Moments of activation(value + bias): sums are [share][3][channel].
template <class T, int Vector, bool ChannelsLast>
DEPTHWISE_STREAM activation_moments(StreamArguments p) {
  const StreamPlace<Vector, ChannelsLast> place;
  constexpr int slots = StreamPlace<Vector, ChannelsLast>::slots;
  Moments moments[slots];
  if (place.channel < p.channels) {
    float bias[slots];
#pragma unroll
    for (int i = 0; i < slots; ++i) bias[i] = or_zero(p.bias, place.channel + i);
    with_activation(p.activation, [&](auto activate) {
      each_batch<T, Vector, ChannelsLast, stream_batch>(
          p, place, [&](const auto& x, const auto&, const auto&, const auto& exists) {
            float pivot[slots], total[slots] = {}, squares[slots] = {}, count = 0;
#pragma unroll
            for (int i = 0; i < slots; ++i)
              pivot[i] =
                  moments[i].count == 0 ? activate.less(x[0][i] + bias[i], 0) : moments[i].mean;
#pragma unroll
            for (int j = 0; j < stream_batch; ++j) {
              if (!exists[j]) continue;
#pragma unroll
              for (int e = 0; e < Vector; ++e) {
                const int i = place.slot(e);
                const float less = activate.less(x[j][e] + bias[i], pivot[i]);
                total[i] += less;
                squares[i] = fmaf(less, less, squares[i]);
              }
              count += ChannelsLast ? 1 : Vector;
            }
#pragma unroll
            for (int i = 0; i < slots; ++i) moments[i].add(count, pivot[i], total[i], squares[i]);
          });
    });
  }
  write_merged<3>(p.sums, p.channels, place, moments);
}

// output = (activation(value + bias) - mean) scale + shift [+ other]
template <class T, int Vector, bool ChannelsLast>
DEPTHWISE_STREAM normalise_activation(StreamArguments p) {
  const StreamPlace<Vector, ChannelsLast> place;
  constexpr int slots = StreamPlace<Vector, ChannelsLast>::slots;
  if (place.channel >= p.channels) return;
  float bias[slots], mean[slots], scale[slots], shift[slots];
#pragma unroll
  for (int i = 0; i < slots; ++i) {
    const int channel = place.channel + i;
    bias[i] = or_zero(p.bias, channel);
    mean[i] = __ldg(p.normalisation.mean() + channel);
    scale[i] = __ldg(p.normalisation.scale() + channel);
    shift[i] = __ldg(p.normalisation.shift() + channel);
  }
  with_activation(p.activation, [&](auto activate) {
    each_batch<T, Vector, ChannelsLast, stream_batch>(
        p, place, [&](const auto& x, const auto& y, const auto& at, const auto& exists) {
#pragma unroll
          for (int j = 0; j < stream_batch; ++j) {
            if (!exists[j]) continue;
            float z[Vector];
#pragma unroll
            for (int e = 0; e < Vector; ++e) {
              const int i = place.slot(e);
              const float a = activate.less(x[j][e] + bias[i], mean[i]);
              z[e] = fmaf(a, scale[i], shift[i]) + y[j][e];
            }
            Pack<T, Vector>::of(z).write(static_cast<T*>(p.output) + at[j]);
          }
        });
  });
}

// Sums of the output gradient, which is `other`, and of its products with activation(value + bias)
// - mean: sums are [share][2][channel].
template <class T, int Vector, bool ChannelsLast>
DEPTHWISE_STREAM sum_gradients(StreamArguments p) {
  const StreamPlace<Vector, ChannelsLast> place;
  constexpr int slots = StreamPlace<Vector, ChannelsLast>::slots;
  Totals<2> totals[slots];
  if (place.channel < p.channels) {
    float bias[slots], mean[slots];
#pragma unroll
    for (int i = 0; i < slots; ++i) {
      bias[i] = or_zero(p.bias, place.channel + i);
      mean[i] = __ldg(p.normalisation.mean() + place.channel + i);
    }
    with_activation(p.activation, [&](auto activate) {
      each_batch<T, Vector, ChannelsLast, stream_batch>(
          p, place, [&](const auto& x, const auto& y, const auto&, const auto& exists) {
            Totals<2> of_batch[slots];
#pragma unroll
            for (int j = 0; j < stream_batch; ++j) {
              if (!exists[j]) continue;
#pragma unroll
              for (int e = 0; e < Vector; ++e) {
                const int i = place.slot(e);
                const float less = activate.less(x[j][e] + bias[i], mean[i]), gradient = y[j][e];
                of_batch[i].row[0] += gradient;
                of_batch[i].row[1] = fmaf(gradient, less, of_batch[i].row[1]);
              }
            }
#pragma unroll
            for (int i = 0; i < slots; ++i) totals[i].merge(of_batch[i]);
          });
    });
  }
  write_merged<2>(p.sums, p.channels, place, totals);
}

// output = gradient of the value, from the output gradient, which is `other`; sums, unless null, are
// of that gradient before it is rounded, [share][channel].
template <class T, int Vector, bool ChannelsLast>
DEPTHWISE_STREAM value_gradient(StreamArguments p) {
  const StreamPlace<Vector, ChannelsLast> place;
  constexpr int slots = StreamPlace<Vector, ChannelsLast>::slots;
  Totals<1> totals[slots];
  if (place.channel < p.channels) {
    float bias[slots];
    GradientOfValue of_value[slots];
#pragma unroll
    for (int i = 0; i < slots; ++i) {
      bias[i] = or_zero(p.bias, place.channel + i);
      const float count = __ldg(p.normalisation.count() + place.channel + i);
      of_value[i] = GradientOfValue(p.normalisation, p.gradient_sums, place.channel + i,
                                    device::reciprocal(count));
    }
    with_activation(p.activation, [&](auto activate) {
      each_batch<T, Vector, ChannelsLast, stream_batch>(
          p, place, [&](const auto& x, const auto& y, const auto& at, const auto& exists) {
#pragma unroll
            for (int j = 0; j < stream_batch; ++j) {
              if (!exists[j]) continue;
              float gradient[Vector];
#pragma unroll
              for (int e = 0; e < Vector; ++e) {
                const int i = place.slot(e);
                gradient[e] = of_value[i](activate, x[j][e] + bias[i], y[j][e]);
                totals[i].row[0] += gradient[e];
              }
              Pack<T, Vector>::of(gradient).write(static_cast<T*>(p.output) + at[j]);
            }
          });
    });
  }
  if (p.sums) write_merged<1>(p.sums, p.channels, place, totals);
}

#undef DEPTHWISE_STREAM

}  // namespace depthwise
