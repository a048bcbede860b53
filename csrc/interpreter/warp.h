// A warp: registers, lanes that may go different ways, and copies under way.
#pragma once
#include <cstring>
#include <string>
#include <vector>

#include "async_copies.h"
#include "instruction.h"
#include "shared_memory.h"
#include "types.h"

namespace ptx {

struct Block;

// Lanes of a warp that are at one instruction.
struct LaneGroup {
  uint32_t at = 0;
  LaneMask lanes = 0;
  bool waiting = false;  // for other lanes, or for other warps at a barrier
};

struct Warp {
  Block* block = nullptr;
  unsigned index = 0;
  LaneMask alive = 0;
  std::vector<LaneGroup> groups;  // those alive
  std::byte* registers = nullptr;
  const std::byte* constants = nullptr;
  std::vector<CopyQueue> copies;  // of each lane
  std::vector<uint8_t> local;     // of lane 0, lane 1, ...
  uint32_t synced = 0;            // see Accessor
  bool at_barrier = false;

  bool done() const { return groups.empty(); }

  // The values of an operand in all lanes.
  template <class T>
  const T* row(Operand operand) const {
    const std::byte* const place =
        operand.at >= 0 ? registers + operand.at : constants + ~operand.at;
    return reinterpret_cast<const T*>(place);
  }
  LaneMask predicate(Operand operand) const { return *row<LaneMask>(operand); }

  template <class T>
  T* writable_row(Operand operand) const {
    return reinterpret_cast<T*>(registers + operand.at);
  }

  template <class T>
  void write(Operand operand, const Row<T>& values, LaneMask lanes) const {
    T* const to = writable_row<T>(operand);
    if (lanes == all_lanes) {
      std::memcpy(to, values.data(), sizeof(values));
    } else {
      for (unsigned l = 0; l < lanes_per_warp; ++l) to[l] = lanes >> l & 1 ? values[l] : to[l];
    }
  }
  void write_predicate(Operand operand, LaneMask values, LaneMask lanes) const {
    LaneMask& to = *writable_row<LaneMask>(operand);
    to = (to & ~lanes) | (values & lanes);
  }

  // Who a lane is to shared memory, now.
  Accessor accessor(unsigned lane) const;

  // Something is wrong at this instruction; the kernel goes on.
  void report(const Instruction& at, unsigned lane, const char* kind,
              const std::string& detail) const;
  // The launch cannot go on.
  [[noreturn]] void stop(const Instruction& at, const std::string& why) const;

  // Runs until all lanes have exited or wait for the barrier of the block, at most so many
  // instructions.
  void run(uint64_t instructions);

 private:
  void step(size_t group);
  size_t choose_group();
  void merge_groups_at(uint32_t instruction);
  bool wait_for_members(LaneGroup& group, const Instruction& in, LaneMask lanes);
  void exit_lanes(size_t group, LaneMask lanes);
};

}  // namespace ptx
