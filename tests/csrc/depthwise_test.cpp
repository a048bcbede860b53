// The kernels as they stand, run on the CPU for the sanitizers: every way of staging, exact
// results. Built and run by tests/test_sanitizers.py, with some of the kernels.
//
//   depthwise_test ROLE SIZE...
//
// ROLE is a file of csrc/instantiations without its size. Exits with 0 if all results are right,
// with 1 if some are not, and with 3 after a fault.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "device.h"
#include "dispatch.h"

namespace {

using namespace depthwise;

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

// Of contiguous planes: whole ones of every size; planes of one item, of several strips and
// windows, narrower and wider than the filter; more images than share an item; items enough for
// every stage of the pipeline; channels that do not fill a block; every alignment of rows.
const Case contiguous_cases[] = {
    {{35, 3, 8, 8}, plain, plain, 0},    {{13, 1, 16, 16}, plain, turned, 0},
    {{4, 2, 32, 32}, plain, plain, 0},   {{35, 1, 7, 7}, plain, plain, 0},
    {{13, 2, 14, 14}, turned, plain, 0}, {{2, 2, 16, 16}, odd, plain, 1},
    {{2, 2, 16, 16}, plain, odd, 1},     {{1, 5, 1, 1}, plain, plain, 1},
    {{3, 1, 24, 20}, plain, plain, 0},   {{3, 2, 28, 28}, plain, plain, 0},
    {{1, 1, 45, 44}, plain, plain, 1},   {{1, 2, 5, 56}, plain, plain, 1},
    {{1, 1, 3, 75}, plain, plain, 0},    {{1, 1, 36, 118}, plain, plain, 0},
};

// Of channels-last tensors: the same, and channels that are not whole units of eight.
const Case channels_last_cases[] = {
    {{17, 24, 8, 8}, plain, plain, 1},  {{9, 8, 16, 16}, plain, turned, 1},
    {{3, 8, 32, 32}, turned, plain, 1}, {{17, 8, 7, 7}, plain, plain, 1},
    {{5, 8, 14, 14}, plain, plain, 2},  {{3, 9, 14, 14}, plain, plain, 1},
    {{2, 8, 12, 12}, odd, plain, 1},    {{2, 8, 12, 12}, plain, odd, 1},
    {{1, 3, 1, 1}, plain, plain, 1},    {{1, 8, 24, 20}, plain, plain, 1},
    {{1, 8, 5, 56}, plain, plain, 1},   {{1, 8, 36, 75}, plain, plain, 1},
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
REFERENCE void each_product(const Shape& shape, int size, Visit visit) {
  const int before = (size - 1) / 2;
  for (int y = 0; y < shape.height; ++y)
    for (int r = std::max(0, before - y); r < std::min(size, shape.height + before - y); ++r)
      for (int x = 0; x < shape.width; ++x)
        for (int s = std::max(0, before - x); s < std::min(size, shape.width + before - x); ++s)
          visit(y * shape.width + x, r * size + s, (y + r - before) * shape.width + x + s - before);
}

REFERENCE void add_outputs(double* out, const double* in, const double* taps, const Shape& shape,
                           int size) {
  each_product(shape, size, [=](int output, int tap, int input) REFERENCE {
    out[output] += in[input] * taps[tap];
  });
}
REFERENCE void add_input_gradient(double* to, const double* gradient, const double* taps,
                                  const Shape& shape, int size) {
  each_product(shape, size, [=](int output, int tap, int input) REFERENCE {
    to[input] += gradient[output] * taps[tap];
  });
}
REFERENCE void add_weight_gradient(double* to, const double* gradient, const double* in,
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
  bool right() const { return wrong_ == 0; }

 private:
  std::string name_;
  long wrong_ = 0;
};

template <class T>
constexpr Type type_of = std::is_same_v<T, __half> ? Type::half : Type::bfloat16;
template <class T>
constexpr const char* name_of = std::is_same_v<T, __half> ? "half" : "bfloat16";

template <class T, class Layout>
bool forward_is_right(const Case& each, int size, bool flipped, bool with_bias) {
  const Shape shape = each.shape;
  const size_t plane = size_t(shape.height * shape.width), channels = size_t(shape.channels);
  const size_t taps = size_t(size * size), count = size_t(shape.images) * channels * plane;
  Numbers numbers;
  const std::vector<double> input = numbers.draw(count), filter = numbers.draw(channels * taps);
  const std::vector<double> bias = numbers.draw(channels);
  Tensor<T, Layout> x(shape, each.input, input), y(shape, each.output);
  std::vector<T> weight;
  for (const double value : filter) weight.push_back(rounded<T>(value));
  weight.shrink_to_fit();
  const std::vector<float> float_bias(bias.begin(), bias.end());

  Report report(flipped ? "input gradient" : "forward", shape, size, name_of<T>);
  ForwardArgumentsOf<Layout> p{};
  p.input = x.data();
  p.weight = weight.data();
  p.bias = with_bias ? float_bias.data() : nullptr;
  p.output = y.data();
  p.shape = shape;
  p.input_strides = x.strides();
  p.output_strides = y.strides();
  p.filter_size = size;
  p.flipped = flipped;
  report.launched(forward(p, type_of<T>, each.chip(), nullptr));

  std::vector<double> expected(plane);
  for (size_t i = 0; i < size_t(shape.images) * channels; ++i) {
    const double* const from = &input[i * plane];
    const double* const taps_of = &filter[i % channels * taps];
    expected.assign(plane, with_bias ? bias[i % channels] : 0);
    (flipped ? add_input_gradient : add_outputs)(expected.data(), from, taps_of, shape, size);
    for (size_t j = 0; j < plane; ++j)
      report.compare("element", i * plane + j, float(y.at(i * plane + j)),
                     float(rounded<T>(expected[j])));
  }
  return report.right();
}

int shares_of(const Strides&, const Shape& shape, int, const Chip& chip) {
  return weight_gradient_shares(shape, chip);
}
int shares_of(const PixelStrides&, const Shape& shape, int size, const Chip& chip) {
  return channels_last_weight_gradient_shares(shape, size, chip);
}

template <class T, class Layout>
bool weight_gradient_is_right(const Case& each, int size, bool with_bias) {
  const Shape shape = each.shape;
  const size_t plane = size_t(shape.height * shape.width), channels = size_t(shape.channels);
  const size_t taps = size_t(size * size), count = size_t(shape.images) * channels * plane;
  Numbers numbers;
  const std::vector<double> input = numbers.draw(count), gradient = numbers.draw(count);
  Tensor<T, Layout> x(shape, each.input, input), dy(shape, each.output, gradient);
  std::vector<float> sums(channels * taps, NAN), bias_sums(channels, NAN);
  const int shares = shares_of(Layout(), shape, size, each.chip());
  std::vector<float> workspace(shares > 1 ? size_t(shares) * channels * (taps + 1) : 0, NAN);

  Report report("weight gradient", shape, size, name_of<T>);
  WeightGradientArgumentsOf<Layout> p{};
  p.input = x.data();
  p.output_gradient = dy.data();
  p.shape = shape;
  p.input_strides = x.strides();
  p.gradient_strides = dy.strides();
  p.filter_size = size;
  report.launched(weight_gradient(p, type_of<T>, each.chip(), sums.data(),
                                  with_bias ? bias_sums.data() : nullptr, workspace.data(),
                                  nullptr));

  std::vector<double> expected(channels * taps), expected_bias(channels);
  for (size_t i = 0; i < size_t(shape.images) * channels; ++i) {
    const double* const from = &input[i * plane];
    const double* const by = &gradient[i * plane];
    double* const to = &expected[i % channels * taps];
    add_weight_gradient(to, by, from, shape, size);
    for (size_t j = 0; j < plane; ++j) expected_bias[i % channels] += by[j];
  }
  for (size_t i = 0; i < sums.size(); ++i) report.compare("weight", i, sums[i], expected[i]);
  for (size_t c = 0; with_bias && c < channels; ++c)
    report.compare("bias", c, bias_sums[c], expected_bias[c]);
  return report.right();
}

template <class Layout>
bool run(const std::string& role, int size, std::span<const Case> cases) {
  // What does not depend on the shape takes turns, differently for different sizes.
  bool right = true, other = size == 9;
  for (const Case& each : cases) {
    if (role.ends_with("forward"))
      right &= other ? forward_is_right<__nv_bfloat16, Layout>(each, size, true, false)
                     : forward_is_right<__half, Layout>(each, size, false, true);
    else
      right &= other ? weight_gradient_is_right<__nv_bfloat16, Layout>(each, size, false)
                     : weight_gradient_is_right<__half, Layout>(each, size, true);
    other = !other;
  }
  return right;
}

bool run(const std::string& role, int size) {
  return role.starts_with("channels_last") ? run<PixelStrides>(role, size, channels_last_cases)
                                           : run<Strides>(role, size, contiguous_cases);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    bool right = count > 2;
    for (int i = 2; i < count; ++i) right &= run(arguments[1], atoi(arguments[i]));
    return right ? 0 : 1;
  } catch (const emulation::Fault& fault) {
    printf("%s\n", fault.what());
    return 3;
  }
}
