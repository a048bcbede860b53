// The dynamic shared memory of a block: arrays with gaps between them, and NaN in all that nobody
// has written.
#pragma once
#include <cstring>

#include "block.h"

namespace emulation {

// An array begins on a multiple of `granule`, as on the device, but one gap further on than there
// for each array before it and one for itself: what lies in a gap belongs to nobody. The memory
// banks of an address are those of the device.
constexpr size_t granule = 128, gap = 128;

constexpr unsigned char untouched = 0xff;  // bytes of it are NaN in every format

constexpr size_t rounded_up(size_t bytes) { return (bytes + granule - 1) / granule * granule; }

inline size_t held_shared_bytes() {
  return rounded_up(block.shared_bytes) + (Block::most_arrays + 1) * gap;
}

// Where array number `number`, so many bytes from the start on the device, lies here. All threads
// of a block take the same arrays.
inline void* take_array(unsigned number, size_t device_offset, size_t bytes, const Place& place) {
  constexpr const char* operation = "SharedMemory::take";
  const Quiet quiet;
  if (device_offset + bytes > block.shared_bytes)
    fail(operation, place,
         std::to_string(device_offset + bytes) + " bytes taken, but the launch asked for " +
             std::to_string(block.shared_bytes));
  if (number >= Block::most_arrays)
    fail(operation, place, "more than " + std::to_string(Block::most_arrays) + " arrays");
  const size_t offset = device_offset + (number + 1) * gap;
  char* const start = block.shared.start() + offset;
  if (number == block.arrays_taken) {
    block.arrays[block.arrays_taken++] = {offset, bytes};
    unpoison(start, bytes);
  } else if (block.arrays[number].offset != offset || block.arrays[number].bytes != bytes) {
    fail(operation, place, "another thread of the block took an array of another size here");
  }
  return start;
}

// Everything is NaN, and nothing belongs to anybody, when a block begins.
inline void clear_shared_memory() {
  block.shared.forget();
  unpoison(block.shared.start(), held_shared_bytes());
  memset(block.shared.start(), untouched, held_shared_bytes());
  poison(block.shared.start(), held_shared_bytes());
  block.arrays_taken = 0;
}

// Without the address sanitizer, a write that went past an array is seen when its block is done.
inline void check_gaps() {
  if (address_sanitizer) return;
  const unsigned char* const start = reinterpret_cast<unsigned char*>(block.shared.start());
  size_t from = 0;
  for (unsigned n = 0; n <= block.arrays_taken; ++n) {
    const bool last = n == block.arrays_taken;
    const size_t to = last ? held_shared_bytes() : block.arrays[n].offset;
    for (size_t i = from; i < to; ++i)
      if (start[i] != untouched)
        throw Fault("emulated kernel: " + text("block", block.index) +
                    " wrote to shared memory of no array, " +
                    (n == 0 ? std::to_string(to - i) + " bytes before the first"
                            : std::to_string(i - from) + " bytes after the end of number " +
                                  std::to_string(n)));
    if (!last) from = to + block.arrays[n].bytes;
  }
}

inline void require_aligned(const char* operation, const Place& place, const void* at,
                            size_t bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes)
    fail(operation, place, "the address is not a multiple of " + std::to_string(bytes));
}

// An instruction that takes an address of shared memory has no meaning for any other.
inline void require_shared(const char* operation, const Place& place, const void* at,
                           size_t bytes) {
  const Quiet quiet;
  require_aligned(operation, place, at, bytes);
  const uintptr_t start = reinterpret_cast<uintptr_t>(block.shared.start());
  if (reinterpret_cast<uintptr_t>(at) - start >= held_shared_bytes())
    fail(operation, place, "the address is not one of shared memory");
}

}  // namespace emulation
