// PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy": cp.async and its groups.
#include "async_copies.h"

#include <bit>

#include "block.h"
#include "lanes.h"
#include "memory_access.h"
#include "opcodes.h"
#include "text.h"

namespace ptx {
namespace {

void move_bytes(Warp& warp, const Copy& copy) {
  uint8_t* const to = warp.block->shared.at(copy.to);
  // The address of a copy that reads nothing may be null, which memcpy does not take.
  if (copy.source_bytes > 0)
    std::memcpy(to, reinterpret_cast<const void*>(copy.from), copy.source_bytes);
  std::memset(to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

// Checks both addresses. False, after a report, if the copy cannot take place.
bool check_copy(Warp& warp, const Instruction& in, unsigned lane, Copy& copy) {
  Launch& launch = warp.block->launch;
  if (copy.source_bytes > copy.bytes) {
    warp.report(in, lane, kind::copy_source_size, std::to_string(copy.source_bytes));
    copy.source_bytes = copy.bytes;
  }
  if (copy.source_bytes == 0) {
    if (copy.from % copy.bytes != 0)
      warp.report(in, lane, kind::misaligned_absent_copy, hexadecimal(copy.from));
    if (launch.settings.check_absent_copies && !launch.global.find(copy.from, copy.bytes))
      warp.report(in, lane, kind::absent_copy_out_of_bounds,
                  hexadecimal(copy.from) + ", " + launch.global.neighbourhood(copy.from));
  } else if (copy.from % copy.bytes != 0) {
    warp.report(in, lane, kind::misaligned_global, hexadecimal(copy.from));
    return false;
  } else if (!readable_global(warp, in, lane, copy.from, copy.source_bytes)) {
    return false;
  }
  return is_valid_shared(warp, in, lane, copy.to, copy.bytes);
}

// cp.async [to], [from], bytes, source_bytes: sources[0], [1] and [2]
void start_copies(Warp& warp, const Instruction& in, LaneMask lanes) {
  Launch& launch = warp.block->launch;
  const auto to = addresses_of(warp, in.sources[0], in.wide_address, in.offset);
  const auto from = addresses_of(warp, in.sources[1], true, in.second_offset);
  const uint32_t* const source_bytes = warp.row<uint32_t>(in.sources[2]);
  const auto present = lanes & mask_where([&](unsigned l) { return source_bytes[l] != 0; });

  const Wavefronts wavefronts = count_wavefronts(to, lanes, in.element_bytes);
  launch.counters.copy_wavefronts += wavefronts.needed;
  launch.counters.copy_wavefronts_ideal += wavefronts.ideal;
  launch.counters.copies += static_cast<unsigned>(std::popcount(lanes));
  launch.counters.global_sectors_read += count_pieces(from, present, sector_bytes);

  for (unsigned l = 0; l < lanes_per_warp; ++l) {
    if (!(lanes >> l & 1)) continue;
    Copy copy{static_cast<uint32_t>(to[l]), from[l], in.element_bytes, source_bytes[l]};
    if (!check_copy(warp, in, l, copy)) continue;
    launch.counters.global_bytes_read += copy.source_bytes;
    const uint32_t hazards = warp.block->shared.begin_copy(copy.to, copy.bytes, warp.accessor(l));
    if (hazards) report_hazards(warp, in, l, copy.to, hazards);
    const Copies when = launch.settings.copies;
    copy.has_landed = when == Copies::early || (when == Copies::random && launch.random() % 2 == 0);
    if (copy.has_landed) move_bytes(warp, copy);
    warp.copies[l].start(copy);
  }
}

void wait(Warp& warp, LaneMask lanes, uint32_t may_remain) {
  for (unsigned l = 0; l < lanes_per_warp; ++l) {
    if (!(lanes >> l & 1)) continue;
    warp.copies[l].wait(may_remain, [&](const Copy& copy) {
      if (!copy.has_landed) move_bytes(warp, copy);
      warp.block->shared.end_copy(copy.to, copy.bytes, warp.accessor(l));
    });
  }
}

void commit_group(Warp& warp, const Instruction&, LaneMask lanes) {
  for (unsigned l = 0; l < lanes_per_warp; ++l)
    if (lanes >> l & 1) warp.copies[l].commit();
}

void wait_group(Warp& warp, const Instruction& in, LaneMask lanes) {
  wait(warp, lanes, static_cast<uint32_t>(in.offset));
}

void wait_all(Warp& warp, const Instruction& in, LaneMask lanes) {
  commit_group(warp, in, lanes);
  wait(warp, lanes, 0);
}

void decode_start(Statement& s) {
  Instruction& in = s.instruction;
  const bool all_levels = s.take("ca");
  if (!all_levels) s.require("cg");
  if (!s.take("shared")) s.require("shared::cta");
  s.require("global");
  for (const char* hint : {"L2::64B", "L2::128B", "L2::256B"}) s.take(hint);
  in.wide_address = s.address(0, in.offset) == 64;
  s.comma();
  if (s.address(1, in.second_offset) != 64) s.refuse("its source needs an address of 64 bits");
  s.comma();
  const int64_t bytes = s.number();
  if (bytes != 16 && !(all_levels && (bytes == 4 || bytes == 8))) s.refuse("its size");
  in.element_bytes = static_cast<uint8_t>(bytes);
  if (s.take_symbol(',')) s.read(2, Type::u32);
  else s.read_constant(2, static_cast<uint64_t>(bytes), Type::u32);
  in.execute = start_copies;
}

// "Data Movement and Conversion Instructions: cp.async", "... cp.async.commit_group",
// "... cp.async.wait_group / cp.async.wait_all"
void decode_cp(Statement& s) {
  s.require("async");
  if (s.take("commit_group")) {
    s.instruction.execute = commit_group;
  } else if (s.take("wait_group")) {
    s.instruction.offset = s.number();
    s.instruction.execute = wait_group;
  } else if (s.take("wait_all")) {
    s.instruction.execute = wait_all;
  } else {
    decode_start(s);
  }
}

constexpr OpcodeDecoder opcodes[] = {{"cp", decode_cp}};

}  // namespace

std::span<const OpcodeDecoder> copy_opcodes() { return opcodes; }

}  // namespace ptx
