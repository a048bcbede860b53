// A100, and by their code RTX 30 and 40, L4, L40S and A10 (sm_86, sm_89), which have 99 instead of 163 KB of shared
// memory for a block.
#pragma once
#include "host/tuning/common.h"

namespace depthwise {

constexpr Tuning sm80{.capability = 80};

}  // namespace depthwise
