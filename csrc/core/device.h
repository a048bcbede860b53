// Every PTX instruction that the kernels use, two 16-bit values in a register, and shared memory.
//
// A "lane" is the number of a thread in its warp. Functions for "the whole warp" must be called by all
// 32 lanes together. Instructions are those of the PTX ISA, sections "Warp Level Matrix
// Multiply-Accumulate Instructions" and "Data Movement and Conversion Instructions"; compute capability
// 8.0 or newer.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace device {

// mma.sync.m16n8k16 (Chunks 2) or m16n8k8 (Chunks 1), T in {__half, __nv_bfloat16}: d = a b + c,
// summed in float, by the whole warp; a is 16 x 8*Chunks and b 8*Chunks x 8. With g = lane / 4 and
// t = lane % 4 * 2, a lane hands in
//   a[q], q < 2*Chunks: element (g + q % 2 * 8, q / 2 * 8 + t), that to its right in the high half;
//   b[q], q < Chunks:   element (q * 8 + t, g), the one below in the high half;
//   c[q] and d[q]:      element (g + q / 2 * 8, t + q % 2).
template <class T, int Chunks>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t* a, const uint32_t* b,
                                    const float (&c)[4]) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  static_assert(Chunks == 1 || Chunks == 2);
#define DEVICE_MMA_K16(type)                                                                    \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                    \
      ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                          \
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                          \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), \
        "f"(c[2]), "f"(c[3]))
#define DEVICE_MMA_K8(type)                                 \
  asm("mma.sync.aligned.m16n8k8.row.col.f32." type "." type \
      ".f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"  \
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])      \
      : "r"(a[0]), "r"(a[1]), "r"(b[0]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]))
  if constexpr (std::is_same_v<T, __half>) {
    if constexpr (Chunks == 2) DEVICE_MMA_K16("f16");
    else DEVICE_MMA_K8("f16");
  } else {
    if constexpr (Chunks == 2) DEVICE_MMA_K16("bf16");
    else DEVICE_MMA_K8("bf16");
  }
#undef DEVICE_MMA_K16
#undef DEVICE_MMA_K8
}

// ldmatrix.x4 (.trans): four 8 x 8 matrices of 16-bit values from shared memory, by the whole warp.
// Lane l hands in the address of row l % 8 of matrix l / 8, 16 bytes on a 16-byte boundary, and
// receives in r[q] element (l / 4, l % 4 * 2) and the one to its right (high half) of matrix q, or
// of its transpose.
template <bool Transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// ldmatrix.x2 (.trans): loads two matrices in the same way; the addresses of lanes 16 to 31 are not
// used.
template <bool Transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[2], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
}

// st.shared.v4: each lane stores 16 bytes on a 16-byte boundary in one piece. The compiler may split
// an assignment.
__device__ __forceinline__ void store_shared(void* to, uint4 value) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}

// st.shared.v2: each lane stores 8 bytes on an 8-byte boundary in one piece.
__device__ __forceinline__ void store_shared(void* to, uint2 value) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(at), "r"(value.x), "r"(value.y) : "memory");
}

// cp.async: each lane starts a copy of Bytes (4, 8 or 16; both addresses aligned to it) from global
// to shared memory. Where `present` is false it writes zeros and does not read the source, but `from`
// must be readable all the same: code for sm_100 was reported to touch the address.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool present) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
                 "r"(present ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(Bytes),
                 "r"(present ? Bytes : 0)
                 : "memory");
}

// cp.async.commit_group: makes a group of the copies this lane has started since its last one.
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// cp.async.wait_group: returns when at most MayRemain of this lane's groups, the youngest, are
// still under way. Other lanes see the copied values after a barrier that follows.
template <int MayRemain>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(MayRemain) : "memory");
}

// ex2.approx.ftz: 2^x within about 2 units in the last place; subnormals count as zero.
__device__ __forceinline__ float exp2(float x) {
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
  return x;
}

// max.NaN: the larger one, or NaN if either is.
__device__ __forceinline__ float maximum(float x, float y) {
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(y));
  return x;
}

// Returns sign > 0 ? 1 - x : x, by a predicated subtraction: the compiler would subtract and select.
__device__ __forceinline__ float one_minus_if_positive(float sign, float x) {
  asm("{\n"
      ".reg .pred p;\n"
      "setp.gt.f32 p, %1, 0f00000000;\n"
      "@p sub.f32 %0, 0f3f800000, %0;\n"
      "}"
      : "+f"(x)
      : "f"(sign));
  return x;
}

// rcp.approx.ftz: 1 / x within 1 unit in the last place; subnormals count as zero.
__device__ __forceinline__ float reciprocal(float x) {
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
  return x;
}

// Rounds two floats to 16 bits each, in one register.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 both = __floats2half2_rn(low, high);
    memcpy(&bits, &both, sizeof(bits));
  } else {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &both, sizeof(bits));
  }
  return bits;
}

// Does the opposite of `pack`.
template <class T>
__device__ __forceinline__ float2 unpack(uint32_t bits) {
  std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162> both;
  memcpy(static_cast<void*>(&both), &bits, sizeof(bits));
  if constexpr (std::is_same_v<T, __half>) return __half22float2(both);
  else return __bfloat1622float2(both);
}

// The bits of 8, 4, 2 or 1 neighbouring elements, which one access moves.
template <int Elements>
using Bits = std::conditional_t<
    Elements == 8, uint4,
    std::conditional_t<Elements == 4, uint2,
                       std::conditional_t<Elements == 2, uint32_t, unsigned short>>>;

// Returns x, hidden from the compiler's analysis: an address that is computed from it inside a loop is
// computed there again each time, instead of once before the loop, from where it would take a register
// all the way round. It costs no instruction.
__device__ __forceinline__ int keep_in_loop(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Divides the dynamic shared memory of a block into arrays, each on a 128-byte boundary. All threads of
// a block take the same arrays in the same order. The launch asks for the sum of the sizes, each rounded
// up by SharedMemory::bytes.
class SharedMemory {
 public:
  template <class T>
  __host__ __device__ static constexpr size_t bytes(size_t count) {
    return (count * sizeof(T) + 127) / 128 * 128;
  }

  template <class T>
  __device__ __forceinline__ T* take(size_t count) {
    extern __shared__ __align__(128) char dynamic_shared_memory[];
    T* const array = reinterpret_cast<T*>(dynamic_shared_memory + used_);
    used_ += bytes<T>(count);
    return array;
  }

 private:
  size_t used_ = 0;
};

// The range, of so many items of a channel, that the split of this block takes.
struct Range {
  int first, last;
};
__device__ __forceinline__ Range range_of_split(int items) {
  return {int(int64_t(items) * blockIdx.y / gridDim.y),
          int(int64_t(items) * (blockIdx.y + 1) / gridDim.y)};
}

}  // namespace device
