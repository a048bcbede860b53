// A text of PTX as its kernels, not yet decoded.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "instruction.h"
#include "types.h"

namespace ptx {

// An array in shared or local memory, or a parameter.
struct Variable {
  std::string name;
  uint32_t bytes = 0;  // 0 for shared memory whose size the launch chooses
  uint32_t alignment = 1;
};

struct Parameter {
  Variable variable;
  uint32_t offset = 0;
};

// The parts of a text that belong to all its kernels.
struct Module {
  std::string file;
  std::map<int, std::string> source_files;  // by their numbers in .loc, without folders
  std::vector<Variable> shared;
};

struct Kernel {
  std::shared_ptr<const Module> module;
  std::string name;
  std::string body;  // without comments
  int first_line = 0;
  std::vector<Parameter> parameters;
  uint32_t parameter_bytes = 0;
  unsigned most_threads = 0;                              // .maxntid; 0 if not given
  std::optional<std::array<unsigned, 3>> required_block;  // .reqntid

  std::optional<Program> program;    // once decoded
  std::vector<uint64_t> executions;  // of each instruction, by warps
  uint64_t launches = 0;

  std::string source_file(int number) const;
};

// Splits a text into its kernels. Throws Refusal if it is not PTX.
std::vector<Kernel> read_module(const std::string& file, const std::string& text);

// Decodes the body of a kernel. Throws Refusal with file and line for what is not known.
Program decode(const Kernel& kernel);

// ---- pieces of text, for both -------------------------------------------------------------------

using Tokens = std::vector<std::string>;

// Words (letters, digits, _ $ % . and ::) and single other characters.
Tokens tokens_of(std::string_view text);

// Reads the declaration of a variable: `.shared .align 16 .b8 name[100]`, `.param .u32 name`.
Variable read_variable(const Tokens& tokens);

constexpr uint32_t round_up(uint32_t value, uint32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace ptx
