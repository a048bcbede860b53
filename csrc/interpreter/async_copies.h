// The asynchronous copies of one lane, in the order they were started.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ptx {

struct Copy {
  uint32_t to = 0;  // in shared memory
  uint64_t from = 0;
  uint32_t bytes = 0;
  uint32_t source_bytes = 0;  // the rest becomes zeros
  bool has_landed = false;    // it was early: the bytes are there, but nobody may rely on them
  uint32_t group = 0;         // how many groups had been committed before
};

class CopyQueue {
 public:
  void start(Copy copy) {
    copy.group = committed_;
    copies_.push_back(copy);
  }

  void commit() { ++committed_; }

  // Calls `land` for every copy of all groups but the `may_remain` youngest.
  template <class Land>
  void wait(uint32_t may_remain, Land land) {
    while (next_ < copies_.size() && copies_[next_].group + may_remain < committed_)
      land(copies_[next_++]);
    if (next_ == copies_.size()) clear_copies();
    else if (next_ > 64) forget_landed();
  }

  bool in_flight() const { return next_ < copies_.size(); }

  void reset() {
    clear_copies();
    committed_ = 0;
  }

 private:
  void clear_copies() {
    copies_.clear();
    next_ = 0;
  }

  void forget_landed() {
    copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(next_));
    next_ = 0;
  }

  std::vector<Copy> copies_;
  size_t next_ = 0;  // the first that is in flight
  uint32_t committed_ = 0;
};

}  // namespace ptx
