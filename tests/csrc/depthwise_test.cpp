// The kernels as they stand, run on the CPU for the sanitizers: every way of staging, exact results.
// Built and run by tests/test_sanitizers.py, with some of the filter sizes.
//
//   depthwise_test ROLE SIZE...    ROLE is forward or weight_gradient; exits with 0 if all results are
//                                  right, 1 if some are not, and 3 after a fault
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "device.h"
#include "dispatch.h"
#include "launch.h"

// dispatch.cpp knows every size; these are not linked in.
#define LEAVE_OUT_FORWARD(Size)                                                           \
  template <>                                                                             \
  cudaError_t depthwise::launch_forward<Size>(const ForwardArguments&, Type, const Plan&, \
                                              cudaStream_t) {                             \
    return cudaErrorNotSupported;                                                         \
  }
#define LEAVE_OUT_WEIGHT_GRADIENT(Size)                                                     \
  template <>                                                                               \
  cudaError_t depthwise::launch_weight_gradient<Size>(const WeightGradientArguments&, Type, \
                                                      const Plan&, cudaStream_t) {          \
    return cudaErrorNotSupported;                                                           \
  }
WITHOUT_FORWARD(LEAVE_OUT_FORWARD)
WITHOUT_WEIGHT_GRADIENT(LEAVE_OUT_WEIGHT_GRADIENT)

namespace {

using namespace depthwise;

// How planes follow each other in memory, and whether they begin on an odd element.
struct Placement {
  bool channels_first;  // all images of a channel together
  bool odd;
};

struct Case {
  Shape shape;
  Placement input, output;
  int multiprocessors;  // none: one share of the items, so that a warp works through all of them
};

// Whole planes of every size; planes of one item, of several strips and windows, narrower and wider
// than the filter; more images than share an item; items enough for every stage of the pipeline;
// channels that do not fill a block; every alignment of rows.
constexpr Placement plain{false, false}, turned{true, false}, odd{false, true};
const Case cases[] = {
    {{35, 3, 8, 8}, plain, plain, 0},    {{13, 1, 16, 16}, plain, turned, 0},
    {{4, 2, 32, 32}, plain, plain, 0},   {{35, 1, 7, 7}, plain, plain, 0},
    {{13, 2, 14, 14}, turned, plain, 0}, {{2, 2, 16, 16}, odd, plain, 1},
    {{2, 2, 16, 16}, plain, odd, 1},     {{1, 5, 1, 1}, plain, plain, 1},
    {{3, 1, 24, 20}, plain, plain, 0},   {{3, 2, 28, 28}, plain, plain, 0},
    {{1, 1, 45, 44}, plain, plain, 1},   {{1, 2, 5, 56}, plain, plain, 1},
    {{1, 1, 3, 75}, plain, plain, 0},    {{1, 1, 36, 118}, plain, plain, 0},
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

// The planes of a tensor in memory of exactly their size, apart from one element if `odd`.
template <class T>
class Planes {
 public:
  Planes(const Shape& shape, Placement placement, const std::vector<double>& values)
      : Planes(shape, placement) {
    for (size_t i = 0; i < values.size(); ++i) at(i) = rounded<T>(values[i]);
  }
  // Filled with NaN.
  Planes(const Shape& shape, Placement placement)
      : plane_(size_t(shape.height) * size_t(shape.width)),
        channels_(size_t(shape.channels)),
        images_(size_t(shape.images)),
        placement_(placement),
        memory_(images_ * channels_ * plane_ + placement.odd, T(NAN)) {}

  T* data() { return memory_.data() + placement_.odd; }
  Strides strides() const {
    return placement_.channels_first ? Strides{ptrdiff_t(plane_), ptrdiff_t(images_ * plane_)}
                                     : Strides{ptrdiff_t(channels_ * plane_), ptrdiff_t(plane_)};
  }
  // Elements in the order of image, channel, row and column.
  T& at(size_t i) {
    const size_t image = i / plane_ / channels_, channel = i / plane_ % channels_;
    return data()[size_t(strides().image) * image + size_t(strides().channel) * channel +
                  i % plane_];
  }

 private:
  size_t plane_, channels_, images_;
  Placement placement_;
  std::vector<T> memory_;
};

// Calls visit(output row, column, filter row, column, input row, column) for all pairs that meet.
template <class Visit>
void each_pair(const Shape& shape, int size, Visit visit) {
  const int before = (size - 1) / 2;
  for (int y = 0; y < shape.height; ++y)
    for (int x = 0; x < shape.width; ++x)
      for (int r = 0; r < size; ++r)
        for (int s = 0; s < size; ++s) {
          const int from_y = y + r - before, from_x = x + s - before;
          if (from_y >= 0 && from_y < shape.height && from_x >= 0 && from_x < shape.width)
            visit(size_t(y * shape.width + x), size_t(r * size + s),
                  size_t(from_y * shape.width + from_x));
        }
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

template <class T>
bool forward_is_right(const Case& each, int size, bool flipped, bool with_bias) {
  const Shape shape = each.shape;
  const size_t plane = size_t(shape.height * shape.width), channels = size_t(shape.channels);
  const size_t taps = size_t(size * size), count = size_t(shape.images) * channels * plane;
  Numbers numbers;
  const std::vector<double> input = numbers.draw(count), filter = numbers.draw(channels * taps);
  const std::vector<double> bias = numbers.draw(channels);
  Planes<T> x(shape, each.input, input), y(shape, each.output);
  std::vector<T> weight;
  for (const double value : filter) weight.push_back(rounded<T>(value));
  weight.shrink_to_fit();
  const std::vector<float> float_bias(bias.begin(), bias.end());

  Report report(flipped ? "input gradient" : "forward", shape, size, name_of<T>);
  ForwardArguments p{};
  p.input = x.data();
  p.weight = weight.data();
  p.bias = with_bias ? float_bias.data() : nullptr;
  p.output = y.data();
  p.shape = shape;
  p.input_strides = x.strides();
  p.output_strides = y.strides();
  p.filter_size = size;
  p.flipped = flipped;
  report.launched(forward(p, type_of<T>, each.multiprocessors, nullptr));

  std::vector<double> expected(plane);
  for (size_t i = 0; i < size_t(shape.images) * channels; ++i) {
    const double* const from = &input[i * plane];
    const double* const taps_of = &filter[i % channels * taps];
    expected.assign(plane, with_bias ? bias[i % channels] : 0);
    each_pair(shape, size, [&](size_t out, size_t tap, size_t in) {
      if (flipped) expected[in] += from[out] * taps_of[tap];
      else expected[out] += from[in] * taps_of[tap];
    });
    for (size_t j = 0; j < plane; ++j)
      report.compare("element", i * plane + j, float(y.at(i * plane + j)),
                     float(rounded<T>(expected[j])));
  }
  return report.right();
}

template <class T>
bool weight_gradient_is_right(const Case& each, int size, bool with_bias) {
  const Shape shape = each.shape;
  const size_t plane = size_t(shape.height * shape.width), channels = size_t(shape.channels);
  const size_t taps = size_t(size * size), count = size_t(shape.images) * channels * plane;
  Numbers numbers;
  const std::vector<double> input = numbers.draw(count), gradient = numbers.draw(count);
  Planes<T> x(shape, each.input, input), dy(shape, each.output, gradient);
  std::vector<float> sums(channels * taps, NAN), bias_sums(channels, NAN);
  const int shares = weight_gradient_shares(shape, each.multiprocessors);
  std::vector<float> workspace(shares > 1 ? size_t(shares) * channels * (taps + 1) : 0, NAN);

  Report report("weight gradient", shape, size, name_of<T>);
  WeightGradientArguments p{};
  p.input = x.data();
  p.output_gradient = dy.data();
  p.shape = shape;
  p.input_strides = x.strides();
  p.gradient_strides = dy.strides();
  p.filter_size = size;
  report.launched(weight_gradient(p, type_of<T>, each.multiprocessors, sums.data(),
                                  with_bias ? bias_sums.data() : nullptr, workspace.data(),
                                  nullptr));

  std::vector<double> expected(channels * taps), expected_bias(channels);
  for (size_t i = 0; i < size_t(shape.images) * channels; ++i) {
    const double* const from = &input[i * plane];
    const double* const by = &gradient[i * plane];
    double* const to = &expected[i % channels * taps];
    each_pair(shape, size,
              [&](size_t out, size_t tap, size_t in) { to[tap] += from[in] * by[out]; });
    for (size_t j = 0; j < plane; ++j) expected_bias[i % channels] += by[j];
  }
  for (size_t i = 0; i < sums.size(); ++i) report.compare("weight", i, sums[i], expected[i]);
  for (size_t c = 0; with_bias && c < channels; ++c)
    report.compare("bias", c, bias_sums[c], expected_bias[c]);
  return report.right();
}

bool run(const std::string& role, int size) {
  bool right = true, other = false;
  for (const Case& each : cases) {
    // Everything that does not depend on the shape takes turns.
    if (role == "forward") {
      right &= other ? forward_is_right<__nv_bfloat16>(each, size, true, false)
                     : forward_is_right<__half>(each, size, false, true);
    } else {
      right &= other ? weight_gradient_is_right<__nv_bfloat16>(each, size, false)
                     : weight_gradient_is_right<__half>(each, size, true);
    }
    other = !other;
  }
  return right;
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
