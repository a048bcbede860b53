// Shared by the small programs that time kernels: checked calls of CUDA, random tensors, and a clock.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}
#define CHECK(call) check(call, #call)

inline int multiprocessors() {
  int count = 0;
  CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

// A value between -1 and 1 for each element: zeros would take less power than real data.
static __global__ void fill(__half* to, size_t count, unsigned seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count;
       i += size_t(gridDim.x) * blockDim.x) {
    unsigned bits = unsigned(i) * 2654435761u ^ seed;
    bits = (bits ^ bits >> 15) * 2246822519u;
    to[i] = __float2half(float(bits >> 8) / float(1 << 23) - 1.f);
  }
}

inline __half* random_tensor(size_t count, unsigned seed) {
  __half* tensor = nullptr;
  CHECK(cudaMalloc(&tensor, 2 * count));
  fill<<<1024, 256>>>(tensor, count, seed);
  CHECK(cudaGetLastError());
  return tensor;
}

// Median microseconds of a call, of which `calls` are timed together in each of `rounds`. A call gets its
// number, counted from 0.
template <class Call>
double median_microseconds(int rounds, int calls, Call call) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  int number = 0;
  for (int round = 0; round < rounds; ++round) {
    CHECK(cudaEventRecord(begin));
    for (int i = 0; i < calls; ++i) call(number++);
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    times.push_back(milliseconds / float(calls));
  }
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return 1e3 * times[times.size() / 2];
}
