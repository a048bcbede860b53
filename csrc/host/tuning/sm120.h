// RTX 50 and RTX PRO Blackwell, with 99 KB of shared memory for a block.
#pragma once
#include "host/tuning/common.h"

namespace depthwise {

constexpr Tuning sm120{.capability = 120};

}  // namespace depthwise
