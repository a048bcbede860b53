// The tuning of each GPU generation, by compute capability.
#pragma once
#include "host/tuning/sm100.h"
#include "host/tuning/sm120.h"
#include "host/tuning/sm80.h"
#include "host/tuning/sm90.h"

namespace depthwise {

// That of the newest generation that is not newer than the GPU.
constexpr Tuning tuning_of(int capability) {
  return capability >= sm120.capability   ? sm120
         : capability >= sm100.capability ? sm100
         : capability >= sm90.capability  ? sm90
                                          : sm80;
}

// The tuning that a kernel is compiled with.
#ifdef __CUDA_ARCH__
constexpr Tuning compiled_tuning = tuning_of(__CUDA_ARCH__ / 10);
#else
constexpr Tuning compiled_tuning = sm80;
#endif

}  // namespace depthwise
