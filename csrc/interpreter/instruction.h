// A decoded kernel.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "types.h"

namespace ptx {

struct Warp;
struct Instruction;

// Executes an instruction for the lanes of the mask, of which there is at least one.
using Execute = void (*)(Warp& warp, const Instruction& instruction, LaneMask lanes);

// The position of the values of an operand: from `at` bytes on in the registers of the warp, or, if it is
// negative, from ~at on in the constants of the program. While a kernel is decoded, a register is
// its number.
struct Operand {
  int32_t at = absent;

  static constexpr int32_t absent = INT32_MAX;
  bool exists() const { return at != absent; }
  bool is_register() const { return at >= 0 && exists(); }
};

// The part of an instruction in the control flow of its warp.
enum class Flow : uint8_t {
  straight,  // the lanes execute it and go on
  branch,    // to Instruction::target
  exit,
  block_barrier,  // waits for all warps of the block
  members,        // .sync: waits for the lanes in its member mask, sources[mask_source]
  whole_warp      // .sync.aligned without a mask: waits for all lanes of the warp
};

enum class Space : uint8_t { generic, global, shared, local, param };

// The members that a kind of instruction uses are named where it is decoded.
struct Instruction {
  static constexpr int mask_source = 3;

  Execute execute = nullptr;
  Operand destinations[4];
  Operand sources[10];
  Operand guard;  // predicate; absent if the instruction is not guarded
  bool guard_negated = false;
  Flow flow = Flow::straight;
  Space space = Space::generic;
  bool wide_address = false;     // sources[0], a base of an address, has 64 bits
  bool read_only_cache = false;  // .nc
  uint8_t elements = 1;          // of a vector; number of matrices
  uint8_t element_bytes = 0;
  uint8_t register_bytes[4] = {};  // of what is loaded or stored
  bool sign_extended = false;
  uint32_t target = 0;
  int64_t offset = 0;  // of an address; other numbers in the text
  int64_t second_offset = 0;
};

// The position of an instruction in its text.
struct Location {
  int line = 0;  // of the PTX
  int source_file = 0;
  int source_line = 0;
  std::string text;  // opcode with modifiers
};

enum class Special : uint8_t {
  tid_x,
  tid_y,
  tid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  warpid
};

struct SpecialRegister {
  Special special;
  Operand place;  // 32 bits a lane
};

struct Program {
  std::vector<Instruction> code;  // ends with an exit
  std::vector<Location> locations;
  std::vector<std::byte> constants;
  std::vector<SpecialRegister> specials;
  uint32_t register_bytes = 0;  // of a warp
  uint32_t static_shared_bytes = 0;
  uint32_t local_bytes = 0;  // of a thread
};

}  // namespace ptx
