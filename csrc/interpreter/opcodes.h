// The tables of opcodes, each in the file that executes them.
#pragma once
#include <span>

#include "statement.h"

namespace ptx {

std::span<const OpcodeDecoder> integer_opcodes();
std::span<const OpcodeDecoder> floating_opcodes();
std::span<const OpcodeDecoder> comparison_opcodes();
std::span<const OpcodeDecoder> conversion_opcodes();
std::span<const OpcodeDecoder> memory_opcodes();
std::span<const OpcodeDecoder> copy_opcodes();
std::span<const OpcodeDecoder> matrix_opcodes();
std::span<const OpcodeDecoder> warp_opcodes();

// Of opcodes that exist for integers and for .f32; the type has been taken.
void decode_float_add(Statement& statement);
void decode_float_sub(Statement& statement);
void decode_float_mul(Statement& statement);
void decode_float_div(Statement& statement);
void decode_float_min(Statement& statement);
void decode_float_max(Statement& statement);
void decode_float_neg(Statement& statement);
void decode_float_abs(Statement& statement);

}  // namespace ptx
