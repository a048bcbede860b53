// The block of CUDA threads being run, and who of them runs next.
#pragma once
#include <vector_types.h>

#include <exception>
#include <source_location>

#include "async_copies.h"
#include "counters.h"
#include "fibers.h"
#include "settings.h"

namespace emulation {

// A line of a kernel, for messages and to tell whether two threads are at the same one.
using Place = std::source_location;

inline bool same_place(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() && a.file_name() == b.file_name();
}

constexpr unsigned warp_size = 32, most_warps = 32, most_threads = warp_size * most_warps;
constexpr uint32_t full_warp = 0xffffffff;

struct Warp {
  uint32_t members = 0;  // one bit a lane, as in the next three
  uint32_t runnable = 0;
  uint32_t arrived = 0;  // at the collective that is gathering its lanes
  uint32_t returned = 0;
  const char* operation = nullptr;
  Place place;
  alignas(64) uint32_t in[10 * warp_size];  // what the lanes have handed in
  alignas(64) uint32_t out[warp_size][4];   // and what they take away
};

struct Thread {
  uint3 index{};
  unsigned lane = 0;
  Warp* warp = nullptr;
  const char* waits_at = nullptr;  // what this thread waits for, and where
  Place place;
  Fiber* fiber = nullptr;
  CopyQueue copies;
};

// One array of the dynamic shared memory.
struct SharedArray {
  size_t offset, bytes;
};

struct Block {
  dim3 grid, shape;
  uint3 index{};
  unsigned threads = 0, warps = 0;
  unsigned at_barrier = 0, returned = 0;
  Place barrier_place;
  uint32_t runnable_warps = 0;
  Thread* running = nullptr;

  Settings settings;
  uint64_t random = 0;
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;
  std::exception_ptr fault;

  Fiber starter;  // the stack that launch() was called on
  Fiber fiber[most_threads];
  Pages stacks;
  Pages shared;
  size_t shared_bytes = 0;
  static constexpr unsigned most_arrays = 32;
  SharedArray arrays[most_arrays];
  unsigned arrays_taken = 0;

  Warp warp[most_warps];
  Thread thread[most_threads];
};

// Blocks run one after another, each on the thread that launches it: there is only ever one.
inline Block block;

// A number in [0, below).
inline uint32_t draw(uint32_t below) {
  block.random = block.random * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(((block.random >> 33) * below) >> 31);
}

inline std::string text(const char* name, const uint3& index) {
  return std::string(name) + " (" + std::to_string(index.x) + ", " + std::to_string(index.y) +
         ", " + std::to_string(index.z) + ")";
}
inline std::string text(const char* operation, const Place& place) {
  const std::string file = place.file_name();
  return std::string(operation) + " (" + file.substr(file.rfind('/') + 1) + ":" +
         std::to_string(place.line()) + ")";
}

// Ends the launch in the name of the running thread.
[[noreturn]] __attribute__((cold, noinline)) inline void fail(const char* operation,
                                                              const Place& place,
                                                              const std::string& what) {
  throw Fault("emulated kernel: " + text("block", block.index) + ", " +
              text("thread", block.running->index) + ", " + text(operation, place) + ": " + what);
}

// The thread that runs next, or null if none can.
inline Thread* pick() {
  if (!block.runnable_warps) return nullptr;
  const auto lowest = [](uint32_t set) { return static_cast<unsigned>(__builtin_ctz(set)); };
  const auto highest = [](uint32_t set) { return 31 - static_cast<unsigned>(__builtin_clz(set)); };
  const auto any = [&](uint32_t set) {
    for (unsigned skip = draw(static_cast<uint32_t>(__builtin_popcount(set))); skip; --skip)
      set &= set - 1;
    return lowest(set);
  };
  const auto choose = [&](uint32_t set) {
    if (block.settings.order == Order::forward) return lowest(set);
    if (block.settings.order == Order::reverse) return highest(set);
    return any(set);
  };
  const unsigned w = choose(block.runnable_warps);
  return &block.thread[w * warp_size + choose(block.warp[w].runnable)];
}

inline void set_runnable(Warp& warp, uint32_t lanes) {
  const uint32_t bit = 1u << (&warp - block.warp);
  warp.runnable = lanes;
  block.runnable_warps = lanes ? block.runnable_warps | bit : block.runnable_warps & ~bit;
}

// Hands over to the next thread, or to the starter if there is none.
__attribute__((no_sanitize("thread"))) inline void hand_over(Thread& self, bool for_good) {
  {
    const Quiet quiet;
    set_runnable(*self.warp, self.warp->runnable & ~(1u << self.lane));
    block.running = pick();
  }
  self.fiber->switch_to(block.running ? *block.running->fiber : block.starter, for_good);
}

// Returns when another thread has made this one runnable again.
inline void wait(const char* operation, const Place& place) {
  Thread& self = *block.running;
  self.waits_at = operation, self.place = place;
  hand_over(self, false);
  self.waits_at = nullptr;
}

}  // namespace emulation
