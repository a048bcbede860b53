// Backward pass of convolution, bias, activation, normalisation and residual in one kernel, for whole
// planes. The gradient of the convolution's value stays in shared memory: it is formed there from the
// output gradient and the saved value, multiplied with the turned filter (output rows as M) to give the
// input gradient, and with the input (rows as K) to give the weight gradient. For the latter, input and
// gradient change roles, since it is the gradient that has a halo there; the filter comes out turned by
// half a turn.
#include "core/epilogue.cuh"
#include "core/staging_contiguous.cuh"
#include "host/launch.h"

namespace depthwise {

// With WithWeight, the kernel also gives the gradients of weight and bias.
template <int Size, int GroupRows, int Tiles, bool WithWeight>
struct BackwardBlock {
  static constexpr int pad = Size / 2, stages = 2;
  using Sums = DiagonalSums<__half, Size, Tiles>;
  static constexpr int shift = Sums::input_shift;
  using Haloed = ItemRows<GroupRows, 8 * Sums::input_chunks>;  // the gradient of the value
  using Rows = ItemRows<GroupRows, 8 * Tiles>;                 // what is staged

  __host__ __device__ static constexpr int staged_elements(int groups) {
    return Rows::elements(groups, 0);
  }
  __host__ __device__ static constexpr int stage_elements(int groups) {
    return (WithWeight ? 3 : 2) * staged_elements(groups);
  }
  // This buffer also serves to load the filter and to store the sums.
  __host__ __device__ static constexpr int haloed_elements(int groups) {
    int most = Haloed::elements(groups, 2 * pad);
    for (const int other :
         {(Bands<__half, Size, Tiles>::scratch_elements + 7) / 8 * 8, 2 * Sums::scratch_floats})
      if (other > most) most = other;
    return most;
  }
  static constexpr size_t shared_bytes(int warps, int groups) {
    return device::SharedMemory::bytes<__half>(size_t(warps * stages * stage_elements(groups))) +
           device::SharedMemory::bytes<__half>(size_t(warps * haloed_elements(groups)));
  }
};

// Grid: x counts channels by the warps of a block, y splits of the items. Everything is aligned to 16
// bytes.
template <class T, int Size, int GroupRows, int Tiles, bool WithWeight>
__global__ void __launch_bounds__(32 * most_warps,
                                  compiled_tuning.backward_blocks(Size, WithWeight))
    depthwise_backward(BackwardArguments p, Tiling tiling) {
  using Block = BackwardBlock<Size, GroupRows, Tiles, WithWeight>;
  using Haloed = typename Block::Haloed;
  using Rows = typename Block::Rows;
  using Plane = WholePlane<GroupRows, Tiles, Rows>;
  using HaloedPlane = WholePlane<GroupRows, Tiles, Haloed>;
  using Sums = DiagonalSums<T, Size, Tiles>;
  constexpr int pad = Block::pad, groups = Plane::groups;
  constexpr int ahead = Size <= 9 ? 2 : 1;
  constexpr int staged_elements = Block::staged_elements(groups);
  constexpr int stage_elements = Block::stage_elements(groups);
  constexpr int haloed_elements = Block::haloed_elements(groups);
  constexpr int pitch = Rows::image(groups, 0), haloed_pitch = Haloed::image(groups, 2 * pad);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warps = int(blockDim.x) / 32;
  tiling = whole_tiling(groups, tiling.items);

  device::SharedMemory memory;
  T* const stages = memory.take<T>(size_t(warps * Block::stages * stage_elements)) +
                    warp * Block::stages * stage_elements;
  T* const haloed = memory.take<T>(size_t(warps * haloed_elements)) + warp * haloed_elements;

  const int channel = int(blockIdx.x) * warps + warp;
  if (channel >= p.shape.channels) return;
  const auto [first, last] = device::range_of_split(tiling.items);

  Bands<T, Size, Tiles> bands;
  bands.load(static_cast<const T*>(p.weight) + ptrdiff_t(channel) * p.filter_size * p.filter_size,
             p.filter_size, true, reinterpret_cast<unsigned short*>(haloed), lane);
  clear(haloed, haloed_elements, lane);

  // Addresses are computed from the number of each item: pointers that go along with the items would
  // take, for five tensors, as many registers as a filter.
  const auto fetch = [&](T* to, const void* tensor, const Strides& strides, int number) {
    const auto planes = planes_of<const T>(tensor, strides, channel, 8);
    Reader<T, GroupRows, Tiles, Rows, 0, 0, true>(planes, number, p.shape, tiling, pitch, lane)
        .fetch_next(to, lane);
  };
  const auto store = [&](void* tensor, const Strides& strides, const T* from, int number) {
    const auto planes = planes_of<T>(tensor, strides, channel, 8);
    Writer<T, GroupRows, Tiles, Rows, true>(planes, number, p.shape, tiling, pitch, lane)
        .store_next(from, lane);
  };

  const GradientOfValue value_gradient(
      p.normalisation, p.gradient_sums, channel,
      device::reciprocal(__ldg(p.normalisation.count() + channel)));
  Sums sums;
  float bias = 0;
  for (int number = first - 1, stage = 1; number < last; ++number, stage ^= 1) {
    if (number + 1 < last) {
      T* const to = stages + (stage ^ 1) * stage_elements;
      fetch(to, p.value, p.value_strides, number + 1);
      fetch(to + staged_elements, p.output_gradient, p.output_gradient_strides, number + 1);
      if constexpr (WithWeight)
        fetch(to + 2 * staged_elements, p.input, p.input_strides, number + 1);
    }
    device::copy_commit();
    if (number < first) continue;
    device::copy_wait<1>();
    __syncwarp();
    const int lane_in_loop = device::keep_in_loop(lane);
    T* const value = stages + stage * stage_elements;
    const T* const gradient = value + staged_elements;

    with_activation(p.activation, [&](auto activate) {
      const Plane from(0, pitch, lane_in_loop);
      const HaloedPlane to(pad, haloed_pitch, lane_in_loop);
      const int left = p.shape.images - number * Plane::images - from.image;
      HaloedPlane::each_chunk(haloed_pitch, [&](int image, int in_plane, int in_shared) {
        // The formula does not give zero for an image that does not exist.
        const bool exists = Plane::images == 1 || image < left;
        const int at =
            from.in_shared + image * pitch + in_plane / 8 / Tiles / GroupRows * Rows::group_pitch;
        const uint4 c = *reinterpret_cast<const uint4*>(value + at);
        const uint4 g = *reinterpret_cast<const uint4*>(gradient + at);
        const uint32_t cs[4] = {c.x, c.y, c.z, c.w}, gs[4] = {g.x, g.y, g.z, g.w};
        uint32_t word[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 v = device::unpack<T>(cs[i]), d = device::unpack<T>(gs[i]);
          const float low = exists ? value_gradient(activate, v.x, d.x) : 0.f;
          const float high = exists ? value_gradient(activate, v.y, d.y) : 0.f;
          bias += low, bias += high;
          word[i] = device::pack<T>(low, high);
        }
        T* const target = haloed + to.in_shared + in_shared + Block::shift;
        if constexpr (Block::shift % 8 == 0) {
          device::store_shared(target, make_uint4(word[0], word[1], word[2], word[3]));
        } else {
          device::store_shared(target, make_uint2(word[0], word[1]));
          device::store_shared(target + 4, make_uint2(word[2], word[3]));
        }
        // The value is not needed any more: both gradients, one after the other, leave from its buffer.
        if (p.value_gradient)
          device::store_shared(value + at, make_uint4(word[0], word[1], word[2], word[3]));
      });
    });
    __syncwarp();
    if (p.value_gradient) {
      store(p.value_gradient, p.value_gradient_strides, value, number);
      __syncwarp();
    }

    float accumulator[GroupRows][Tiles][4] = {};
    multiply<T, Size, GroupRows, Tiles, Haloed, true, ahead>(
        accumulator,
        haloed + Haloed::group_at(lane_in_loop % 16, tiling.groups_log2, haloed_pitch) +
            lane_in_loop / 16 * 8,
        bands, lane_in_loop);
    if (p.residual)
      add_residual<T, Size, Rows, Block::shift != 0>(
          accumulator,
          gradient + Rows::group_at(lane_in_loop % 16, tiling.groups_log2, pitch) +
              lane_in_loop / 16 * 8,
          lane_in_loop);
    store_accumulators<T, Size, Rows, Block::shift != 0>(
        value + Rows::group_at(lane_in_loop / 4, tiling.groups_log2, pitch),
        value + Rows::group_at(lane_in_loop / 4 + 8, tiling.groups_log2, pitch), accumulator,
        lane_in_loop);
    __syncwarp();
    store(p.input_gradient, p.input_gradient_strides, value, number);

    if constexpr (WithWeight) {
      uint32_t columns[GroupRows][Tiles][2];
      load_gradient<Rows>(
          columns,
          gradient + staged_elements + Rows::group_at(lane_in_loop % 16, tiling.groups_log2, pitch),
          lane_in_loop);
      sums.template multiply<GroupRows, ahead, Haloed>(
          columns,
          haloed +
              Haloed::group_at(lane_in_loop % 8 + lane_in_loop / 16 * 8, tiling.groups_log2,
                               haloed_pitch) +
              lane_in_loop / 8 % 2 * 8,
          haloed + Haloed::group_at(lane_in_loop % 16, tiling.groups_log2, haloed_pitch));
    }
    // The next item overwrites this stage.
    __syncwarp();
  }
  if constexpr (WithWeight) {
    const ptrdiff_t sum_number = ptrdiff_t(blockIdx.y) * p.shape.channels + channel;
    sums.template store<true>(p.weight_sums + sum_number * p.filter_size * p.filter_size,
                              p.filter_size, reinterpret_cast<float*>(haloed), lane);
  }
#pragma unroll
  for (int by = 16; by > 0; by /= 2) bias += __shfl_xor_sync(~0u, bias, by);
  if (p.bias_sums && lane == 0)
    p.bias_sums[ptrdiff_t(blockIdx.y) * p.shape.channels + channel] = bias;
}

template <int Size>
void add_kernels(KernelTable<BackwardKernels>& table) {
  const auto add = [&](auto element, ElementType type) {
    using T = decltype(element);
    each_tile([&](auto group_rows, auto tiles) {
      constexpr TileShape tile{group_rows, tiles};
      const auto add_one = [&](auto with_weight) {
        table.add({{{type, tile, with_weight},
                    BackwardBlock<Size, group_rows, tiles, with_weight>::shared_bytes},
                   depthwise_backward<T, Size, group_rows, tiles, with_weight>});
      };
      if constexpr (is_whole(tile)) {
        add_one(std::false_type());
        if constexpr (backward_with_weight(Size)) add_one(std::true_type());
      }
    });
  };
  add(__half(), ElementType::half);
  add(__nv_bfloat16(), ElementType::bfloat16);
}

COMPILE_FOR_SIZES(BackwardKernels)

}  // namespace depthwise
