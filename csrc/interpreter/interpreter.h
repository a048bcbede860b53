// Runs kernels given as PTX on the CPU and reports what a GPU would not forgive.
//
// Load a module, permit the memory that kernels may touch, launch, and take what was found. All
// functions may be called from any thread; launches run one after the other.
#pragma once
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "counters.h"
#include "settings.h"

namespace ptx {

// A text that cannot be read, a launch that is refused or that cannot go on.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Something that a kernel did wrong, with the first place where it happened.
struct Finding {
  std::string kind;  // see findings.h
  std::string kernel;
  std::string file;  // of the PTX, as given to `load`
  int line = 0;
  std::string source_file;  // from .loc; empty if the PTX names none
  int source_line = 0;
  std::string instruction;
  std::string detail;
  uint64_t count = 0;  // at this line

  std::string text() const;
};

// An instruction of a kernel, with its place.
struct Line {
  int line = 0;
  std::string instruction;
  std::string source_file;
  int source_line = 0;
};

struct KernelSummary {
  std::string name;
  std::string file;
  uint64_t launches = 0;
  uint64_t instructions = 0;  // 0 before the kernel was decoded, which its first launch does
  uint64_t executed_instructions = 0;
  uint32_t static_shared_bytes = 0;
  uint32_t local_bytes = 0;  // of a thread
};

using Size3 = std::array<unsigned, 3>;

// Reads a module and returns the names of its kernels. A kernel replaces one of the same name.
// Throws Refusal for a text that is not PTX.
std::vector<std::string> load(const std::string& file, const std::string& text);

// Forgets a kernel; nothing happens if there is none of that name.
void unload(const std::string& kernel);

// Decodes every kernel and returns one message for each that has an unknown instruction.
std::vector<std::string> decode_all();

// Kernels may read, and write if `writable`, these bytes of the process until they are forbidden. A
// later permission for the same address replaces the earlier one.
void permit(uint64_t address, uint64_t bytes, bool writable = true);
void forbid(uint64_t address);
void forbid_all();

// Runs a kernel; arguments[i] points to the value of parameter i, of its size. Throws Refusal for
// an unknown kernel or instruction, a grid or block that no GPU takes, more shared memory than
// allowed, a trap or a deadlock. Faults that do not stop a kernel are for take_findings.
void launch(const std::string& kernel, Size3 grid, Size3 block, uint32_t dynamic_shared_bytes,
            const void* const* arguments);

// Launches as above, with the bytes of each argument; throws Refusal if their number or a size is wrong.
void launch(const std::string& kernel, Size3 grid, Size3 block, uint32_t dynamic_shared_bytes,
            const std::vector<std::string>& arguments);

Settings settings();
void set_settings(const Settings& settings);

// Return the findings or counts since the last call.
std::vector<Finding> take_findings();
Counters take_counters();

std::vector<KernelSummary> kernels();

// The instructions of a kernel that no lane has executed since it was loaded. Throws Refusal for an
// unknown kernel.
std::vector<Line> unexecuted(const std::string& kernel);

}  // namespace ptx
