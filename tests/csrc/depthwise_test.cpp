// The kernels as they stand, run on the CPU for the sanitizers: every way of staging, exact
// results. Built and run by tests/test_sanitizers.py, with some of the kernels.
//
//   depthwise_test ROLE SIZE...
//
// ROLE is a file of csrc/instantiations without its size. Exits with 0 if all results are right,
// with 1 if some are not, and with 3 after a fault.
#include <cstdlib>
#include <span>

#include "dispatch.h"
#include "tensors.h"

namespace {

using namespace depthwise;
using namespace depthwise_test;

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

int shares_of(const Strides&, const Shape& shape, int size, const Chip& chip) {
  return weight_gradient_shares(shape, size, chip);
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
      right &= other ? forward_is_right<Brain, Layout>(each, size, true, false)
                     : forward_is_right<__half, Layout>(each, size, false, true);
    else
      right &= other ? weight_gradient_is_right<Brain, Layout>(each, size, false)
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
