#include "host/launch.h"

#include <mutex>
#include <set>
#include <utility>

namespace device {
namespace {

// Every kernel may have this much dynamic shared memory; more needs a permission.
constexpr size_t always_allowed_bytes = 48 * 1024;

}  // namespace

cudaError_t allow_shared_memory(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int index = 0, most = 0;
  cudaError_t status = cudaGetDevice(&index);
  if (status != cudaSuccess) return status;
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({kernel, index})) return cudaSuccess;
  status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  if (status != cudaSuccess) return status;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (status == cudaSuccess) allowed.emplace(kernel, index);
  return status;
}

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, void** parameters) {
  if (shared_bytes > always_allowed_bytes) {
    const cudaError_t status = allow_shared_memory(kernel);
    if (status != cudaSuccess) return status;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelExC(&config, kernel, parameters);
}

cudaError_t find_code(const void* kernel) {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, kernel);
}

}  // namespace device
