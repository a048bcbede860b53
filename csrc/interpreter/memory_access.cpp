#include "memory_access.h"

#include <algorithm>
#include <bit>

#include "block.h"
#include "text.h"

namespace ptx {

Row<uint64_t> addresses_of(const Warp& warp, Operand base, bool wide, int64_t offset) {
  Row<uint64_t> addresses;
  const uint64_t* const bases64 = warp.row<uint64_t>(base);
  const uint32_t* const bases32 = warp.row<uint32_t>(base);
  for (unsigned l = 0; l < lanes_per_warp; ++l)
    addresses[l] = (wide ? bases64[l] : bases32[l]) + static_cast<uint64_t>(offset);
  return addresses;
}

// ---- global -------------------------------------------------------------------------------------

namespace {

Buffer* find_global(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                    uint32_t bytes, const char* out_of_bounds) {
  if (address % std::bit_ceil(bytes) != 0) {
    warp.report(in, lane, kind::misaligned_global,
                hexadecimal(address) + " for " + std::to_string(bytes) + " bytes");
    return nullptr;
  }
  GlobalMemory& global = warp.block->launch.global;
  Buffer* const buffer = global.find(address, bytes);
  if (!buffer)
    warp.report(in, lane, out_of_bounds,
                std::to_string(bytes) + " bytes at " + hexadecimal(address) + ", " +
                    global.neighbourhood(address));
  return buffer;
}

}  // namespace

const uint8_t* readable_global(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                               uint32_t bytes) {
  Buffer* const buffer =
      find_global(warp, in, lane, address, bytes, kind::global_read_out_of_bounds);
  if (!buffer) return nullptr;
  Launch& launch = warp.block->launch;
  if (launch.settings.find_races) {
    const auto others = launch.global.note_read(*buffer, address, bytes, warp.block->stamp(warp));
    if (others.written) warp.report(in, lane, kind::read_after_written, hexadecimal(address));
    if (others.written_by_self && in.read_only_cache)
      warp.report(in, lane, kind::cached_read_of_written, hexadecimal(address));
  }
  return reinterpret_cast<const uint8_t*>(address);
}

uint8_t* writable_global(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                         uint32_t bytes) {
  Buffer* const buffer =
      find_global(warp, in, lane, address, bytes, kind::global_write_out_of_bounds);
  if (!buffer) return nullptr;
  if (!buffer->writable) {
    warp.report(in, lane, kind::write_to_read_only, hexadecimal(address));
    return nullptr;
  }
  Launch& launch = warp.block->launch;
  if (launch.settings.find_races) {
    const auto others = launch.global.note_write(*buffer, address, bytes, warp.block->stamp(warp));
    if (others.written) warp.report(in, lane, kind::written_by_two_warps, hexadecimal(address));
    if (others.written_by_self && launch.settings.find_rewrites)
      warp.report(in, lane, kind::written_twice, hexadecimal(address));
    if (others.read) warp.report(in, lane, kind::written_after_read, hexadecimal(address));
  }
  return reinterpret_cast<uint8_t*>(address);
}

unsigned count_pieces(const Row<uint64_t>& addresses, LaneMask lanes, unsigned bytes) {
  Row<uint64_t> pieces;
  unsigned count = 0;
  bool ascending = true;
  for (unsigned l = 0; l < lanes_per_warp; ++l) {
    if (!(lanes >> l & 1)) continue;
    const uint64_t piece = addresses[l] / bytes;
    if (count > 0 && piece == pieces[count - 1]) continue;
    ascending &= count == 0 || piece > pieces[count - 1];
    pieces[count++] = piece;
  }
  if (ascending) return count;
  std::sort(pieces.begin(), pieces.begin() + count);
  return static_cast<unsigned>(std::unique(pieces.begin(), pieces.begin() + count) -
                               pieces.begin());
}

// ---- shared -------------------------------------------------------------------------------------

bool is_valid_shared(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                     uint32_t bytes) {
  const SharedMemory& shared = warp.block->shared;
  if (address % bytes != 0) {
    warp.report(in, lane, kind::misaligned_shared,
                hexadecimal(address) + " for " + std::to_string(bytes) + " bytes");
    return false;
  }
  if (!shared.holds(address, bytes)) {
    warp.report(in, lane, kind::shared_out_of_bounds,
                std::to_string(bytes) + " bytes at " +
                    std::to_string(static_cast<int64_t>(address) - SharedMemory::base) + " of " +
                    std::to_string(shared.bytes()));
    return false;
  }
  return true;
}

void report_hazards(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                    uint32_t hazards) {
  const std::string place = "byte " + std::to_string(address - SharedMemory::base);
  if (hazards & uninitialised) warp.report(in, lane, kind::uninitialised_shared, place);
  if (hazards & read_after_write) warp.report(in, lane, kind::race_read_after_write, place);
  if (hazards & write_after_read) warp.report(in, lane, kind::race_write_after_read, place);
  if (hazards & write_after_write) warp.report(in, lane, kind::race_write_after_write, place);
  if (hazards & read_under_copy) warp.report(in, lane, kind::read_under_copy, place);
  if (hazards & write_under_copy) warp.report(in, lane, kind::write_under_copy, place);
}

const uint8_t* readable_shared(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                               uint32_t bytes, bool whole_warp) {
  if (!is_valid_shared(warp, in, lane, address, bytes)) return nullptr;
  SharedMemory& shared = warp.block->shared;
  Accessor by = warp.accessor(lane);
  by.whole_warp = whole_warp;
  const uint32_t hazards = shared.note_read(address, bytes, by);
  if (hazards) report_hazards(warp, in, lane, address, hazards);
  return shared.at(address);
}

void write_shared(Warp& warp, const Instruction& in, unsigned lane, uint64_t address,
                  const uint8_t* data, uint32_t bytes, bool whole_warp) {
  if (!is_valid_shared(warp, in, lane, address, bytes)) return;
  SharedMemory& shared = warp.block->shared;
  Accessor by = warp.accessor(lane);
  by.whole_warp = whole_warp;
  uint32_t hazards = shared.note_write(address, bytes, by);
  uint8_t* const to = shared.at(address);
  if (hazards & write_after_write && std::memcmp(to, data, bytes) == 0)
    hazards &= ~uint32_t{write_after_write};
  if (hazards) report_hazards(warp, in, lane, address, hazards);
  std::memcpy(to, data, bytes);
}

Wavefronts count_wavefronts(const Row<uint64_t>& addresses, LaneMask lanes, uint32_t bytes) {
  const unsigned lanes_of_pass = bytes <= 4 ? 32 : 128 / bytes;
  const unsigned words_of_lane = bytes <= 4 ? 1 : bytes / 4;
  Wavefronts result;
  for (unsigned first = 0; first < lanes_per_warp; first += lanes_of_pass) {
    // Of each bank, the words asked for; seldom more than one.
    std::array<uint64_t, 32> word_of_bank;
    std::array<uint64_t, lanes_per_warp> further;
    uint32_t busy_banks = 0;
    unsigned further_count = 0;
    bool active = false;
    for (unsigned l = first; l < first + lanes_of_pass; ++l) {
      if (!(lanes >> l & 1)) continue;
      active = true;
      for (unsigned i = 0; i < words_of_lane; ++i) {
        const uint64_t word = addresses[l] / 4 + i;
        const unsigned bank = word % 32;
        if (!(busy_banks >> bank & 1)) {
          busy_banks |= 1u << bank;
          word_of_bank[bank] = word;
        } else if (word_of_bank[bank] != word) {
          further[further_count++] = word;
        }
      }
    }
    if (!active) continue;
    std::sort(further.begin(), further.begin() + further_count);
    const auto end = std::unique(further.begin(), further.begin() + further_count);
    std::array<unsigned, 32> in_bank{};
    unsigned most = 0;
    for (auto word = further.begin(); word != end; ++word)
      most = std::max(most, ++in_bank[*word % 32]);
    result.needed += 1 + most;
    ++result.ideal;
  }
  return result;
}

}  // namespace ptx
