// Launches of kernels by the CUDA runtime.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <type_traits>

namespace device {

// Starts a kernel on a stream, given the address of each of its parameters. Returns what CUDA says to
// the launch: cudaErrorInvalidValue for more shared memory than a block can have,
// cudaErrorInvalidConfiguration for an empty or too large grid or block.
cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, void** parameters);

// Does the same with arguments, which are converted to the kernel's parameters.
template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, std::type_identity_t<Parameters>... arguments) {
  void* parameters[] = {&arguments...};
  return launch(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, stream,
                parameters);
}

// Lets a kernel have as much dynamic shared memory as a block of the current device can. The
// permission belongs to the kernel, not to a launch: it is given once and never lowered, since other
// threads may be launching the kernel with more.
cudaError_t allow_shared_memory(const void* kernel);

// Says whether the current device has code of a kernel: cudaErrorNoKernelImageForDevice where it was
// built for others.
cudaError_t find_code(const void* kernel);

}  // namespace device
