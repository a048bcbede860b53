// The kernels that are compiled, as tables, and their launches.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <iterator>
#include <type_traits>
#include <utility>

#include "arguments.h"
#include "core/tiles.h"
#include "host/plan.h"

namespace device {

// Starts a kernel on a stream, given the address of each of its parameters. Returns what CUDA says to
// the launch: cudaErrorInvalidValue for more shared memory than a block can have,
// cudaErrorInvalidConfiguration for an empty or too large grid or block.
cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, void** parameters);

// Does the same with arguments, which are converted to the kernel's parameters.
template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, std::type_identity_t<Parameters>... arguments) {
  void* parameters[] = {&arguments...};
  return launch(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, stream,
                parameters);
}

// Lets a kernel have as much dynamic shared memory as a block of the current device can. The
// permission belongs to the kernel, not to a launch: it is given once and never lowered, since other
// threads may be launching the kernel with more.
cudaError_t allow_shared_memory(const void* kernel);

// Says whether the current device has code of a kernel: cudaErrorNoKernelImageForDevice where it was
// built for others.
cudaError_t find_code(const void* kernel);

}  // namespace device

namespace depthwise {

template <int Value>
using Constant = std::integral_constant<int, Value>;

// ---- tables of kernels ---------------------------------------------------------------------------

// The choices that are made when a kernel is compiled, beside its filter size. `option` is of planes 1
// for kernels that take whole planes only; in the backward pass, 1 for those that give the weight
// gradient; of channels-last tensors, the channels of a block.
struct Variant {
  ElementType type;
  TileShape tile;
  int option;
};
constexpr bool operator==(const Variant& a, const Variant& b) {
  return a.type == b.type && a.tile == b.tile && a.option == b.option;
}

// Kernels that divide the channels among warps.
template <class Arguments, class... Parameters>
using PlaneKernel = void (*)(Arguments, Tiling, Parameters...);

struct PlaneBlock {
  Variant variant;
  size_t (*shared_bytes)(int warps, int groups);
};
struct ForwardKernels : PlaneBlock {
  PlaneKernel<ForwardArguments, int, int> plain;
  PlaneKernel<FusedForwardArguments, int, int> fused;
  PlaneKernel<MomentsForwardArguments, int, int> moments;  // null unless for whole planes

  auto of(const ForwardArguments&) const { return plain; }
  auto of(const FusedForwardArguments&) const { return fused; }
  auto of(const MomentsForwardArguments&) const { return moments; }
};
struct WeightGradientKernels : PlaneBlock {
  PlaneKernel<WeightGradientArguments, int, int> kernel;
};
struct BackwardKernels : PlaneBlock {
  PlaneKernel<BackwardArguments> kernel;
};

// Kernels that divide the sections of channels-last images among blocks.
template <class Arguments, class Staged>
using SectionKernel = void (*)(Arguments, Tiling, Staged, bool, bool);

template <class AnyStaged>
struct SectionBlock {
  Variant variant;
  int warps;
  size_t most_shared_bytes;
  size_t (*shared_bytes)(const Tiling&);
  AnyStaged (*staged)(const Tiling&);
};

// Takes the numbers of a block from `Block`, the class that its kernel is written with.
template <class Block>
auto channels_last_block(const Variant& variant) {
  using AnyStaged = decltype(Block::staged({}));
  static_assert(Block::shared_bytes({4, 2, 1, 1}) <= Block::most_shared_bytes);
  return SectionBlock<AnyStaged>{variant, Block::warps, Block::most_shared_bytes,
                                 Block::shared_bytes, Block::staged};
}

struct ChannelsLastForwardKernels : SectionBlock<Staged> {
  SectionKernel<ChannelsLastForwardArguments, Staged> plain;
  SectionKernel<ChannelsLastFusedForwardArguments, Staged> fused;

  auto of(const ChannelsLastForwardArguments&) const { return plain; }
  auto of(const ChannelsLastFusedForwardArguments&) const { return fused; }
};
struct ChannelsLastWeightGradientKernels : SectionBlock<StagedGradient> {
  SectionKernel<ChannelsLastWeightGradientArguments, StagedGradient> kernel;
};

// Room for all kernels of a family with one filter size.
template <class Kernels>
struct KernelTable {
  Kernels rows[4 * tile_shape_count];  // two element types with two options
  int count = 0;

  void add(const Kernels& row) { rows[count++] = row; }
  const Kernels* find(const Variant& variant) const {
    for (int i = 0; i < count; ++i)
      if (rows[i].variant == variant) return rows + i;
    return nullptr;
  }
};

// These add the kernels for an odd filter size to a table. They are defined beside the kernels, in
// kernels/*.cu, at the end of which COMPILE_FOR_SIZES compiles them for the sizes that the build names.
template <int Size>
void add_kernels(KernelTable<ForwardKernels>&);
template <int Size>
void add_kernels(KernelTable<WeightGradientKernels>&);
template <int Size>
void add_kernels(KernelTable<BackwardKernels>&);
template <int Size>
void add_kernels(KernelTable<ChannelsLastForwardKernels>&);
template <int Size>
void add_kernels(KernelTable<ChannelsLastWeightGradientKernels>&);

#if defined(SECOND_SIZE)
#define COMPILE_FOR_SIZES(Kernels)                              \
  template void add_kernels<FIRST_SIZE>(KernelTable<Kernels>&); \
  template void add_kernels<SECOND_SIZE>(KernelTable<Kernels>&);
#elif defined(FIRST_SIZE)
#define COMPILE_FOR_SIZES(Kernels) template void add_kernels<FIRST_SIZE>(KernelTable<Kernels>&);
#else
#define COMPILE_FOR_SIZES(Kernels)
#endif

// Calls visit(zero of the type, its number) for each type of elements.
template <class Visit>
void each_element_type(Visit visit) {
  visit(__half(), ElementType::half);
  visit(__nv_bfloat16(), ElementType::bfloat16);
}

// Calls visit(Constant<group_rows>, Constant<tiles>) for each tile of a table.
template <const auto& shapes = tile_shapes, class Visit>
void each_tile(Visit visit) {
  [&]<size_t... I>(std::index_sequence<I...>) {
    (visit(Constant<shapes[I].group_rows>(), Constant<shapes[I].tiles>()), ...);
  }(std::make_index_sequence<std::size(shapes)>());
}

// The chips that the kernels are compiled for, with the least and with the most shared memory. PTX runs on
// any chip; machine code alone, as the build tells, on those of its generations.
struct ChipRange {
  Chip low, high;
};
constexpr ChipRange compiled_chips() {
  ChipRange range{{0, 0, 0}, {0, INT32_MAX, 0}};
#ifdef MACHINE_CODE_ONLY
  range = {range.high, range.low};
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    const Tuning& tuning = tuning_of(architecture / 10);
    const int least = tuning.least_shared_kilobytes << 10;
    const int most = tuning.most_shared_kilobytes << 10;
    if (least < range.low.shared_bytes) range.low.shared_bytes = least;
    if (most > range.high.shared_bytes) range.high.shared_bytes = most;
  }
#endif
  return range;
}

// Calls visit(Constant<group_rows>, Constant<tiles>, Constant<channels>) for every block that
// channels_last_tile chooses on some of these chips.
template <int Size, Pass pass, class Visit>
void each_channels_last_tile(Visit visit) {
  each_tile([&](auto, auto tiles) {
    constexpr ChipRange chips = compiled_chips();
    constexpr ChannelsLastTile low = channels_last_tile(8 * tiles, Size, pass, chips.low);
    constexpr ChannelsLastTile high = channels_last_tile(8 * tiles, Size, pass, chips.high);
    static_assert(low.tile.tiles == tiles && high.tile.tiles == tiles);
    if constexpr (!(low == high))
      visit(Constant<low.tile.group_rows>(), tiles, Constant<low.channels>());
    visit(Constant<high.tile.group_rows>(), tiles, Constant<high.channels>());
  });
}

// ---- launches ------------------------------------------------------------------------------------

// The number of warps of a block, each with a channel, that find room in shared memory.
constexpr int fitting_warps(size_t (*shared_bytes)(int warps, int groups), int groups) {
  int warps = most_warps;
  while (warps > 1 && shared_bytes(warps, groups) > most_shared_bytes) warps /= 2;
  return warps;
}

template <class Arguments, class... Parameters>
cudaError_t launch_by_channels(const PlaneBlock& block,
                               PlaneKernel<Arguments, Parameters...> kernel, const Plan& plan,
                               cudaStream_t stream, const Arguments& arguments,
                               Parameters... parameters) {
  const int groups = 1 << plan.tiling.groups_log2;
  const int warps = fitting_warps(block.shared_bytes, groups);
  const dim3 grid(unsigned(divide_up(arguments.shape.channels, warps)), unsigned(plan.splits));
  return device::launch(kernel, grid, unsigned(32 * warps), block.shared_bytes(warps, groups),
                        stream, arguments, plan.tiling, parameters...);
}

// Low and wide images: fewer of them are in an item than could be, where their halo would not fit.
template <class AnyStaged>
constexpr Tiling fitting_tiling(const SectionBlock<AnyStaged>& block, Tiling tiling) {
  while (tiling.groups_log2 < 4 && block.shared_bytes(tiling) > block.most_shared_bytes)
    ++tiling.groups_log2;
  return tiling;
}

template <class Arguments, class AnyStaged>
cudaError_t launch_by_sections(const SectionBlock<AnyStaged>& block,
                               SectionKernel<Arguments, AnyStaged> kernel, const Plan& plan,
                               cudaStream_t stream, const Arguments& arguments, bool in_units,
                               bool other_in_units) {
  const Tiling tiling = fitting_tiling(block, plan.tiling);
  const int64_t blocks =
      divide_up(arguments.shape.channels, block.variant.option) * sections(tiling);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return device::launch(kernel, dim3(unsigned(blocks), unsigned(plan.splits)),
                        unsigned(32 * block.warps), block.shared_bytes(tiling), stream, arguments,
                        tiling, block.staged(tiling), in_units, other_in_units);
}

// ---- filters of up to 31 x 31 ----------------------------------------------------------------------

cudaError_t launch_forward_large(const LargeForwardArguments&, ElementType, const Plan&,
                                 cudaStream_t);
cudaError_t launch_weight_gradient_large(const LargeWeightGradientArguments&, ElementType,
                                         const Plan&, cudaStream_t);

// ---- other kernels -------------------------------------------------------------------------------

// sums[i] = partial_sums[0][i] + partial_sums[1][i] + ..., in this order and in float32, then rounded.
template <class Element>
cudaError_t launch_add_splits(Element* sums, const float* partial_sums, int splits,
                              ptrdiff_t elements, cudaStream_t);

cudaError_t launch_elementwise(ElementwisePass, const ElementwiseArguments&, ElementType,
                               bool channels_last, const ElementwisePlan&, cudaStream_t);

// Merges [parts][3][channel] to [3][channel].
cudaError_t launch_merge_moments(const float* moments, int parts, int channels, float* merged,
                                 cudaStream_t);

// Makes a normalisation of moments or, where these are null, of the running statistics.
cudaError_t launch_normalisation(const NormalisationArguments&, cudaStream_t);

// Makes the gradients of scale and shift of the sums [2][channel] of BackwardArguments; either may be null.
cudaError_t launch_affine_gradients(const float* gradient_sums, const Normalisation&, float* gamma,
                                    float* beta, cudaStream_t);

// Says whether the current device and its driver take the kernels of this build.
cudaError_t find_kernels();

}  // namespace depthwise
