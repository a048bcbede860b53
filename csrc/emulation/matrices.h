// The matrix instructions of a warp: mma and ldmatrix.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "collectives.h"
#include "shared_memory.h"

namespace emulation {

// Eight neighbours of a row, as vectors of the compiler.
typedef uint32_t Words __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(64)));
typedef uint64_t DoubleWords __attribute__((vector_size(64)));

// Floats of 16-bit values, without branches and without computing with subnormal floats.
template <class T>
inline void widen(Floats& to, const Words& bits) {
  Words floats;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    floats = bits << 16;
  } else {
    constexpr uint32_t rebias = 112u << 23, least_normal = 1u << 23, special = 31u << 23;
    const Words magnitude = (bits & 0x7fff) << 13;  // exponent and fraction, where float has them
    const Words normal = magnitude + rebias;
    const Floats subnormal = reinterpret_cast<Floats>(normal + least_normal) - 0x1p-14f;
    floats = magnitude < least_normal ? reinterpret_cast<Words>(subnormal) : normal;
    floats = magnitude >= special ? normal + rebias : floats;  // infinite or not a number
    floats |= (bits & 0x8000) << 16;
  }
  to = reinterpret_cast<Floats>(floats);
}

// What a tensor core keeps of a sum: bits beyond those of a float are cut off, not rounded, so errors
// of many sums of one sign add up (Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA
// tensor cores", 2021).
inline Floats cut_off(const Doubles& sum) {
  constexpr uint64_t beyond = (uint64_t{1} << (52 - 23)) - 1;
  const DoubleWords kept = reinterpret_cast<const DoubleWords&>(sum) & ~beyond;
  return __builtin_convertvector(reinterpret_cast<const Doubles&>(kept), Floats);
}

// d = a b + c of a warp, see device::mma. Eight products and what they are added to make one sum. The
// registers are put down so that they form rows of matrices: a as it comes, lane after lane; b by
// columns of lanes; c and d as 16 x 8 floats.
template <class T, int Chunks>
inline void mma(float (&d)[4], const uint32_t* a, const uint32_t* b, const float (&c)[4],
                const Place& place) {
  constexpr unsigned right = 2 * Chunks * warp_size, added = 3 * Chunks * warp_size;
  const auto hand_in = [&](Warp& warp, unsigned lane) {
    for (unsigned q = 0; q < 2 * Chunks; ++q) warp.in[q * warp_size + lane] = a[q];
    for (unsigned q = 0; q < Chunks; ++q)
      warp.in[right + q * warp_size + lane % 4 * 8 + lane / 4] = b[q];
    memcpy(&warp.in[added + 2 * lane], &c[0], 8);
    memcpy(&warp.in[added + 2 * lane + 64], &c[2], 8);
  };
  const auto combine = [](Warp& warp) {
    Doubles b[8 * Chunks];
    for (unsigned k = 0; k < 8 * Chunks; k += 2) {
      Words both;
      memcpy(&both, &warp.in[right + 4 * k], sizeof(both));
      Floats upper, lower;
      widen<T>(upper, both & 0xffff);
      widen<T>(lower, both >> 16);
      b[k] = __builtin_convertvector(upper, Doubles);
      b[k + 1] = __builtin_convertvector(lower, Doubles);
    }
    for (unsigned row = 0; row < 16; ++row) {
      Floats sum;
      memcpy(&sum, &warp.in[added + 8 * row], sizeof(sum));
      for (unsigned q = 0; q < Chunks; ++q) {
        uint16_t halves __attribute__((vector_size(16)));
        memcpy(&halves, &warp.in[(2 * q + row / 8) * warp_size + row % 8 * 4], sizeof(halves));
        Floats a;
        widen<T>(a, __builtin_convertvector(halves, Words));
        Doubles exact = __builtin_convertvector(sum, Doubles);
        for (unsigned k = 0; k < 8; ++k) exact += double(a[k]) * b[8 * q + k];
        sum = cut_off(exact);
      }
      memcpy(&warp.out[2 * row], &sum, sizeof(sum));
    }
    ++(Chunks == 2 ? counters.mma_k16 : counters.mma_k8);
  };
  const Thread& self =
      together(Chunks == 2 ? "mma.m16n8k16" : "mma.m16n8k8", place, hand_in, combine);
  const Quiet quiet;
  const uint32_t* const out = self.warp->out[0] + 2 * self.lane;
  memcpy(&d[0], out, 8);
  memcpy(&d[2], out + 64, 8);
}

// How often the banks are read for the eight rows of a matrix, 16 bytes each: shared memory gives
// 128 bytes at a time, one 16-byte unit of each eight.
inline uint64_t passes(const uint32_t (&unit)[8]) {
  uint32_t seen = 0;
  for (const uint32_t u : unit) seen |= 1u << u % 8;
  if (seen == 0xff) return 1;
  uint32_t most = 1;
  for (uint32_t bank = 0; bank < 8; ++bank) {
    uint32_t different = 0;
    for (int i = 0; i < 8; ++i)
      different += unit[i] % 8 == bank && std::find(unit, unit + i, unit[i]) == unit + i;
    most = std::max(most, different);
  }
  return most;
}

// ldmatrix of Count matrices, see device::load_matrices. Each lane reads the row it names itself.
template <int Count, bool Transposed>
inline void load_matrices(uint32_t (&r)[Count], const void* row, const Place& place) {
  constexpr const char* operation = Count == 4 ? "ldmatrix.x4" : "ldmatrix.x2";
  constexpr unsigned rows = 8 * Count;
  uint32_t words[4] = {};
  if (block.running->lane < rows) {
    require_shared(operation, place, row, 16);
    memcpy(words, row, 16);
  }
  const auto hand_in = [&](Warp& warp, unsigned lane) {
    memcpy(&warp.in[4 * lane], words, 16);
    warp.in[4 * warp_size + lane] = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(row) / 16);
  };
  const auto combine = [](Warp& warp) {
    for (int q = 0; q < Count; ++q) {
      const uint32_t* const matrix = warp.in + 32 * q;
      for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        if constexpr (Transposed) {
          const uint32_t low = matrix[8 * t + g / 2] >> g % 2 * 16 & 0xffff;
          const uint32_t high = matrix[8 * t + 4 + g / 2] >> g % 2 * 16 & 0xffff;
          warp.out[lane][q] = low | high << 16;
        } else {
          warp.out[lane][q] = matrix[lane];
        }
      }
      uint32_t unit[8];
      memcpy(unit, warp.in + 4 * warp_size + 8 * q, sizeof(unit));
      counters.matrix_passes += passes(unit);
    }
    counters.matrices_read += Count;
  };
  const Thread& self = together(operation, place, hand_in, combine);
  const Quiet quiet;
  memcpy(r, self.warp->out[self.lane], sizeof(r));
}

}  // namespace emulation
