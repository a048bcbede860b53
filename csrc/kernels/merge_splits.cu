// The kernels that follow a pass: the sums and the moments of its splits become one, and moments or running
// statistics become the normalisation of each channel.
#include "core/activation.cuh"
#include "core/tiles.h"
#include "host/launch.h"

namespace depthwise {
namespace {

constexpr int element_threads = 256;

// One thread per element.
template <class Element>
__global__ void __launch_bounds__(element_threads)
    add_splits(Element* sums, const float* partial_sums, int splits, ptrdiff_t elements) {
  const ptrdiff_t i = ptrdiff_t(blockIdx.x) * element_threads + int(threadIdx.x);
  if (i >= elements) return;
  float total = 0;
  for (int s = 0; s < splits; ++s) total += partial_sums[s * elements + i];
  sums[i] = Element(total);
}

constexpr int channel_threads = 128;

unsigned channel_blocks(int channels) { return unsigned(divide_up(channels, channel_threads)); }

__device__ __forceinline__ Moments merged(const float* moments, int parts, int channels,
                                          int channel) {
  // Several are on their way from memory at a time; those beyond the last part are empty.
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

// One thread per channel, here and in `batch_normalisation`.
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

// One thread per channel. Either gradient may be null.
__global__ void __launch_bounds__(channel_threads)
    affine_gradients(const float* gradient_sums, const float* rstd, int channels, float* gamma,
                     float* beta) {
  const int channel = int(blockIdx.x) * channel_threads + int(threadIdx.x);
  if (channel >= channels) return;
  if (beta) beta[channel] = gradient_sums[channel];
  if (gamma) gamma[channel] = gradient_sums[channels + channel] * rstd[channel];
}

}  // namespace

cudaError_t find_kernels() {
  return device::find_code(reinterpret_cast<const void*>(add_splits<float>));
}

template <class Element>
cudaError_t launch_add_splits(Element* sums, const float* partial_sums, int splits,
                              ptrdiff_t elements, cudaStream_t stream) {
  return device::launch(add_splits<Element>, unsigned(divide_up(elements, element_threads)),
                        unsigned(element_threads), 0, stream, sums, partial_sums, splits, elements);
}
template cudaError_t launch_add_splits(float*, const float*, int, ptrdiff_t, cudaStream_t);
template cudaError_t launch_add_splits(__half*, const float*, int, ptrdiff_t, cudaStream_t);
template cudaError_t launch_add_splits(__nv_bfloat16*, const float*, int, ptrdiff_t, cudaStream_t);

cudaError_t launch_merge_moments(const float* moments, int parts, int channels, float* merged,
                                 cudaStream_t stream) {
  return device::launch(merge_moments, channel_blocks(channels), unsigned(channel_threads), 0,
                        stream, moments, parts, channels, merged);
}

cudaError_t launch_normalisation(const NormalisationArguments& p, cudaStream_t stream) {
  return device::launch(batch_normalisation, channel_blocks(p.channels), unsigned(channel_threads),
                        0, stream, p);
}

cudaError_t launch_affine_gradients(const float* gradient_sums, const Normalisation& normalisation,
                                    float* gamma, float* beta, cudaStream_t stream) {
  const int channels = int(normalisation.channels);
  return device::launch(affine_gradients, channel_blocks(channels), unsigned(channel_threads), 0,
                        stream, gradient_sums, normalisation.rstd(), channels, gamma, beta);
}

}  // namespace depthwise
