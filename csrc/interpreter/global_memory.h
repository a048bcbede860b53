// Global memory: what kernels may touch, and which warps touched it.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace ptx {

// A number of zeros, of which only those that are accessed take memory: tensors may lie
// gigabytes apart.
class Stamps {
 public:
  Stamps() = default;
  Stamps(const Stamps&) = delete;
  Stamps& operator=(const Stamps&) = delete;
  ~Stamps() { clear(); }

  // Throws std::bad_alloc if there is no room for the addresses.
  void allocate(size_t count);
  void clear();
  bool empty() const { return count_ == 0; }
  uint32_t& operator[](size_t index) { return stamps_[index]; }

 private:
  uint32_t* stamps_ = nullptr;
  size_t count_ = 0;
};

// Memory that was permitted. Each two bytes remember the warp that wrote them and the one that read
// them, as stamps: 0 or a number below that of the running launch means nobody.
struct Buffer {
  uint64_t begin = 0, end = 0;
  bool writable = true;
  Stamps writers, readers;  // empty before make_stamps

  bool holds(uint64_t address, uint64_t bytes) const {
    return address >= begin && address + bytes <= end;
  }
  void make_stamps();  // at the first access with races searched
};

class Permissions {
 public:
  using Buffers = std::vector<std::shared_ptr<Buffer>>;  // by address

  void permit(uint64_t address, uint64_t bytes, bool writable);
  void forbid(uint64_t address);
  void forbid_all();
  Buffers snapshot();

 private:
  std::mutex mutex_;
  std::map<uint64_t, std::shared_ptr<Buffer>> buffers_;
};

// Global memory as one launch sees it.
class GlobalMemory {
 public:
  // `first_stamp` is above every stamp of earlier launches; it stands for "several warps".
  GlobalMemory(Permissions::Buffers buffers, uint32_t first_stamp)
      : buffers_(std::move(buffers)), several_(first_stamp) {}

  // The buffer that holds these bytes, or null.
  Buffer* find(uint64_t address, uint32_t bytes) {
    if (last_ && last_->holds(address, bytes)) return last_;
    return search(address, bytes);
  }
  // In words, where an address lies that no buffer holds.
  std::string neighbourhood(uint64_t address) const;

  // Who read or wrote what a warp (`stamp`, above first_stamp) now reads or writes.
  struct Others {
    bool written = false;  // by another warp
    bool read = false;     // by another warp
    bool written_by_self = false;
  };
  Others note_read(Buffer& buffer, uint64_t address, uint32_t bytes, uint32_t stamp);
  Others note_write(Buffer& buffer, uint64_t address, uint32_t bytes, uint32_t stamp);

 private:
  Buffer* search(uint64_t address, uint32_t bytes);

  Permissions::Buffers buffers_;
  Buffer* last_ = nullptr;
  uint32_t several_;
};

}  // namespace ptx
