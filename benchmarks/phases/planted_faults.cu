// Kernels with a fault each, by which it is known that a clean report of compute-sanitizer means
// something. The argument names the fault; "none" has none.
#include <cstdio>
#include <cstring>

#include "core/device.h"

namespace depthwise {

enum class Fault { none, memory, race, race_in_warp, uninitialised, barrier };

// Reverses the values of a block, or only swaps neighbours where the fault is to stay in a warp.
__global__ void planted(float* values, int count, Fault fault) {
  device::SharedMemory memory;
  float* const shared = memory.take<float>(64);
  const int thread = int(threadIdx.x);
  const bool in_warp = fault == Fault::race_in_warp;
  shared[thread] = values[thread];
  if (fault != Fault::race && !in_warp) __syncthreads();
  float value = shared[in_warp ? thread ^ 1 : 63 - thread];
  if (fault == Fault::barrier && thread < 40) __syncthreads();
  if (fault == Fault::uninitialised) value += values[64 + thread];
  values[fault == Fault::memory ? count + thread : thread] = value;
}

}  // namespace depthwise

int main(int count, char** words) {
  using depthwise::Fault;
  const char* const names[] = {"none",         "memory",        "race",
                               "race_in_warp", "uninitialised", "barrier"};
  for (int fault = 0; count == 2 && fault < 6; ++fault) {
    if (std::strcmp(words[1], names[fault]) != 0) continue;
    float* values = nullptr;
    if (cudaMalloc(&values, 128 * sizeof(float)) != cudaSuccess) return 3;
    cudaMemset(values, 0, 64 * sizeof(float));
    depthwise::planted<<<1, 64, 512>>>(values, 128, Fault(fault));
    return cudaDeviceSynchronize() == cudaSuccess ? 0 : 4;
  }
  std::fprintf(stderr, "name one fault\n");
  return 2;
}
