// Filters of any height and width up to 31, whose rows and columns may lie apart: plain C++ without CUDA.
#pragma once
#include <cstdint>

namespace depthwise {

// The largest extent of a filter, in rows or columns of the image. Eight outputs of 31 columns reach 38
// columns, which an input window of five chunks holds wherever the filter is centred.
constexpr int most_extent = 31;

// A filter of height x width taps, `row_dilation` rows and `column_dilation` columns apart.
struct LargeFilter {
  int height, width;
  int row_dilation, column_dilation;

  // The extent in the image.
  constexpr int rows() const { return (height - 1) * row_dilation + 1; }
  constexpr int columns() const { return (width - 1) * column_dilation + 1; }
  // Rows above and columns left of the output that a filter reaches: 'same' padding puts an extra line
  // at the bottom and right. Turned by half a turn, it lies at the top and left.
  constexpr int above(bool flipped) const { return (flipped ? rows() : rows() - 1) / 2; }
  constexpr int left(bool flipped) const { return (flipped ? columns() : columns() - 1) / 2; }
  // Bit r tells whether row r of the extent has taps.
  constexpr uint32_t row_mask() const {
    uint32_t mask = 0;
    for (int r = 0; r < height; ++r) mask |= 1u << r * row_dilation;
    return mask;
  }
  constexpr int taps() const { return height * width; }
};

constexpr bool fits(const LargeFilter& filter) {
  return filter.height > 0 && filter.width > 0 && filter.row_dilation > 0 &&
         filter.column_dilation > 0 && filter.height <= most_extent && filter.width <= most_extent &&
         int64_t(filter.height - 1) * filter.row_dilation < most_extent &&
         int64_t(filter.width - 1) * filter.column_dilation < most_extent;
}

}  // namespace depthwise
