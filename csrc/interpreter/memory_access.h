// Accesses of lanes to memory, checked and counted.
#pragma once
#include <cstdint>

#include "instruction.h"
#include "types.h"
#include "warp.h"

namespace ptx {

// Generic addresses of shared and of local memory begin here; all others are global.
constexpr uint64_t shared_window = 0x7fff'0000'0000'0000;
constexpr uint64_t local_window = 0x7ffe'0000'0000'0000;

// base + offset of each lane. `wide`: the base has 64 bits.
Row<uint64_t> addresses_of(const Warp& warp, Operand base, bool wide, int64_t offset);

// ---- global -------------------------------------------------------------------------------------

// The memory behind an address, or null, after a report, if the lane may not touch it.
const uint8_t* readable_global(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                               uint32_t bytes);
uint8_t* writable_global(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                         uint32_t bytes);

// The number of pieces of memory, of so many bytes each, that lie under the aligned accesses of some lanes.
unsigned count_pieces(const Row<uint64_t>& addresses, LaneMask lanes, unsigned bytes);
// A sector is what global memory moves at least.
constexpr unsigned sector_bytes = 32;

// ---- shared -------------------------------------------------------------------------------------

// The shared memory behind an address, or null as above. `whole_warp`: all lanes act together, as in
// ldmatrix.
const uint8_t* readable_shared(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                               uint32_t bytes, bool whole_warp);

// Writes if the lane may. Two threads may write one value to one place unordered.
void write_shared(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                  const uint8_t* data, uint32_t bytes, bool whole_warp);

// Tells whether the address can be accessed at all; reports if not.
bool is_valid_shared(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                     uint32_t bytes);

void report_hazards(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                    uint32_t hazards);

// Passes over the banks. A pass serves 32, 16 or 8 lanes for accesses of up to 4, 8 or 16 bytes
// each and takes one word from each bank.
struct Wavefronts {
  unsigned needed = 0;
  unsigned ideal = 0;  // if every bank had to give one word at most
};
Wavefronts count_wavefronts(const Row<uint64_t>& addresses, LaneMask lanes, uint32_t bytes);

}  // namespace ptx
