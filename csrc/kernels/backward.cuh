// Backward pass of convolution, bias, activation, normalisation and residual in one, for whole planes.
// The gradient of the convolution's value never leaves shared memory: it is formed there from the
// output gradient and the saved value, meets the turned filter ("rows as M") and gives the input
// gradient, then meets the input ("rows as K") and gives the weight gradient. For the latter the
// roles are changed, since it is the gradient that has a halo there: it takes the place of the
// input, and the filter comes out turned by half a turn.
#pragma once
#include "core/epilogue.cuh"
#include "core/gradient_of_value.cuh"
#include "core/staging_contiguous.cuh"

namespace depthwise {

// WithWeight: of a kernel that gives the gradients of weight and bias as well.
template <int Size, int Step, int Tiles, bool WithWeight>
struct BackwardLayout {
  static constexpr int pad = Size / 2, stages = 2;
  using Sums = BandSums<__half, Size, Tiles>;
  static constexpr int shift = Sums::input_shift;
  using Haloed = ItemLayout<Step, 8 * Sums::input_chunks>;  // the gradient of the value
  using Rows = ItemLayout<Step, 8 * Tiles>;                 // what is staged

  __host__ __device__ static constexpr int staged_elements(int groups) {
    return Rows::elements(groups, 0);
  }
  __host__ __device__ static constexpr int stage_elements(int groups) {
    return (WithWeight ? 3 : 2) * staged_elements(groups);
  }
  // The filter passes through it first, the sums last.
  __host__ __device__ static constexpr int haloed_elements(int groups) {
    int most = Haloed::elements(groups, 2 * pad);
    for (const int other :
         {(Bands<__half, Size, Tiles>::scratch_elements + 7) / 8 * 8, 2 * Sums::scratch_floats})
      if (other > most) most = other;
    return most;
  }
  template <class T>
  static constexpr size_t shared_bytes(int warps, int groups) {
    return device::SharedMemory::bytes<T>(size_t(warps * stages * stage_elements(groups))) +
           device::SharedMemory::bytes<T>(size_t(warps * haloed_elements(groups)));
  }
};

// Grid: x counts channels by the warps of a block, y shares of the items. All alignments are 16 bytes.
template <class T, int Size, int Step, int Tiles, bool WithWeight>
__global__ void __launch_bounds__(32 * most_warps, backward_blocks(Size, WithWeight))
    depthwise_backward(BackwardArguments p, Tiling tiling) {
  using Layout = BackwardLayout<Size, Step, Tiles, WithWeight>;
  using Haloed = typename Layout::Haloed;
  using Rows = typename Layout::Rows;
  using Plane = WholePlane<Step, Tiles, Rows>;
  using HaloedPlane = WholePlane<Step, Tiles, Haloed>;
  using Sums = BandSums<T, Size, Tiles>;
  constexpr int pad = Layout::pad, groups = Plane::groups;
  constexpr int ahead = Size <= 9 ? 2 : 1;
  constexpr int staged_elements = Layout::staged_elements(groups);
  constexpr int stage_elements = Layout::stage_elements(groups);
  constexpr int haloed_elements = Layout::haloed_elements(groups);
  constexpr int pitch = Rows::image(groups, 0), haloed_pitch = Haloed::image(groups, 2 * pad);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warps = int(blockDim.x) / 32;
  tiling = whole_tiling(groups, tiling.items);

  device::SharedMemory memory;
  T* const stages = memory.take<T>(size_t(warps * Layout::stages * stage_elements)) +
                    warp * Layout::stages * stage_elements;
  T* const haloed = memory.take<T>(size_t(warps * haloed_elements)) + warp * haloed_elements;

  const int channel = int(blockIdx.x) * warps + warp;
  if (channel >= p.shape.channels) return;
  const int first = int(int64_t(tiling.items) * blockIdx.y / gridDim.y);
  const int last = int(int64_t(tiling.items) * (blockIdx.y + 1) / gridDim.y);

  Bands<T, Size, Tiles> bands;
  bands.load(static_cast<const T*>(p.weight) + ptrdiff_t(channel) * p.filter_size * p.filter_size,
             p.filter_size, true, reinterpret_cast<unsigned short*>(haloed), lane);
  clear(haloed, haloed_elements, lane);

  // Addresses are worked out anew for each item: those of five tensors would take the registers of a
  // filter.
  const auto fetch = [&](T* to, const void* tensor, const Strides& strides, int number) {
    const Planes<const T> planes{
        static_cast<const T*>(tensor),
        static_cast<const T*>(tensor) + device::opaque(channel) * strides.channel, strides.image,
        8};
    Reader<T, Step, Tiles, Rows, 0, 0, true>(planes, number, p.shape, tiling, pitch,
                                             device::opaque(lane))
        .fetch_next(to, lane);
  };
  const auto store = [&](void* tensor, const Strides& strides, const T* from, int number) {
    const Planes<T> planes{static_cast<T*>(tensor),
                           static_cast<T*>(tensor) + device::opaque(channel) * strides.channel,
                           strides.image, 8};
    Writer<T, Step, Tiles, Rows, true>(planes, number, p.shape, tiling, pitch, device::opaque(lane))
        .store_next(from, lane);
  };

  Sums sums;
  float bias = 0;
  for (int number = first - 1, stage = 1; number < last; ++number, stage ^= 1) {
    if (number + 1 < last) {
      T* const to = stages + (stage ^ 1) * stage_elements;
      fetch(to, p.value, p.value_strides, number + 1);
      fetch(to + staged_elements, p.output_gradient, p.output_gradient_strides, number + 1);
      if constexpr (WithWeight)
        fetch(to + 2 * staged_elements, p.input, p.input_strides, number + 1);
    }
    device::copy_commit();
    if (number < first) continue;
    device::copy_wait<1>();
    __syncwarp();
    const int mine = device::opaque(lane);
    T* const value = stages + stage * stage_elements;
    const T* const gradient = value + staged_elements;

    const int own = device::opaque(channel);
    // With device::reciprocal the kernel for size 11 spills.
    const GradientOfValue of_value(p.normalisation, p.gradient_sums, own,
                                   1.f / __ldg(p.normalisation.count() + own));
    with_activation(p.activation, [&](auto activate) {
      const Plane from(0, pitch, mine);
      const HaloedPlane to(pad, haloed_pitch, mine);
      const int left = p.shape.images - number * Plane::images - from.image;
      HaloedPlane::each_chunk(haloed_pitch, [&](int image, int in_plane, int in_shared) {
        // What an image that does not exist would give is not zero.
        const bool exists = Plane::images == 1 || image < left;
        const int at = from.in_shared + image * pitch + in_plane / 8 / Tiles / Step * Rows::group;
        const uint4 c = *reinterpret_cast<const uint4*>(value + at);
        const uint4 g = *reinterpret_cast<const uint4*>(gradient + at);
        const uint32_t cs[4] = {c.x, c.y, c.z, c.w}, gs[4] = {g.x, g.y, g.z, g.w};
        uint32_t word[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 v = unpack<T>(cs[i]), d = unpack<T>(gs[i]);
          const float low = exists ? of_value(activate, v.x, d.x) : 0.f;
          const float high = exists ? of_value(activate, v.y, d.y) : 0.f;
          bias += low, bias += high;
          word[i] = pack<T>(low, high);
        }
        T* const target = haloed + to.in_shared + in_shared + Layout::shift;
        if constexpr (Layout::shift % 8 == 0) {
          device::store_shared(target, make_uint4(word[0], word[1], word[2], word[3]));
        } else {
          device::store_shared(target, make_uint2(word[0], word[1]));
          device::store_shared(target + 4, make_uint2(word[2], word[3]));
        }
        // The value has served; its place is the way out of both gradients, one after the other.
        if (p.value_gradient)
          device::store_shared(value + at, make_uint4(word[0], word[1], word[2], word[3]));
      });
    });
    __syncwarp();
    if (p.value_gradient) {
      store(p.value_gradient, p.value_gradient_strides, value, number);
      __syncwarp();
    }

    float sum[Step][Tiles][4] = {};
    multiply<T, Size, Step, Tiles, Haloed, true, ahead>(
        sum, haloed + Haloed::job(mine % 16, tiling.groups_log2, haloed_pitch) + mine / 16 * 8,
        bands, mine);
    const int job = Rows::job(mine / 4, tiling.groups_log2, pitch);
    const int other_job = Rows::job(mine / 4 + 8, tiling.groups_log2, pitch);
    const Residual<T, Rows> residual{{gradient + job, gradient + other_job}, p.residual};
    write_sums_with<T, Size, Rows, Layout::shift != 0>(residual, value + job, value + other_job,
                                                       sum, mine);
    __syncwarp();
    store(p.input_gradient, p.input_gradient_strides, value, number);

    if constexpr (WithWeight) {
      uint32_t columns[Step][Tiles][2];
      load_gradient<Rows>(
          columns, gradient + staged_elements + Rows::job(mine % 16, tiling.groups_log2, pitch),
          mine);
      sums.template multiply<Step, ahead, Haloed>(
          columns,
          haloed + Haloed::job(mine % 8 + mine / 16 * 8, tiling.groups_log2, haloed_pitch) +
              mine / 8 % 2 * 8,
          haloed + Haloed::job(mine % 16, tiling.groups_log2, haloed_pitch));
    }
    // The next item overwrites what was read.
    __syncwarp();
  }
  if constexpr (WithWeight) {
    const ptrdiff_t plane = ptrdiff_t(blockIdx.y) * p.shape.channels + channel;
    sums.template store<true>(p.weight_sums + plane * p.filter_size * p.filter_size, p.filter_size,
                              reinterpret_cast<float*>(haloed), lane);
  }
#pragma unroll
  for (int by = 16; by > 0; by /= 2) bias += __shfl_xor_sync(~0u, bias, by);
  if (p.bias_sums && lane == 0)
    p.bias_sums[ptrdiff_t(blockIdx.y) * p.shape.channels + channel] = bias;
}

}  // namespace depthwise
