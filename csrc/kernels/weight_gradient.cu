// Weight and bias gradient of contiguous planes. Output rows are K of the mma. Each warp owns a channel
// and keeps its sums in registers over a split of the items; a second kernel adds the splits in order,
// so that the result is the same in every run.
#include "core/staging_contiguous.cuh"
#include "core/toeplitz.cuh"
#include "host/launch.h"

namespace depthwise {

template <int Size, int GroupRows, int Tiles>
struct WeightGradientBlock {
  static constexpr int stages = 2;
  using Sums = DiagonalSums<__half, Size, Tiles>;
  using Input = ItemRows<GroupRows, 8 * Sums::input_chunks>;
  using Gradient = ItemRows<GroupRows, 8 * Tiles>;

  // The buffer of the input also serves to store the sums.
  __host__ __device__ static constexpr int input_elements(int groups) {
    const int staged = stages * Input::elements(groups, Size - 1),
              scratch = 2 * Sums::scratch_floats;
    return staged > scratch ? staged : scratch;
  }
  __host__ __device__ static constexpr int gradient_elements(int groups) {
    return stages * Gradient::elements(groups, 0);
  }
  static constexpr size_t shared_bytes(int warps, int groups) {
    return device::SharedMemory::bytes<__half>(size_t(warps * input_elements(groups))) +
           device::SharedMemory::bytes<__half>(size_t(warps * gradient_elements(groups)));
  }
};

// Grid: x counts channels by the warps of a block, y splits of the items. With Whole, planes are those of
// WholePlane and everything is aligned to 16 bytes.
template <class T, int Size, int GroupRows, int Tiles, bool Whole>
__global__ void __launch_bounds__(32 * most_warps,
                                  compiled_tuning.weight_gradient_blocks(Size, Tiles))
    depthwise_weight_gradient(WeightGradientArguments p, Tiling tiling, int input_alignment,
                              int gradient_alignment) {
  using Block = WeightGradientBlock<Size, GroupRows, Tiles>;
  using Input = typename Block::Input;
  using Gradient = typename Block::Gradient;
  using Sums = DiagonalSums<T, Size, Tiles>;
  constexpr int pad = Size / 2;
  // Addresses and rows that are loaded early find registers in these kernels only.
  constexpr bool has_registers = Whole && Size <= 9;
  constexpr int ahead = has_registers ? 4 : Tiles > 4 ? 1 : 2;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warps = int(blockDim.x) / 32;
  if constexpr (Whole) tiling = whole_tiling(8 * Tiles / GroupRows, tiling.items);
  const int groups = 1 << tiling.groups_log2;
  const int input_pitch = Input::image(groups, 2 * pad);
  const int gradient_pitch = Gradient::image(groups, 0);
  const int input_stage = Input::elements(groups, 2 * pad);
  const int gradient_stage = Gradient::elements(groups, 0);
  const int input_elements = Block::input_elements(groups);
  const int gradient_elements = Block::gradient_elements(groups);

  device::SharedMemory memory;
  T* const input = memory.take<T>(size_t(warps * input_elements)) + warp * input_elements;
  T* const gradient = memory.take<T>(size_t(warps * gradient_elements)) + warp * gradient_elements;

  const int channel = int(blockIdx.x) * warps + warp;
  if (channel >= p.shape.channels) return;
  const auto [first, last] = device::range_of_split(tiling.items);

  clear(input, input_elements, lane);
  clear(gradient, gradient_elements, lane);
  __syncwarp();

  const auto x = planes_of<const T>(p.input, p.input_strides, channel, input_alignment);
  const auto dy =
      planes_of<const T>(p.output_gradient, p.gradient_strides, channel, gradient_alignment);
  Reader<T, GroupRows, Tiles, Input, pad, Sums::input_shift, Whole> x_reader(x, first, p.shape,
                                                                             tiling, input_pitch);
  Reader<T, GroupRows, Tiles, Gradient, 0, 0, Whole> dy_reader(dy, first, p.shape, tiling,
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
    const int lane_in_loop = has_registers ? lane : device::keep_in_loop(lane);
    uint32_t columns[GroupRows][Tiles][2];
    load_gradient<Gradient>(
        columns,
        gradient + stage * gradient_stage +
            Gradient::group_at(lane_in_loop % 16, tiling.groups_log2, gradient_pitch),
        lane_in_loop);
    if constexpr (!Whole) {
      // Tiles at the seam of two column blocks belong to one of them.
      if (tiling.column_blocks > 1) {
        const Item<GroupRows, Tiles> item(number, tiling);
#pragma unroll
        for (int s = 0; s < GroupRows; ++s) {
          if (item.first_tile() > 0) columns[s][0][0] = columns[s][0][1] = 0;
          if (item.last_tile(tiling) < Tiles)
            columns[s][Tiles - 1][0] = columns[s][Tiles - 1][1] = 0;
        }
      }
    }
    if (p.bias_sums) bias_sum.add(columns);
    const T* const staged = input + stage * input_stage;
    sums.template multiply<GroupRows, ahead, Input>(
        columns,
        staged +
            Input::group_at(lane_in_loop % 8 + lane_in_loop / 16 * 8, tiling.groups_log2,
                            input_pitch) +
            lane_in_loop / 8 % 2 * 8,
        staged + Input::group_at(lane_in_loop % 16, tiling.groups_log2, input_pitch));
    // The next item overwrites this stage.
    __syncwarp();
  }

  const ptrdiff_t sum_number = ptrdiff_t(blockIdx.y) * p.shape.channels + channel;
  sums.store(p.weight_sums + sum_number * p.filter_size * p.filter_size, p.filter_size,
             reinterpret_cast<float*>(input), lane);
  if (p.bias_sums) {
    const float total = bias_sum.total();
    if (lane == 0) p.bias_sums[sum_number] = total;
  }
}

template <int Size>
void add_kernels(KernelTable<WeightGradientKernels>& table) {
  const auto add = [&](auto element, ElementType type) {
    using T = decltype(element);
    each_tile([&](auto group_rows, auto tiles) {
      constexpr TileShape tile{group_rows, tiles};
      const auto shared_bytes = WeightGradientBlock<Size, group_rows, tiles>::shared_bytes;
      table.add({{{type, tile, false}, shared_bytes},
                 depthwise_weight_gradient<T, Size, group_rows, tiles, false>});
      if constexpr (is_whole(tile))
        table.add({{{type, tile, true}, shared_bytes},
                   depthwise_weight_gradient<T, Size, group_rows, tiles, true>});
    });
  };
  add(__half(), ElementType::half);
  add(__nv_bfloat16(), ElementType::bfloat16);
}

COMPILE_FOR_SIZES(WeightGradientKernels)

}  // namespace depthwise
