// Elementwise passes over the values of a convolution: the moments of their activation, its
// normalisation, the sums that the backward pass needs and the gradient of the values. Each reads every
// tensor once, and none sums across blocks: splits are added up afterwards, in order.
#include <cstring>

#include "core/activation.cuh"
#include "core/device.h"
#include "host/launch.h"

namespace depthwise {

// Neighbouring elements in the format of memory.
template <class T, int Vector>
struct Pack {
  static_assert(Vector == 8 || Vector == 4 || Vector == 1);
  using Bits = device::Bits<Vector>;
  uint32_t word[(Vector + 1) / 2] = {};

  __device__ __forceinline__ void read(const T* from) {
    const Bits bits = __ldg(reinterpret_cast<const Bits*>(from));
    memcpy(word, &bits, sizeof(bits));
  }
  __device__ __forceinline__ void write(T* to) const {
    Bits bits;
    memcpy(&bits, word, sizeof(bits));
    *reinterpret_cast<Bits*>(to) = bits;
  }
  __device__ __forceinline__ float operator[](int i) const {
    const float2 two = device::unpack<T>(word[i / 2]);
    return i % 2 ? two.y : two.x;
  }
  __device__ __forceinline__ static Pack of(const float (&value)[Vector]) {
    Pack result;
#pragma unroll
    for (int i = 0; i < Vector; i += 2)
      result.word[i / 2] = device::pack<T>(value[i], Vector > 1 ? value[i + (Vector > 1)] : 0.f);
    return result;
  }
};

// The channels and values of a thread. In planes a warp owns a channel, and each vector belongs to that
// channel. Channels last, a thread owns the channels of a vector; neighbouring threads own neighbouring
// channels, and the others of the block other pixels.
template <int Vector, bool ChannelsLast>
struct ThreadPosition {
  static constexpr int threads = elementwise_threads(ChannelsLast);
  static constexpr int across = !ChannelsLast ? threads / 32 : Vector == 8 ? 8 : 32;
  static constexpr int lanes = threads / across;
  static constexpr int slots = ChannelsLast ? Vector : 1;  // channels of a thread
  static constexpr int block_channels = across * slots;

  int column, lane, channel;

  __device__ __forceinline__ ThreadPosition()
      : column(ChannelsLast ? int(threadIdx.x) % across : int(threadIdx.x) / lanes),
        lane(ChannelsLast ? int(threadIdx.x) / across : int(threadIdx.x) % lanes),
        channel((int(blockIdx.x) * across + column) * slots) {}

  __device__ __forceinline__ static int slot(int element) { return ChannelsLast ? element : 0; }
};

// Calls visit(packs of the value, packs of the other tensor, their offsets in the output, whether they
// exist) for `Batch` vectors of this thread at a time.
template <class T, int Vector, bool ChannelsLast, int Batch, class Visit>
__device__ __forceinline__ void each_batch(const ElementwiseArguments& p,
                                           const ThreadPosition<Vector, ChannelsLast>& position,
                                           Visit visit) {
  using Position = ThreadPosition<Vector, ChannelsLast>;
  const auto [first, last] = device::range_of_split(p.outer);
  const int inner_count = ChannelsLast ? 1 : p.inner / Vector;
  const int outer_step = Position::lanes / inner_count, inner_step = Position::lanes % inner_count;
  const T* const value = static_cast<const T*>(p.value) + position.channel * p.value_steps.channel;
  const T* const other = static_cast<const T*>(p.other) + position.channel * p.other_steps.channel;
  const ptrdiff_t output = position.channel * p.output_steps.channel;
  int outer = first + position.lane / inner_count, inner = position.lane % inner_count;
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

// Merges the results of the threads of a block, always in the same order, and writes them to
// [split][Rows][channel]. A Result has merge(other), merge_lanes() and write(to, channels).
template <int Rows, int Vector, bool ChannelsLast, class Result>
__device__ __forceinline__ void write_merged(
    float* sums, int channels, const ThreadPosition<Vector, ChannelsLast>& position,
    Result (&results)[ThreadPosition<Vector, ChannelsLast>::slots]) {
  using Position = ThreadPosition<Vector, ChannelsLast>;
  float* const split_sums = sums + ptrdiff_t(blockIdx.y) * Rows * channels;
  if constexpr (!ChannelsLast) {
    results[0].merge_lanes();
    if (position.lane == 0 && position.channel < channels)
      results[0].write(split_sums + position.channel, channels);
  } else {
    device::SharedMemory memory;
    Result* const all = memory.take<Result>(Position::lanes * Position::block_channels);
#pragma unroll
    for (int i = 0; i < Position::slots; ++i)
      all[position.lane * Position::block_channels + position.column * Position::slots + i] =
          results[i];
    __syncthreads();
    const int i = int(threadIdx.x), channel = int(blockIdx.x) * Position::block_channels + i;
    if (i >= Position::block_channels || channel >= channels) return;
    Result total = all[i];
#pragma unroll 1
    for (int lane = 1; lane < Position::lanes; ++lane)
      total.merge(all[lane * Position::block_channels + i]);
    total.write(split_sums + channel, channels);
  }
}

// Plain sums.
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

constexpr int elementwise_batch = 4;
static_assert(elementwise_batch * 32 <= INT32_MAX - most_outer);

// Grid of all passes: x counts channels by those of a block, y splits of the outer index.
#define DEPTHWISE_ELEMENTWISE                                          \
  __global__ void __launch_bounds__(elementwise_threads(ChannelsLast), \
                                    elementwise_blocks(ChannelsLast, compiled_tuning))

// Moments of activation(value + bias); the sums are [split][3][channel].
template <class T, int Vector, bool ChannelsLast>
DEPTHWISE_ELEMENTWISE activation_moments(ElementwiseArguments p) {
  const ThreadPosition<Vector, ChannelsLast> position;
  constexpr int slots = ThreadPosition<Vector, ChannelsLast>::slots;
  Moments moments[slots];
  if (position.channel < p.channels) {
    float bias[slots];
#pragma unroll
    for (int i = 0; i < slots; ++i) bias[i] = or_zero(p.bias, position.channel + i);
    with_activation(p.activation, [&](auto activate) {
      each_batch<T, Vector, ChannelsLast, elementwise_batch>(
          p, position, [&](const auto& x, const auto&, const auto&, const auto& exists) {
            float pivot[slots], total[slots] = {}, squares[slots] = {}, count = 0;
#pragma unroll
            for (int i = 0; i < slots; ++i)
              pivot[i] =
                  moments[i].count == 0 ? activate.minus(x[0][i] + bias[i], 0) : moments[i].mean;
#pragma unroll
            for (int j = 0; j < elementwise_batch; ++j) {
              if (!exists[j]) continue;
#pragma unroll
              for (int e = 0; e < Vector; ++e) {
                const int i = position.slot(e);
                const float difference = activate.minus(x[j][e] + bias[i], pivot[i]);
                total[i] += difference;
                squares[i] = fmaf(difference, difference, squares[i]);
              }
              count += ChannelsLast ? 1 : Vector;
            }
#pragma unroll
            for (int i = 0; i < slots; ++i) moments[i].add(count, pivot[i], total[i], squares[i]);
          });
    });
  }
  write_merged<3>(p.sums, p.channels, position, moments);
}

// output = (activation(value + bias) - mean) scale + shift [+ other].
template <class T, int Vector, bool ChannelsLast>
DEPTHWISE_ELEMENTWISE normalise_activation(ElementwiseArguments p) {
  const ThreadPosition<Vector, ChannelsLast> position;
  constexpr int slots = ThreadPosition<Vector, ChannelsLast>::slots;
  if (position.channel >= p.channels) return;
  float bias[slots], mean[slots], scale[slots], shift[slots];
#pragma unroll
  for (int i = 0; i < slots; ++i) {
    const int channel = position.channel + i;
    bias[i] = or_zero(p.bias, channel);
    mean[i] = __ldg(p.normalisation.mean() + channel);
    scale[i] = __ldg(p.normalisation.scale() + channel);
    shift[i] = __ldg(p.normalisation.shift() + channel);
  }
  with_activation(p.activation, [&](auto activate) {
    each_batch<T, Vector, ChannelsLast, elementwise_batch>(
        p, position, [&](const auto& x, const auto& y, const auto& at, const auto& exists) {
#pragma unroll
          for (int j = 0; j < elementwise_batch; ++j) {
            if (!exists[j]) continue;
            float z[Vector];
#pragma unroll
            for (int e = 0; e < Vector; ++e) {
              const int i = position.slot(e);
              const float a = activate.minus(x[j][e] + bias[i], mean[i]);
              z[e] = fmaf(a, scale[i], shift[i]) + y[j][e];
            }
            Pack<T, Vector>::of(z).write(static_cast<T*>(p.output) + at[j]);
          }
        });
  });
}

// Sums of the output gradient, which is `other`, and of its products with activation(value + bias) -
// mean; the sums are [split][2][channel].
template <class T, int Vector, bool ChannelsLast>
DEPTHWISE_ELEMENTWISE sum_gradients(ElementwiseArguments p) {
  const ThreadPosition<Vector, ChannelsLast> position;
  constexpr int slots = ThreadPosition<Vector, ChannelsLast>::slots;
  Totals<2> totals[slots];
  if (position.channel < p.channels) {
    float bias[slots], mean[slots];
#pragma unroll
    for (int i = 0; i < slots; ++i) {
      bias[i] = or_zero(p.bias, position.channel + i);
      mean[i] = __ldg(p.normalisation.mean() + position.channel + i);
    }
    with_activation(p.activation, [&](auto activate) {
      each_batch<T, Vector, ChannelsLast, elementwise_batch>(
          p, position, [&](const auto& x, const auto& y, const auto&, const auto& exists) {
            Totals<2> batch_totals[slots];
#pragma unroll
            for (int j = 0; j < elementwise_batch; ++j) {
              if (!exists[j]) continue;
#pragma unroll
              for (int e = 0; e < Vector; ++e) {
                const int i = position.slot(e);
                const float difference = activate.minus(x[j][e] + bias[i], mean[i]),
                            gradient = y[j][e];
                batch_totals[i].row[0] += gradient;
                batch_totals[i].row[1] = fmaf(gradient, difference, batch_totals[i].row[1]);
              }
            }
#pragma unroll
            for (int i = 0; i < slots; ++i) totals[i].merge(batch_totals[i]);
          });
    });
  }
  write_merged<2>(p.sums, p.channels, position, totals);
}

// output = gradient of the value, where `other` is the output gradient. The sums, unless null, are those
// of the gradient before it is rounded, [split][channel].
template <class T, int Vector, bool ChannelsLast>
DEPTHWISE_ELEMENTWISE value_gradient(ElementwiseArguments p) {
  const ThreadPosition<Vector, ChannelsLast> position;
  constexpr int slots = ThreadPosition<Vector, ChannelsLast>::slots;
  Totals<1> totals[slots];
  if (position.channel < p.channels) {
    float bias[slots];
    GradientOfValue gradient_of_value[slots];
#pragma unroll
    for (int i = 0; i < slots; ++i) {
      bias[i] = or_zero(p.bias, position.channel + i);
      const float count = __ldg(p.normalisation.count() + position.channel + i);
      gradient_of_value[i] = GradientOfValue(p.normalisation, p.gradient_sums, position.channel + i,
                                             device::reciprocal(count));
    }
    with_activation(p.activation, [&](auto activate) {
      each_batch<T, Vector, ChannelsLast, elementwise_batch>(
          p, position, [&](const auto& x, const auto& y, const auto& at, const auto& exists) {
#pragma unroll
            for (int j = 0; j < elementwise_batch; ++j) {
              if (!exists[j]) continue;
              float gradient[Vector];
#pragma unroll
              for (int e = 0; e < Vector; ++e) {
                const int i = position.slot(e);
                gradient[e] = gradient_of_value[i](activate, x[j][e] + bias[i], y[j][e]);
                totals[i].row[0] += gradient[e];
              }
              Pack<T, Vector>::of(gradient).write(static_cast<T*>(p.output) + at[j]);
            }
          });
    });
  }
  if (p.sums) write_merged<1>(p.sums, p.channels, position, totals);
}

#undef DEPTHWISE_ELEMENTWISE

// ---- launches ------------------------------------------------------------------------------------

namespace {

template <ElementwisePass pass, class T, int Vector, bool ChannelsLast>
constexpr auto* elementwise_kernel() {
  if constexpr (pass == ElementwisePass::moments)
    return activation_moments<T, Vector, ChannelsLast>;
  else if constexpr (pass == ElementwisePass::normalise)
    return normalise_activation<T, Vector, ChannelsLast>;
  else if constexpr (pass == ElementwisePass::sum_gradients)
    return sum_gradients<T, Vector, ChannelsLast>;
  else return value_gradient<T, Vector, ChannelsLast>;
}

// Shared memory in which the threads of a block merge their results.
template <ElementwisePass pass, int Vector, bool ChannelsLast>
constexpr size_t elementwise_shared_bytes(const ElementwiseArguments& p) {
  if (!ChannelsLast || p.sums == nullptr) return 0;
  constexpr size_t result_bytes = pass == ElementwisePass::moments         ? sizeof(Moments)
                                  : pass == ElementwisePass::sum_gradients ? sizeof(Totals<2>)
                                                                           : sizeof(Totals<1>);
  return device::SharedMemory::bytes<char>(result_bytes * elementwise_threads(true) *
                                           ThreadPosition<Vector, ChannelsLast>::slots);
}

template <ElementwisePass pass>
cudaError_t launch_pass(const ElementwiseArguments& p, ElementType type, bool channels_last,
                        const ElementwisePlan& plan, cudaStream_t stream) {
  const dim3 grid(unsigned(plan.blocks), unsigned(plan.splits));
  const auto with_element = [&](auto element) {
    const auto launch = [&](auto vector, auto last) {
      return device::launch(elementwise_kernel<pass, decltype(element), vector, last>(), grid,
                            unsigned(elementwise_threads(last)),
                            elementwise_shared_bytes<pass, vector, last>(p), stream, p);
    };
    if (channels_last)
      return plan.vector == 8 ? launch(Constant<8>(), std::true_type())
                              : launch(Constant<1>(), std::true_type());
    if (plan.vector == 8) return launch(Constant<8>(), std::false_type());
    if (plan.vector == 4) return launch(Constant<4>(), std::false_type());
    return launch(Constant<1>(), std::false_type());
  };
  return type == ElementType::half ? with_element(__half()) : with_element(__nv_bfloat16());
}

}  // namespace

cudaError_t launch_elementwise(ElementwisePass pass, const ElementwiseArguments& p,
                               ElementType type, bool channels_last, const ElementwisePlan& plan,
                               cudaStream_t stream) {
  switch (pass) {
    case ElementwisePass::moments:
      return launch_pass<ElementwisePass::moments>(p, type, channels_last, plan, stream);
    case ElementwisePass::normalise:
      return launch_pass<ElementwisePass::normalise>(p, type, channels_last, plan, stream);
    case ElementwisePass::sum_gradients:
      return launch_pass<ElementwisePass::sum_gradients>(p, type, channels_last, plan, stream);
    case ElementwisePass::value_gradient:
      return launch_pass<ElementwisePass::value_gradient>(p, type, channels_last, plan, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace depthwise
