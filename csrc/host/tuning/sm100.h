// B200.
#pragma once
#include "host/tuning/common.h"

namespace depthwise {

constexpr Tuning sm100{.capability = 100};

}  // namespace depthwise
