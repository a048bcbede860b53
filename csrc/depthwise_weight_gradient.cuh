// Weight and bias gradient: "rows as K". Each warp owns a channel and keeps its sums in registers
// over a share of the items; shares are added in order by a second kernel, so the result does not
// change from run to run.
#pragma once
#include "staging_contiguous.cuh"
#include "toeplitz.cuh"

namespace depthwise {

template <int Size, int Step, int Tiles>
struct WeightGradientLayout {
  static constexpr int stages = 2;
  using Input = ItemLayout<Step, 8 * (Tiles + Window<Size>::chunks - 1)>;
  using Gradient = ItemLayout<Step, 8 * Tiles>;
  static constexpr int scratch_floats = 24 * 8;  // for BandSums::store, in place of the input

  __host__ __device__ static constexpr int input_elements(int groups) {
    const int staged = stages * Input::elements(groups, Size - 1);
    return staged > 2 * scratch_floats ? staged : 2 * scratch_floats;
  }
  __host__ __device__ static constexpr int gradient_elements(int groups) {
    return stages * Gradient::elements(groups, 0);
  }
  template <class T>
  static constexpr size_t shared_bytes(int warps, int groups) {
    return device::SharedMemory::bytes<T>(size_t(warps * input_elements(groups))) +
           device::SharedMemory::bytes<T>(size_t(warps * gradient_elements(groups)));
  }
};

// Two ones as an operand: a product with them adds up over the jobs.
template <class T>
__device__ constexpr uint32_t pair_of_ones() {
  return std::is_same_v<T, __half> ? 0x3c003c00u : 0x3f803f80u;
}

// Grid: x counts channels by the warps of a block, y shares of the items.
template <class T, int Size, int Step, int Tiles>
__global__ void __launch_bounds__(32 * most_warps, 3)
depthwise_weight_gradient(WeightGradientArguments p, Tiling tiling, int input_alignment,
                          int gradient_alignment) {
  using Layout = WeightGradientLayout<Size, Step, Tiles>;
  using Input = typename Layout::Input;
  using Gradient = typename Layout::Gradient;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warps = int(blockDim.x) / 32;
  const int groups = 1 << tiling.groups_log2;
  const int input_pitch = Input::image(groups, Size - 1);
  const int gradient_pitch = Gradient::image(groups, 0);
  const int input_stage = Input::elements(groups, Size - 1);
  const int gradient_stage = Gradient::elements(groups, 0);

  device::SharedMemory memory;
  const int input_elements = Layout::input_elements(groups);
  const int gradient_elements = Layout::gradient_elements(groups);
  T* const input = memory.take<T>(size_t(warps * input_elements)) + warp * input_elements;
  T* const gradient =
      memory.take<T>(size_t(warps * gradient_elements)) + warp * gradient_elements;

  const int channel = int(blockIdx.x) * warps + warp;
  if (channel >= p.shape.channels) return;
  const T* const x = static_cast<const T*>(p.input) + channel * p.input_strides.channel;
  const T* const dy =
      static_cast<const T*>(p.output_gradient) + channel * p.gradient_strides.channel;
  const int first = int(int64_t(tiling.items) * blockIdx.y / gridDim.y);
  const int last = int(int64_t(tiling.items) * (blockIdx.y + 1) / gridDim.y);

  const auto fetch = [&](int number, int stage) {
    if (number < last) {
      const Item item(number, tiling, Step, 8 * Tiles);
      fetch_item<Input, Window<Size>::shift>(
          input + stage * input_stage, x, p.input_strides.image, item,
          item.top - Window<Size>::pad, item.left - Window<Size>::shift, groups * Step + Size - 1,
          p.shape, tiling, input_pitch, input_alignment, lane);
      fetch_item<Gradient, 8>(gradient + stage * gradient_stage, dy, p.gradient_strides.image, item,
                              item.top, item.left, groups * Step, p.shape, tiling, gradient_pitch,
                              gradient_alignment, lane);
    }
    device::copy_commit();
  };

  constexpr uint32_t one = pair_of_ones<T>();
  const uint32_t ones[4] = {one, one, one, one};

  BandSums<T, Size> sums;
  float bias_sum[4] = {};
  for (int number = first - 1, stage = 1; number < last; ++number, stage ^= 1) {
    fetch(number + 1, stage ^ 1);
    if (number < first) continue;
    device::copy_wait<1>();
    __syncwarp();
    const int mine = device::opaque(lane);
    uint32_t columns[Step][Tiles][2];
    const T* const from = gradient + stage * gradient_stage +
                          Gradient::job(mine % 16, tiling.groups_log2, gradient_pitch);
#pragma unroll
    for (int s = 0; s < Step; ++s) {
#pragma unroll
      for (int q = 0; q + 1 < Tiles; q += 2) {
        uint32_t pair[4];
        device::load_matrices<true>(pair, from + Gradient::at(s, 8 * q) + mine / 16 * 8);
        columns[s][q][0] = pair[0], columns[s][q][1] = pair[1];
        columns[s][q + 1][0] = pair[2], columns[s][q + 1][1] = pair[3];
      }
      if constexpr (Tiles % 2)
        device::load_matrices<true>(columns[s][Tiles - 1],
                                    from + Gradient::at(s, 8 * (Tiles - 1)));
    }
    if (p.bias_sums) {
#pragma unroll
      for (int s = 0; s < Step; ++s)
#pragma unroll
        for (int q = 0; q < Tiles; ++q) device::mma<T, 2>(bias_sum, ones, columns[s][q], bias_sum);
    }
    const T* const here = input + stage * input_stage;
    sums.template multiply<Step, Tiles, Input>(
        columns,
        here + Input::job(mine % 8 + mine / 16 * 8, tiling.groups_log2, input_pitch) +
            mine / 8 % 2 * 8,
        here + Input::job(mine % 16, tiling.groups_log2, input_pitch));
    // The next item overwrites what was read.
    __syncwarp();
  }
  device::copy_wait<0>();
  __syncwarp();

  const ptrdiff_t plane = ptrdiff_t(blockIdx.y) * p.shape.channels + channel;
  sums.store(p.weight_sums + plane * p.filter_size * p.filter_size, p.filter_size,
             reinterpret_cast<float*>(input), lane);
  if (p.bias_sums) {
    // Every row of the product holds the sums of eight columns.
    float total = bias_sum[0] + bias_sum[1];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    if (lane == 0) p.bias_sums[plane] = total;
  }
}

}  // namespace depthwise
