// The control flow of a warp: lanes diverge at branches and merge where they meet.
#include "warp.h"

#include <algorithm>
#include <bit>

#include "block.h"
#include "text.h"

namespace ptx {
namespace {

size_t index_of(const Warp& warp, const Instruction& in) {
  return static_cast<size_t>(&in - warp.block->launch.program.code.data());
}

}  // namespace

Accessor Warp::accessor(unsigned lane) const {
  return {index * lanes_per_warp + lane, false, block->clock, synced, block->synced};
}

void Warp::report(const Instruction& at, unsigned lane, const char* kind,
                  const std::string& detail) const {
  const Launch& launch = block->launch;
  const Location& location = launch.program.locations[index_of(*this, at)];
  bool first = false;
  Finding& finding = launch.findings.count(kind, launch.kernel.name, location.line, first);
  if (!first) return;
  finding.kind = kind;
  finding.kernel = launch.kernel.name;
  finding.file = launch.kernel.module->file;
  finding.line = location.line;
  finding.source_file = launch.kernel.source_file(location.source_file);
  finding.source_line = location.source_line;
  finding.instruction = location.text;
  finding.detail = "block " + text_of(block->at) + " of " + text_of(launch.grid) + ", warp " +
                   std::to_string(index) + ", lane " + std::to_string(lane) +
                   (detail.empty() ? "" : ": " + detail);
}

void Warp::stop(const Instruction& at, const std::string& why) const {
  const Launch& launch = block->launch;
  const Location& location = launch.program.locations[index_of(*this, at)];
  throw Refusal(launch.kernel.module->file + ":" + std::to_string(location.line) + ": " +
                location.text + " of " + launch.kernel.name + ": " + why);
}

void Warp::run(uint64_t instructions) {
  for (; instructions > 0 && !done(); --instructions) {
    size_t group = 0;
    if (groups.size() > 1) group = choose_group();
    else if (groups[0].waiting)
      stop(block->launch.program.code[groups[0].at], "deadlock, it waits for lanes that exited");
    step(group);
    if (at_barrier) return;
  }
}

size_t Warp::choose_group() {
  const Order order = block->launch.settings.lane_order;
  const LaneGroup* chosen = nullptr;
  uint64_t ready = 0;
  for (const LaneGroup& group : groups) {
    if (group.waiting) continue;
    ++ready;
    const bool better =
        !chosen || (order == Order::forward   ? group.at < chosen->at
                    : order == Order::reverse ? group.at > chosen->at
                                              : block->launch.random() % ready == 0);
    if (better) chosen = &group;
  }
  if (!chosen)
    stop(block->launch.program.code[groups[0].at],
         "deadlock, the lanes of a diverged warp wait for each other");
  const uint32_t at = chosen->at;
  merge_groups_at(at);
  const auto merged = std::find_if(groups.begin(), groups.end(),
                                   [at](const LaneGroup& group) { return group.at == at; });
  return static_cast<size_t>(merged - groups.begin());
}

void Warp::merge_groups_at(uint32_t instruction) {
  LaneGroup merged{instruction, 0, false};
  for (const LaneGroup& group : groups)
    if (group.at == instruction) merged.lanes |= group.lanes;
  std::erase_if(groups, [&](const LaneGroup& group) { return group.at == instruction; });
  groups.push_back(merged);
}

void Warp::step(size_t index_of_group) {
  Launch& launch = block->launch;
  LaneGroup& group = groups[index_of_group];
  const Instruction& in = launch.program.code[group.at];
  uint64_t& executions = launch.kernel.executions[group.at];
  LaneMask lanes = group.lanes;
  if (in.guard.exists()) {
    const LaneMask guard = predicate(in.guard);
    lanes &= in.guard_negated ? ~guard : guard;
  }

  if (in.flow == Flow::straight) {
    if (lanes != 0) {
      in.execute(*this, in, lanes);
      ++executions;
    }
    ++launch.counters.warp_instructions;
    ++group.at;
    return;
  }

  const bool waits = in.flow != Flow::branch && in.flow != Flow::exit;
  if (waits && lanes != group.lanes && lanes != 0) stop(in, "its guard holds for some lanes only");
  if (waits && lanes != 0 && wait_for_members(group, in, lanes)) return;

  ++launch.counters.warp_instructions;
  if (lanes != 0) ++executions;
  switch (in.flow) {
    case Flow::branch:
      if (lanes == group.lanes) {
        group.at = in.target;
      } else {
        ++group.at;
        group.lanes &= ~lanes;
        if (lanes != 0) groups.push_back({in.target, lanes, false});
      }
      break;
    case Flow::exit:
      ++group.at;
      if (lanes != 0) exit_lanes(index_of_group, lanes);
      break;
    case Flow::block_barrier:
      if (lanes == 0) {
        ++group.at;
      } else {
        ++launch.counters.block_barriers;
        group.waiting = at_barrier = true;
      }
      break;
    default:
      if (lanes != 0) in.execute(*this, in, lanes);
      ++group.at;
  }
}

// Tells whether the group must wait for lanes that are elsewhere.
bool Warp::wait_for_members(LaneGroup& group, const Instruction& in, LaneMask lanes) {
  LaneMask members = alive;
  if (in.flow == Flow::whole_warp) {
    if (alive != all_lanes) stop(in, "lanes of the warp have exited");
  } else if (in.flow == Flow::members) {
    const uint32_t* const masks = row<uint32_t>(in.sources[Instruction::mask_source]);
    members = masks[std::countr_zero(lanes)];
    for (unsigned l = 0; l < lanes_per_warp; ++l) {
      if (!(lanes >> l & 1)) continue;
      if (masks[l] != members) stop(in, "lanes have different member masks");
      if (!(members >> l & 1)) report(in, l, kind::not_in_member_mask, hexadecimal(members));
    }
    // Lanes that have exited need not come.
    members &= alive;
  }
  group.waiting = (members & ~group.lanes) != 0;
  return group.waiting;
}

void Warp::exit_lanes(size_t index_of_group, LaneMask lanes) {
  for (unsigned l = 0; l < lanes_per_warp; ++l)
    if (lanes >> l & 1 && copies[l].in_flight()) {
      const LaneGroup& group = groups[index_of_group];
      report(block->launch.program.code[group.at - 1], l, kind::copy_in_flight_at_exit, "");
    }
  alive &= ~lanes;
  groups[index_of_group].lanes &= ~lanes;
  // Who waited for these lanes looks again.
  for (LaneGroup& group : groups) group.waiting = false;
  if (groups[index_of_group].lanes == 0)
    groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(index_of_group));
}

}  // namespace ptx
