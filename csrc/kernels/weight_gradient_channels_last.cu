// Weight and bias gradient of channels-last tensors: the products of weight_gradient.cu behind the
// staging of staging_channels_last.cuh. A block owns some channels, one a warp, and a section of the
// images; it works through a split of these with the sums in registers. A second kernel adds splits and
// sections in order.
#include "core/staging_channels_last.cuh"
#include "core/toeplitz.cuh"
#include "host/launch.h"

namespace depthwise {

template <int Size, int GroupRows, int Tiles, int Channels>
struct ChannelsLastWeightGradientBlock {
  static constexpr int pad = Size / 2;
  static constexpr int channels = Channels;
  static constexpr int warps = block_warps(Size, Channels, Pass::weight_gradient);
  static constexpr int gradient_chunks = mma_rows * GroupRows * Tiles;
  static constexpr size_t most_shared_bytes =
      channels_last_shared_limit({{GroupRows, Tiles}, Channels}, Size, Pass::weight_gradient);
  static_assert(channels == warps);
  using Sums = DiagonalSums<__half, Size, Tiles>;
  using Input = ChannelPlanes<GroupRows, 8 * Sums::input_chunks, channels>;
  using Gradient = ChannelPlanes<GroupRows, 8 * Tiles, channels>;

  static constexpr StagedGradient staged(const Tiling& tiling) {
    const Tiling outputs{tiling.groups_log2, 1, 1, 1};
    return {Input::staged(tiling, Tiles, pad), Gradient::staged(outputs, Tiles, 0)};
  }
  static constexpr size_t shared_bytes(const Tiling& tiling) {
    using device::SharedMemory;
    const auto [input, gradient] = staged(tiling);
    return SharedMemory::bytes<__half>(Input::elements(input.pitch)) +
           SharedMemory::bytes<__half>(Gradient::elements(gradient.pitch)) +
           SharedMemory::bytes<__half>(Input::raw_elements(input.chunks)) +
           SharedMemory::bytes<__half>(Gradient::raw_elements(gradient_chunks)) +
           SharedMemory::bytes<Chunk>(size_t(input.chunks)) +
           SharedMemory::bytes<Chunk>(size_t(gradient_chunks));
  }
};

// Grid: x counts sections, and in these channels by those of a block; y counts splits of the images. The
// sums of split y and section s are number y * sections + s.
template <class T, int Size, int GroupRows, int Tiles, int Channels>
__global__ void __launch_bounds__(32 * block_warps(Size, Channels, Pass::weight_gradient),
                                  compiled_tuning.channels_last_weight_gradient_blocks(Size, Tiles,
                                                                                       Channels))
    depthwise_weight_gradient_channels_last(ChannelsLastWeightGradientArguments p, Tiling tiling,
                                            StagedGradient staged, bool input_in_units,
                                            bool gradient_in_units) {
  using Block = ChannelsLastWeightGradientBlock<Size, GroupRows, Tiles, Channels>;
  using Input = typename Block::Input;
  using Gradient = typename Block::Gradient;
  using InputRows = typename Input::Rows;
  using GradientRows = typename Gradient::Rows;
  using Sums = DiagonalSums<T, Size, Tiles>;
  constexpr int pad = Block::pad, warps = Block::warps, ahead = Tiles == 2 || Tiles == 4 ? 2 : 1;
  const int thread = int(threadIdx.x), images = mma_rows >> tiling.groups_log2;

  device::SharedMemory memory;
  T* const input = memory.take<T>(Input::elements(staged.input.pitch));
  T* const gradient = memory.take<T>(Gradient::elements(staged.gradient.pitch));
  T* const raw_input = memory.take<T>(Input::raw_elements(staged.input.chunks));
  T* const raw_gradient = memory.take<T>(Gradient::raw_elements(Block::gradient_chunks));
  Chunk* const input_list = memory.take<Chunk>(size_t(staged.input.chunks));
  Chunk* const gradient_list = memory.take<Chunk>(size_t(Block::gradient_chunks));

  const auto [section, channel] = BlockPosition(int(blockIdx.x), tiling, Block::channels);
  const int image_tiles = int(divide_up(p.shape.images, images));
  const auto [first, last] = device::range_of_split(image_tiles);

  clear_together(input, Input::elements(staged.input.pitch), thread);
  clear_together(gradient, Gradient::elements(staged.gradient.pitch), thread);
  clear_together(raw_input, Input::raw_elements(staged.input.chunks), thread);
  clear_together(raw_gradient, Gradient::raw_elements(Block::gradient_chunks), thread);
  const Item<GroupRows, Tiles> item(section, tiling);
  list_chunks<Input, Tiles>(input_list, input_section(item, tiling, pad), staged.input, p.shape,
                            p.input_strides, thread);
  list_chunks<Gradient, Tiles>(gradient_list, output_section(item, tiling, 0), staged.gradient,
                               p.shape, p.gradient_strides, thread);
  __syncthreads();

  const auto fetch = [&](int number) {
    const int image = number * images, existing = p.shape.images - image;
    // Opaque, or the addresses of both tensors' channels take registers of their own.
    const int channel_offset = device::keep_in_loop(channel),
              channels = p.shape.channels - channel_offset;
    if (number < last) {
      fetch_chunks<Input, warps>(
          raw_input, input_list, staged.input.chunks,
          static_cast<const T*>(p.input) + image * p.input_strides.image + channel_offset,
          p.input_strides.pixel, existing, channels, input_in_units, thread);
      fetch_chunks<Gradient, warps>(raw_gradient, gradient_list, Block::gradient_chunks,
                                    static_cast<const T*>(p.output_gradient) +
                                        image * p.gradient_strides.image + channel_offset,
                                    p.gradient_strides.pixel, existing, channels, gradient_in_units,
                                    thread);
    }
    device::copy_commit();
  };

  Sums sums;
  BiasSum<T> bias_sum;
  fetch(first);
#pragma unroll 1
  for (int number = first; number < last; ++number) {
    device::copy_wait<0>();
    __syncthreads();
    chunks_to_planes<Input, warps, Sums::input_shift>(input, staged.input.pitch, raw_input,
                                                      input_list, staged.input.chunks, thread);
    chunks_to_planes<Gradient, warps, 0>(gradient, staged.gradient.pitch, raw_gradient,
                                         gradient_list, Block::gradient_chunks, thread);
    __syncthreads();
    fetch(number + 1);

    const unsigned thread_in_loop = unsigned(device::keep_in_loop(thread));
    const int lane = int(thread_in_loop % 32), warp = int(thread_in_loop / 32);
    uint32_t columns[GroupRows][Tiles][2];
    load_gradient<GradientRows>(
        columns,
        gradient + Gradient::at(staged.gradient.pitch, warp) +
            GradientRows::group_at(lane % 16, tiling.groups_log2, staged.gradient.image),
        lane);
    if (p.bias_sums) bias_sum.add(columns);
    const T* const plane = input + Input::at(staged.input.pitch, warp);
    sums.template multiply<GroupRows, ahead, InputRows>(
        columns,
        plane +
            InputRows::group_at(lane % 8 + lane / 16 * 8, tiling.groups_log2, staged.input.image) +
            lane / 8 % 2 * 8,
        plane + InputRows::group_at(lane % 16, tiling.groups_log2, staged.input.image));
  }

  const int lane = thread % 32, warp = thread / 32;
  if (warp >= p.shape.channels - channel) return;
  __syncwarp();
  const ptrdiff_t split = ptrdiff_t(blockIdx.y) * sections(tiling) + section;
  const ptrdiff_t sum_number = split * p.shape.channels + channel + warp;
  // The planes also serve to store the sums of their channels.
  sums.store(p.weight_sums + sum_number * p.filter_size * p.filter_size, p.filter_size,
             reinterpret_cast<float*>(input + Input::at(staged.input.pitch, warp)), lane);
  if (p.bias_sums) {
    const float total = bias_sum.total();
    if (lane == 0) p.bias_sums[sum_number] = total;
  }
}

template <int Size>
void add_kernels(KernelTable<ChannelsLastWeightGradientKernels>& table) {
  const auto add = [&](auto element, ElementType type) {
    using T = decltype(element);
    each_channels_last_tile<Size, Pass::weight_gradient>([&](auto group_rows, auto tiles,
                                                             auto channels) {
      using Block = ChannelsLastWeightGradientBlock<Size, group_rows, tiles, channels>;
      table.add({channels_last_block<Block>({type, {group_rows, tiles}, channels}),
                 depthwise_weight_gradient_channels_last<T, Size, group_rows, tiles, channels>});
    });
  };
  add(__half(), ElementType::half);
  add(__nv_bfloat16(), ElementType::bfloat16);
}

COMPILE_FOR_SIZES(ChannelsLastWeightGradientKernels)

}  // namespace depthwise
