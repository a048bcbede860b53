// Forward pass and input gradient of contiguous planes for filters of up to 31 x 31. Each warp owns a
// channel, whose filter it keeps in shared memory, and works through a split of its items.
#include "core/large_item.cuh"
#include "host/launch.h"

namespace depthwise {
namespace {

// Grid: x counts channels by the warps of a block, y splits of the items.
template <class T, int GroupRows, int Tiles>
__global__ void __launch_bounds__(32 * most_warps, large_blocks)
    depthwise_forward_large(LargeForwardArguments p, Tiling tiling, int input_alignment,
                            int output_alignment) {
  using Block = LargeForwardBlock<GroupRows, Tiles>;
  using Rows = typename Block::Rows;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warps = int(blockDim.x) / 32;
  const int filter_rows = p.filter.rows(), above = p.filter.above(p.flipped);
  const int groups = 1 << tiling.groups_log2;
  const int input_pitch = Rows::image(groups, filter_rows - 1);
  const int output_pitch = Rows::image(groups, 0);
  const int input_elements = Block::input_elements(groups, filter_rows);
  const int stage_elements = input_elements / Block::stages;
  const int output_elements = Block::output_elements(groups);
  const int band_elements = SharedBands<T>::elements(filter_rows);

  device::SharedMemory memory;
  T* const input = memory.take<T>(size_t(warps * input_elements)) + warp * input_elements;
  T* const output = memory.take<T>(size_t(warps * output_elements)) + warp * output_elements;
  T* const band_rows = memory.take<T>(size_t(warps * band_elements)) + warp * band_elements;

  const int channel = int(blockIdx.x) * warps + warp;
  if (channel >= p.shape.channels) return;
  const auto [first, last] = device::range_of_split(tiling.items);

  const SharedBands<T> bands(reinterpret_cast<unsigned short*>(band_rows),
                             static_cast<const T*>(p.weight) + ptrdiff_t(channel) * p.filter.taps(),
                             p.filter, p.flipped, lane);
  const uint32_t row_mask = p.filter.row_mask();
  const float bias = p.bias ? __ldg(p.bias + channel) : 0.f;
  const int rows = Rows::group_at(lane % 16, tiling.groups_log2, input_pitch) + lane / 16 * 8;
  T* const first_group = output + Rows::group_at(lane / 4, tiling.groups_log2, output_pitch);
  T* const second_group = output + Rows::group_at(lane / 4 + 8, tiling.groups_log2, output_pitch);
  const auto source = planes_of<const T>(p.input, p.input_strides, channel, input_alignment);
  const auto target = planes_of<T>(p.output, p.output_strides, channel, output_alignment);

  for (int number = first - 1, stage = 1; number < last; ++number, stage ^= 1) {
    if (number + 1 < last) {
      const LargeItem<GroupRows, Tiles> next(number + 1, tiling);
      fetch_large<Rows>(input + (stage ^ 1) * stage_elements, source, next, above,
                        (GroupRows << tiling.groups_log2) + filter_rows - 1, p.shape, tiling,
                        input_pitch, lane);
    }
    device::copy_commit();
    if (number < first) continue;
    device::copy_wait<1>();
    __syncwarp();
    const LargeItem<GroupRows, Tiles> item(number, tiling);
    float accumulator[GroupRows][Tiles][4];
#pragma unroll
    for (int s = 0; s < GroupRows; ++s)
#pragma unroll
      for (int q = 0; q < Tiles; ++q)
#pragma unroll
        for (float& value : accumulator[s][q]) value = bias;
    multiply_large<T, Rows>(accumulator, input + stage * stage_elements + rows, bands, filter_rows,
                            row_mask, wanted_tiles(item, tiling, p.shape), lane);
#pragma unroll
    for (int q = 0; q < Tiles; ++q)
#pragma unroll
      for (int s = 0; s < GroupRows; ++s) {
        const float (&value)[4] = accumulator[s][q];
        const int at = Rows::at(s, 8 * q) + lane % 4 * 2;
        *reinterpret_cast<uint32_t*>(first_group + at) = device::pack<T>(value[0], value[1]);
        *reinterpret_cast<uint32_t*>(second_group + at) = device::pack<T>(value[2], value[3]);
      }
    __syncwarp();
    store_item<Rows>(target, output, item, p.shape, tiling, output_pitch, lane);
  }
}

}  // namespace

cudaError_t launch_forward_large(const LargeForwardArguments& p, ElementType type, const Plan& plan,
                                 cudaStream_t stream) {
  const int width = p.shape.width;
  const int input = alignment(uintptr_t(p.input), width, p.input_strides);
  const int output = alignment(uintptr_t(p.output), width, p.output_strides);
  const int groups = 1 << plan.tiling.groups_log2, filter_rows = p.filter.rows();
  return with_large_tile(type, plan.tile, [&](auto element, auto group_rows, auto tiles) {
    using T = decltype(element);
    using Block = LargeForwardBlock<group_rows, tiles>;
    int warps = most_warps;
    while (warps > 1 && Block::shared_bytes(warps, groups, filter_rows) > most_shared_bytes)
      warps /= 2;
    const dim3 grid(unsigned(divide_up(p.shape.channels, warps)), unsigned(plan.splits));
    return device::launch(depthwise_forward_large<T, group_rows, tiles>, grid, unsigned(32 * warps),
                          Block::shared_bytes(warps, groups, filter_rows), stream, p, plan.tiling,
                          input, output);
  });
}

}  // namespace depthwise
