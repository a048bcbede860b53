// Counts of the accesses and instructions of kernels, for tests of traffic and of bank conflicts.
#pragma once
#include <cstdint>

namespace ptx {

// Sums over all launches since they were last taken. A wavefront is one pass over the 32 banks of
// shared memory; "ideal" is the number of passes if no two words of one pass lay in one bank.
struct Counters {
  uint64_t launches = 0;
  uint64_t blocks = 0;
  uint64_t warp_instructions = 0;  // those executed by at least one lane
  uint64_t global_bytes_read = 0;  // by ld and cp.async; once what lanes of one ld share
  uint64_t global_bytes_written = 0;
  uint64_t global_sectors_read = 0;  // 32-byte sectors that a warp touches with one instruction
  uint64_t global_sectors_written = 0;
  uint64_t local_bytes_read = 0;
  uint64_t local_bytes_written = 0;
  uint64_t shared_load_wavefronts = 0;  // by ld.shared; ldmatrix is counted below
  uint64_t shared_load_wavefronts_ideal = 0;
  uint64_t shared_store_wavefronts = 0;
  uint64_t shared_store_wavefronts_ideal = 0;
  uint64_t copies = 0;  // cp.async of one lane each, those of source size 0 too
  uint64_t copy_wavefronts = 0;
  uint64_t copy_wavefronts_ideal = 0;
  uint64_t matrices_read = 0;  // 8 x 8 matrices of ldmatrix
  uint64_t matrix_passes = 0;  // their wavefronts; as many as matrices if there is no conflict
  uint64_t matrices_written = 0;
  uint64_t matrix_write_passes = 0;
  uint64_t mma_k16 = 0;
  uint64_t mma_k8 = 0;
  uint64_t block_barriers = 0;  // bar.sync of a warp each
  uint64_t warp_barriers = 0;
};

}  // namespace ptx
