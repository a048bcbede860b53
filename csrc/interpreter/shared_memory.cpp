#include "shared_memory.h"

#include <algorithm>

namespace ptx {
namespace {

uint64_t at_time(uint32_t time) { return uint64_t{time} << 32; }
uint32_t time_of(uint64_t access) { return static_cast<uint32_t>(access >> 32); }
uint32_t warp_of(uint64_t thread) { return static_cast<uint32_t>(thread) / 32; }

}  // namespace

void SharedMemory::reset(uint32_t bytes, bool keep_history, uint32_t now) {
  data_.assign(bytes, 0xff);
  touches_.resize(keep_history ? (bytes + 1) / 2 : 0);
  begin_ = at_time(now);
}

void SharedMemory::forget_copies() {
  for (Touch& touch : touches_)
    if (touch.write >= copying) touch = {};
}

// In most cases a barrier lies between an access and all earlier ones to its bytes. This is the
// quick test for it; what fails it is looked at closely.
class SharedMemory::Order {
 public:
  Order(const Accessor& by, uint64_t begin)
      : begin_(begin),
        block_synced_(at_time(by.block_synced)),
        warp_synced_(at_time(by.warp_synced)),
        warp_(by.thread & warp_mask) {}

  bool follows(uint64_t access) const {
    return (access < block_synced_) | ((access < warp_synced_) & ((access & warp_mask) == warp_));
  }
  // A write of an earlier block becomes a number above all times.
  bool follows_write(uint64_t write) const {
    return (write - begin_ < block_synced_ - begin_) |
           ((write - begin_ < warp_synced_ - begin_) & ((write & warp_mask) == warp_));
  }

 private:
  static constexpr uint64_t warp_mask = several_warps | (who_mask & ~uint64_t{31});
  uint64_t begin_, block_synced_, warp_synced_, warp_;
};

uint32_t SharedMemory::note_read(uint64_t address, uint32_t bytes, const Accessor& by) {
  if (touches_.empty()) return no_hazard;
  const size_t first = (address - base) / 2, last = (address - base + bytes - 1) / 2;
  const uint64_t self = at_time(by.now) | by.thread | (by.whole_warp ? several_lanes : 0);
  const Order order(by, begin_);
  bool quiet = true;
  for (size_t i = first; i <= last; ++i)
    quiet &= order.follows_write(touches_[i].write) &
             (order.follows(touches_[i].read) | (touches_[i].read == self));
  if (!quiet) return note_read_slowly(first, last, by);
  for (size_t i = first; i <= last; ++i) touches_[i].read = self;
  return no_hazard;
}

uint32_t SharedMemory::note_read_slowly(size_t first, size_t last, const Accessor& by) {
  const uint32_t warp = warp_of(by.thread);
  uint32_t hazards = no_hazard;
  for (size_t i = first; i <= last; ++i) {
    Touch& touch = touches_[i];
    const uint64_t writer = touch.write & who_mask;
    if (touch.write < begin_) {
      hazards |= uninitialised;
    } else if (touch.write >= copying) {
      hazards |= read_under_copy;
    } else if (writer != by.thread || by.whole_warp || (touch.write & several_lanes)) {
      const uint32_t synced = warp_of(writer) == warp ? by.warp_synced : by.block_synced;
      if (time_of(touch.write) >= synced) hazards |= read_after_write;
    }
    // Earlier readers are forgotten if a barrier orders them before whatever comes now.
    const uint64_t reader = touch.read & who_mask;
    const bool same_warp = warp_of(reader) == warp && !(touch.read & several_warps);
    const bool ordered = time_of(touch.read) < (same_warp ? by.warp_synced : by.block_synced);
    uint64_t flags = by.whole_warp ? several_lanes : 0;
    if (!ordered) {
      flags |= touch.read & (several_lanes | several_warps);
      if (!same_warp) flags |= several_warps;
      else if (reader != by.thread) flags |= several_lanes;
    }
    touch.read = at_time(by.now) | by.thread | flags;
  }
  return hazards;
}

uint32_t SharedMemory::write_hazards(const Touch& touch, const Accessor& by) const {
  const uint32_t warp = warp_of(by.thread);
  uint32_t hazards = no_hazard;
  const uint64_t writer = touch.write & who_mask, reader = touch.read & who_mask;
  if (touch.write >= copying) {
    hazards |= write_under_copy;
  } else if (touch.write >= begin_ &&
             (writer != by.thread || by.whole_warp || (touch.write & several_lanes))) {
    const uint32_t synced = warp_of(writer) == warp ? by.warp_synced : by.block_synced;
    if (time_of(touch.write) >= synced) hazards |= write_after_write;
  }
  if (touch.read >= begin_) {
    const bool same_warp = warp_of(reader) == warp && !(touch.read & several_warps);
    const bool same_thread =
        same_warp && reader == by.thread && !(touch.read & several_lanes) && !by.whole_warp;
    const uint32_t synced = same_warp ? by.warp_synced : by.block_synced;
    if (!same_thread && time_of(touch.read) >= synced) hazards |= write_after_read;
  }
  return hazards;
}

uint32_t SharedMemory::note_write(uint64_t address, uint32_t bytes, const Accessor& by) {
  if (touches_.empty()) return no_hazard;
  const size_t first = (address - base) / 2, last = (address - base + bytes - 1) / 2;
  const uint64_t self = at_time(by.now) | by.thread | (by.whole_warp ? several_lanes : 0);
  const Order order(by, begin_);
  uint32_t hazards = no_hazard;
  for (size_t i = first; i <= last; ++i) {
    Touch& touch = touches_[i];
    if (!(order.follows(touch.write) & order.follows(touch.read)))
      hazards |= write_hazards(touch, by);
    touch = {self, 0};
  }
  return hazards;
}

uint32_t SharedMemory::begin_copy(uint64_t address, uint32_t bytes, const Accessor& by) {
  if (touches_.empty()) return no_hazard;
  const size_t first = (address - base) / 2, last = (address - base + bytes - 1) / 2;
  const Order order(by, begin_);
  uint32_t hazards = no_hazard;
  for (size_t i = first; i <= last; ++i) {
    if (!(order.follows(touches_[i].write) & order.follows(touches_[i].read)))
      hazards |= write_hazards(touches_[i], by);
    touches_[i] = {copying | by.thread, 0};
  }
  return hazards;
}

void SharedMemory::end_copy(uint64_t address, uint32_t bytes, const Accessor& by) {
  if (touches_.empty()) return;
  const size_t first = (address - base) / 2, last = (address - base + bytes - 1) / 2;
  for (size_t i = first; i <= last; ++i) touches_[i] = {at_time(by.now) | by.thread, 0};
}

}  // namespace ptx
