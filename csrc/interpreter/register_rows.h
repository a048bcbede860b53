// Places for the registers of a kernel.
#pragma once
#include <vector>

#include "instruction.h"

namespace ptx {

// Gives each register a row in the registers of a warp and writes it into the operands. `bits` has
// the width of each register. Registers that are never needed at the same time share a row: PTX
// names thousands, and those of a warp should fit into the fastest cache.
void assign_register_rows(Program& program, const std::vector<int>& bits);

}  // namespace ptx
