// The choice of vectors, blocks and splits for elementwise passes: plain C++ without CUDA.
#pragma once
#include "host/plan.h"

namespace depthwise {

constexpr int elementwise_threads(bool channels_last) { return channels_last ? 256 : 128; }

constexpr int elementwise_blocks(bool channels_last, const Tuning& tuning) {
  return channels_last ? tuning.channels_last_elementwise_blocks : tuning.elementwise_blocks;
}

// The largest number of neighbouring elements that one access may move in all three tensors, 8, 4 or 1.
constexpr int elementwise_vector(const ElementwiseArguments& p, bool channels_last) {
  uintptr_t all = uintptr_t(channels_last ? p.channels : p.inner);
  const auto include = [&](const void* tensor, const Steps& steps) {
    if (tensor == nullptr) return;
    all |= uintptr_t(tensor) / 2 | uintptr_t(steps.outer);
    if (!channels_last) all |= uintptr_t(steps.channel);
  };
  include(p.value, p.value_steps);
  include(p.other, p.other_steps);
  include(p.output, p.output_steps);
  return all % 8 == 0 ? 8 : all % 4 == 0 && !channels_last ? 4 : 1;
}

// The largest outer index: a thread goes up to a batch of warps beyond the last one.
constexpr int most_outer = INT32_MAX - 128;

struct ElementwisePlan {
  int vector;
  int blocks;  // of channels
  int splits;  // of the outer index
};

constexpr ElementwisePlan elementwise_plan(const ElementwiseArguments& p, bool channels_last,
                                           const Chip& chip) {
  ElementwisePlan plan{};
  plan.vector = elementwise_vector(p, channels_last);
  const int block_channels = !channels_last     ? elementwise_threads(false) / 32
                             : plan.vector == 8 ? 64
                                                : 32;
  plan.blocks = int(divide_up(p.channels, block_channels));
  // A pixel is less than a thread should have to itself.
  const int least = channels_last ? elementwise_threads(true) : 1;
  const int most = int(divide_up(p.outer, least));
  plan.splits = image_splits(plan.blocks, most,
                             int64_t(chip.multiprocessors) *
                                 elementwise_blocks(channels_last, tuning_of(chip.capability)));
  return plan;
}

}  // namespace depthwise
