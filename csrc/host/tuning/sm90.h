// H100 and H200.
#pragma once
#include "host/tuning/common.h"

namespace depthwise {

constexpr Tuning sm90{.capability = 90};

}  // namespace depthwise
