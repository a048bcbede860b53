// Tensors, reference results and reports of the test programs: exact results, every way of lying in
// memory.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "device.h"
#include "plan.h"

namespace depthwise_test {

using namespace depthwise;

// Builds with planted faults do without the second type: they take half the time.
#ifdef ONE_TYPE
using Brain = __half;
#else
using Brain = __nv_bfloat16;
#endif

// How a tensor lies in memory: as usual; with images and channels (channels last: rows) in the
// other order; or as usual from an odd element on.
enum class Placement { plain, turned, odd };
using enum Placement;

struct Case {
  Shape shape;
  Placement input, output;
  int multiprocessors;  // fewer: fewer shares of the items, so that there are more in each

  Chip chip() const { return {multiprocessors, 227 << 10}; }
};

// Small whole numbers: all sums are exact, whatever their order.
class Numbers {
 public:
  std::vector<double> draw(size_t count) {
    std::vector<double> values(count);
    for (double& value : values) value = double(int(generator_() % 9) - 4);
    return values;
  }

 private:
  std::mt19937 generator_{7};
};

template <class T>
T rounded(double value) {
  return T(float(value));
}

struct Strided {
  ptrdiff_t image, channel, row, pixel;

  operator Strides() const { return {image, channel}; }
  operator PixelStrides() const { return {image, row, pixel}; }
};

template <class Layout>
Strided strides_of(const Shape& shape, Placement placement) {
  const ptrdiff_t images = shape.images, channels = shape.channels;
  const ptrdiff_t width = shape.width, height = shape.height, plane = width * height;
  if constexpr (std::is_same_v<Layout, Strides>)
    return placement == turned ? Strided{plane, images * plane, width, 1}
                               : Strided{channels * plane, plane, width, 1};
  else
    return placement == turned ? Strided{width * channels, 1, images * width * channels, channels}
                               : Strided{plane * channels, 1, width * channels, channels};
}

// A tensor in memory of exactly its size, with one element before it if it begins on an odd one.
template <class T, class Layout>
class Tensor {
 public:
  Tensor(const Shape& shape, Placement placement, const std::vector<double>& values)
      : Tensor(shape, placement) {
    for (size_t i = 0; i < values.size(); ++i) at(i) = rounded<T>(values[i]);
  }
  // Filled with NaN.
  Tensor(const Shape& shape, Placement placement)
      : shape_(shape),
        strides_(strides_of<Layout>(shape, placement)),
        before_(placement == odd),
        memory_(size_t(shape.images) * size_t(shape.channels) * size_t(shape.height) *
                        size_t(shape.width) +
                    before_,
                T(NAN)) {}

  T* data() { return memory_.data() + before_; }
  const Strided& strides() const { return strides_; }
  // Elements in the order of image, channel, row and column.
  T& at(size_t i) {
    const ptrdiff_t number = ptrdiff_t(i), x = number % shape_.width;
    const ptrdiff_t y = number / shape_.width % shape_.height;
    const ptrdiff_t plane = number / shape_.width / shape_.height;
    return data()[plane / shape_.channels * strides_.image +
                  plane % shape_.channels * strides_.channel + y * strides_.row +
                  x * strides_.pixel];
  }

 private:
  Shape shape_;
  Strided strides_;
  size_t before_;
  std::vector<T> memory_;
};

// What the results are compared with is neither slowed down nor watched by a sanitizer.
#define REFERENCE __attribute__((no_sanitize("address,thread,undefined"), optimize("O2")))

// Calls visit(output element, tap, input element) for all in a plane that meet.
template <class Visit>
REFERENCE inline void each_product(const Shape& shape, int size, Visit visit) {
  const int before = (size - 1) / 2;
  for (int y = 0; y < shape.height; ++y)
    for (int r = std::max(0, before - y); r < std::min(size, shape.height + before - y); ++r)
      for (int x = 0; x < shape.width; ++x)
        for (int s = std::max(0, before - x); s < std::min(size, shape.width + before - x); ++s)
          visit(y * shape.width + x, r * size + s, (y + r - before) * shape.width + x + s - before);
}

REFERENCE inline void add_outputs(double* out, const double* in, const double* taps,
                                  const Shape& shape, int size) {
  each_product(shape, size, [=](int output, int tap, int input) REFERENCE {
    out[output] += in[input] * taps[tap];
  });
}
REFERENCE inline void add_input_gradient(double* to, const double* gradient, const double* taps,
                                         const Shape& shape, int size) {
  each_product(shape, size, [=](int output, int tap, int input) REFERENCE {
    to[input] += gradient[output] * taps[tap];
  });
}
REFERENCE inline void add_weight_gradient(double* to, const double* gradient, const double* in,
                                          const Shape& shape, int size) {
  each_product(shape, size, [=](int output, int tap, int input) REFERENCE {
    to[tap] += gradient[output] * in[input];
  });
}

class Report {
 public:
  Report(const char* what, const Shape& shape, int size, const char* type)
      : name_(std::string(what) + " " + std::to_string(shape.images) + "x" +
              std::to_string(shape.channels) + "x" + std::to_string(shape.height) + "x" +
              std::to_string(shape.width) + " size " + std::to_string(size) + " " + type) {}

  void launched(cudaError_t status) {
    if (status != cudaSuccess)
      printf("%s: %s\n", name_.c_str(), cudaGetErrorString(status)), ++wrong_;
  }
  void compare(const char* what, size_t i, double actual, double expected) {
    if (actual == expected || wrong_++) return;
    printf("%s: %s %zu is %g instead of %g\n", name_.c_str(), what, i, actual, expected);
  }
  void near(const char* what, size_t i, double actual, double expected, double allowed) {
    if (std::abs(actual - expected) > allowed || std::isnan(actual))
      compare(what, i, actual, expected);
  }
  bool right() const { return wrong_ == 0; }

 private:
  std::string name_;
  long wrong_ = 0;
};

template <class T>
constexpr Type type_of = std::is_same_v<T, __half> ? Type::half : Type::bfloat16;
template <class T>
constexpr const char* name_of = std::is_same_v<T, __half> ? "half" : "bfloat16";

}  // namespace depthwise_test
