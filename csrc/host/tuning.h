// The choices that can be tuned for a GPU generation, the values that hold for all, and the table of the
// generations. Kernels are compiled with the launch bounds of their generation, and the planner counts
// waves of blocks by them.
#pragma once
#include <cstddef>

namespace depthwise {

enum class Pass { forward, weight_gradient, backward };

// One kernel gives the gradients of input and weight up to this size. In registers it holds bands,
// input gradient and weight sums, 18 + 32 + 36 at size 9; at size 13, 39 + 32 + 80 leave no room for
// what is on its way, and the weight gradient takes a pass of its own.
constexpr bool backward_with_weight(int size) { return size <= 11; }

// ---- channels last: what a block is --------------------------------------------------------------

// Warps of a block: one a channel, or one for two channels where registers hold both filters.
constexpr int block_warps(int size, int channels, Pass pass) {
  return pass == Pass::forward && size <= 9 ? 8 : channels;
}

// ---- blocks that a multiprocessor runs at a time --------------------------------------------------
//
// Registers decide.

namespace common {

// Accumulators and bands alone are 32 + 18 at size 9 and 32 + 45 at size 15.
constexpr int forward_blocks(int size, int tiles, bool whole) {
  return size <= 9 && (whole || tiles <= 2) ? 4 : size > 9 && tiles > 4 ? 2 : 3;
}

// With 3, 6 and 7 tiles, 168 registers do not hold the sums of larger sizes and what is on its way.
constexpr int weight_gradient_blocks(int size, int tiles) {
  return size >= 9 && (tiles == 3 || tiles > 4) ? 2 : 3;
}

constexpr int backward_blocks(int size, bool with_weight) {
  return size > 9 ? 2 : with_weight ? 3 : 4;
}

// Two of eight warps wherever 128 registers are enough, as the compilers' reports say, and one of 16.
constexpr int channels_last_forward_blocks(int size, int tiles, int channels) {
  if (size <= 9) return 2;
  return channels == 8 && ((size >= 13 && tiles <= 2) || (size == 15 && tiles == 4)) ? 2 : 1;
}

// One block for size 15 and 4 tiles: the plain kernel needs all of 128 registers there.
constexpr int channels_last_fused_forward_blocks(int size, int tiles, int channels) {
  return size == 15 && tiles == 4 ? 1 : channels_last_forward_blocks(size, tiles, channels);
}

constexpr int channels_last_weight_gradient_blocks(int size, int tiles, int channels) {
  return channels == 8 && (size < 9 || (size == 9 && tiles != 3)) ? 2 : 1;
}

}  // namespace common

// ---- GPU generations -----------------------------------------------------------------------------

// The choices for one generation: those above, where its row of the table does not name others.
struct Tuning {
  int capability;  // the least compute capability, ten times it: 80 for 8.0

  int (*forward_blocks)(int size, int tiles, bool whole) = common::forward_blocks;
  int (*weight_gradient_blocks)(int size, int tiles) = common::weight_gradient_blocks;
  int (*backward_blocks)(int size, bool with_weight) = common::backward_blocks;
  int (*channels_last_forward_blocks)(int size, int tiles,
                                      int channels) = common::channels_last_forward_blocks;
  int (*channels_last_fused_forward_blocks)(int size, int tiles, int channels) =
      common::channels_last_fused_forward_blocks;
  int (*channels_last_weight_gradient_blocks)(int size, int tiles, int channels) =
      common::channels_last_weight_gradient_blocks;

  // Elementwise passes, 80 registers a thread for planes, where four vectors of two tensors are on
  // their way, and 128 for channels last, where a thread also keeps the parameters of eight channels.
  int elementwise_blocks = 6;
  int channels_last_elementwise_blocks = 2;
};

// A GPU takes the row of the newest generation that is not newer.
constexpr Tuning generations[] = {
    // A100, and by their code RTX 30 and 40, L4, L40S and A10 (sm_86, sm_89), which have 99 instead of
    // 163 KB of shared memory for a block.
    {.capability = 80},
    // H100 and H200.
    {.capability = 90},
    // B200.
    {.capability = 100},
    // RTX 50 and RTX PRO Blackwell, with 99 KB of shared memory for a block.
    {.capability = 120},
};

constexpr const Tuning& tuning_of(int capability) {
  const Tuning* found = generations;
  for (const Tuning& each : generations)
    if (each.capability <= capability) found = &each;
  return *found;
}

// The tuning that a kernel is compiled with.
#ifdef __CUDA_ARCH__
constexpr Tuning compiled_tuning = tuning_of(__CUDA_ARCH__ / 10);
#else
constexpr Tuning compiled_tuning = generations[0];
#endif

}  // namespace depthwise
