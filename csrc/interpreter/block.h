// One launch of a kernel, and the block of it that runs.
#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "counters.h"
#include "findings.h"
#include "global_memory.h"
#include "module.h"
#include "settings.h"
#include "shared_memory.h"
#include "warp.h"

namespace ptx {

struct Launch {
  Kernel& kernel;
  const Program& program;
  Size3 grid;
  Size3 block_size;
  uint32_t shared_bytes;  // static and dynamic
  std::vector<std::byte> parameters;
  const Settings& settings;
  Counters& counters;
  Findings& findings;
  GlobalMemory global;
  uint32_t first_stamp;  // see GlobalMemory; the warps have the numbers above
  std::mt19937_64 random;

  unsigned threads() const { return block_size[0] * block_size[1] * block_size[2]; }
  unsigned warps_per_block() const { return (threads() + lanes_per_warp - 1) / lanes_per_warp; }
};

// Blocks run one after the other in one object, which keeps their memory.
struct Block {
  Launch& launch;
  Size3 at{};           // %ctaid
  uint64_t number = 0;  // of the blocks before it
  SharedMemory shared;
  std::vector<Warp> warps;
  uint32_t clock = 0;   // advances at every barrier, and when a block begins
  uint32_t synced = 0;  // the time of the last barrier of the block, or of its beginning

  explicit Block(Launch& launch);
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void run(Size3 index, uint64_t block_number);

  // The stamp of a warp in the history of global memory.
  uint32_t stamp(const Warp& warp) const {
    return launch.first_stamp + 1 + static_cast<uint32_t>(number * warps.size() + warp.index);
  }

 private:
  void reset(Size3 index, uint64_t block_number);
  void fill_special_registers(Warp& warp) const;
  std::vector<Warp*> runnable_warps();
  void release_barrier();

  std::vector<std::byte> registers_;
};

}  // namespace ptx
