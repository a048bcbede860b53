// Runs a kernel: block after block, each on as many fibers as it has threads.
#pragma once
#include <driver_types.h>
#include <pthread.h>

#include <utility>

#include "block.h"
#include "shared_memory.h"

namespace emulation {

// Virtual; only what is touched takes memory.
constexpr size_t stack_bytes = thread_sanitizer ? 64 << 10 : 256 << 10;

// What a fiber runs.
__attribute__((no_sanitize("thread"))) inline void thread_main() {
  Fiber::entered(block.starter);
  Thread& self = *block.running;
  bool failed = false;
  try {
    acquire_order(&block.body);
    block.body(block.arguments);
    release_order(&block.arguments);
    if (self.copies.under_way())
      fail("return", Place::current(), "with asynchronous copies under way");
    self.warp->returned |= 1u << self.lane;
    ++block.returned;
  } catch (...) {
    const Quiet quiet;
    block.fault = std::current_exception();
    failed = true;
  }
  if (failed) self.fiber->switch_to(block.starter, true);
  else hand_over(self, true);
}

// Says how many threads wait at which place.
inline std::string deadlock() {
  std::string message = "emulated kernel: " + text("block", block.index) + ": deadlock; " +
                        std::to_string(block.returned) + " of " + std::to_string(block.threads) +
                        " threads have returned";
  for (unsigned i = 0; i < block.threads; ++i) {
    const Thread& thread = block.thread[i];
    if (!thread.waits_at) continue;
    unsigned before = 0, count = 0;  // threads at the same place
    for (unsigned j = 0; j < block.threads; ++j) {
      const Thread& other = block.thread[j];
      const bool same = other.waits_at == thread.waits_at && same_place(other.place, thread.place);
      before += same && j < i;
      count += same;
    }
    if (before == 0)
      message += "; " + text(thread.waits_at, thread.place) + " holds " + std::to_string(count) +
                 ", the first " + text("thread", thread.index);
  }
  return message;
}

inline void run_block(uint64_t number) {
  block.at_barrier = block.returned = 0;
  block.runnable_warps = 0;
  clear_shared_memory();
  for (unsigned w = 0; w < block.warps; ++w) {
    Warp& warp = block.warp[w];
    warp.arrived = warp.returned = 0;
    set_runnable(warp, warp.members);
  }
  for (unsigned i = 0; i < block.threads; ++i) {
    Thread& thread = block.thread[i];
    thread.waits_at = nullptr;
    thread.copies.reset();
    // Block after block a thread takes another fiber, or the thread sanitizer would not see a race
    // of two blocks.
    const uint64_t f = (i + number) % block.threads;
    thread.fiber = &block.fiber[f];
    // Were all stacks alike, their tops would all share the same few lines of the cache.
    thread.fiber->prepare(thread_main, block.stacks.start() + f * stack_bytes,
                          stack_bytes - f % 64 * 320);
  }
  block.running = pick();
  block.starter.switch_to(*block.running->fiber);
  if (block.fault || block.returned != block.threads) {
    for (unsigned i = 0; i < block.threads; ++i) block.fiber[i].abandon(block.starter);
    if (!block.fault) throw Fault(deadlock());
    std::rethrow_exception(std::exchange(block.fault, nullptr));
  }
  check_gaps();
  ++counters.blocks;
}

inline bool valid(const dim3& grid, const dim3& shape) {
  const uint64_t threads = uint64_t{shape.x} * shape.y * shape.z;
  return grid.x >= 1 && grid.x <= 0x7fffffff && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 &&
         grid.z <= 65535 && threads >= 1 && threads <= most_threads && shape.z <= 64;
}

inline void prepare(const Settings& settings, const dim3& grid, const dim3& shape,
                    size_t shared_bytes) {
  block.settings = settings;
  block.random = block.settings.seed * 0x9e3779b97f4a7c15u + 1;
  block.grid = grid;
  block.shape = shape;
  block.threads = shape.x * shape.y * shape.z;
  block.warps = (block.threads + warp_size - 1) / warp_size;
  block.shared_bytes = shared_bytes;
  block.shared.reserve(held_shared_bytes());
  block.stacks.reserve(block.threads * stack_bytes);
  for (unsigned w = 0; w < block.warps; ++w) block.warp[w].members = 0;
  for (unsigned i = 0; i < block.threads; ++i) {
    Thread& thread = block.thread[i];
    thread.index = {i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y};
    thread.lane = i % warp_size;
    thread.warp = &block.warp[i / warp_size];
    thread.warp->members |= 1u << thread.lane;
  }
  block.starter.adopt_running_stack();
}

// Calls body(arguments) once for each thread of the grid. Returns the error that CUDA would return
// for a launch it refuses; throws Fault for what a thread must not do. Launches from several
// threads wait for each other.
inline cudaError_t launch(const dim3& grid, const dim3& shape, size_t shared_bytes,
                          void (*body)(const void*), const void* arguments) {
  const Settings settings = Settings::from_environment();
  if (shared_bytes > settings.shared_bytes) return cudaErrorInvalidValue;
  if (!valid(grid, shape)) return cudaErrorInvalidConfiguration;

  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  struct Lock {
    Lock() { pthread_mutex_lock(&mutex); }
    ~Lock() { pthread_mutex_unlock(&mutex); }
  } const lock;
  const Quiet quiet;
  prepare(settings, grid, shape, shared_bytes);
  block.body = body;
  block.arguments = arguments;
  ++counters.launches;

  const uint64_t count = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<uint64_t> numbers(count);
  for (uint64_t i = 0; i < count; ++i)
    numbers[i] = block.settings.order == Order::reverse ? count - 1 - i : i;
  if (block.settings.order == Order::shuffle)
    for (uint64_t i = count; i > 1; --i)
      std::swap(numbers[i - 1], numbers[draw(static_cast<uint32_t>(i))]);

  release_order(&block.body);  // what is before the launch is before each of its threads
  for (const uint64_t number : numbers) {
    block.index = {static_cast<unsigned>(number % grid.x),
                   static_cast<unsigned>(number / grid.x % grid.y),
                   static_cast<unsigned>(number / grid.x / grid.y)};
    run_block(number);
  }
  acquire_order(&block.arguments);
  return cudaSuccess;
}

}  // namespace emulation
