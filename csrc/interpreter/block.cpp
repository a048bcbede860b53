#include "block.h"

#include <algorithm>

namespace ptx {
namespace {

// Memory that nobody has written holds no number in any format, and no address.
constexpr uint32_t unwritten = 0x7fff7fff;

uint32_t special_value(Special special, const Block& block, const Warp& warp, unsigned lane) {
  const Size3 size = block.launch.block_size, grid = block.launch.grid;
  const unsigned thread = warp.index * lanes_per_warp + lane;
  switch (special) {
    case Special::tid_x: return thread % size[0];
    case Special::tid_y: return thread / size[0] % size[1];
    case Special::tid_z: return thread / size[0] / size[1];
    case Special::ctaid_x: return block.at[0];
    case Special::ctaid_y: return block.at[1];
    case Special::ctaid_z: return block.at[2];
    case Special::ntid_x: return size[0];
    case Special::ntid_y: return size[1];
    case Special::ntid_z: return size[2];
    case Special::nctaid_x: return grid[0];
    case Special::nctaid_y: return grid[1];
    case Special::nctaid_z: return grid[2];
    case Special::laneid: return lane;
    case Special::warpid: return warp.index;
  }
  return unwritten;
}

}  // namespace

Block::Block(Launch& launch_of_block) : launch(launch_of_block) {
  const size_t bytes = launch.program.register_bytes;
  registers_.resize(bytes * launch.warps_per_block());
  warps.resize(launch.warps_per_block());
  for (unsigned i = 0; i < warps.size(); ++i) {
    Warp& warp = warps[i];
    warp.block = this;
    warp.index = i;
    warp.registers = registers_.data() + bytes * i;
    warp.constants = launch.program.constants.data();
    warp.copies.resize(lanes_per_warp);
  }
}

void Block::reset(Size3 index, uint64_t block_number) {
  at = index;
  number = block_number;
  synced = ++clock;
  for (const Warp& warp : warps)
    for (const CopyQueue& queue : warp.copies)
      if (queue.in_flight()) shared.forget_copies();
  shared.reset(launch.shared_bytes, launch.settings.find_races, clock);
  for (size_t i = 0; i + sizeof(unwritten) <= registers_.size(); i += sizeof(unwritten))
    std::memcpy(&registers_[i], &unwritten, sizeof(unwritten));
  for (Warp& warp : warps) {
    const unsigned lanes = std::min(lanes_per_warp, launch.threads() - warp.index * lanes_per_warp);
    warp.alive = all_lanes >> (lanes_per_warp - lanes);
    warp.groups = {{0, warp.alive, false}};
    for (CopyQueue& queue : warp.copies) queue.reset();
    warp.local.assign(size_t{launch.program.local_bytes} * lanes_per_warp, 0xff);
    warp.synced = synced;
    warp.at_barrier = false;
    fill_special_registers(warp);
  }
}

void Block::fill_special_registers(Warp& warp) const {
  for (const SpecialRegister& entry : launch.program.specials) {
    Row<uint32_t> values;
    for (unsigned lane = 0; lane < lanes_per_warp; ++lane)
      values[lane] = special_value(entry.special, *this, warp, lane);
    warp.write(entry.place, values, all_lanes);
  }
}

std::vector<Warp*> Block::runnable_warps() {
  std::vector<Warp*> runnable;
  for (Warp& warp : warps)
    if (!warp.done() && !warp.at_barrier) runnable.push_back(&warp);
  return runnable;
}

void Block::run(Size3 index, uint64_t block_number) {
  reset(index, block_number);
  ++launch.counters.blocks;
  while (true) {
    std::vector<Warp*> runnable = runnable_warps();
    if (runnable.empty()) {
      if (std::all_of(warps.begin(), warps.end(), [](const Warp& warp) { return warp.done(); }))
        return;
      release_barrier();
    } else if (launch.settings.warp_order == Order::random) {
      // Warps take turns after some instructions.
      Warp* const warp = runnable[launch.random() % runnable.size()];
      warp->run(1 + launch.random() % 200);
    } else {
      if (launch.settings.warp_order == Order::reverse)
        std::reverse(runnable.begin(), runnable.end());
      for (Warp* const warp : runnable) warp->run(~uint64_t{0});
    }
  }
}

void Block::release_barrier() {
  synced = ++clock;
  for (Warp& warp : warps) {
    warp.synced = synced;
    if (warp.done()) continue;
    warp.at_barrier = false;
    for (LaneGroup& group : warp.groups) {
      group.waiting = false;
      ++group.at;
    }
  }
}

}  // namespace ptx
