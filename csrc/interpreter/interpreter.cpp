#include "interpreter.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "block.h"
#include "findings.h"
#include "global_memory.h"
#include "module.h"
#include "text.h"

namespace ptx {
namespace {

struct Interpreter {
  std::mutex mutex;  // of everything but the permissions, which have their own
  std::map<std::string, Kernel> kernels;
  Settings settings;
  Counters counters;
  Findings findings;
  uint32_t next_stamp = 1;  // see GlobalMemory
  Permissions permissions;
};

// It lives until the process ends, since memory may be freed, and thus forbidden, until then.
Interpreter& interpreter() {
  static Interpreter& only = *new Interpreter;
  return only;
}

Kernel& find_kernel(Interpreter& machine, const std::string& name) {
  const auto found = machine.kernels.find(name);
  if (found == machine.kernels.end()) throw Refusal("there is no kernel " + name);
  return found->second;
}

void decode_once(Kernel& kernel) {
  if (kernel.program) return;
  kernel.program = decode(kernel);
  kernel.executions.assign(kernel.program->code.size(), 0);
}

// Limits of the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
void check_launch(const Kernel& kernel, const Settings& settings, Size3 grid, Size3 block,
                  uint64_t shared_bytes) {
  const auto refuse = [&](const std::string& why) {
    throw Refusal("launch of " + kernel.name + ": " + why);
  };
  const uint64_t threads = uint64_t{block[0]} * block[1] * block[2];
  if (threads == 0 || threads > 1024 || block[2] > 64)
    refuse("a block of " + text_of(block) + " threads");
  if (kernel.most_threads != 0 && threads > kernel.most_threads)
    refuse(std::to_string(threads) + " threads, but .maxntid allows " +
           std::to_string(kernel.most_threads));
  if (kernel.required_block && block != *kernel.required_block)
    refuse("a block of " + text_of(block) + ", but .reqntid is " + text_of(*kernel.required_block));
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > 0x7fffffff || grid[1] > 65535 ||
      grid[2] > 65535)
    refuse("a grid of " + text_of(grid) + " blocks");
  if (shared_bytes > settings.shared_bytes_per_block)
    refuse(std::to_string(shared_bytes) + " bytes of shared memory, but a block can have " +
           std::to_string(settings.shared_bytes_per_block));
}

std::vector<std::byte> copy_parameters(const Kernel& kernel, const void* const* arguments) {
  std::vector<std::byte> bytes(kernel.parameter_bytes);
  for (size_t i = 0; i < kernel.parameters.size(); ++i) {
    const Parameter& parameter = kernel.parameters[i];
    std::memcpy(&bytes[parameter.offset], arguments[i], parameter.variable.bytes);
  }
  return bytes;
}

// The stamps of a launch. When their numbers are used up, all history is forgotten.
uint32_t reserve_stamps(Interpreter& machine, const Permissions::Buffers& buffers, uint64_t warps) {
  if (warps >= UINT32_MAX - 1) throw Refusal("a grid of too many warps");
  if (machine.next_stamp + warps >= UINT32_MAX) {
    for (const auto& buffer : buffers) buffer->writers.clear(), buffer->readers.clear();
    machine.next_stamp = 1;
  }
  const uint32_t first = machine.next_stamp;
  machine.next_stamp += static_cast<uint32_t>(warps) + 1;
  return first;
}

void launch_locked(Interpreter& machine, Kernel& kernel, Size3 grid, Size3 block_size,
                   uint32_t dynamic_shared_bytes, const void* const* arguments) {
  decode_once(kernel);
  const uint64_t shared_bytes =
      uint64_t{kernel.program->static_shared_bytes} + dynamic_shared_bytes;
  check_launch(kernel, machine.settings, grid, block_size, shared_bytes);
  const uint64_t warps = (uint64_t{block_size[0]} * block_size[1] * block_size[2] + 31) / 32;
  Permissions::Buffers buffers = machine.permissions.snapshot();
  const uint32_t first_stamp =
      reserve_stamps(machine, buffers, warps * grid[0] * grid[1] * grid[2]);
  Launch launch{kernel,
                *kernel.program,
                grid,
                block_size,
                static_cast<uint32_t>(shared_bytes),
                copy_parameters(kernel, arguments),
                machine.settings,
                machine.counters,
                machine.findings,
                GlobalMemory(std::move(buffers), first_stamp),
                first_stamp,
                std::mt19937_64(machine.settings.seed)};
  ++kernel.launches;
  ++machine.counters.launches;
  Block block(launch);
  uint64_t number = 0;
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x) block.run({x, y, z}, number++);
}

}  // namespace

std::string Finding::text() const {
  std::string words = kind + ": " + instruction + " at " + file + ":" + std::to_string(line);
  if (!source_file.empty()) words += " (" + source_file + ":" + std::to_string(source_line) + ")";
  words += " of " + kernel + ", " + detail;
  if (count > 1) words += " (" + std::to_string(count) + " times)";
  return words;
}

std::vector<std::string> load(const std::string& file, const std::string& text) {
  std::vector<Kernel> kernels = read_module(file, text);
  Interpreter& machine = interpreter();
  const std::lock_guard lock(machine.mutex);
  std::vector<std::string> names;
  for (Kernel& kernel : kernels) {
    names.push_back(kernel.name);
    machine.kernels[kernel.name] = std::move(kernel);
  }
  return names;
}

void unload(const std::string& kernel) {
  Interpreter& machine = interpreter();
  const std::lock_guard lock(machine.mutex);
  machine.kernels.erase(kernel);
}

std::vector<std::string> decode_all() {
  Interpreter& machine = interpreter();
  const std::lock_guard lock(machine.mutex);
  std::vector<std::string> refusals;
  for (auto& [name, kernel] : machine.kernels) {
    try {
      decode_once(kernel);
    } catch (const Refusal& refusal) {
      refusals.emplace_back(refusal.what());
    }
  }
  return refusals;
}

void permit(uint64_t address, uint64_t bytes, bool writable) {
  interpreter().permissions.permit(address, bytes, writable);
}
void forbid(uint64_t address) { interpreter().permissions.forbid(address); }
void forbid_all() { interpreter().permissions.forbid_all(); }

void launch(const std::string& kernel, Size3 grid, Size3 block, uint32_t dynamic_shared_bytes,
            const void* const* arguments) {
  Interpreter& machine = interpreter();
  const std::lock_guard lock(machine.mutex);
  launch_locked(machine, find_kernel(machine, kernel), grid, block, dynamic_shared_bytes,
                arguments);
}

void launch(const std::string& name, Size3 grid, Size3 block, uint32_t dynamic_shared_bytes,
            const std::vector<std::string>& arguments) {
  Interpreter& machine = interpreter();
  const std::lock_guard lock(machine.mutex);
  Kernel& kernel = find_kernel(machine, name);
  if (arguments.size() != kernel.parameters.size())
    throw Refusal("launch of " + name + ": got " + std::to_string(arguments.size()) +
                  " arguments, expected " + std::to_string(kernel.parameters.size()));
  std::vector<const void*> pointers;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const uint32_t bytes = kernel.parameters[i].variable.bytes;
    if (arguments[i].size() != bytes)
      throw Refusal("launch of " + name + ": argument " + std::to_string(i) + " has " +
                    std::to_string(arguments[i].size()) + " bytes, expected " +
                    std::to_string(bytes));
    pointers.push_back(arguments[i].data());
  }
  launch_locked(machine, kernel, grid, block, dynamic_shared_bytes, pointers.data());
}

Settings settings() {
  Interpreter& machine = interpreter();
  const std::lock_guard lock(machine.mutex);
  return machine.settings;
}

void set_settings(const Settings& settings) {
  Interpreter& machine = interpreter();
  const std::lock_guard lock(machine.mutex);
  machine.settings = settings;
}

std::vector<Finding> take_findings() {
  Interpreter& machine = interpreter();
  const std::lock_guard lock(machine.mutex);
  return machine.findings.take();
}

Counters take_counters() {
  Interpreter& machine = interpreter();
  const std::lock_guard lock(machine.mutex);
  return std::exchange(machine.counters, {});
}

std::vector<KernelSummary> kernels() {
  Interpreter& machine = interpreter();
  const std::lock_guard lock(machine.mutex);
  std::vector<KernelSummary> all;
  for (const auto& [name, kernel] : machine.kernels) {
    KernelSummary summary;
    summary.name = name;
    summary.file = kernel.module->file;
    summary.launches = kernel.launches;
    if (kernel.program) {
      summary.instructions = kernel.program->code.size();
      summary.executed_instructions =
          kernel.executions.size() -
          static_cast<uint64_t>(
              std::count(kernel.executions.begin(), kernel.executions.end(), uint64_t{0}));
      summary.static_shared_bytes = kernel.program->static_shared_bytes;
      summary.local_bytes = kernel.program->local_bytes;
    }
    all.push_back(std::move(summary));
  }
  return all;
}

std::vector<Line> unexecuted(const std::string& name) {
  Interpreter& machine = interpreter();
  const std::lock_guard lock(machine.mutex);
  Kernel& kernel = find_kernel(machine, name);
  decode_once(kernel);
  std::vector<Line> lines;
  for (size_t i = 0; i < kernel.executions.size(); ++i) {
    if (kernel.executions[i] != 0) continue;
    const Location& location = kernel.program->locations[i];
    lines.push_back({location.line, location.text, kernel.source_file(location.source_file),
                     location.source_line});
  }
  return lines;
}

}  // namespace ptx
