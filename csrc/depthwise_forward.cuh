// Forward pass and input gradient: "rows as M". Each warp owns a channel and works through a share
// of its items with the bands in registers, without a barrier beyond the warp.
#pragma once
#include "epilogue.cuh"
#include "staging_contiguous.cuh"
#include "toeplitz.cuh"

namespace depthwise {

template <int Size, int Step, int Tiles>
struct ForwardLayout {
  static constexpr int stages = 2;
  using Input = ItemLayout<Step, 8 * (Tiles + Window<Size>::chunks - 1)>;
  using Output = ItemLayout<Step, 8 * Tiles>;

  __host__ __device__ static constexpr int input_elements(int groups) {
    return stages * Input::elements(groups, Size - 1);
  }
  // The filter passes through the output buffer first.
  template <class T>
  __host__ __device__ static constexpr int output_elements(int groups) {
    const int output = Output::elements(groups, 0), filter = Bands<T, Size>::scratch_elements;
    return output > filter ? output : (filter + 7) / 8 * 8;
  }
  template <class T>
  static constexpr size_t shared_bytes(int warps, int groups) {
    return device::SharedMemory::bytes<T>(size_t(warps * input_elements(groups))) +
           device::SharedMemory::bytes<T>(size_t(warps * output_elements<T>(groups)));
  }
};

// Registers: sums and bands are 32 + 18 at size 9 and 32 + 45 at 15.
constexpr int forward_blocks(int size) { return size <= 9 ? 4 : 3; }

// Grid: x counts channels by the warps of a block, y shares of the items.
template <class T, int Size, int Step, int Tiles>
__global__ void __launch_bounds__(32 * most_warps, forward_blocks(Size))
depthwise_forward(ForwardArguments p, Tiling tiling, int input_alignment, int output_alignment) {
  using Layout = ForwardLayout<Size, Step, Tiles>;
  using Input = typename Layout::Input;
  using Output = typename Layout::Output;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warps = int(blockDim.x) / 32;
  const int groups = 1 << tiling.groups_log2;
  const int input_pitch = Input::image(groups, Size - 1), output_pitch = Output::image(groups, 0);
  const int stage_elements = Input::elements(groups, Size - 1);
  const int input_elements = Layout::input_elements(groups);
  const int output_elements = Layout::template output_elements<T>(groups);

  device::SharedMemory memory;
  T* const input = memory.take<T>(size_t(warps * input_elements)) + warp * input_elements;
  T* const output =
      memory.take<T>(size_t(warps * output_elements)) + warp * output_elements;

  const int channel = int(blockIdx.x) * warps + warp;
  if (channel >= p.shape.channels) return;
  const T* const source = static_cast<const T*>(p.input) + channel * p.input_strides.channel;
  T* const target = static_cast<T*>(p.output) + channel * p.output_strides.channel;
  const int first = int(int64_t(tiling.items) * blockIdx.y / gridDim.y);
  const int last = int(int64_t(tiling.items) * (blockIdx.y + 1) / gridDim.y);

  const auto fetch = [&](int number, int stage) {
    if (number < last) {
      const Item item(number, tiling, Step, 8 * Tiles);
      fetch_item<Input, Window<Size>::shift>(
          input + stage * stage_elements, source, p.input_strides.image, item,
          item.top - Window<Size>::pad, item.left - Window<Size>::shift, groups * Step + Size - 1,
          p.shape, tiling, input_pitch, input_alignment, lane);
    }
    device::copy_commit();
  };
  Bands<T, Size> bands;
  bands.load(static_cast<const T*>(p.weight) + ptrdiff_t(channel) * p.filter_size * p.filter_size,
             p.filter_size, p.flipped, reinterpret_cast<unsigned short*>(output), lane);
  const float bias = p.bias ? p.bias[channel] : 0.f;
  const int rows = Input::job(lane % 16, tiling.groups_log2, input_pitch) + lane / 16 * 8;

  for (int number = first - 1, stage = 1; number < last; ++number, stage ^= 1) {
    fetch(number + 1, stage ^ 1);
    if (number < first) continue;
    device::copy_wait<1>();
    __syncwarp();
    float sum[Step][Tiles][4] = {};
    multiply<T, Size, Step, Tiles, Input>(sum, input + stage * stage_elements + rows, bands, lane);
    finish<T, Step, Tiles, Output>(output, sum, bias, tiling.groups_log2, output_pitch, lane);
    __syncwarp();
    const Item item(number, tiling, Step, 8 * Tiles);
    store_item<Output, Step, Tiles>(target, p.output_strides.image, output, item, p.shape, tiling,
                                    output_pitch, output_alignment, lane);
    // The next item overwrites both buffers.
    __syncwarp();
  }
  device::copy_wait<0>();
}

}  // namespace depthwise
