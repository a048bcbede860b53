#include "host/kernel_launch.h"
#include "host/launch_fused.h"
#include "kernels/elementwise.cuh"

namespace depthwise {
namespace {

template <Stream stream, class T, int Vector, bool ChannelsLast>
constexpr auto* stream_kernel() {
  if constexpr (stream == Stream::moments) return activation_moments<T, Vector, ChannelsLast>;
  else if constexpr (stream == Stream::normalise)
    return normalise_activation<T, Vector, ChannelsLast>;
  else if constexpr (stream == Stream::sum_gradients) return sum_gradients<T, Vector, ChannelsLast>;
  else return value_gradient<T, Vector, ChannelsLast>;
}

// Room for what the threads of a block have found out, where they meet in shared memory.
template <Stream stream, int Vector, bool ChannelsLast>
constexpr size_t stream_shared_bytes(const StreamArguments& p) {
  if (!ChannelsLast || p.sums == nullptr) return 0;
  constexpr size_t found = stream == Stream::moments         ? sizeof(Moments)
                           : stream == Stream::sum_gradients ? sizeof(Totals<2>)
                                                             : sizeof(Totals<1>);
  return device::SharedMemory::bytes<char>(found * stream_threads(true) *
                                           StreamPlace<Vector, ChannelsLast>::slots);
}

template <Stream stream, class T>
cudaError_t launch_for(const StreamArguments& p, bool channels_last, const StreamPlan& plan,
                       cudaStream_t on) {
  using std::integral_constant;
  const dim3 grid(unsigned(plan.blocks), unsigned(plan.shares));
  const auto launch = [&](auto vector, auto last) {
    constexpr int Vector = decltype(vector)::value;
    constexpr bool ChannelsLast = decltype(last)::value;
    return device::launch(stream_kernel<stream, T, Vector, ChannelsLast>(), grid,
                          unsigned(stream_threads(ChannelsLast)),
                          stream_shared_bytes<stream, Vector, ChannelsLast>(p), on, p);
  };
  if (channels_last)
    return plan.vector == 8 ? launch(integral_constant<int, 8>(), std::true_type())
                            : launch(integral_constant<int, 1>(), std::true_type());
  if (plan.vector == 8) return launch(integral_constant<int, 8>(), std::false_type());
  if (plan.vector == 4) return launch(integral_constant<int, 4>(), std::false_type());
  return launch(integral_constant<int, 1>(), std::false_type());
}

constexpr int channel_threads = 128;

unsigned channel_blocks(int channels) { return unsigned(divide_up(channels, channel_threads)); }

__device__ __forceinline__ Moments merged(const float* moments, int parts, int channels,
                                          int channel) {
  // Several are on their way from memory at a time; beyond the last they are empty.
  constexpr int at_once = 8;
  Moments all;
  for (int first = 0; first < parts; first += at_once) {
    Moments some[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      if (first + i < parts)
        some[i] = Moments::read(moments + ptrdiff_t(first + i) * 3 * channels + channel, channels);
#pragma unroll
    for (int i = 0; i < at_once; ++i) all.merge(some[i]);
  }
  return all;
}

// A thread a channel, as in the next.
__global__ void __launch_bounds__(channel_threads)
    merge_moments(const float* moments, int parts, int channels, float* to) {
  const int channel = int(blockIdx.x) * channel_threads + int(threadIdx.x);
  if (channel >= channels) return;
  merged(moments, parts, channels, channel).write(to + channel, channels);
}

__global__ void __launch_bounds__(channel_threads) batch_normalisation(NormalisationArguments p) {
  const int channel = int(blockIdx.x) * channel_threads + int(threadIdx.x);
  if (channel >= p.channels) return;
  float mean, variance, count;
  if (p.moments) {
    const Moments all = merged(p.moments, p.parts, p.channels, channel);
    const bool any = all.count > 0;
    mean = all.mean, variance = any ? all.squares / all.count : 0, count = all.count;
    if (p.running_mean && p.running_variance && any) {
      float& running_mean = p.running_mean[channel];
      float& running_variance = p.running_variance[channel];
      running_mean += p.momentum * (mean - running_mean);
      const float unbiased = all.squares / fmaxf(count - 1, 1);
      running_variance += p.momentum * (unbiased - running_variance);
    }
  } else {
    mean = p.running_mean[channel], variance = p.running_variance[channel];
    count = INFINITY;
  }
  const float rstd = 1.f / sqrtf(variance + p.epsilon);
  const float row[] = {mean, (p.gamma ? p.gamma[channel] : 1.f) * rstd,
                       p.beta ? p.beta[channel] : 0.f, rstd, count};
#pragma unroll
  for (int i = 0; i < 5; ++i) p.normalisation[ptrdiff_t(i) * p.channels + channel] = row[i];
}

}  // namespace

cudaError_t launch_stream(Stream stream, const StreamArguments& p, Type type, bool channels_last,
                          const StreamPlan& plan, cudaStream_t on) {
  const auto launch = [&](auto constant) {
    constexpr Stream which = decltype(constant)::value;
    return type == Type::half ? launch_for<which, __half>(p, channels_last, plan, on)
                              : launch_for<which, __nv_bfloat16>(p, channels_last, plan, on);
  };
  using std::integral_constant;
  switch (stream) {
    case Stream::moments: return launch(integral_constant<Stream, Stream::moments>());
    case Stream::normalise: return launch(integral_constant<Stream, Stream::normalise>());
    case Stream::sum_gradients: return launch(integral_constant<Stream, Stream::sum_gradients>());
    case Stream::value_gradient: return launch(integral_constant<Stream, Stream::value_gradient>());
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_merge_moments(const float* moments, int parts, int channels, float* merged,
                                 cudaStream_t stream) {
  return device::launch(merge_moments, channel_blocks(channels), unsigned(channel_threads), 0,
                        stream, moments, parts, channels, merged);
}

cudaError_t launch_normalisation(const NormalisationArguments& p, cudaStream_t stream) {
  return device::launch(batch_normalisation, channel_blocks(p.channels), unsigned(channel_threads),
                        0, stream, p);
}

}  // namespace depthwise
