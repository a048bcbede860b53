// How passes over the values of a tensor are cut up: plain C++ without CUDA, tested on its own.
#pragma once
#include "host/plan.h"

namespace depthwise {

constexpr int stream_threads(bool channels_last) { return channels_last ? 256 : 128; }

// Blocks that a multiprocessor runs at a time: 80 registers a thread in planes, where four vectors of
// two tensors are on their way; 128 channels last, where a thread also keeps what belongs to eight
// channels.
constexpr int stream_blocks_resident(bool channels_last) { return channels_last ? 2 : 6; }

// The largest number of neighbouring elements that one access may move in all three tensors, 8, 4 or 1.
constexpr int stream_vector(const StreamArguments& p, bool channels_last) {
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

struct StreamPlan {
  int vector;
  int blocks;  // of channels
  int shares;  // of the outer index
};

constexpr StreamPlan stream_plan(const StreamArguments& p, bool channels_last, const Chip& chip) {
  StreamPlan plan{};
  plan.vector = stream_vector(p, channels_last);
  const int block_channels = !channels_last     ? stream_threads(false) / 32
                             : plan.vector == 8 ? 64
                                                : 32;
  plan.blocks = int(divide_up(p.channels, block_channels));
  // A pixel is less than a thread should have to itself.
  const int least = channels_last ? stream_threads(true) : 1;
  const int most = int(divide_up(p.outer, least));
  plan.shares = image_shares(plan.blocks, most,
                             int64_t(chip.multiprocessors) * stream_blocks_resident(channels_last));
  return plan;
}

}  // namespace depthwise
