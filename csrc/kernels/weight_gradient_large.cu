// Weight and bias gradient of contiguous planes for filters of up to 31 x 31. A warp sums the gradients of
// eight neighbouring rows of the filter of a channel over a split of the items; a second kernel adds the
// splits in order.
#include "core/large_item.cuh"
#include "host/launch.h"

namespace depthwise {
namespace {

// Grid: x counts groups of filter rows of the channels by the warps of a block, y splits of the items.
template <class T, int GroupRows, int Tiles>
__global__ void __launch_bounds__(32 * most_warps, large_blocks)
    depthwise_weight_gradient_large(LargeWeightGradientArguments p, Tiling tiling,
                                    int input_alignment, int gradient_alignment) {
  using Block = LargeWeightGradientBlock<GroupRows, Tiles>;
  using Rows = typename Block::Rows;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warps = int(blockDim.x) / 32;
  const int groups = 1 << tiling.groups_log2;
  const int input_pitch = Rows::image(groups, filter_rows_of_warp - 1);
  const int gradient_pitch = Rows::image(groups, 0);
  const int input_elements = Block::input_elements(groups);
  const int gradient_elements = Block::gradient_elements(groups);
  const int input_stage = input_elements / Block::stages;
  const int gradient_stage = gradient_elements / Block::stages;
  static_assert(2 * Rows::elements(16, 0) >= 2 * LargeDiagonalSums<T>::scratch_floats,
                "the buffer of the input also serves to store the sums");

  device::SharedMemory memory;
  T* const input = memory.take<T>(size_t(warps * input_elements)) + warp * input_elements;
  T* const gradient = memory.take<T>(size_t(warps * gradient_elements)) + warp * gradient_elements;

  const int row_groups = filter_row_groups(p.filter);
  const int64_t number_of_warp = int64_t(blockIdx.x) * warps + warp;
  const int channel = int(number_of_warp / row_groups);
  const int first_row = int(number_of_warp % row_groups) * filter_rows_of_warp;
  if (channel >= p.shape.channels) return;
  const auto [first, last] = device::range_of_split(tiling.items);

  const uint32_t row_mask = p.filter.row_mask() >> first_row;
  const int above = p.filter.above(false) - first_row;
  const bool with_bias = p.bias_sums && first_row == 0;
  const auto x = planes_of<const T>(p.input, p.input_strides, channel, input_alignment);
  const auto dy =
      planes_of<const T>(p.output_gradient, p.gradient_strides, channel, gradient_alignment);

  LargeDiagonalSums<T> sums;
  BiasSum<T> bias_sum;
  for (int number = first - 1, stage = 1; number < last; ++number, stage ^= 1) {
    if (number + 1 < last) {
      const LargeItem<GroupRows, Tiles> next(number + 1, tiling);
      const int rows = GroupRows << tiling.groups_log2;
      fetch_large<Rows>(input + (stage ^ 1) * input_stage, x, next, above,
                        rows + filter_rows_of_warp - 1, p.shape, tiling, input_pitch, lane);
      fetch_large<Rows>(gradient + (stage ^ 1) * gradient_stage, dy, next, 0, rows, p.shape, tiling,
                        gradient_pitch, lane);
    }
    device::copy_commit();
    if (number < first) continue;
    device::copy_wait<1>();
    __syncwarp();
    const int lane_in_loop = device::keep_in_loop(lane);
    const LargeItem<GroupRows, Tiles> item(number, tiling);
    const TileRange wanted = wanted_tiles(item, tiling, p.shape);
    uint32_t columns[GroupRows][Tiles][2];
    load_gradient<Rows>(columns,
                        gradient + stage * gradient_stage +
                            Rows::group_at(lane_in_loop % 16, tiling.groups_log2, gradient_pitch),
                        lane_in_loop);
    if (with_bias) {
      if (tiling.column_blocks > 1) {
        // Tiles at the seam of two column blocks belong to one of them.
#pragma unroll
        for (int q = 0; q < Tiles; ++q)
#pragma unroll
          for (int s = 0; s < GroupRows; ++s)
            if (!wanted.holds(q)) columns[s][q][0] = columns[s][q][1] = 0;
      }
      bias_sum.add(columns);
    }
    const T* const staged = input + stage * input_stage;
    sums.template multiply<Rows>(
        columns,
        staged +
            Rows::group_at(lane_in_loop % 8 + lane_in_loop / 16 * 8, tiling.groups_log2,
                           input_pitch) +
            lane_in_loop / 8 % 2 * 8,
        staged + Rows::group_at(lane_in_loop % 16, tiling.groups_log2, input_pitch), row_mask,
        wanted);
    // The next item overwrites this stage.
    __syncwarp();
  }

  const ptrdiff_t sum_number = ptrdiff_t(blockIdx.y) * p.shape.channels + channel;
  sums.store(p.weight_sums + sum_number * p.filter.taps(), p.filter, first_row,
             reinterpret_cast<float*>(input), lane);
  if (with_bias) {
    const float total = bias_sum.total();
    if (lane == 0) p.bias_sums[sum_number] = total;
  }
}

}  // namespace

cudaError_t launch_weight_gradient_large(const LargeWeightGradientArguments& p, ElementType type,
                                         const Plan& plan, cudaStream_t stream) {
  const int width = p.shape.width;
  const int input = alignment(uintptr_t(p.input), width, p.input_strides);
  const int gradient = alignment(uintptr_t(p.output_gradient), width, p.gradient_strides);
  const int groups = 1 << plan.tiling.groups_log2;
  return with_large_tile(type, plan.tile, [&](auto element, auto group_rows, auto tiles) {
    using T = decltype(element);
    using Block = LargeWeightGradientBlock<group_rows, tiles>;
    const int warps = fitting_warps(Block::shared_bytes, groups);
    const int64_t all_warps = int64_t(p.shape.channels) * filter_row_groups(p.filter);
    const dim3 grid(unsigned(divide_up(all_warps, warps)), unsigned(plan.splits));
    return device::launch(depthwise_weight_gradient_large<T, group_rows, tiles>, grid,
                          unsigned(32 * warps), Block::shared_bytes(warps, groups), stream, p,
                          plan.tiling, input, gradient);
  });
}

}  // namespace depthwise
