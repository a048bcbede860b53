// What the kernels have asked of the machine, for tests of traffic and of bank conflicts.
#pragma once
#include <cstdint>

namespace emulation {

// Sums over all launches since the last `counters = {}`. Reading or resetting them while another
// thread launches a kernel is a race.
struct Counters {
  uint64_t launches = 0;
  uint64_t blocks = 0;
  uint64_t global_bytes_read = 0;     // by copy_async and load_global
  uint64_t global_bytes_written = 0;  // by store_global
  uint64_t copies = 0;                // copy_async of one lane each, absent ones too
  uint64_t mma_k16 = 0;               // of a warp each
  uint64_t mma_k8 = 0;
  uint64_t matrices_read = 0;  // 8 x 8, by load_matrices
  uint64_t matrix_passes = 0;  // over the banks; as many as matrices if there is no conflict
  uint64_t block_barriers = 0;
  uint64_t warp_barriers = 0;
};

inline Counters counters;

}  // namespace emulation
