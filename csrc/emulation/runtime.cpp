// The functions of the CUDA runtime that host code calls, for a build without it.
#include <cuda_runtime_api.h>

cudaError_t cudaSetDevice(int) { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return "unknown error";
  }
}
