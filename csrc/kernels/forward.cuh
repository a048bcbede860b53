// Forward pass and input gradient of contiguous planes: "rows as M". Each warp owns a channel and
// works through a share of its items with the bands in registers, without a barrier beyond the warp.
#pragma once
#include "core/epilogue.cuh"
#include "core/staging_contiguous.cuh"

namespace depthwise {

template <int Size, int Step, int Tiles>
struct ForwardLayout {
  static constexpr int pad = Size / 2, stages = 2;
  using Rows = ItemLayout<Step, 8 * Tiles>;

  // Rows of a job's outputs in the input, below the halo.
  struct Inner {
    __device__ static constexpr int at(int row, int column) { return Rows::at(pad + row, column); }
  };

  __host__ __device__ static constexpr int input_elements(int groups) {
    return stages * Rows::elements(groups, 2 * pad);
  }
  // The filter passes through the output buffer first.
  __host__ __device__ static constexpr int output_elements(int groups) {
    const int output = Rows::elements(groups, 0);
    const int filter = (Bands<__half, Size, Tiles>::scratch_elements + 7) / 8 * 8;
    return output > filter ? output : filter;
  }
  template <class T>
  static constexpr size_t shared_bytes(int warps, int groups) {
    return device::SharedMemory::bytes<T>(size_t(warps * input_elements(groups))) +
           device::SharedMemory::bytes<T>(size_t(warps * output_elements(groups)));
  }
};

// What a warp does, between the places where kernels differ: `epilogue` takes the sums, `residual`
// says whether it gets to see the input beside them. Given `added`, a tensor of the output's strides,
// the sums plus that tensor are written instead.
template <class T, int Size, int Step, int Tiles, bool Whole, class Epilogue>
__device__ __forceinline__ void convolve_channel(const ForwardArguments& p, Tiling tiling,
                                                 int input_alignment, int output_alignment,
                                                 Epilogue& epilogue, bool residual,
                                                 const void* added) {
  using Layout = ForwardLayout<Size, Step, Tiles>;
  using Rows = typename Layout::Rows;
  constexpr int pad = Layout::pad, ahead = Epilogue::rows_ahead(Size, Tiles);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warps = int(blockDim.x) / 32;
  if constexpr (Whole) tiling = whole_tiling(8 * Tiles / Step, tiling.items);
  const int groups = 1 << tiling.groups_log2;
  const int input_pitch = Rows::image(groups, 2 * pad), output_pitch = Rows::image(groups, 0);
  const int stage_elements = Rows::elements(groups, 2 * pad);
  const int input_elements = Layout::input_elements(groups);
  const int output_elements = Layout::output_elements(groups);

  device::SharedMemory memory;
  T* const input = memory.take<T>(size_t(warps * input_elements)) + warp * input_elements;
  T* const output = memory.take<T>(size_t(warps * output_elements)) + warp * output_elements;

  const int channel = int(blockIdx.x) * warps + warp;
  if (channel >= p.shape.channels) return;
  const int first = int(int64_t(tiling.items) * blockIdx.y / gridDim.y);
  const int last = int(int64_t(tiling.items) * (blockIdx.y + 1) / gridDim.y);

  clear(input, input_elements, lane);
  Bands<T, Size, Tiles> bands;
  bands.load(static_cast<const T*>(p.weight) + ptrdiff_t(channel) * p.filter_size * p.filter_size,
             p.filter_size, p.flipped, reinterpret_cast<unsigned short*>(output), lane);
  auto take = epilogue.of(channel);
  const int rows = Rows::job(lane % 16, tiling.groups_log2, input_pitch) + lane / 16 * 8;
  T* const first_job = output + Rows::job(lane / 4, tiling.groups_log2, output_pitch);
  T* const second_job = output + Rows::job(lane / 4 + 8, tiling.groups_log2, output_pitch);

  const Planes<const T> source{static_cast<const T*>(p.input),
                               static_cast<const T*>(p.input) + channel * p.input_strides.channel,
                               p.input_strides.image, input_alignment};
  const Planes<T> target{static_cast<T*>(p.output),
                         static_cast<T*>(p.output) + channel * p.output_strides.channel,
                         p.output_strides.image, output_alignment};
  Reader<T, Step, Tiles, Rows, pad, 0, Whole> reader(source, first, p.shape, tiling, input_pitch);
  Writer<T, Step, Tiles, Rows, Whole> writer(target, first, p.shape, tiling, output_pitch);
  // Below low planes nothing to be added is ever fetched.
  if constexpr (Epilogue::adds) clear(output, output_elements, lane);

  for (int number = first - 1, stage = 1; number < last; ++number, stage ^= 1) {
    if constexpr (Epilogue::adds) {
      if (added && number >= first) {
        // The outputs of the item before leave from the same place.
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
    const T* const here = input + stage * stage_elements;
    float sum[Step][Tiles][4] = {};
    multiply<T, Size, Step, Tiles, Rows, false, ahead>(sum, here + rows, bands, lane);
    const Residual<T, typename Layout::Inner> own{
        {here + Rows::job(lane / 4, tiling.groups_log2, input_pitch),
         here + Rows::job(lane / 4 + 8, tiling.groups_log2, input_pitch)},
        residual};
    if (!Epilogue::adds || added == nullptr) {
      take.template operator()<T, Size, Rows>(first_job, second_job, sum, own, number, lane);
    } else if constexpr (Epilogue::adds) {
      device::copy_wait<1>();
      __syncwarp();
      write_sums_with<T, Size, Rows>(Residual<T, Rows>{{first_job, second_job}, true}, first_job,
                                     second_job, sum, lane);
    }
    __syncwarp();
    writer.store_next(output, lane);
  }
  take.finish(lane);
}

// Grid: x counts channels by the warps of a block, y shares of the items. With Whole, planes are
// those of WholePlane and everything is aligned to 16 bytes.
template <class T, int Size, int Step, int Tiles, bool Whole>
__global__ void __launch_bounds__(32 * most_warps, forward_blocks(Size, Tiles, Whole))
    depthwise_forward(ForwardArguments p, Tiling tiling, int input_alignment,
                      int output_alignment) {
  BiasEpilogue epilogue{p.bias};
  convolve_channel<T, Size, Step, Tiles, Whole>(p, tiling, input_alignment, output_alignment,
                                                epilogue, false, nullptr);
}

// The same with activation, normalisation and residual.
template <class T, int Size, int Step, int Tiles, bool Whole>
__global__ void __launch_bounds__(32 * most_warps, forward_blocks(Size, Tiles, Whole))
    depthwise_forward_fused(FusedForwardArguments p, Tiling tiling, int input_alignment,
                            int output_alignment) {
  FusedEpilogue epilogue{p.bias, p.normalisation, p.activation};
  convolve_channel<T, Size, Step, Tiles, Whole>(p, tiling, input_alignment, output_alignment,
                                                epilogue, p.residual, p.added);
}

// The same with the moments of what it writes.
template <class T, int Size, int Step, int Tiles>
__global__ void __launch_bounds__(32 * most_warps, forward_blocks(Size, Tiles, true))
    depthwise_forward_moments(MomentsForwardArguments p, Tiling tiling, int input_alignment,
                              int output_alignment) {
  MomentsEpilogue epilogue{p.bias, p.activation, p.moments, p.shape};
  convolve_channel<T, Size, Step, Tiles, true>(p, tiling, input_alignment, output_alignment,
                                               epilogue, false, nullptr);
}

}  // namespace depthwise
