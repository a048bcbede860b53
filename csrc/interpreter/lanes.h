// Instructions that compute each lane by itself.
//
// An instruction is a function of values; these templates apply it to the rows of its operands. All
// 32 lanes are computed, which makes vector code of the loop, and those of the mask are written.
#pragma once
#include <bit>
#include <cstring>

#include "instruction.h"
#include "number_formats.h"
#include "types.h"
#include "warp.h"

namespace ptx {

template <class To, class A, auto function>
void unary(Warp& warp, const Instruction& in, LaneMask lanes) {
  const A* const a = warp.row<A>(in.sources[0]);
  Row<To> result;
  for (unsigned l = 0; l < lanes_per_warp; ++l) result[l] = function(a[l]);
  warp.write(in.destinations[0], result, lanes);
}

template <class To, class A, class B, auto function>
void binary(Warp& warp, const Instruction& in, LaneMask lanes) {
  const A* const a = warp.row<A>(in.sources[0]);
  const B* const b = warp.row<B>(in.sources[1]);
  Row<To> result;
  for (unsigned l = 0; l < lanes_per_warp; ++l) result[l] = function(a[l], b[l]);
  warp.write(in.destinations[0], result, lanes);
}

template <class To, class A, class B, class C, auto function>
void ternary(Warp& warp, const Instruction& in, LaneMask lanes) {
  const A* const a = warp.row<A>(in.sources[0]);
  const B* const b = warp.row<B>(in.sources[1]);
  const C* const c = warp.row<C>(in.sources[2]);
  Row<To> result;
  for (unsigned l = 0; l < lanes_per_warp; ++l) result[l] = function(a[l], b[l], c[l]);
  warp.write(in.destinations[0], result, lanes);
}

// Arithmetic of T without overflow that C++ leaves undefined, and without the promotion of 16 bits
// to int.
template <class T>
using Unsigned = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

// The mask of the lanes for which a predicate holds.
template <class Predicate>
LaneMask mask_where(Predicate predicate) {
  LaneMask mask = 0;
  for (unsigned l = 0; l < lanes_per_warp; ++l) mask |= LaneMask{predicate(l)} << l;
  return mask;
}

}  // namespace ptx
