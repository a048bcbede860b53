// Barriers, and what the lanes of a warp do together.
#pragma once
#include <cstring>

#include "shared_memory.h"

namespace emulation {

// What stands for a barrier of this block: memory that no other block has, for blocks are not
// ordered.
inline void* order_key(unsigned number) {
  return block.shared.start() + held_shared_bytes() - 8 * (number + 1);
}

// __syncthreads.
inline void sync_block(const Place& place) {
  constexpr const char* operation = "__syncthreads";
  const Quiet quiet;
  release_order(order_key(most_warps));
  if (block.returned) fail(operation, place, "other threads of the block have returned");
  if (block.at_barrier == 0) block.barrier_place = place;
  if (!same_place(block.barrier_place, place))
    fail(operation, place,
         "other threads of the block wait at " + text(operation, block.barrier_place));
  if (++block.at_barrier == block.threads) {
    block.at_barrier = 0;
    ++counters.block_barriers;
    for (unsigned w = 0; w < block.warps; ++w) set_runnable(block.warp[w], block.warp[w].members);
  } else {
    wait(operation, place);
  }
  acquire_order(order_key(most_warps));
}

// Every lane hands in its words by hand_in(warp, lane); the last to come runs combine(warp), which
// leaves in warp.out[lane] what each lane takes away.
template <class HandIn, class Combine>
Thread& together(const char* operation, const Place& place, HandIn hand_in, Combine combine) {
  const Quiet quiet;
  Thread& self = *block.running;
  Warp& warp = *self.warp;
  if (warp.arrived == 0) {
    if (warp.members != full_warp) fail(operation, place, "the warp has fewer than 32 threads");
    if (warp.returned) fail(operation, place, "other lanes of the warp have returned");
    warp.operation = operation, warp.place = place;
  } else if (warp.operation != operation || !same_place(warp.place, place)) {
    fail(operation, place, "other lanes of the warp wait at " + text(warp.operation, warp.place));
  }
  hand_in(warp, self.lane);
  warp.arrived |= 1u << self.lane;
  if (warp.arrived == full_warp) {
    warp.arrived = 0;
    combine(warp);
    set_runnable(warp, full_warp);
  } else {
    wait(operation, place);
  }
  return self;
}

// __syncwarp: the one collective that orders memory.
inline void sync_warp(const Place& place) {
  const Quiet quiet;
  void* const key = order_key(static_cast<unsigned>(block.running->warp - block.warp));
  release_order(key);
  together("__syncwarp", place, [](Warp&, unsigned) {}, [](Warp&) { ++counters.warp_barriers; });
  acquire_order(key);
}

// Shuffles: each lane takes the value of the lane that source(its own number) names.
template <class T, class Source>
T exchange(const char* operation, const Place& place, T value, Source source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  const auto hand_in = [&](Warp& warp, unsigned lane) {
    memcpy(&warp.in[2 * lane], &value, sizeof(T));
    warp.in[2 * warp_size + lane] = static_cast<uint32_t>(source(static_cast<int>(lane)));
  };
  const Thread& self = together(operation, place, hand_in, [](Warp& warp) {
    for (unsigned lane = 0; lane < warp_size; ++lane)
      memcpy(warp.out[lane], &warp.in[2 * warp.in[2 * warp_size + lane]], 8);
  });
  const Quiet quiet;
  memcpy(&value, self.warp->out[self.lane], sizeof(T));
  return value;
}

}  // namespace emulation
