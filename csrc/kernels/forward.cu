// Forward pass and input gradient of contiguous planes. Output rows are M of the mma. Each warp owns a
// channel and works through a split of its items with the bands in registers, without a barrier wider
// than the warp.
#include "core/epilogue.cuh"
#include "core/staging_contiguous.cuh"
#include "host/launch.h"

namespace depthwise {

template <int Size, int GroupRows, int Tiles>
struct ForwardBlock {
  static constexpr int pad = Size / 2, stages = 2;
  using Rows = ItemRows<GroupRows, 8 * Tiles>;

  // The rows of the outputs in the planes of the input, below the halo.
  struct Inner {
    __device__ static constexpr int at(int row, int column) { return Rows::at(pad + row, column); }
  };

  __host__ __device__ static constexpr int input_elements(int groups) {
    return stages * Rows::elements(groups, 2 * pad);
  }
  // The buffer of the outputs also serves to load the filter.
  __host__ __device__ static constexpr int output_elements(int groups) {
    const int output = Rows::elements(groups, 0);
    const int filter = (Bands<__half, Size, Tiles>::scratch_elements + 7) / 8 * 8;
    return output > filter ? output : filter;
  }
  static constexpr size_t shared_bytes(int warps, int groups) {
    return device::SharedMemory::bytes<__half>(size_t(warps * input_elements(groups))) +
           device::SharedMemory::bytes<__half>(size_t(warps * output_elements(groups)));
  }
};

// The common body of the forward kernels, which differ in their epilogue: one warp convolves one channel.
// With `residual`, the epilogue also gets the input. `added` is null or a tensor with the output's
// strides: then the accumulators plus that tensor are written, without the epilogue.
template <class T, int Size, int GroupRows, int Tiles, bool Whole, class Epilogue>
__device__ __forceinline__ void convolve_channel(const ForwardArguments& p, Tiling tiling,
                                                 int input_alignment, int output_alignment,
                                                 Epilogue& epilogue, bool residual,
                                                 const void* added) {
  using Block = ForwardBlock<Size, GroupRows, Tiles>;
  using Rows = typename Block::Rows;
  constexpr int pad = Block::pad, ahead = Epilogue::rows_ahead(Size, Tiles);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warps = int(blockDim.x) / 32;
  if constexpr (Whole) tiling = whole_tiling(8 * Tiles / GroupRows, tiling.items);
  const int groups = 1 << tiling.groups_log2;
  const int input_pitch = Rows::image(groups, 2 * pad), output_pitch = Rows::image(groups, 0);
  const int stage_elements = Rows::elements(groups, 2 * pad);
  const int input_elements = Block::input_elements(groups);
  const int output_elements = Block::output_elements(groups);

  device::SharedMemory memory;
  T* const input = memory.take<T>(size_t(warps * input_elements)) + warp * input_elements;
  T* const output = memory.take<T>(size_t(warps * output_elements)) + warp * output_elements;

  const int channel = int(blockIdx.x) * warps + warp;
  if (channel >= p.shape.channels) return;
  const auto [first, last] = device::range_of_split(tiling.items);

  clear(input, input_elements, lane);
  Bands<T, Size, Tiles> bands;
  bands.load(static_cast<const T*>(p.weight) + ptrdiff_t(channel) * p.filter_size * p.filter_size,
             p.filter_size, p.flipped, reinterpret_cast<unsigned short*>(output), lane);
  auto channel_epilogue = epilogue.of(channel);
  const Start start(bias_of(epilogue.bias, channel));
  const int rows = Rows::group_at(lane % 16, tiling.groups_log2, input_pitch) + lane / 16 * 8;
  T* const first_group = output + Rows::group_at(lane / 4, tiling.groups_log2, output_pitch);
  T* const second_group = output + Rows::group_at(lane / 4 + 8, tiling.groups_log2, output_pitch);

  const auto source = planes_of<const T>(p.input, p.input_strides, channel, input_alignment);
  const auto target = planes_of<T>(p.output, p.output_strides, channel, output_alignment);
  Reader<T, GroupRows, Tiles, Rows, pad, 0, Whole> reader(source, first, p.shape, tiling,
                                                          input_pitch);
  Writer<T, GroupRows, Tiles, Rows, Whole> writer(target, first, p.shape, tiling, output_pitch);
  // Rows below low planes are never fetched.
  if constexpr (Epilogue::adds) clear(output, output_elements, lane);

  for (int number = first - 1, stage = 1; number < last; ++number, stage ^= 1) {
    if constexpr (Epilogue::adds) {
      if (added && number >= first) {
        // The outputs of the item before leave from the same buffer.
        __syncwarp();
        writer.fetch_added(output, static_cast<const T*>(added), lane);
      }
      device::copy_commit();
    }
    if (number + 1 < last) reader.fetch_next(input + (stage ^ 1) * stage_elements, lane);
    device::copy_commit();
    if (number < first) continue;
    device::copy_wait<Epilogue::adds ? 2 : 1>();
    __syncwarp();
    const T* const staged = input + stage * stage_elements;
    float accumulator[GroupRows][Tiles][4];
    start.fill(accumulator);
    multiply<T, Size, GroupRows, Tiles, Rows, false, ahead>(accumulator, staged + rows, bands,
                                                            lane);
    if (!Epilogue::adds || added == nullptr) {
      channel_epilogue.template store<T, Size, Rows>(
          first_group, second_group, accumulator,
          Residual<T, typename Block::Inner>{staged + rows, residual}, number, lane);
    } else if constexpr (Epilogue::adds) {
      device::copy_wait<1>();
      __syncwarp();
      const T* const added_rows =
          output + Rows::group_at(lane % 16, tiling.groups_log2, output_pitch) + lane / 16 * 8;
      add_residual<T, Size, Rows>(accumulator, added_rows, lane);
      __syncwarp();
      store_accumulators<T, Size, Rows>(first_group, second_group, accumulator, lane);
    }
    __syncwarp();
    writer.store_next(output, lane);
  }
  channel_epilogue.finish(lane);
}

// Grid of all forward kernels: x counts channels by the warps of a block, y splits of the items. With
// Whole, planes are those of WholePlane and everything is aligned to 16 bytes.
template <class T, int Size, int GroupRows, int Tiles, bool Whole>
__global__ void __launch_bounds__(32 * most_warps,
                                  compiled_tuning.forward_blocks(Size, Tiles, Whole))
    depthwise_forward(ForwardArguments p, Tiling tiling, int input_alignment,
                      int output_alignment) {
  PlainEpilogue epilogue{p.bias};
  convolve_channel<T, Size, GroupRows, Tiles, Whole>(p, tiling, input_alignment, output_alignment,
                                                     epilogue, false, nullptr);
}

// Forward pass with activation, normalisation and residual.
template <class T, int Size, int GroupRows, int Tiles, bool Whole>
__global__ void __launch_bounds__(32 * most_warps,
                                  compiled_tuning.forward_blocks(Size, Tiles, Whole))
    depthwise_forward_fused(FusedForwardArguments p, Tiling tiling, int input_alignment,
                            int output_alignment) {
  FusedEpilogue epilogue{p.bias, p.normalisation, p.activation};
  convolve_channel<T, Size, GroupRows, Tiles, Whole>(p, tiling, input_alignment, output_alignment,
                                                     epilogue, p.residual, p.added);
}

// Forward pass with the moments of its activation.
template <class T, int Size, int GroupRows, int Tiles>
__global__ void __launch_bounds__(32 * most_warps,
                                  compiled_tuning.forward_blocks(Size, Tiles, true))
    depthwise_forward_moments(MomentsForwardArguments p, Tiling tiling, int input_alignment,
                              int output_alignment) {
  MomentsEpilogue epilogue{p.bias, p.activation, p.moments, p.shape};
  convolve_channel<T, Size, GroupRows, Tiles, true>(p, tiling, input_alignment, output_alignment,
                                                    epilogue, false, nullptr);
}

// ---- the table -----------------------------------------------------------------------------------

template <int Size>
void add_kernels(KernelTable<ForwardKernels>& table) {
  const auto add = [&](auto element, ElementType type) {
    using T = decltype(element);
    each_tile([&](auto group_rows, auto tiles) {
      constexpr TileShape tile{group_rows, tiles};
      const auto shared_bytes = ForwardBlock<Size, group_rows, tiles>::shared_bytes;
      table.add({{{type, tile, false}, shared_bytes},
                 depthwise_forward<T, Size, group_rows, tiles, false>,
                 depthwise_forward_fused<T, Size, group_rows, tiles, false>,
                 nullptr});
      if constexpr (is_whole(tile))
        table.add({{{type, tile, true}, shared_bytes},
                   depthwise_forward<T, Size, group_rows, tiles, true>,
                   depthwise_forward_fused<T, Size, group_rows, tiles, true>,
                   depthwise_forward_moments<T, Size, group_rows, tiles>});
    });
  };
  add(__half(), ElementType::half);
  add(__nv_bfloat16(), ElementType::bfloat16);
}

COMPILE_FOR_SIZES(ForwardKernels)

}  // namespace depthwise
