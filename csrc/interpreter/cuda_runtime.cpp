// The part of the CUDA runtime that the extension calls. The extension is linked with this file in
// place of CUDA's own library, so that its kernels run on the interpreter of PTX.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#include "interpreter.h"

namespace {

struct Kernel {
  std::string name;                  // as PTX has it
  bool may_have_all_shared = false;  // all shared memory of the device, not 48 KB
};

// By the address of the function on the host that stands for the kernel. Objects register their
// kernels before main, when no other static variable of this file need exist.
std::map<const void*, Kernel>& registered_kernels() {
  static std::map<const void*, Kernel> registered;
  return registered;
}

// The file with the PTX of each kernel, by its name, and those that the interpreter has read. There
// are 160 MB of them, of which most processes need little.
std::unordered_map<std::string, std::string> files;
std::set<std::string> loaded;

// Launches that are refused are refused all the same, but kernels do not run.
bool skips_kernels = false;

bool find(const std::string& kernel) {
  const auto file = files.find(kernel);
  if (file == files.end()) return false;
  if (loaded.insert(file->second).second) {
    std::ifstream stream(file->second);
    ptx::load(file->second, std::string(std::istreambuf_iterator<char>(stream), {}));
  }
  return true;
}

// Of a block. It changes when a test turns to another GPU, and what was permitted before stays so.
int most_shared_bytes() { return int(ptx::settings().shared_bytes_per_block); }

// An exception of the interpreter goes through the extension to Python.
cudaError_t launch(const cudaLaunchConfig_t& config, const Kernel& kernel, void** arguments) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 ||
      grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  const int most = most_shared_bytes();
  const int allowed = kernel.may_have_all_shared ? most : std::min(most, 48 * 1024);
  if (config.dynamicSmemBytes > size_t(allowed)) return cudaErrorInvalidValue;
  if (skips_kernels) return cudaSuccess;
  if (!find(kernel.name)) return cudaErrorNoKernelImageForDevice;
  ptx::launch(kernel.name, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z},
              uint32_t(config.dynamicSmemBytes), arguments);
  return cudaSuccess;
}

}  // namespace

extern "C" {

// ---- what nvcc generates calls of ----------------------------------------------------------------

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}

void __cudaRegisterFatBinaryEnd(void**) {}

void __cudaUnregisterFatBinary(void**) {}

char __cudaInitModule(void**) { return 0; }

void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  registered_kernels()[function].name = name;
}

// Launches with <<<>>>, which the extension does not use, end in these.
unsigned __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return 1; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorNotSupported;
}
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }

// ---- what the extension calls --------------------------------------------------------------------

cudaError_t cudaSetDevice(int) { return cudaSuccess; }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute != cudaDevAttrMaxSharedMemoryPerBlockOptin) return cudaErrorNotSupported;
  *value = most_shared_bytes();
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  *attributes = {};
  return registered_kernels().count(function) ? cudaSuccess : cudaErrorInvalidDeviceFunction;
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorNotSupported;
  const auto found = registered_kernels().find(function);
  if (found == registered_kernels().end()) return cudaErrorInvalidDeviceFunction;
  if (value != most_shared_bytes()) return cudaErrorInvalidValue;
  found->second.may_have_all_shared = true;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** arguments) {
  const auto found = registered_kernels().find(function);
  if (found == registered_kernels().end()) return cudaErrorInvalidDeviceFunction;
  return launch(*config, found->second, arguments);
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction: return "invalid device function";
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorNotSupported: return "operation not supported";
    default: return "unrecognized error code";
  }
}

}  // extern "C"

PYBIND11_MODULE(_cuda_runtime, runtime) {
  runtime.def(
      "set_files", [](decltype(files) by_kernel) { files = std::move(by_kernel); },
      "Sets the file of PTX that has each kernel.");
  runtime.def(
      "skip_kernels", [](bool skip) { skips_kernels = skip; },
      "Lets launches return without running their kernels, to measure the host alone.");
}
