// Forward pass and input gradient of channels-last tensors: the core and the epilogues of forward.cu,
// between the staging of staging_channels_last.cuh. A block owns some channels and a section of the
// images, and works through a split of these; each warp has channels of its own, their bands in
// registers. Outputs take the place of the input in its planes.
#include "core/epilogue.cuh"
#include "core/staging_channels_last.cuh"
#include "host/launch.h"

namespace depthwise {

template <int Size, int GroupRows, int Tiles, int Channels>
struct ChannelsLastForwardBlock {
  static constexpr int pad = Size / 2;
  static constexpr int channels = Channels;
  static constexpr int warps = block_warps(Size, Channels, Pass::forward);
  static constexpr int output_chunks = mma_rows * GroupRows * Tiles;
  static constexpr size_t most_shared_bytes =
      channels_last_shared_limit({{GroupRows, Tiles}, Channels}, Size, Pass::forward);
  using Planes = ChannelPlanes<GroupRows, 8 * Tiles, channels>;
  using Rows = typename Planes::Rows;

  // The rows of the outputs in the planes, below the halo.
  struct Outputs {
    __device__ static constexpr int at(int row, int column) { return Rows::at(pad + row, column); }
  };

  static constexpr Staged staged(const Tiling& tiling) {
    return Planes::staged(tiling, Tiles, pad);
  }
  static constexpr size_t shared_bytes(const Tiling& tiling) {
    using device::SharedMemory;
    const Staged input = staged(tiling);
    return SharedMemory::bytes<__half>(Planes::elements(input.pitch)) +
           SharedMemory::bytes<__half>(Planes::raw_elements(input.chunks)) +
           SharedMemory::bytes<Chunk>(size_t(input.chunks)) +
           SharedMemory::bytes<Chunk>(size_t(output_chunks));
  }
};

// The common body of the forward kernels, which differ in their epilogue. With `residual`, the epilogue
// also gets the input. `added` is null or a tensor with the output's strides, which the epilogue gets
// instead.
template <class T, int Size, int GroupRows, int Tiles, int Channels, class Epilogue>
__device__ __forceinline__ void convolve_channels(const ChannelsLastForwardArguments& p,
                                                  const Tiling& tiling, const Staged& staged,
                                                  bool input_in_units, bool output_in_units,
                                                  const Epilogue& epilogue, bool residual,
                                                  const void* added) {
  using Block = ChannelsLastForwardBlock<Size, GroupRows, Tiles, Channels>;
  using Planes = typename Block::Planes;
  using Rows = typename Block::Rows;
  using Outputs = typename Block::Outputs;
  constexpr int pad = Block::pad, warps = Block::warps, per_warp = Block::channels / warps;
  constexpr int ahead = Epilogue::rows_ahead(Size, Tiles);
  const int thread = int(threadIdx.x), images = mma_rows >> tiling.groups_log2;

  device::SharedMemory memory;
  T* const planes = memory.take<T>(Planes::elements(staged.pitch));
  T* const raw = memory.take<T>(Planes::raw_elements(staged.chunks));
  Chunk* const input_list = memory.take<Chunk>(size_t(staged.chunks));
  Chunk* const output_list = memory.take<Chunk>(size_t(Block::output_chunks));

  const auto [section, channel] = BlockPosition(int(blockIdx.x), tiling, Block::channels);
  const int channels = p.shape.channels - channel;
  const int image_tiles = int(divide_up(p.shape.images, images));
  const auto [first, last] = device::range_of_split(image_tiles);

  // The planes also serve to load the filters of their channels.
  Bands<T, Size, Tiles> bands[per_warp];
  float bias[per_warp];
#pragma unroll
  for (int i = 0; i < per_warp; ++i) {
    const int lane = thread % 32, c = thread / 32 + i * warps;
    bias[i] = 0;
    if (c >= channels) continue;
    bias[i] = bias_of(epilogue.bias, channel + c);
    bands[i].load(
        static_cast<const T*>(p.weight) + ptrdiff_t(channel + c) * p.filter_size * p.filter_size,
        p.filter_size, p.flipped,
        reinterpret_cast<unsigned short*>(planes + Planes::at(staged.pitch, c)), lane);
  }
  __syncthreads();
  clear_together(planes, Planes::elements(staged.pitch), thread);
  clear_together(raw, Planes::raw_elements(staged.chunks), thread);
  const Item<GroupRows, Tiles> item(section, tiling);
  list_chunks<Planes, Tiles>(input_list, input_section(item, tiling, pad), staged, p.shape,
                             p.input_strides, thread);
  list_chunks<Planes, Tiles>(output_list, output_section(item, tiling, pad),
                             {staged.image, staged.pitch, Block::output_chunks}, p.shape,
                             p.output_strides, thread);
  __syncthreads();

  const auto fetch = [&](int number) {
    const int image = number * images;
    if (number < last)
      fetch_chunks<Planes, warps>(
          raw, input_list, staged.chunks,
          static_cast<const T*>(p.input) + image * p.input_strides.image + channel,
          p.input_strides.pixel, p.shape.images - image, channels, input_in_units, thread);
    device::copy_commit();
  };
  // `added` is fetched into the chunks once the input has moved on to the planes, and moves into the
  // planes of some channels once the input there has been multiplied. It is added to the accumulators,
  // which are rounded once.
  const auto fetch_added = [&](int number) {
    const int image = number * images;
    fetch_chunks<Planes, warps>(
        raw, output_list, Block::output_chunks,
        static_cast<const T*>(added) + image * p.output_strides.image + channel,
        p.output_strides.pixel, p.shape.images - image, channels, output_in_units, thread);
    device::copy_commit();
  };
  const auto place_added = [&](int octet) {
    device::copy_wait<0>();
    __syncthreads();
    chunks_to_planes<Planes, warps, 0, Planes::octets / per_warp>(
        planes, staged.pitch, raw, output_list, Block::output_chunks, thread, octet);
    __syncthreads();
  };
  fetch(first);
#pragma unroll 1
  for (int number = first; number < last; ++number) {
    device::copy_wait<0>();
    __syncthreads();
    chunks_to_planes<Planes, warps, 0>(planes, staged.pitch, raw, input_list, staged.chunks,
                                       thread);
    __syncthreads();
    if (!Epilogue::adds || added == nullptr) fetch(number + 1);
    else if constexpr (Epilogue::adds) fetch_added(number);
#pragma unroll
    for (int i = 0; i < per_warp; ++i) {
      const unsigned thread_in_loop = unsigned(device::keep_in_loop(thread));
      const int lane = int(thread_in_loop % 32), c = int(thread_in_loop / 32) + i * warps;
      const bool exists = c < channels;
      if (!Epilogue::adds && !exists) continue;
      T* const plane = planes + Planes::at(staged.pitch, c);
      // The parameters are loaded again for each item, from the cache: registers are scarcer.
      const auto channel_epilogue = epilogue.of(exists ? channel + c : channel);
      load_no_further();
      const T* const rows =
          plane + Rows::group_at(lane % 16, tiling.groups_log2, staged.image) + lane / 16 * 8;
      float accumulator[GroupRows][Tiles][4];
      Start(bias[i]).fill(accumulator);
      if (exists)
        multiply<T, Size, GroupRows, Tiles, Rows, false, ahead>(accumulator, rows, bands[i], lane);
      __syncwarp();
      if constexpr (Epilogue::adds) {
        if (added) {
          place_added(i);
          if (i + 1 == per_warp) fetch(number + 1);
        }
        if (!exists) continue;
      }
      T* const first_group = plane + Rows::group_at(lane / 4, tiling.groups_log2, staged.image);
      T* const second_group =
          plane + Rows::group_at(lane / 4 + 8, tiling.groups_log2, staged.image);
      // Each output takes the place of its residual.
      channel_epilogue.template store<T, Size, Outputs>(
          first_group, second_group, accumulator, Residual<T, Outputs>{rows, residual || added},
          number, lane);
    }
    __syncthreads();
    const int image = number * images;
    planes_to_memory<Planes, warps, Block::output_chunks>(
        static_cast<T*>(p.output) + image * p.output_strides.image + channel, planes, staged.pitch,
        output_list, p.output_strides.pixel, p.shape.images - image, channels, output_in_units,
        thread);
  }
}

// Grid of both kernels: x counts sections, and in these channels by those of a block; y counts splits of
// the images.
template <class T, int Size, int GroupRows, int Tiles, int Channels>
__global__ void __launch_bounds__(32 * block_warps(Size, Channels, Pass::forward),
                                  compiled_tuning.channels_last_forward_blocks(Size, Tiles,
                                                                               Channels))
    depthwise_forward_channels_last(ChannelsLastForwardArguments p, Tiling tiling, Staged staged,
                                    bool input_in_units, bool output_in_units) {
  convolve_channels<T, Size, GroupRows, Tiles, Channels>(
      p, tiling, staged, input_in_units, output_in_units, PlainEpilogue{p.bias}, false, nullptr);
}

// Forward pass with activation, normalisation and residual.
template <class T, int Size, int GroupRows, int Tiles, int Channels>
__global__ void __launch_bounds__(32 * block_warps(Size, Channels, Pass::forward),
                                  compiled_tuning.channels_last_fused_forward_blocks(Size, Tiles,
                                                                                     Channels))
    depthwise_forward_fused_channels_last(ChannelsLastFusedForwardArguments p, Tiling tiling,
                                          Staged staged, bool input_in_units,
                                          bool output_in_units) {
  convolve_channels<T, Size, GroupRows, Tiles, Channels>(
      p, tiling, staged, input_in_units, output_in_units,
      FusedEpilogue{p.bias, p.normalisation, p.activation}, p.residual, p.added);
}

// ---- the table -----------------------------------------------------------------------------------

template <int Size>
void add_kernels(KernelTable<ChannelsLastForwardKernels>& table) {
  const auto add = [&](auto element, ElementType type) {
    using T = decltype(element);
    each_channels_last_tile<Size, Pass::forward>([&](auto group_rows, auto tiles, auto channels) {
      using Block = ChannelsLastForwardBlock<Size, group_rows, tiles, channels>;
      table.add({channels_last_block<Block>({type, {group_rows, tiles}, channels}),
                 depthwise_forward_channels_last<T, Size, group_rows, tiles, channels>,
                 depthwise_forward_fused_channels_last<T, Size, group_rows, tiles, channels>});
    });
  };
  add(__half(), ElementType::half);
  add(__nv_bfloat16(), ElementType::bfloat16);
}

COMPILE_FOR_SIZES(ChannelsLastForwardKernels)

}  // namespace depthwise
