// The shared memory of a block, with a history of who touched what.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

namespace ptx {

// Errors of an access to shared memory. They are bits, since one access can be wrong in two ways.
enum Hazard : uint32_t {
  no_hazard = 0,
  uninitialised = 1,
  read_after_write = 2,  // nothing orders the access after a write by another thread
  write_after_read = 4,
  write_after_write = 8,
  read_under_copy = 16,  // an asynchronous copy into these bytes is in flight
  write_under_copy = 32
};

// Who accesses shared memory. Times come from a clock that advances at each barrier and block:
// an access is ordered after what happened before `warp_synced` within the warp and before
// `block_synced` anywhere.
struct Accessor {
  uint32_t thread = 0;
  bool whole_warp = false;  // lanes of the warp together, by ldmatrix or stmatrix
  uint32_t now = 0;
  uint32_t warp_synced = 0;
  uint32_t block_synced = 0;
};

class SharedMemory {
 public:
  // The first address of the window. On sm_90 the system has the first KB of a block to itself.
  static constexpr uint32_t base = 1024;

  // Every byte becomes 0xff, which is NaN in every format, and nobody has touched it since `now`, at
  // which a block begins.
  void reset(uint32_t bytes, bool keep_history, uint32_t now);

  // Copies that are in flight will never land.
  void forget_copies();

  uint32_t bytes() const { return static_cast<uint32_t>(data_.size()); }
  bool holds(uint64_t address, uint32_t bytes) const {
    return address >= base && address + bytes <= base + data_.size();
  }
  uint8_t* at(uint64_t address) { return &data_[address - base]; }

  // These note an access and tell its hazards, as bits of Hazard. The address is valid.
  uint32_t note_read(uint64_t address, uint32_t bytes, const Accessor& by);
  uint32_t note_write(uint64_t address, uint32_t bytes, const Accessor& by);

  // An asynchronous copy writes between these two calls.
  uint32_t begin_copy(uint64_t address, uint32_t bytes, const Accessor& by);
  void end_copy(uint64_t address, uint32_t bytes, const Accessor& by);

 private:
  // The last accesses to two bytes: a time in the upper half and a thread in the lower, as 64 bits
  // for quick comparison. What is before `begin_` is never. A reader may also stand for several lanes or warps.
  struct Touch {
    uint64_t write = 0;
    uint64_t read = 0;
  };
  static constexpr uint64_t several_lanes = 1 << 16, several_warps = 1 << 17, who_mask = 0xffff;
  static constexpr uint64_t copying = ~uint64_t{0} << 32;  // a time after all others

  class Order;

  uint32_t note_read_slowly(size_t first, size_t last, const Accessor& by);
  uint32_t write_hazards(const Touch& touch, const Accessor& by) const;

  std::vector<uint8_t> data_;
  std::vector<Touch> touches_;  // empty if no history is kept; with those of earlier blocks
  uint64_t begin_ = 0;          // of this block
};

}  // namespace ptx
