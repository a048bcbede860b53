#include "global_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace ptx {

void Stamps::clear() {
  if (count_ > 0) munmap(stamps_, count_ * sizeof(uint32_t));
  stamps_ = nullptr;
  count_ = 0;
}

void Stamps::allocate(size_t count) {
  void* const memory = mmap(nullptr, count * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stamps_ = static_cast<uint32_t*>(memory);
  count_ = count;
}

void Permissions::permit(uint64_t address, uint64_t bytes, bool writable) {
  if (bytes == 0) return;
  auto buffer = std::make_shared<Buffer>();
  buffer->begin = address;
  buffer->end = address + bytes;
  buffer->writable = writable;
  const std::lock_guard lock(mutex_);
  buffers_[address] = std::move(buffer);
}

void Permissions::forbid(uint64_t address) {
  const std::lock_guard lock(mutex_);
  buffers_.erase(address);
}

void Permissions::forbid_all() {
  const std::lock_guard lock(mutex_);
  buffers_.clear();
}

Permissions::Buffers Permissions::snapshot() {
  const std::lock_guard lock(mutex_);
  Buffers all;
  all.reserve(buffers_.size());
  for (const auto& entry : buffers_) all.push_back(entry.second);
  return all;
}

namespace {

// The first buffer that begins above an address.
auto above(const Permissions::Buffers& buffers, uint64_t address) {
  return std::upper_bound(buffers.begin(), buffers.end(), address,
                          [](uint64_t wanted, const std::shared_ptr<Buffer>& buffer) {
                            return wanted < buffer->begin;
                          });
}

}  // namespace

Buffer* GlobalMemory::search(uint64_t address, uint32_t bytes) {
  const auto next = above(buffers_, address);
  if (next == buffers_.begin()) return nullptr;
  Buffer* const buffer = std::prev(next)->get();
  return buffer->holds(address, bytes) ? last_ = buffer : nullptr;
}

std::string GlobalMemory::neighbourhood(uint64_t address) const {
  const auto next = above(buffers_, address);
  std::string text;
  if (next != buffers_.begin()) {
    const Buffer& before = **std::prev(next);
    text = std::to_string(address - before.begin) + " bytes into memory of " +
           std::to_string(before.end - before.begin);
  }
  if (next != buffers_.end())
    text += (text.empty() ? "" : ", ") + std::to_string((*next)->begin - address) +
            " bytes before the next";
  return text.empty() ? "no memory is permitted" : text;
}

void Buffer::make_stamps() {
  if (!writers.empty()) return;
  const size_t pairs = (end - begin) / 2 + 1;
  writers.allocate(pairs);
  readers.allocate(pairs);
}

GlobalMemory::Others GlobalMemory::note_read(Buffer& buffer, uint64_t address, uint32_t bytes,
                                             uint32_t stamp) {
  buffer.make_stamps();
  const size_t first = (address - buffer.begin) / 2;
  const size_t last = (address - buffer.begin + bytes - 1) / 2;
  Others others;
  for (size_t i = first; i <= last; ++i) {
    const uint32_t writer = buffer.writers[i];
    uint32_t& reader = buffer.readers[i];
    others.written |= writer > several_ && writer != stamp;
    others.written_by_self |= writer == stamp;
    reader = reader < several_ || reader == stamp ? stamp : several_;
  }
  return others;
}

GlobalMemory::Others GlobalMemory::note_write(Buffer& buffer, uint64_t address, uint32_t bytes,
                                              uint32_t stamp) {
  buffer.make_stamps();
  const size_t first = (address - buffer.begin) / 2;
  const size_t last = (address - buffer.begin + bytes - 1) / 2;
  Others others;
  for (size_t i = first; i <= last; ++i) {
    uint32_t& writer = buffer.writers[i];
    const uint32_t reader = buffer.readers[i];
    others.written |= writer > several_ && writer != stamp;
    others.written_by_self |= writer == stamp;
    others.read |= reader >= several_ && reader != stamp;
    writer = stamp;
  }
  return others;
}

}  // namespace ptx
