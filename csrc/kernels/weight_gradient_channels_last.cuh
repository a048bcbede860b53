// Weight and bias gradient of channels-last tensors: the products of weight_gradient.cuh
// behind the staging of staging_channels_last.cuh. A block owns some channels, one a warp, and a
// section of the images; it works through a share of these with the sums in registers. Shares and
// sections are added in order by a second kernel.
#pragma once
#include "core/staging_channels_last.cuh"
#include "kernels/weight_gradient.cuh"

namespace depthwise {

template <int Size, int Step, int Tiles>
struct ChannelsLastWeightGradientLayout {
  static constexpr int pad = Size / 2;
  static constexpr int channels = block_channels(Size, Tiles, Pass::weight_gradient);
  static constexpr int warps = block_warps(Size, Tiles, Pass::weight_gradient);
  static constexpr int gradient_chunks = jobs * Step * Tiles;
  static constexpr size_t most_shared_bytes =
      channels_last_shared_limit({Step, Tiles}, Pass::weight_gradient);
  static_assert(channels == warps);
  using Sums = BandSums<__half, Size, Tiles>;
  using Input = ChannelPlanes<Step, 8 * Sums::input_chunks, channels>;
  using Gradient = ChannelPlanes<Step, 8 * Tiles, channels>;

  struct Both {
    Staged input, gradient;
  };
  static constexpr Both staged(const Tiling& tiling) {
    const Tiling own{tiling.groups_log2, 1, 1, 1};
    return {Input::staged(tiling, Tiles, pad), Gradient::staged(own, Tiles, 0)};
  }
  template <class T>
  static constexpr size_t shared_bytes(const Tiling& tiling) {
    using device::SharedMemory;
    const auto [input, gradient] = staged(tiling);
    return SharedMemory::bytes<T>(Input::elements(input.pitch)) +
           SharedMemory::bytes<T>(Gradient::elements(gradient.pitch)) +
           SharedMemory::bytes<T>(Input::raw_elements(input.chunks)) +
           SharedMemory::bytes<T>(Gradient::raw_elements(gradient_chunks)) +
           SharedMemory::bytes<Chunk>(size_t(input.chunks)) +
           SharedMemory::bytes<Chunk>(size_t(gradient_chunks));
  }
};

// Grid: x counts channels by those of a block, within the sections; y shares of the images. Sums of
// share y and section s are number y * sections + s.
template <class T, int Size, int Step, int Tiles>
__global__ void __launch_bounds__(32 * block_warps(Size, Tiles, Pass::weight_gradient),
                                  blocks_resident(Size, Tiles, Pass::weight_gradient))
    depthwise_weight_gradient_channels_last(
        ChannelsLastWeightGradientArguments p, Tiling tiling,
        typename ChannelsLastWeightGradientLayout<Size, Step, Tiles>::Both staged,
        bool input_in_units, bool gradient_in_units) {
  using Layout = ChannelsLastWeightGradientLayout<Size, Step, Tiles>;
  using Input = typename Layout::Input;
  using Gradient = typename Layout::Gradient;
  using InputRows = typename Input::Rows;
  using GradientRows = typename Gradient::Rows;
  using Sums = BandSums<T, Size, Tiles>;
  constexpr int pad = Layout::pad, warps = Layout::warps, ahead = Tiles == 2 || Tiles == 4 ? 2 : 1;
  const int thread = int(threadIdx.x), images = jobs >> tiling.groups_log2;

  device::SharedMemory memory;
  T* const input = memory.take<T>(Input::elements(staged.input.pitch));
  T* const gradient = memory.take<T>(Gradient::elements(staged.gradient.pitch));
  T* const raw_input = memory.take<T>(Input::raw_elements(staged.input.chunks));
  T* const raw_gradient = memory.take<T>(Gradient::raw_elements(Layout::gradient_chunks));
  Chunk* const input_list = memory.take<Chunk>(size_t(staged.input.chunks));
  Chunk* const gradient_list = memory.take<Chunk>(size_t(Layout::gradient_chunks));

  const auto [section, channel] = BlockPlace(int(blockIdx.x), tiling, Layout::channels);
  const int image_tiles = int(divide_up(p.shape.images, images));
  const int first = int(int64_t(image_tiles) * blockIdx.y / gridDim.y);
  const int last = int(int64_t(image_tiles) * (blockIdx.y + 1) / gridDim.y);

  clear_together(input, Input::elements(staged.input.pitch), thread);
  clear_together(gradient, Gradient::elements(staged.gradient.pitch), thread);
  clear_together(raw_input, Input::raw_elements(staged.input.chunks), thread);
  clear_together(raw_gradient, Gradient::raw_elements(Layout::gradient_chunks), thread);
  const Item<Step, Tiles> item(section, tiling);
  list_chunks<Input, Tiles>(input_list, input_section(item, tiling, pad), staged.input, p.shape,
                            p.input_strides, thread);
  list_chunks<Gradient, Tiles>(gradient_list, own_section(item, tiling, 0), staged.gradient,
                               p.shape, p.gradient_strides, thread);
  __syncthreads();

  const auto fetch = [&](int number) {
    const int image = number * images, existing = p.shape.images - image;
    // Opaque, or the addresses of both tensors' channels take registers of their own.
    const int channel_here = device::opaque(channel), channels = p.shape.channels - channel_here;
    if (number < last) {
      fetch_chunks<Input, warps>(
          raw_input, input_list, staged.input.chunks,
          static_cast<const T*>(p.input) + image * p.input_strides.image + channel_here,
          p.input_strides.pixel, existing, channels, input_in_units, thread);
      fetch_chunks<Gradient, warps>(raw_gradient, gradient_list, Layout::gradient_chunks,
                                    static_cast<const T*>(p.output_gradient) +
                                        image * p.gradient_strides.image + channel_here,
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
                                         gradient_list, Layout::gradient_chunks, thread);
    __syncthreads();
    fetch(number + 1);

    const unsigned mine = unsigned(device::opaque(thread));
    const int lane = int(mine % 32), warp = int(mine / 32);
    uint32_t columns[Step][Tiles][2];
    load_gradient<GradientRows>(
        columns,
        gradient + Gradient::at(staged.gradient.pitch, warp) +
            GradientRows::job(lane % 16, tiling.groups_log2, staged.gradient.image),
        lane);
    if (p.bias_sums) bias_sum.add(columns);
    const T* const plane = input + Input::at(staged.input.pitch, warp);
    sums.template multiply<Step, ahead, InputRows>(
        columns,
        plane + InputRows::job(lane % 8 + lane / 16 * 8, tiling.groups_log2, staged.input.image) +
            lane / 8 % 2 * 8,
        plane + InputRows::job(lane % 16, tiling.groups_log2, staged.input.image));
  }

  const int lane = thread % 32, warp = thread / 32;
  if (warp >= p.shape.channels - channel) return;
  __syncwarp();
  const ptrdiff_t share = ptrdiff_t(blockIdx.y) * sections(tiling) + section;
  const ptrdiff_t sum_number = share * p.shape.channels + channel + warp;
  // The sums pass through the planes of their channels.
  sums.store(p.weight_sums + sum_number * p.filter_size * p.filter_size, p.filter_size,
             reinterpret_cast<float*>(input + Input::at(staged.input.pitch, warp)), lane);
  if (p.bias_sums) {
    const float total = bias_sum.total();
    if (lane == 0) p.bias_sums[sum_number] = total;
  }
}

}  // namespace depthwise
