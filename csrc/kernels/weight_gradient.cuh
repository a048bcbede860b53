// Weight and bias gradient of contiguous planes: "rows as K". Each warp owns a channel and keeps its
// sums in registers over a share of the items; a second kernel adds the shares in order, so the
// result does not change from run to run.
#pragma once
#include "core/staging_contiguous.cuh"
#include "core/toeplitz.cuh"

namespace depthwise {

template <int Size, int Step, int Tiles>
struct WeightGradientLayout {
  static constexpr int stages = 2;
  using Sums = BandSums<__half, Size, Tiles>;
  using Input = ItemLayout<Step, 8 * Sums::input_chunks>;
  using Gradient = ItemLayout<Step, 8 * Tiles>;

  // The sums pass through the input's buffer last.
  __host__ __device__ static constexpr int input_elements(int groups) {
    const int staged = stages * Input::elements(groups, Size - 1),
              scratch = 2 * Sums::scratch_floats;
    return staged > scratch ? staged : scratch;
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

// Grid: x counts channels by the warps of a block, y shares of the items. Whole as in
// depthwise_forward.
template <class T, int Size, int Step, int Tiles, bool Whole>
__global__ void __launch_bounds__(32 * most_warps, weight_gradient_blocks(Size, Tiles))
    depthwise_weight_gradient(WeightGradientArguments p, Tiling tiling, int input_alignment,
                              int gradient_alignment) {
  using Layout = WeightGradientLayout<Size, Step, Tiles>;
  using Input = typename Layout::Input;
  using Gradient = typename Layout::Gradient;
  using Sums = BandSums<T, Size, Tiles>;
  constexpr int pad = Size / 2;
  constexpr bool spare = Whole && Size <= 9;  // registers, for addresses and rows loaded early
  constexpr int ahead = spare ? 4 : Tiles > 4 ? 1 : 2;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warps = int(blockDim.x) / 32;
  if constexpr (Whole) tiling = whole_tiling(8 * Tiles / Step, tiling.items);
  const int groups = 1 << tiling.groups_log2;
  const int input_pitch = Input::image(groups, 2 * pad);
  const int gradient_pitch = Gradient::image(groups, 0);
  const int input_stage = Input::elements(groups, 2 * pad);
  const int gradient_stage = Gradient::elements(groups, 0);
  const int input_elements = Layout::input_elements(groups);
  const int gradient_elements = Layout::gradient_elements(groups);

  device::SharedMemory memory;
  T* const input = memory.take<T>(size_t(warps * input_elements)) + warp * input_elements;
  T* const gradient = memory.take<T>(size_t(warps * gradient_elements)) + warp * gradient_elements;

  const int channel = int(blockIdx.x) * warps + warp;
  if (channel >= p.shape.channels) return;
  const int first = int(int64_t(tiling.items) * blockIdx.y / gridDim.y);
  const int last = int(int64_t(tiling.items) * (blockIdx.y + 1) / gridDim.y);

  clear(input, input_elements, lane);
  clear(gradient, gradient_elements, lane);
  __syncwarp();

  const Planes<const T> x{static_cast<const T*>(p.input),
                          static_cast<const T*>(p.input) + channel * p.input_strides.channel,
                          p.input_strides.image, input_alignment};
  const Planes<const T> dy{
      static_cast<const T*>(p.output_gradient),
      static_cast<const T*>(p.output_gradient) + channel * p.gradient_strides.channel,
      p.gradient_strides.image, gradient_alignment};
  Reader<T, Step, Tiles, Input, pad, Sums::input_shift, Whole> x_reader(x, first, p.shape, tiling,
                                                                        input_pitch);
  Reader<T, Step, Tiles, Gradient, 0, 0, Whole> dy_reader(dy, first, p.shape, tiling,
                                                          gradient_pitch);

  Sums sums;
  BiasSum<T> bias_sum;
  for (int number = first - 1, stage = 1; number < last; ++number, stage ^= 1) {
    if (number + 1 < last) {
      x_reader.fetch_next(input + (stage ^ 1) * input_stage, lane);
      dy_reader.fetch_next(gradient + (stage ^ 1) * gradient_stage, lane);
    }
    device::copy_commit();
    if (number < first) continue;
    device::copy_wait<1>();
    __syncwarp();
    const int mine = spare ? lane : device::opaque(lane);
    uint32_t columns[Step][Tiles][2];
    load_gradient<Gradient>(columns,
                            gradient + stage * gradient_stage +
                                Gradient::job(mine % 16, tiling.groups_log2, gradient_pitch),
                            mine);
    if constexpr (!Whole) {
      // Tiles at the seam of two windows belong to one of them.
      if (tiling.windows > 1) {
        const Item<Step, Tiles> item(number, tiling);
#pragma unroll
        for (int s = 0; s < Step; ++s) {
          if (item.first_tile() > 0) columns[s][0][0] = columns[s][0][1] = 0;
          if (item.last_tile(tiling) < Tiles)
            columns[s][Tiles - 1][0] = columns[s][Tiles - 1][1] = 0;
        }
      }
    }
    if (p.bias_sums) bias_sum.add(columns);
    const T* const here = input + stage * input_stage;
    sums.template multiply<Step, ahead, Input>(
        columns,
        here + Input::job(mine % 8 + mine / 16 * 8, tiling.groups_log2, input_pitch) +
            mine / 8 % 2 * 8,
        here + Input::job(mine % 16, tiling.groups_log2, input_pitch));
    // The next item overwrites what was read.
    __syncwarp();
  }

  const ptrdiff_t plane = ptrdiff_t(blockIdx.y) * p.shape.channels + channel;
  sums.store(p.weight_sums + plane * p.filter_size * p.filter_size, p.filter_size,
             reinterpret_cast<float*>(input), lane);
  if (p.bias_sums) {
    const float total = bias_sum.total();
    if (lane == 0) p.bias_sums[plane] = total;
  }
}

}  // namespace depthwise
