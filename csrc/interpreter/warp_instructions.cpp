// PTX ISA, "Parallel Synchronization and Communication Instructions" and "Data Movement and
// Conversion Instructions: shfl.sync": what lanes do with each other; and "Control Flow
// Instructions".
#include <algorithm>
#include <bit>

#include "block.h"
#include "lanes.h"
#include "opcodes.h"
#include "text.h"

namespace ptx {
namespace {

// ---- shfl.sync ----------------------------------------------------------------------------------

enum class Shuffle { up, down, butterfly, index };

struct Source {
  int lane;
  bool in_range;
};

// The lane that `lane` reads, by the operands b and c: c has a clamp in its lowest bits and from
// bit 8 on a mask that cuts the warp into segments.
template <Shuffle mode>
Source source_of(int lane, uint32_t b, uint32_t c) {
  const int distance = b & 31, clamp = c & 31, segment = c >> 8 & 31;
  const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
  int source = 0;
  if (mode == Shuffle::up) source = lane - distance;
  if (mode == Shuffle::down) source = lane + distance;
  if (mode == Shuffle::butterfly) source = lane ^ distance;
  if (mode == Shuffle::index) source = first | (distance & ~segment);
  const bool in_range = mode == Shuffle::up ? source >= last : source <= last;
  return {in_range ? source : lane, in_range};
}

template <Shuffle mode>
void shuffle(Warp& warp, const Instruction& in, LaneMask lanes) {
  const uint32_t* const a = warp.row<uint32_t>(in.sources[0]);
  const uint32_t* const b = warp.row<uint32_t>(in.sources[1]);
  const uint32_t* const c = warp.row<uint32_t>(in.sources[2]);
  Row<uint32_t> values{};
  LaneMask in_range = 0;
  for (unsigned l = 0; l < lanes_per_warp; ++l) {
    if (!(lanes >> l & 1)) continue;
    const Source source = source_of<mode>(static_cast<int>(l), b[l], c[l]);
    if (!(lanes >> source.lane & 1))
      warp.report(in, l, kind::shuffle_from_inactive, "lane " + std::to_string(source.lane));
    values[l] = a[source.lane];
    in_range |= LaneMask{source.in_range} << l;
  }
  warp.write(in.destinations[0], values, lanes);
  if (in.destinations[1].exists()) warp.write_predicate(in.destinations[1], in_range, lanes);
}

// "Data Movement and Conversion Instructions: shfl.sync"
void decode_shfl(Statement& s) {
  Instruction& in = s.instruction;
  s.require("sync");
  if (s.take("up")) in.execute = shuffle<Shuffle::up>;
  else if (s.take("down")) in.execute = shuffle<Shuffle::down>;
  else if (s.take("bfly")) in.execute = shuffle<Shuffle::butterfly>;
  else s.require("idx"), in.execute = shuffle<Shuffle::index>;
  s.require("b32");
  s.write(0, Type::b32);
  if (s.take_symbol('|')) s.write(1, Type::pred);
  for (const int source : {0, 1, 2, Instruction::mask_source}) {
    s.comma();
    s.read(source, Type::b32);
  }
  in.flow = Flow::members;
}

// ---- vote.sync -----------------------------------------------------------------------

enum class Vote { ballot, any, all };

template <Vote mode>
void vote(Warp& warp, const Instruction& in, LaneMask lanes) {
  const LaneMask predicate = warp.predicate(in.sources[0]);
  const LaneMask yes = (in.offset ? ~predicate : predicate) & lanes;
  if (mode == Vote::ballot) {
    Row<uint32_t> values;
    values.fill(yes);
    warp.write(in.destinations[0], values, lanes);
  } else {
    const bool holds = mode == Vote::any ? yes != 0 : yes == lanes;
    warp.write_predicate(in.destinations[0], holds ? all_lanes : 0, lanes);
  }
}

// "Parallel Synchronization and Communication Instructions: vote.sync"
void decode_vote(Statement& s) {
  Instruction& in = s.instruction;
  s.require("sync");
  const bool ballot = s.take("ballot");
  if (ballot) in.execute = vote<Vote::ballot>;
  else if (s.take("any")) in.execute = vote<Vote::any>;
  else s.require("all"), in.execute = vote<Vote::all>;
  s.require(ballot ? "b32" : "pred");
  s.write(0, ballot ? Type::b32 : Type::pred);
  s.comma();
  in.offset = s.take_symbol('!');
  s.read(0, Type::pred);
  s.comma();
  s.read(Instruction::mask_source, Type::b32);
  in.flow = Flow::members;
}

// ---- redux.sync ---------------------------------------------------------------------------------

template <bool largest>
void reduce(Warp& warp, const Instruction& in, LaneMask lanes) {
  const int32_t* const a = warp.row<int32_t>(in.sources[0]);
  int32_t result = a[std::countr_zero(lanes)];
  for (unsigned l = 0; l < lanes_per_warp; ++l)
    if (lanes >> l & 1) result = largest ? std::max(result, a[l]) : std::min(result, a[l]);
  Row<int32_t> values;
  values.fill(result);
  warp.write(in.destinations[0], values, lanes);
}

// "Parallel Synchronization and Communication Instructions: redux.sync", of signed integers
void decode_redux(Statement& s) {
  Instruction& in = s.instruction;
  s.require("sync");
  if (s.take("max")) in.execute = reduce<true>;
  else s.require("min"), in.execute = reduce<false>;
  s.require("s32");
  s.write(0, Type::s32);
  s.comma();
  s.read(0, Type::s32);
  s.comma();
  s.read(Instruction::mask_source, Type::b32);
  in.flow = Flow::members;
}

// ---- barriers -----------------------------------------------------------------------------------

// Orders what the lanes of the warp did before it ahead of what they do afterwards. A barrier of
// fewer lanes orders nothing for the others, so it counts for none.
void synchronise_warp(Warp& warp, const Instruction&, LaneMask lanes) {
  ++warp.block->launch.counters.warp_barriers;
  if (lanes == warp.alive) warp.synced = ++warp.block->clock;
}

// "Parallel Synchronization and Communication Instructions: bar.sync", of all threads of the block
// at barrier 0, and "... bar.warp.sync"
void decode_bar(Statement& s) {
  Instruction& in = s.instruction;
  if (s.take("warp")) {
    s.require("sync");
    s.read(Instruction::mask_source, Type::b32);
    in.execute = synchronise_warp;
    in.flow = Flow::members;
    return;
  }
  s.take("cta");
  s.require("sync");
  if (s.number() != 0) s.refuse("a barrier other than 0");
  in.flow = Flow::block_barrier;
}

// ---- control flow -------------------------------------------------------------------------------

// "Control Flow Instructions: bra". The label is read by whoever knows the labels.
void decode_bra(Statement& s) {
  s.take("uni");
  s.instruction.flow = Flow::branch;
}

// "Control Flow Instructions: ret", "... exit"
void decode_exit(Statement& s) { s.instruction.flow = Flow::exit; }

void trap(Warp& warp, const Instruction& in, LaneMask) { warp.stop(in, "trap"); }

// "Miscellaneous Instructions: trap"
void decode_trap(Statement& s) { s.instruction.execute = trap; }

constexpr OpcodeDecoder opcodes[] = {
    {"shfl", decode_shfl}, {"vote", decode_vote}, {"redux", decode_redux},
    {"bar", decode_bar},   {"bra", decode_bra},   {"ret", decode_exit},
    {"exit", decode_exit}, {"trap", decode_trap}, {"barrier", decode_bar}};

}  // namespace

std::span<const OpcodeDecoder> warp_opcodes() { return opcodes; }

}  // namespace ptx
