// Errors of a kernel that do not stop it, and the list of those that were found.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "interpreter.h"

namespace ptx {

namespace kind {
// Global memory.
constexpr const char* global_read_out_of_bounds = "global read out of bounds";
constexpr const char* global_write_out_of_bounds = "global write out of bounds";
constexpr const char* write_to_read_only = "write to read-only memory";
constexpr const char* misaligned_global = "misaligned global access";
constexpr const char* written_by_two_warps = "global memory written by two warps";
constexpr const char* written_twice = "global memory written twice";
constexpr const char* written_after_read = "global memory written after another warp read it";
constexpr const char* read_after_written = "global memory read after another warp wrote it";
constexpr const char* cached_read_of_written = "ld.global.nc of what the kernel wrote";
// Shared and local memory.
constexpr const char* shared_out_of_bounds = "shared access out of bounds";
constexpr const char* misaligned_shared = "misaligned shared access";
constexpr const char* uninitialised_shared = "read of uninitialised shared memory";
constexpr const char* race_read_after_write = "race: shared read after another thread's write";
constexpr const char* race_write_after_read = "race: shared write after another thread's read";
constexpr const char* race_write_after_write = "race: two threads write shared memory";
constexpr const char* local_out_of_bounds = "local access out of bounds or misaligned";
// Asynchronous copies.
constexpr const char* read_under_copy = "shared read under a copy in flight";
constexpr const char* write_under_copy = "shared write under a copy in flight";
constexpr const char* copy_source_size = "cp.async with a source size above its size";
constexpr const char* copy_in_flight_at_exit = "copy in flight at exit";
constexpr const char* absent_copy_out_of_bounds =
    "cp.async of source size 0 from outside permitted memory";
constexpr const char* misaligned_absent_copy =
    "cp.async of source size 0 from a misaligned address";
// Threads of a warp.
constexpr const char* not_in_member_mask = "lane is not in its own member mask";
constexpr const char* shuffle_from_inactive = "shuffle from an inactive lane";
// Arithmetic.
constexpr const char* division_by_zero = "integer division by zero";
}  // namespace kind

// One finding for each kind and line of PTX: the first, and how many there were.
class Findings {
 public:
  // The finding of this kind at this line, with its count raised; `first` says that it is new.
  Finding& count(const char* kind, const std::string& kernel, int line, bool& first) {
    const auto [entry, added] = findings_.try_emplace({kernel, line, kind});
    first = added;
    ++entry->second.count;
    return entry->second;
  }

  std::vector<Finding> take() {
    std::vector<Finding> taken;
    for (auto& [key, finding] : findings_) taken.push_back(std::move(finding));
    findings_.clear();
    return taken;
  }

 private:
  struct Key {
    std::string kernel;
    int line;
    std::string kind;
    auto operator<=>(const Key&) const = default;
  };
  std::map<Key, Finding> findings_;
};

}  // namespace ptx
