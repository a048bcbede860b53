// The asynchronous copies that one CUDA thread has under way.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "sanitizers.h"

namespace emulation {

class CopyQueue {
 public:
  struct Copy {
    void* to;
    const void* from;  // null: zeros
    uint32_t bytes;
    uint32_t group;  // how many groups had been committed before
  };

  // A copy may take place at once, or in the wait for its group.
  void start(void* to, const void* from, uint32_t bytes, bool at_once) {
    const Copy copy{to, from, bytes, committed_};
    if (at_once) {
      perform(copy);
    } else {
      const Quiet quiet;
      copies_.push_back(copy);
    }
  }

  void commit() {
    const Quiet quiet;
    ++committed_;
  }

  void wait(uint32_t may_remain) {
    while (true) {
      Copy copy;
      {
        const Quiet quiet;
        if (next_ == copies_.size() || copies_[next_].group + may_remain >= committed_) break;
        copy = copies_[next_++];
      }
      perform(copy);
    }
    const Quiet quiet;
    if (next_ == copies_.size() || next_ > 256) {
      copies_.erase(copies_.begin(), copies_.begin() + static_cast<ptrdiff_t>(next_));
      next_ = 0;
    }
  }

  bool under_way() const { return next_ != copies_.size(); }

  void reset() { copies_.clear(), next_ = 0, committed_ = 0; }

 private:
  // In the name of the CUDA thread, so that the sanitizers see who reads and writes.
  static void perform(const Copy& copy) {
    if (copy.bytes == 16) perform_as<uint64_t[2]>(copy);
    else if (copy.bytes == 8) perform_as<uint64_t>(copy);
    else perform_as<uint32_t>(copy);
  }
  template <class Value>
  static void perform_as(const Copy& copy) {
    Value value = {};
    if (copy.from) memcpy(&value, copy.from, sizeof(value));
    memcpy(copy.to, &value, sizeof(value));
  }

  std::vector<Copy> copies_;  // in the order they were started
  size_t next_ = 0;           // the first that has not taken place
  uint32_t committed_ = 0;
};

}  // namespace emulation
