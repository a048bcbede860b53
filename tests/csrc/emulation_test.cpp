// Tests of csrc/emulation: kernels that are right and must pass, in any order and under any
// sanitizer, and kernels with a planted fault that must be caught. Run by tests/test_emulation.py.
//
//   emulation_test tests|FAULT
//
// Exits with 0 if the results are right, with 1 if they are not, and with 3 after a fault, which it
// prints.
#include <bit>
#include <cstdio>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "device.h"

namespace {

using device::SharedMemory;

bool succeeded(cudaError_t status) {
  if (status != cudaSuccess) printf("launch: %s\n", cudaGetErrorString(status));
  return status == cudaSuccess;
}

int lane() { return int(threadIdx.x) % 32; }

// ---- barriers -----------------------------------------------------------------------------------

// Each thread takes the value of the one before it.
template <bool Barrier>
__global__ void block_neighbours(const int* in, int* out) {
  SharedMemory memory;
  int* const values = memory.take<int>(blockDim.x);
  const int i = int(threadIdx.x), n = int(blockDim.x), first = int(blockIdx.x) * n;
  values[i] = in[first + i];
  if constexpr (Barrier) __syncthreads();
  out[first + i] = values[i == 0 ? 0 : i - 1];
}

template <bool Barrier>
bool block_barrier() {
  const int threads = 128, blocks = 5;
  std::vector<int> in(threads * blocks), out(in.size(), -1);
  for (size_t i = 0; i < in.size(); ++i) in[i] = int(i);
  const bool launched =
      succeeded(device::launch(block_neighbours<Barrier>, blocks, threads, threads * sizeof(int),
                               nullptr, in.data(), out.data()));
  bool right = launched;
  for (int i = 0; i < threads * blocks; ++i) right &= out[i] == (i % threads ? i - 1 : i);
  return right;
}

template <bool Barrier>
__global__ void warp_neighbours(int* out) {
  SharedMemory memory;
  int* const values = memory.take<int>(64);
  const int i = int(threadIdx.x);
  values[i] = i;
  if constexpr (Barrier) __syncwarp();
  out[i] = values[lane() == 0 ? i : i - 1];
}

template <bool Barrier>
bool warp_barrier() {
  std::vector<int> out(64, -1);
  bool right = succeeded(device::launch(warp_neighbours<Barrier>, 1, 64, 256, nullptr, out.data()));
  for (int i = 0; i < 64; ++i) right &= out[i] == (i % 32 ? i - 1 : i);
  return right;
}

// Blocks are not ordered with each other; every one of these writes the same element.
__global__ void write_first(int* out) {
  if (threadIdx.x == blockIdx.x) out[0] = int(blockIdx.x);
}

bool blocks_race() {
  std::vector<int> out(1);
  return succeeded(device::launch(write_first, 4, 32, 0, nullptr, out.data())) && out[0] == 3;
}

// ---- matrices -----------------------------------------------------------------------------------

uint32_t pair(uint16_t low, uint16_t high) { return low | uint32_t(high) << 16; }

template <class T>
uint16_t bits_of(float value) {
  return std::bit_cast<uint16_t>(T(value));
}

// The fragments of PTX's tables: lane l has groupID l >> 2 and threadID_in_group l % 4; element i
// of a lane's A, B or C lies in the row and column given there.
template <class T, int K>
__global__ void multiply(const float* a, const float* b, const float* c, float* d) {
  const int group = lane() >> 2, thread = lane() % 4;
  const auto a_at = [&](int i) {
    const int row = K == 16 ? (i / 2 % 2 == 0 ? group : group + 8) : (i < 2 ? group : group + 8);
    const int column = K == 16 ? thread * 2 + (i & 1) + (i >= 4 ? 8 : 0) : thread * 2 + (i & 1);
    return bits_of<T>(a[row * K + column]);
  };
  const auto b_at = [&](int i) {
    const int row = thread * 2 + (i & 1) + (i >= 2 ? 8 : 0);
    return bits_of<T>(b[row * 8 + group]);
  };
  const auto c_at = [&](int i) { return (i < 2 ? group : group + 8) * 8 + thread * 2 + (i & 1); };
  uint32_t left[K / 4], right[K / 8];
  for (int i = 0; i < K / 4; ++i) left[i] = pair(a_at(2 * i), a_at(2 * i + 1));
  for (int i = 0; i < K / 8; ++i) right[i] = pair(b_at(2 * i), b_at(2 * i + 1));
  float before[4], after[4];
  for (int i = 0; i < 4; ++i) before[i] = c[c_at(i)];
  device::mma<T, K / 8>(after, left, right, before);
  for (int i = 0; i < 4; ++i) d[c_at(i)] = after[i];
}

template <class T, int K>
bool mma() {
  std::mt19937 random(5);
  const auto integers = [&](size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = float(int(random() % 33) - 16);
    return values;
  };
  const std::vector<float> a = integers(16 * K), b = integers(K * 8), c = integers(16 * 8);
  std::vector<float> d(16 * 8);
  bool right = succeeded(
      device::launch(multiply<T, K>, 1, 32, 0, nullptr, a.data(), b.data(), c.data(), d.data()));
  for (size_t m = 0; m < 16; ++m)
    for (size_t n = 0; n < 8; ++n) {
      float sum = c[m * 8 + n];
      for (size_t k = 0; k < K; ++k) sum += a[m * K + k] * b[k * 8 + n];
      right &= d[m * 8 + n] == sum;
    }
  return right;
}

// Every 16-bit value, as CUDA's own headers convert it.
template <class T>
__global__ void widen_all(float* out) {
  const uint32_t one = bits_of<T>(1.f);
  const float zero[4] = {};
  for (uint32_t value = 0; value < 65536; value += 128) {
    // The diagonal of b is one: d is the left half of a.
    const int group = lane() >> 2, thread = lane() % 4;
    const uint32_t low = value + uint32_t(group * 8 + thread * 2);
    const uint32_t a[2] = {pair(uint16_t(low), uint16_t(low + 1)),
                           pair(uint16_t(low + 64), uint16_t(low + 65))};
    const uint32_t b[1] = {group == thread * 2 ? one : group == thread * 2 + 1 ? one << 16 : 0};
    float d[4];
    device::mma<T, 1>(d, a, b, zero);
    for (int i = 0; i < 4; ++i) out[low + uint32_t(i / 2 * 64 + i % 2)] = d[i];
  }
}

template <class T>
bool values() {
  std::vector<float> out(65536);
  bool right = succeeded(device::launch(widen_all<T>, 1, 32, 0, nullptr, out.data()));
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto value = [](uint32_t bits) { return float(std::bit_cast<T>(uint16_t(bits))); };
    // An infinite or undefined value makes its whole row of the product undefined.
    bool defined = true;
    for (uint32_t other = i / 8 * 8; other < i / 8 * 8 + 8; ++other)
      defined &= std::isfinite(value(other));
    right &= defined ? out[i] == value(i) : !std::isfinite(out[i]);
  }
  return right;
}

// Lane l of matrix q's load gives row l % 8; element j of it is 100 q + 10 i + j.
template <int Count, bool Transposed>
__global__ void load(uint32_t* out) {
  SharedMemory memory;
  uint16_t* const matrices = memory.take<uint16_t>(Count * 64);
  for (int i = lane(); i < Count * 64; i += 32)
    matrices[i] = uint16_t(100 * (i / 64) + 10 * (i % 64 / 8) + i % 8);
  __syncwarp();
  uint32_t r[Count];
  // The addresses of lanes beyond the last row are not used.
  device::load_matrices<Transposed>(r, lane() < 8 * Count ? matrices + lane() * 8 : nullptr);
  for (int q = 0; q < Count; ++q) out[lane() * Count + q] = r[q];
}

template <int Count, bool Transposed>
bool ldmatrix() {
  std::vector<uint32_t> out(32 * Count);
  bool right =
      succeeded(device::launch(load<Count, Transposed>, 1, 32, Count * 128, nullptr, out.data()));
  for (int l = 0; l < 32; ++l)
    for (int q = 0; q < Count; ++q) {
      const int row = l / 4, column = l % 4 * 2;
      const auto element = [&](int i, int j) {
        return uint16_t(100 * q + (Transposed ? 10 * j + i : 10 * i + j));
      };
      right &= out[size_t(l * Count + q)] == pair(element(row, column), element(row, column + 1));
    }
  return right;
}

// ---- shuffles -----------------------------------------------------------------------------------

__global__ void shuffle(int* out, double* wide) {
  const int l = lane();
  out[l] = __shfl_sync(~0u, l, l + 3);
  out[32 + l] = __shfl_sync(~0u, l, 9, 8);
  out[64 + l] = __shfl_xor_sync(~0u, l, 5);
  out[96 + l] = __shfl_xor_sync(~0u, l, 8, 8);
  out[128 + l] = __shfl_down_sync(~0u, l, 4u);
  out[160 + l] = __shfl_down_sync(~0u, l, 3u, 16);
  out[192 + l] = __shfl_up_sync(~0u, l, 4u);
  out[224 + l] = __shfl_up_sync(~0u, l, 3u, 16);
  wide[l] = __shfl_xor_sync(~0u, 0.1 * l, 1);
}

bool shuffles() {
  std::vector<int> out(256);
  std::vector<double> wide(32);
  bool right = succeeded(device::launch(shuffle, 1, 32, 0, nullptr, out.data(), wide.data()));
  for (int l = 0; l < 32; ++l) {
    const int expected[8] = {
        (l + 3) % 32,           l / 8 * 8 + 1,          l ^ 5,
        l % 16 < 8 ? l : l - 8, l < 28 ? l + 4 : l,     l % 16 < 13 ? l + 3 : l,
        l >= 4 ? l - 4 : l,     l % 16 >= 3 ? l - 3 : l};
    for (int i = 0; i < 8; ++i) right &= out[size_t(32 * i + l)] == expected[i];
    right &= wide[size_t(l)] == 0.1 * (l ^ 1);
  }
  return right;
}

// ---- asynchronous copies ------------------------------------------------------------------------

enum class CopyFault { none, wait, wait_for_fewer, commit, barrier, leave };

// Passes on what came by a pipeline of copies, two groups deep; each lane reads what another
// copied.
template <int Bytes, CopyFault Fault>
__global__ void copy_through(const char* in, char* out, int rounds) {
  SharedMemory memory;
  char* const stage[2] = {memory.take<char>(32 * Bytes), memory.take<char>(32 * Bytes)};
  const auto start = [&](int round) {
    const int at = lane() * Bytes;
    // Lane 7 has nothing to copy, not even an address; its values are zeros.
    if (round < rounds)
      device::copy_async<Bytes>(stage[round % 2] + at,
                                lane() == 7 ? nullptr : in + round * 32 * Bytes + at, lane() != 7);
    if constexpr (Fault != CopyFault::commit) device::copy_commit();
  };
  start(0);
  for (int round = 0; round < rounds; ++round) {
    start(round + 1);
    if constexpr (Fault == CopyFault::wait_for_fewer) device::copy_wait<2>();
    else if constexpr (Fault != CopyFault::wait && Fault != CopyFault::leave)
      device::copy_wait<1>();
    if constexpr (Fault != CopyFault::barrier) __syncwarp();
    const int from = (lane() ^ 1) * Bytes;
    for (int i = 0; i < Bytes; ++i) out[round * 32 * Bytes + from + i] = stage[round % 2][from + i];
    __syncwarp();
  }
  if constexpr (Fault != CopyFault::none && Fault != CopyFault::leave) {
    device::copy_commit();
    device::copy_wait<0>();
  }
}

template <int Bytes, CopyFault Fault>
bool copies() {
  const int rounds = 5;
  std::vector<char> in(32 * Bytes * rounds), out(in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = char(i % 61);
  bool right = succeeded(device::launch(copy_through<Bytes, Fault>, 1, 32, 2 * 512, nullptr,
                                        in.data(), out.data(), rounds));
  for (size_t i = 0; i < in.size(); ++i) right &= out[i] == (i / Bytes % 32 == 7 ? 0 : in[i]);
  return right;
}

// ---- other instructions -------------------------------------------------------------------------

__global__ void compute(const float* in, float* out) {
  out[2 * threadIdx.x] = device::exp2(in[threadIdx.x]);
  out[2 * threadIdx.x + 1] = device::reciprocal(in[threadIdx.x]);
}

bool functions() {
  const std::vector<float> in = {0, 1, -3.5f, 0x1p-130f, -0x1p-130f, -127, 0x1p127f, -0x1p127f};
  const std::vector<float> expected = {
      1, INFINITY,  2, 1,          0.0883883476f, -1 / 3.5f, 1, INFINITY,
      1, -INFINITY, 0, -1.f / 127, INFINITY,      0,         0, -0.f};
  std::vector<float> out(2 * in.size());
  bool right =
      succeeded(device::launch(compute, 1, unsigned(in.size()), 0, nullptr, in.data(), out.data()));
  for (size_t i = 0; i < out.size(); ++i)
    right &=
        std::abs(out[i] - expected[i]) <= 1e-6f * std::abs(expected[i]) || out[i] == expected[i];
  return right && std::signbit(out[15]);
}

// Loads and stores of all widths.
template <class T>
__global__ void pass_on(const T* in, T* out) {
  device::store_global(out + threadIdx.x, device::load_global(in + threadIdx.x));
}

template <class T>
bool passed_on() {
  std::vector<T> in(32), out(32);
  memset(static_cast<void*>(out.data()), 0, sizeof(T) * out.size());
  std::mt19937 random(3);
  for (size_t i = 0; i < sizeof(T) * in.size(); ++i)
    reinterpret_cast<unsigned char*>(in.data())[i] = static_cast<unsigned char>(random());
  return succeeded(device::launch(pass_on<T>, 1, 32, 0, nullptr, in.data(), out.data())) &&
         memcmp(in.data(), out.data(), sizeof(T) * in.size()) == 0;
}

__global__ void read_fresh(float* out) {
  SharedMemory memory;
  const float* const single = memory.take<float>(32);
  const __half* const half = memory.take<__half>(32);
  const __nv_bfloat16* const brain = memory.take<__nv_bfloat16>(32);
  out += 96 * blockIdx.x + threadIdx.x;
  out[0] = single[threadIdx.x];
  out[32] = __half2float(half[threadIdx.x]);
  out[64] = __bfloat162float(brain[threadIdx.x]);
}

bool fresh_memory() {
  std::vector<float> out(2 * 96, 1.f);
  bool right = succeeded(device::launch(read_fresh, 2, 32, 3 * 128, nullptr, out.data()));
  for (const float value : out) right &= std::isnan(value);
  return right;
}

__global__ void write_indices(unsigned* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * 24 + thread] = 100 * block + thread;
}

bool indices() {
  std::vector<unsigned> out(24 * 24);
  bool right = succeeded(
      device::launch(write_indices, dim3(2, 4, 3), dim3(4, 2, 3), 0, nullptr, out.data()));
  for (unsigned i = 0; i < out.size(); ++i) right &= out[i] == i / 24 * 100 + i % 24;
  return right;
}

__global__ void nothing() {}

bool refused_launches() {
  const auto status = [](dim3 grid, dim3 block, size_t bytes) {
    return device::launch(nothing, grid, block, bytes, nullptr);
  };
  return status(0, 32, 0) == cudaErrorInvalidConfiguration &&
         status(1, 0, 0) == cudaErrorInvalidConfiguration &&
         status(1, 1025, 0) == cudaErrorInvalidConfiguration &&
         status(dim3(1, 65536), 32, 0) == cudaErrorInvalidConfiguration &&
         status(1, dim3(1, 1, 65), 0) == cudaErrorInvalidConfiguration &&
         status(1, 32, (227 << 10) + 1) == cudaErrorInvalidValue &&
         status(1, 1024, 227 << 10) == cudaSuccess;
}

// Each lane gives the row at `stride` times its number: 8 lanes meet 8, 4, 2 or 1 of the banks.
__global__ void load_strided(int stride) {
  SharedMemory memory;
  char* const bytes = memory.take<char>(8 * 128);
  device::store_shared(bytes + 32 * lane(), make_uint4(0, 0, 0, 0));
  device::store_shared(bytes + 32 * lane() + 16, make_uint4(0, 0, 0, 0));
  __syncwarp();
  uint32_t r[2];
  device::load_matrices<false>(r, bytes + lane() % 8 * stride);
  __half zero[8] = {};
  uint32_t a[4];
  memcpy(a, zero, 16);
  float d[4] = {};
  device::mma<__half, 2>(d, a, r, d);
  device::mma<__half, 1>(d, a, r, d);
}

bool counted() {
  using emulation::counters;
  bool right = true;
  const struct {
    int stride;
    unsigned passes;
  } cases[] = {{16, 1}, {32, 2}, {64, 4}, {128, 8}, {0, 1}, {48, 1}};
  for (const auto& [stride, passes] : cases) {
    counters = {};
    right &= succeeded(device::launch(load_strided, 3, 32, 1024, nullptr, stride));
    right &= counters.launches == 1 && counters.blocks == 3 && counters.matrices_read == 6 &&
             counters.matrix_passes == 6 * passes && counters.mma_k16 == 3 &&
             counters.mma_k8 == 3 && counters.warp_barriers == 3;
  }
  counters = {};
  right &= copies<8, CopyFault::none>();
  right &= counters.copies == 5 * 32 && counters.global_bytes_read == 5 * 31 * 8;
  counters = {};
  right &= passed_on<uint4>();
  right &= counters.global_bytes_read == 512 && counters.global_bytes_written == 512;
  return right;
}

// ---- faults -------------------------------------------------------------------------------------

enum class Fault {
  none,
  read_global,
  write_global,
  read_past_shared,
  write_past_shared,
  write_before_shared,
  copy_from_outside,
  copy_to_outside,
  misaligned_vector,
  misaligned_load,
  misaligned_store,
  misaligned_shared,
  misaligned_matrix,
  misaligned_copy,
  not_shared,
  take_too_much,
  take_differently,
  divergent_collective,
  divergent_barrier,
  deadlock,
  barrier_after_return,
  collective_after_return,
  partial_mask
};

// Two warps. `in` and `out` have 64 elements.
template <Fault F>
__global__ void faulty(const float* in, float* out) {
  SharedMemory memory;
  float* const first = memory.take<float>(64);
  float* const second = memory.take<float>(64);
  const int i = int(threadIdx.x);
  first[i] = in[i];
  second[i] = 1;
  uint32_t matrix[4];
  if constexpr (F == Fault::read_global) first[i] = in[i + 1];
  if constexpr (F == Fault::write_global) out[i + 1] = 0;
  if constexpr (F == Fault::read_past_shared) first[i] = second[i + 1];
  if constexpr (F == Fault::write_past_shared) first[i + 1] = 0;
  if constexpr (F == Fault::write_before_shared) first[i - 1] = 0;
  if constexpr (F == Fault::copy_from_outside) device::copy_async<4>(first + i, in + i + 1, true);
  if constexpr (F == Fault::copy_to_outside) device::copy_async<4>(first + i + 1, in + i, true);
  if constexpr (F == Fault::misaligned_vector)
    first[i] = float(reinterpret_cast<const uint2*>(in + 1)->x);
  if constexpr (F == Fault::misaligned_load)
    first[i] = device::load_global(reinterpret_cast<const float2*>(in + 1)).x;
  if constexpr (F == Fault::misaligned_store)
    device::store_global(reinterpret_cast<float2*>(out + 1), make_float2(0, 0));
  if constexpr (F == Fault::misaligned_shared) device::store_shared(first + 2, uint4{});
  if constexpr (F == Fault::misaligned_matrix) device::load_matrices<false>(matrix, first + 2);
  if constexpr (F == Fault::misaligned_copy) device::copy_async<8>(first + 2, in + 1, true);
  if constexpr (F == Fault::not_shared) device::load_matrices<false>(matrix, in);
  if constexpr (F == Fault::take_too_much) memory.take<float>(1);
  if constexpr (F == Fault::take_differently) memory.take<float>(i < 40 ? 1 : 2);
  if constexpr (F == Fault::divergent_collective) {
    if (i % 32 < 5) __syncwarp();
    else first[i] = __shfl_xor_sync(~0u, first[i], 1);
  }
  if constexpr (F == Fault::divergent_barrier) {
    if (i < 32) __syncthreads();
    else __syncthreads();
  }
  if constexpr (F == Fault::deadlock) {
    if (i < 20) __syncwarp();
    else __syncthreads();
  }
  if constexpr (F == Fault::barrier_after_return) {
    if (i == 63) return;
  }
  if constexpr (F == Fault::collective_after_return) {
    if (i == 30) return;
    __syncwarp();
  }
  if constexpr (F == Fault::partial_mask) __syncwarp(0xffff);
  device::copy_commit();
  device::copy_wait<0>();
  __syncthreads();
  out[i] = first[i ^ 1] + second[i];
}

template <Fault F>
bool planted() {
  std::vector<float> in(64), out(64);
  for (size_t i = 0; i < in.size(); ++i) in[i] = float(i);
  const size_t bytes = 512 + (F == Fault::take_differently ? 128 : 0);
  bool right = succeeded(device::launch(faulty<F>, 1, 64, bytes, nullptr, in.data(), out.data()));
  for (size_t i = 0; i < in.size(); ++i) right &= out[i] == float(i ^ 1) + 1;
  return right;
}

__global__ void warp_sync() { __syncwarp(); }

bool incomplete_warp() { return succeeded(device::launch(warp_sync, 1, 48, 0, nullptr)); }

bool faults(bool (*run)()) {
  try {
    run();
    return false;
  } catch (const emulation::Fault&) {
    return true;
  }
}

// What runs after a fault finds nothing of it.
bool after_fault() {
  bool right = true;
  for (int i = 0; i < 3; ++i) {
    right &= faults(planted<Fault::deadlock>) && faults(planted<Fault::divergent_collective>) &&
             faults(planted<Fault::take_too_much>);
    faults(copies<16, CopyFault::leave>);  // does not if all copies happen to be early
    right &= planted<Fault::none>() && copies<16, CopyFault::none>() && block_barrier<true>();
  }
  return right;
}

bool several_launchers() {
  bool right[4] = {};
  std::vector<std::thread> threads;
  for (bool& mine : right)
    threads.emplace_back([&mine] {
      mine = true;
      for (int i = 0; i < 5; ++i) mine &= block_barrier<true>() && planted<Fault::none>();
    });
  for (std::thread& thread : threads) thread.join();
  return right[0] && right[1] && right[2] && right[3];
}

const std::map<std::string, std::function<bool()>> tests = {
    {"block_barrier", block_barrier<true>},
    {"warp_barrier", warp_barrier<true>},
    {"mma_half_k16", mma<__half, 16>},
    {"mma_half_k8", mma<__half, 8>},
    {"mma_bfloat16_k16", mma<__nv_bfloat16, 16>},
    {"mma_bfloat16_k8", mma<__nv_bfloat16, 8>},
    {"half_values", values<__half>},
    {"bfloat16_values", values<__nv_bfloat16>},
    {"ldmatrix_x4", ldmatrix<4, false>},
    {"ldmatrix_x2", ldmatrix<2, false>},
    {"ldmatrix_x4_trans", ldmatrix<4, true>},
    {"ldmatrix_x2_trans", ldmatrix<2, true>},
    {"shuffles", shuffles},
    {"copies_of_4", copies<4, CopyFault::none>},
    {"copies_of_8", copies<8, CopyFault::none>},
    {"copies_of_16", copies<16, CopyFault::none>},
    {"functions", functions},
    {"global_2", passed_on<__half>},
    {"global_4", passed_on<float>},
    {"global_8", passed_on<uint2>},
    {"global_16", passed_on<float4>},
    {"fresh_memory", fresh_memory},
    {"indices", indices},
    {"refused_launches", refused_launches},
    {"counters", counted},
    {"no_fault", planted<Fault::none>},
    {"after_fault", after_fault},
    {"several_launchers", several_launchers},
};

const std::map<std::string, std::function<bool()>> planted_faults = {
    {"missing_block_barrier", block_barrier<false>},
    {"missing_warp_barrier", warp_barrier<false>},
    {"blocks_race", blocks_race},
    {"missing_wait", copies<16, CopyFault::wait>},
    {"wait_for_fewer", copies<16, CopyFault::wait_for_fewer>},
    {"missing_commit", copies<8, CopyFault::commit>},
    {"missing_barrier_after_wait", copies<4, CopyFault::barrier>},
    {"return_with_copies", copies<4, CopyFault::leave>},
    {"read_global", planted<Fault::read_global>},
    {"write_global", planted<Fault::write_global>},
    {"read_past_shared", planted<Fault::read_past_shared>},
    {"write_past_shared", planted<Fault::write_past_shared>},
    {"write_before_shared", planted<Fault::write_before_shared>},
    {"copy_from_outside", planted<Fault::copy_from_outside>},
    {"copy_to_outside", planted<Fault::copy_to_outside>},
    {"misaligned_vector", planted<Fault::misaligned_vector>},
    {"misaligned_load", planted<Fault::misaligned_load>},
    {"misaligned_store", planted<Fault::misaligned_store>},
    {"misaligned_shared", planted<Fault::misaligned_shared>},
    {"misaligned_matrix", planted<Fault::misaligned_matrix>},
    {"misaligned_copy", planted<Fault::misaligned_copy>},
    {"not_shared", planted<Fault::not_shared>},
    {"take_too_much", planted<Fault::take_too_much>},
    {"take_differently", planted<Fault::take_differently>},
    {"divergent_collective", planted<Fault::divergent_collective>},
    {"divergent_barrier", planted<Fault::divergent_barrier>},
    {"deadlock", planted<Fault::deadlock>},
    {"barrier_after_return", planted<Fault::barrier_after_return>},
    {"collective_after_return", planted<Fault::collective_after_return>},
    {"partial_mask", planted<Fault::partial_mask>},
    {"incomplete_warp", incomplete_warp},
};

int run(const std::string& name) {
  try {
    if (name == "tests") {
      bool right = true;
      for (const auto& [each, test] : tests)
        if (!test()) right = false, printf("%s: wrong\n", each.c_str());
      return right ? 0 : 1;
    }
    return planted_faults.at(name)() ? 0 : 1;
  } catch (const emulation::Fault& fault) {
    printf("%s\n", fault.what());
    return 3;
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 2) return run(arguments[1]);
  fprintf(stderr, "usage: emulation_test tests|FAULT\n");
  return 2;
}
