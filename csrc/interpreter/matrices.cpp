// PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions": mma, ldmatrix, stmatrix.
#include <algorithm>
#include <cstring>

#include "block.h"
#include "lanes.h"
#include "memory_access.h"
#include "opcodes.h"

namespace ptx {
namespace {

// ---- mma ----------------------------------------------------------------------------------------

// "Matrix Fragments for mma.m16n8k16 with floating point type" and "... mma.m16n8k8": with
// group = lane / 4 and thread = lane % 4, a lane holds
//   of A (16 x K), in register r: row group + 8 (r % 2), columns 2 thread + 8 (r / 2) and the next;
//   of B (K x 8), in register r:  rows 2 thread + 8 r and the next, column group;
//   of C and D (16 x 8), r:       row group + 8 (r / 2), column 2 thread + r % 2.
// The first of two 16-bit elements lies in the lower half.
template <int K>
struct Factors {
  double a[16][K];
  double b[K][8];
};

using Accumulators = float[16][8];

// The two elements of a register in all lanes.
struct Halves {
  Row<float> lower, upper;
};
template <auto convert>
Halves halves_of(const uint32_t* values) {
  Halves halves;
  for (unsigned l = 0; l < lanes_per_warp; ++l) {
    halves.lower[l] = convert(static_cast<uint16_t>(values[l]));
    halves.upper[l] = convert(static_cast<uint16_t>(values[l] >> 16));
  }
  return halves;
}

template <int K, auto convert>
void collect_factors(const Warp& warp, const Instruction& in, Factors<K>& factors) {
  constexpr int a_registers = K / 4, b_registers = K / 8;
  for (int r = 0; r < a_registers; ++r) {
    const Halves halves = halves_of<convert>(warp.row<uint32_t>(in.sources[r]));
    for (unsigned lane = 0; lane < lanes_per_warp; ++lane) {
      double* const at = &factors.a[lane / 4 + 8 * (r % 2)][2 * (lane % 4) + 8 * (r / 2)];
      at[0] = halves.lower[lane];
      at[1] = halves.upper[lane];
    }
  }
  for (int r = 0; r < b_registers; ++r) {
    const Halves halves = halves_of<convert>(warp.row<uint32_t>(in.sources[a_registers + r]));
    for (unsigned lane = 0; lane < lanes_per_warp; ++lane) {
      const unsigned row = 2 * (lane % 4) + 8 * r, column = lane / 4;
      factors.b[row][column] = halves.lower[lane];
      factors.b[row + 1][column] = halves.upper[lane];
    }
  }
}

// Sums lose the bits beyond those of a float, toward zero.
float cut_off(double sum) {
  const uint64_t beyond = (uint64_t{1} << (52 - 23)) - 1;
  return static_cast<float>(std::bit_cast<double>(std::bit_cast<uint64_t>(sum) & ~beyond));
}

// Products of 16-bit values are exact in double. A tensor core adds eight of them and what was
// there before to one sum, whose bits beyond a float are cut off (Fasi, Higham, Mikaitis and
// Pranesh, "Numerical behavior of NVIDIA tensor cores", 2021). The alternative is one sum, rounded
// at its end.
template <int K>
void multiply(const Factors<K>& factors, MatrixSum how, Accumulators& sums) {
  constexpr int products = 8;
  for (int row = 0; row < 16; ++row) {
    double sum[8];
    for (int column = 0; column < 8; ++column) sum[column] = sums[row][column];
    for (int first = 0; first < K; first += products) {
      for (int k = first; k < first + products; ++k)
        for (int column = 0; column < 8; ++column)
          sum[column] += factors.a[row][k] * factors.b[k][column];
      if (how == MatrixSum::cut_off)
        for (double& value : sum) value = cut_off(value);
    }
    for (int column = 0; column < 8; ++column)
      sums[row][column] = canonical(static_cast<float>(sum[column]));
  }
}

template <int K, auto convert>
void multiply_matrices(Warp& warp, const Instruction& in, LaneMask lanes) {
  constexpr int c_source = K / 4 + K / 8;
  Launch& launch = warp.block->launch;
  ++(K == 16 ? launch.counters.mma_k16 : launch.counters.mma_k8);
  Factors<K> factors;
  collect_factors<K, convert>(warp, in, factors);
  Accumulators sums;
  for (int r = 0; r < 4; ++r) {
    const float* const values = warp.row<float>(in.sources[c_source + r]);
    for (unsigned lane = 0; lane < lanes_per_warp; ++lane)
      sums[lane / 4 + 8 * (r / 2)][2 * (lane % 4) + r % 2] = values[lane];
  }
  multiply<K>(factors, launch.settings.matrix_sum, sums);
  for (int r = 0; r < 4; ++r) {
    Row<float> values;
    for (unsigned lane = 0; lane < lanes_per_warp; ++lane)
      values[lane] = sums[lane / 4 + 8 * (r / 2)][2 * (lane % 4) + r % 2];
    warp.write(in.destinations[r], values, lanes);
  }
}

// "Warp-level Matrix Instructions: mma": m16n8k16 or m16n8k8, .f16 or .bf16, sums in .f32
void decode_mma(Statement& s) {
  Instruction& in = s.instruction;
  s.require("sync");
  s.require("aligned");
  const bool k16 = s.take("m16n8k16");
  if (!k16) s.require("m16n8k8");
  s.require("row");
  s.require("col");
  const Type d = s.take_type(), a = s.take_type(), b = s.take_type(), c = s.take_type();
  if (d != Type::f32 || c != Type::f32 || a != b || (a != Type::f16 && a != Type::bf16))
    s.refuse("its types are not known");
  const int a_registers = k16 ? 4 : 2, b_registers = k16 ? 2 : 1;
  int source = 0;
  const auto expect = [&](int found, int wanted) {
    if (found != wanted) s.refuse("the number of its registers");
    source += wanted;
  };
  if (s.write_list(0, 4, Type::f32) != 4) s.refuse("the number of its registers");
  s.comma();
  expect(s.read_list(source, a_registers, Type::b32), a_registers);
  s.comma();
  expect(s.read_list(source, b_registers, Type::b32), b_registers);
  s.comma();
  expect(s.read_list(source, 4, Type::f32), 4);
  in.flow = Flow::whole_warp;
  if (a == Type::f16)
    in.execute = k16 ? multiply_matrices<16, from_f16> : multiply_matrices<8, from_f16>;
  else in.execute = k16 ? multiply_matrices<16, from_bf16> : multiply_matrices<8, from_bf16>;
}

// ---- ldmatrix, stmatrix -------------------------------------------------------------------------

constexpr unsigned rows_per_matrix = 8, bytes_per_row = 16;

// A row of a matrix has eight elements. Lane 8 m + i has the address of row i of matrix m; lane l
// holds of each matrix the elements 2 (l % 4) and the next of row l / 4, or, transposed, of column
// l / 4.
using Matrix = uint16_t[rows_per_matrix][8];

LaneMask lanes_of_matrix(unsigned matrix) { return LaneMask{0xff} << (rows_per_matrix * matrix); }

uint32_t passes_of_matrix(const Row<uint64_t>& addresses, unsigned matrix) {
  return count_wavefronts(addresses, lanes_of_matrix(matrix), bytes_per_row).needed;
}

template <bool transposed>
void load_matrices(Warp& warp, const Instruction& in, LaneMask lanes) {
  Counters& counters = warp.block->launch.counters;
  const auto addresses = addresses_of(warp, in.sources[0], in.wide_address, in.offset);
  for (unsigned m = 0; m < in.elements; ++m) {
    Matrix matrix;
    for (unsigned row = 0; row < rows_per_matrix; ++row) {
      const unsigned lane = rows_per_matrix * m + row;
      const uint8_t* const from =
          readable_shared(warp, in, lane, addresses[lane], bytes_per_row, true);
      if (from) std::memcpy(matrix[row], from, bytes_per_row);
      else std::memset(matrix[row], 0xff, bytes_per_row);
    }
    Row<uint32_t> values;
    for (unsigned l = 0; l < lanes_per_warp; ++l) {
      const unsigned line = l / 4, first = 2 * (l % 4);
      const uint32_t low = transposed ? matrix[first][line] : matrix[line][first];
      const uint32_t high = transposed ? matrix[first + 1][line] : matrix[line][first + 1];
      values[l] = high << 16 | low;
    }
    warp.write(in.destinations[m], values, lanes);
    counters.matrix_passes += passes_of_matrix(addresses, m);
  }
  counters.matrices_read += in.elements;
}

template <bool transposed>
void store_matrices(Warp& warp, const Instruction& in, LaneMask) {
  Counters& counters = warp.block->launch.counters;
  const auto addresses = addresses_of(warp, in.sources[0], in.wide_address, in.offset);
  for (unsigned m = 0; m < in.elements; ++m) {
    const uint32_t* const values = warp.row<uint32_t>(in.sources[1 + m]);
    Matrix matrix;
    for (unsigned l = 0; l < lanes_per_warp; ++l) {
      const unsigned line = l / 4, first = 2 * (l % 4);
      (transposed ? matrix[first][line] : matrix[line][first]) = static_cast<uint16_t>(values[l]);
      (transposed ? matrix[first + 1][line] : matrix[line][first + 1]) =
          static_cast<uint16_t>(values[l] >> 16);
    }
    for (unsigned row = 0; row < rows_per_matrix; ++row) {
      const unsigned lane = rows_per_matrix * m + row;
      write_shared(warp, in, lane, addresses[lane], reinterpret_cast<const uint8_t*>(matrix[row]),
                   bytes_per_row, true);
    }
    counters.matrix_write_passes += passes_of_matrix(addresses, m);
  }
  counters.matrices_written += in.elements;
}

// .sync.aligned.m8n8.x1|x2|x4{.trans}.shared.b16. Returns whether .trans is there.
bool take_matrix_modifiers(Statement& s) {
  s.require("sync");
  s.require("aligned");
  s.require("m8n8");
  s.instruction.elements = s.take("x4") ? 4 : s.take("x2") ? 2 : 1;
  if (s.instruction.elements == 1) s.require("x1");
  if (!s.take("shared")) s.require("shared::cta");
  s.require("b16");
  s.instruction.flow = Flow::whole_warp;
  return s.take("trans");
}

// "Warp-level Matrix Instructions: ldmatrix"
void decode_ldmatrix(Statement& s) {
  Instruction& in = s.instruction;
  in.execute = take_matrix_modifiers(s) ? load_matrices<true> : load_matrices<false>;
  if (s.write_list(0, 4, Type::b32) != in.elements) s.refuse("the number of its registers");
  s.comma();
  in.wide_address = s.address(0, in.offset) == 64;
}

// "Warp-level Matrix Instructions: stmatrix"
void decode_stmatrix(Statement& s) {
  Instruction& in = s.instruction;
  in.execute = take_matrix_modifiers(s) ? store_matrices<true> : store_matrices<false>;
  in.wide_address = s.address(0, in.offset) == 64;
  s.comma();
  if (s.read_list(1, 4, Type::b32) != in.elements) s.refuse("the number of its registers");
}

constexpr OpcodeDecoder opcodes[] = {
    {"mma", decode_mma}, {"ldmatrix", decode_ldmatrix}, {"stmatrix", decode_stmatrix}};

}  // namespace

std::span<const OpcodeDecoder> matrix_opcodes() { return opcodes; }

}  // namespace ptx
