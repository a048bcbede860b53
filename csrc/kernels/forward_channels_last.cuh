// Forward pass and input gradient of channels-last tensors: the core and the epilogue of
// forward.cuh between the staging of staging_channels_last.cuh. A block owns some
// channels and a section of the images, and works through a share of these; each warp has channels
// of its own, their bands in registers. Sums take the place of the input in its planes.
#pragma once
#include "core/epilogue.cuh"
#include "core/staging_channels_last.cuh"

namespace depthwise {

template <int Size, int Step, int Tiles>
struct ChannelsLastForwardLayout {
  static constexpr int pad = Size / 2;
  static constexpr int channels = block_channels(Size, Tiles, Pass::forward);
  static constexpr int warps = block_warps(Size, Tiles, Pass::forward);
  static constexpr int output_chunks = jobs * Step * Tiles;
  static constexpr size_t most_shared_bytes =
      channels_last_shared_limit({Step, Tiles}, Pass::forward);
  using Planes = ChannelPlanes<Step, 8 * Tiles, channels>;
  using Rows = typename Planes::Rows;

  // Rows of a job's outputs, behind the halo.
  struct Outputs {
    __device__ static constexpr int at(int row, int column) { return Rows::at(pad + row, column); }
  };

  static constexpr Staged staged(const Tiling& tiling) {
    return Planes::staged(tiling, Tiles, pad);
  }
  template <class T>
  static constexpr size_t shared_bytes(const Tiling& tiling) {
    using device::SharedMemory;
    const Staged input = staged(tiling);
    return SharedMemory::bytes<T>(Planes::elements(input.pitch)) +
           SharedMemory::bytes<T>(Planes::raw_elements(input.chunks)) +
           SharedMemory::bytes<Chunk>(size_t(input.chunks)) +
           SharedMemory::bytes<Chunk>(size_t(output_chunks));
  }
};

// What a block does, between the places where kernels differ: `epilogue` takes the sums, `residual`
// says whether it gets to see the input beside them. Given `added`, a tensor of the output's strides,
// it sees that tensor instead.
template <class T, int Size, int Step, int Tiles, class Epilogue>
__device__ __forceinline__ void convolve_channels(const ChannelsLastForwardArguments& p,
                                                  const Tiling& tiling, const Staged& staged,
                                                  bool input_in_units, bool output_in_units,
                                                  const Epilogue& epilogue, bool residual,
                                                  const void* added) {
  using Layout = ChannelsLastForwardLayout<Size, Step, Tiles>;
  using Planes = typename Layout::Planes;
  using Rows = typename Layout::Rows;
  using Outputs = typename Layout::Outputs;
  constexpr int pad = Layout::pad, warps = Layout::warps, per_warp = Layout::channels / warps;
  constexpr int ahead = Epilogue::rows_ahead(Size, Tiles);
  const int thread = int(threadIdx.x), images = jobs >> tiling.groups_log2;

  device::SharedMemory memory;
  T* const planes = memory.take<T>(Planes::elements(staged.pitch));
  T* const raw = memory.take<T>(Planes::raw_elements(staged.chunks));
  Chunk* const input_list = memory.take<Chunk>(size_t(staged.chunks));
  Chunk* const output_list = memory.take<Chunk>(size_t(Layout::output_chunks));

  const auto [section, channel] = BlockPlace(int(blockIdx.x), tiling, Layout::channels);
  const int channels = p.shape.channels - channel;
  const int image_tiles = int(divide_up(p.shape.images, images));
  const int first = int(int64_t(image_tiles) * blockIdx.y / gridDim.y);
  const int last = int(int64_t(image_tiles) * (blockIdx.y + 1) / gridDim.y);

  // The filters pass through the planes of their channels.
  Bands<T, Size, Tiles> bands[per_warp];
#pragma unroll
  for (int i = 0; i < per_warp; ++i) {
    const int lane = thread % 32, c = thread / 32 + i * warps;
    if (c >= channels) continue;
    bands[i].load(
        static_cast<const T*>(p.weight) + ptrdiff_t(channel + c) * p.filter_size * p.filter_size,
        p.filter_size, p.flipped,
        reinterpret_cast<unsigned short*>(planes + Planes::at(staged.pitch, c)), lane);
  }
  __syncthreads();
  clear_together(planes, Planes::elements(staged.pitch), thread);
  clear_together(raw, Planes::raw_elements(staged.chunks), thread);
  const Item<Step, Tiles> item(section, tiling);
  list_chunks<Planes, Tiles>(input_list, input_section(item, tiling, pad), staged, p.shape,
                             p.input_strides, thread);
  list_chunks<Planes, Tiles>(output_list, own_section(item, tiling, pad),
                             {staged.image, staged.pitch, Layout::output_chunks}, p.shape,
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
  // `added` comes into the chunks of the input, once these are in the planes, and from there into the
  // planes of some channels, once the input there has met its filters. It is added to the sums in
  // registers: they are rounded once.
  const auto fetch_added = [&](int number) {
    const int image = number * images;
    fetch_chunks<Planes, warps>(
        raw, output_list, Layout::output_chunks,
        static_cast<const T*>(added) + image * p.output_strides.image + channel,
        p.output_strides.pixel, p.shape.images - image, channels, output_in_units, thread);
    device::copy_commit();
  };
  const auto place_added = [&](int octet) {
    device::copy_wait<0>();
    __syncthreads();
    chunks_to_planes<Planes, warps, 0, Planes::octets / per_warp>(
        planes, staged.pitch, raw, output_list, Layout::output_chunks, thread, octet);
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
      const unsigned mine = unsigned(device::opaque(thread));
      const int lane = int(mine % 32), c = int(mine / 32) + i * warps;
      const bool exists = c < channels;
      if (!Epilogue::adds && !exists) continue;
      T* const plane = planes + Planes::at(staged.pitch, c);
      // Read anew for each item: registers are scarcer than reads that hit the cache.
      const auto take = epilogue.of(channel + c);
      load_no_further();
      float sum[Step][Tiles][4] = {};
      if (exists)
        multiply<T, Size, Step, Tiles, Rows, false, ahead>(
            sum, plane + Rows::job(lane % 16, tiling.groups_log2, staged.image) + lane / 16 * 8,
            bands[i], lane);
      __syncwarp();
      if constexpr (Epilogue::adds) {
        if (added) {
          place_added(i);
          if (i + 1 == per_warp) fetch(number + 1);
        }
        if (!exists) continue;
      }
      const int job = lane / 4;
      T* const first_job = plane + Rows::job(job, tiling.groups_log2, staged.image);
      T* const second_job = plane + Rows::job(job + 8, tiling.groups_log2, staged.image);
      // Each sum takes the place of its residual.
      take.template operator()<T, Size, Outputs>(
          first_job, second_job, sum,
          Residual<T, Outputs>{{first_job, second_job}, residual || added}, number, lane);
    }
    __syncthreads();
    const int image = number * images;
    planes_to_memory<Planes, warps, Layout::output_chunks>(
        static_cast<T*>(p.output) + image * p.output_strides.image + channel, planes, staged.pitch,
        output_list, p.output_strides.pixel, p.shape.images - image, channels, output_in_units,
        thread);
  }
}

// Grid: x counts channels by those of a block, within the sections; y shares of the images.
template <class T, int Size, int Step, int Tiles>
__global__ void __launch_bounds__(32 * block_warps(Size, Tiles, Pass::forward),
                                  blocks_resident(Size, Tiles, Pass::forward))
    depthwise_forward_channels_last(ChannelsLastForwardArguments p, Tiling tiling, Staged staged,
                                    bool input_in_units, bool output_in_units) {
  convolve_channels<T, Size, Step, Tiles>(p, tiling, staged, input_in_units, output_in_units,
                                          BiasEpilogue{p.bias}, false, nullptr);
}

// Where the plain kernel needs all of 128 registers, what the fused one adds finds no room in them.
constexpr int fused_blocks_resident(int size, int tiles) {
  return size == 15 && tiles == 4 ? 1 : blocks_resident(size, tiles, Pass::forward);
}

// The same with activation, normalisation and residual.
template <class T, int Size, int Step, int Tiles>
__global__ void __launch_bounds__(32 * block_warps(Size, Tiles, Pass::forward),
                                  fused_blocks_resident(Size, Tiles))
    depthwise_forward_fused_channels_last(ChannelsLastFusedForwardArguments p, Tiling tiling,
                                          Staged staged, bool input_in_units,
                                          bool output_in_units) {
  convolve_channels<T, Size, Step, Tiles>(p, tiling, staged, input_in_units, output_in_units,
                                          FusedEpilogue{p.bias, p.normalisation, p.activation},
                                          p.residual, p.added);
}

}  // namespace depthwise
