#include "core/device.h"
#include "host/kernel_launch.h"
#include "host/launch.h"

namespace depthwise {
namespace {

constexpr int threads = 256;

// One thread per element.
__global__ void __launch_bounds__(threads)
    add_splits(float* sums, const float* partial_sums, int splits, ptrdiff_t elements) {
  const ptrdiff_t i = ptrdiff_t(blockIdx.x) * threads + int(threadIdx.x);
  if (i >= elements) return;
  float total = 0;
  for (int s = 0; s < splits; ++s) total += partial_sums[s * elements + i];
  sums[i] = total;
}

}  // namespace

cudaError_t find_kernels() { return device::find_code(reinterpret_cast<const void*>(add_splits)); }

cudaError_t launch_add_splits(float* sums, const float* partial_sums, int splits,
                              ptrdiff_t elements, cudaStream_t stream) {
  return device::launch(add_splits, unsigned(divide_up(elements, threads)), unsigned(threads), 0,
                        stream, sums, partial_sums, splits, elements);
}

}  // namespace depthwise
