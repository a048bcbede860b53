// The filter sizes that kernels are compiled for. The build reads the table from this file.
#pragma once

namespace depthwise {

constexpr int filter_sizes[] = {3, 5, 7, 8, 9, 11, 13, 15};

// An even filter is the next odd one whose first row and column are zero: 'same' padding puts the
// extra line at the bottom and right.
constexpr int odd_size(int filter_size) { return filter_size | 1; }

constexpr bool supported_filter(int filter_size) {
  for (const int size : filter_sizes)
    if (size == filter_size) return true;
  return false;
}

}  // namespace depthwise
