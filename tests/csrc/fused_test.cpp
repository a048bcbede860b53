// The fused kernels as they stand, run on the CPU for the sanitizers: every way of staging, exact
// results with relu and identity. Built and run by tests/test_sanitizers.py, with some of the kernels.
//
//   fused_test ROLE SIZE...
//
// ROLE is a file of csrc/instantiations without its size, or batch_norm. Exit codes are those of
// depthwise_test.
#include <cstdlib>

#include "dispatch.h"
#include "dispatch_fused.h"
#include "tensors.h"

namespace {

using namespace depthwise;
using namespace depthwise_test;

const Case contiguous_cases[] = {
    {{35, 3, 8, 8}, plain, plain, 0},  {{13, 1, 16, 16}, plain, turned, 0},
    {{4, 2, 32, 32}, plain, plain, 1}, {{13, 2, 14, 14}, turned, plain, 0},
    {{2, 2, 16, 16}, odd, plain, 1},   {{2, 2, 16, 16}, plain, odd, 1},
    {{3, 1, 24, 20}, plain, plain, 0}, {{1, 1, 36, 118}, plain, plain, 0},
};
const Case channels_last_cases[] = {
    {{17, 24, 8, 8}, plain, plain, 1}, {{3, 8, 32, 32}, turned, plain, 1},
    {{5, 8, 14, 14}, plain, plain, 2}, {{3, 9, 14, 14}, plain, plain, 1},
    {{2, 8, 12, 12}, plain, odd, 1},   {{1, 8, 36, 75}, plain, plain, 1},
};
// Of the passes of their own: every width of access, more images than a warp has lanes.
const Case streams[] = {
    {{9, 5, 8, 8}, plain, plain, 1},      {{5, 5, 14, 14}, plain, turned, 1},
    {{40, 5, 3, 3}, plain, plain, 1},     {{3, 5, 4, 8}, odd, plain, 1},
    {{70, 3, 16, 16}, turned, turned, 3},
};
const Case channels_last_streams[] = {
    {{9, 72, 8, 8}, plain, plain, 1},
    {{5, 9, 14, 14}, plain, plain, 3},
    {{3, 8, 5, 7}, odd, plain, 1},
};

// Tables of small numbers, so that everything stays exact. The count is a power of two.
struct Tables {
  std::vector<float> normalisation, sums;

  Tables(Numbers& numbers, size_t channels) {
    for (int row = 0; row < 4; ++row)
      for (const double value : numbers.draw(channels)) normalisation.push_back(float(value));
    normalisation.insert(normalisation.end(), channels, 2.f);
    for (const double value : numbers.draw(2 * channels)) sums.push_back(float(value));
  }
  double row(int which, size_t channel) const {
    return double(normalisation[size_t(which) * (normalisation.size() / 5) + channel]);
  }
  Normalisation view() const { return {normalisation.data(), ptrdiff_t(normalisation.size() / 5)}; }
  double normalised(double value, size_t c) const {
    return (std::max(value, 0.0) - row(0, c)) * row(1, c) + row(2, c);
  }
  double value_gradient(double value, double gradient, size_t c, bool relu = true) const {
    const size_t channels = sums.size() / 2;
    const double of_value = -row(1, c) * row(3, c) * row(3, c) * double(sums[channels + c]) / 2;
    const double constant = -row(1, c) * double(sums[c]) / 2;
    const double less = (relu ? std::max(value, 0.0) : value) - row(0, c);
    return value > 0 || !relu ? row(1, c) * gradient + of_value * less + constant : 0;
  }
};

size_t elements(const Shape& shape) {
  return size_t(shape.images) * size_t(shape.channels) * size_t(shape.height) * size_t(shape.width);
}

template <class T>
double as_stored(double value) {
  return double(float(rounded<T>(value)));
}

template <class T>
std::vector<T> as_weights(const std::vector<double>& values) {
  std::vector<T> weights;
  for (const double value : values) weights.push_back(rounded<T>(value));
  weights.shrink_to_fit();
  return weights;
}

// `normalised`: with normalisation and residual; otherwise the turned filter and a tensor added.
template <class T, class Layout>
bool forward_is_right(const Case& each, int size, bool normalised) {
  const Shape shape = each.shape;
  const size_t plane = size_t(shape.height * shape.width), channels = size_t(shape.channels);
  const size_t taps = size_t(size * size);
  Numbers numbers;
  const std::vector<double> input = numbers.draw(elements(shape)),
                            filter = numbers.draw(channels * taps), bias = numbers.draw(channels),
                            other = numbers.draw(elements(shape));
  const Tables tables(numbers, channels);
  Tensor<T, Layout> x(shape, each.input, input), y(shape, each.output);
  Tensor<T, Layout> added(shape, each.output, other);
  const std::vector<T> weight = as_weights<T>(filter);
  const std::vector<float> float_bias(bias.begin(), bias.end());

  Report report("fused forward", shape, size, name_of<T>);
  FusedForwardArgumentsOf<Layout> p{};
  p.input = x.data();
  p.weight = weight.data();
  p.bias = normalised ? float_bias.data() : nullptr;
  p.output = y.data();
  p.shape = shape;
  p.input_strides = x.strides();
  p.output_strides = y.strides();
  p.filter_size = size;
  p.flipped = !normalised;
  p.activation = normalised ? Activation::relu : Activation::identity;
  if (normalised) p.normalisation = tables.view();
  p.residual = normalised;
  p.added = normalised ? nullptr : added.data();
  report.launched(fused_forward(p, type_of<T>, each.chip(), nullptr));

  std::vector<double> expected(plane);
  for (size_t i = 0; i < size_t(shape.images) * channels; ++i) {
    const size_t c = i % channels;
    expected.assign(plane, normalised ? bias[c] : 0);
    (normalised ? add_outputs : add_input_gradient)(expected.data(), &input[i * plane],
                                                    &filter[c * taps], shape, size);
    for (size_t j = i * plane; j < (i + 1) * plane; ++j) {
      const double sum = expected[j - i * plane];
      const double right = normalised ? tables.normalised(sum, c) + input[j] : sum + other[j];
      report.compare("element", j, float(y.at(j)), float(rounded<T>(right)));
    }
  }
  return report.right();
}

// Mean and squared deviations are not exact.
void compare_moments(Report& report, const std::vector<double>& values, const float* moments,
                     size_t channels, size_t c) {
  double mean = 0, squares = 0;
  for (const double value : values) mean += value / double(values.size());
  for (const double value : values) squares += (value - mean) * (value - mean);
  report.compare("count", c, double(moments[c]), double(values.size()));
  report.near("mean", c, double(moments[channels + c]), mean, 1e-4 * std::sqrt(1 + mean * mean));
  report.near("squares", c, double(moments[2 * channels + c]), squares, 1e-4 * (1 + squares));
}

template <class T>
bool moments_forward_is_right(const Case& each, int size) {
  const Shape shape = each.shape;
  if (!whole_planes(shape) || each.input == odd || each.output == odd) return true;
  const size_t plane = size_t(shape.height * shape.width), channels = size_t(shape.channels);
  const size_t taps = size_t(size * size);
  Numbers numbers;
  const std::vector<double> input = numbers.draw(elements(shape)),
                            filter = numbers.draw(channels * taps);
  Tensor<T, Strides> x(shape, each.input, input), y(shape, each.output);
  const std::vector<T> weight = as_weights<T>(filter);
  const int shares = whole_plane_shares(shape, size, Pass::forward, each.chip());
  std::vector<float> moments(size_t(shares) * 3 * channels, NAN), merged(3 * channels, NAN);

  Report report("forward with moments", shape, size, name_of<T>);
  MomentsForwardArguments p{};
  p.input = x.data();
  p.weight = weight.data();
  p.output = y.data();
  p.shape = shape;
  p.input_strides = x.strides();
  p.output_strides = y.strides();
  p.filter_size = size;
  p.activation = Activation::relu;
  p.moments = moments.data();
  report.launched(moments_forward(p, type_of<T>, each.chip(), merged.data(), nullptr));

  std::vector<std::vector<double>> seen(channels);
  std::vector<double> expected(plane);
  for (size_t i = 0; i < size_t(shape.images) * channels; ++i) {
    const size_t c = i % channels;
    expected.assign(plane, 0);
    add_outputs(expected.data(), &input[i * plane], &filter[c * taps], shape, size);
    for (size_t j = 0; j < plane; ++j) {
      const double value = as_stored<T>(expected[j]);
      report.compare("element", i * plane + j, float(y.at(i * plane + j)), value);
      seen[c].push_back(std::max(value, 0.0));
    }
  }
  for (size_t c = 0; c < channels; ++c)
    compare_moments(report, seen[c], merged.data(), channels, c);
  return report.right();
}

template <class T>
bool backward_is_right(const Case& each, int size, bool with_weight) {
  const Shape shape = each.shape;
  if (!whole_planes(shape) || each.input == odd || each.output == odd) return true;
  const size_t plane = size_t(shape.height * shape.width), channels = size_t(shape.channels);
  const size_t taps = size_t(size * size);
  Numbers numbers;
  const std::vector<double> input = numbers.draw(elements(shape)),
                            values = numbers.draw(elements(shape)),
                            gradients = numbers.draw(elements(shape)),
                            filter = numbers.draw(channels * taps);
  const Tables tables(numbers, channels);
  Tensor<T, Strides> x(shape, each.input, input), c(shape, each.output, values),
      g(shape, each.input, gradients), dx(shape, each.output), dc(shape, each.output);
  const std::vector<T> weight = as_weights<T>(filter);
  const int shares = whole_plane_shares(shape, size, Pass::backward, each.chip());
  std::vector<float> weight_gradient(channels * taps, NAN), bias_gradient(channels, NAN);
  std::vector<float> workspace(shares > 1 ? size_t(shares) * channels * (taps + 1) : 0, NAN);

  Report report("backward", shape, size, name_of<T>);
  BackwardArguments p{};
  p.input = with_weight ? x.data() : nullptr;
  p.value = c.data();
  p.output_gradient = g.data();
  p.weight = weight.data();
  p.normalisation = tables.view();
  p.gradient_sums = tables.sums.data();
  p.input_gradient = dx.data();
  p.value_gradient = with_weight ? nullptr : dc.data();
  p.shape = shape;
  p.input_strides = x.strides();
  p.value_strides = c.strides();
  p.output_gradient_strides = g.strides();
  p.input_gradient_strides = dx.strides();
  p.value_gradient_strides = dc.strides();
  p.activation = with_weight ? Activation::identity : Activation::relu;
  p.filter_size = size;
  p.residual = with_weight;
  report.launched(backward(p, type_of<T>, each.chip(),
                           with_weight ? weight_gradient.data() : nullptr, bias_gradient.data(),
                           workspace.data(), nullptr));

  std::vector<double> of_weight(channels * taps), of_bias(channels), of_value(plane), of_input;
  for (size_t i = 0; i < size_t(shape.images) * channels; ++i) {
    const size_t channel = i % channels;
    for (size_t j = 0; j < plane; ++j) {
      const size_t at = i * plane + j;
      const double exact = tables.value_gradient(values[at], gradients[at], channel, !with_weight);
      of_bias[channel] += exact;
      of_value[j] = as_stored<T>(exact);
      if (!with_weight) report.compare("value", at, float(dc.at(at)), of_value[j]);
    }
    of_input.assign(plane, 0);
    add_input_gradient(of_input.data(), of_value.data(), &filter[channel * taps], shape, size);
    add_weight_gradient(&of_weight[channel * taps], of_value.data(), &input[i * plane], shape,
                        size);
    for (size_t j = 0; j < plane; ++j) {
      const size_t at = i * plane + j;
      const double sum = of_input[j] + (with_weight ? gradients[at] : 0);
      report.compare("element", at, float(dx.at(at)), float(rounded<T>(sum)));
    }
  }
  for (size_t i = 0; with_weight && i < of_weight.size(); ++i)
    report.compare("weight", i, weight_gradient[i], of_weight[i]);
  for (size_t i = 0; i < channels; ++i) report.compare("bias", i, bias_gradient[i], of_bias[i]);
  return report.right();
}

// A tensor as the passes of their own want it.
template <class T, class Layout>
Steps steps_of(const Tensor<T, Layout>& tensor) {
  const Strided& strides = tensor.strides();
  if constexpr (std::is_same_v<Layout, PixelStrides>) return {strides.pixel, 1};
  else return {strides.image, strides.channel};
}

template <class T, class Layout>
bool streams_are_right(const Case& each) {
  constexpr bool last = std::is_same_v<Layout, PixelStrides>;
  const Shape shape = each.shape;
  const int plane = shape.height * shape.width;
  const size_t channels = size_t(shape.channels), count = elements(shape);
  Numbers numbers;
  const std::vector<double> values = numbers.draw(count), others = numbers.draw(count),
                            bias = numbers.draw(channels);
  const Tables tables(numbers, channels);
  Tensor<T, Layout> value(shape, each.input, values), other(shape, each.input, others),
      output(shape, each.output);
  const std::vector<float> float_bias(bias.begin(), bias.end());
  Report report("stream", shape, 0, name_of<T>);
  const auto run = [&](Stream which, bool writes, bool with_sums) {
    StreamArguments p{};
    p.value = value.data();
    p.bias = float_bias.data();
    p.other = which == Stream::moments ? nullptr : other.data();
    p.output = writes ? output.data() : nullptr;
    p.normalisation = tables.view();
    p.gradient_sums = tables.sums.data();
    p.value_steps = steps_of(value), p.other_steps = steps_of(other);
    p.output_steps = steps_of(output);
    p.channels = shape.channels;
    p.outer = last ? shape.images * plane : shape.images;
    p.inner = last ? 1 : plane;
    p.activation = Activation::relu;
    const size_t rows = size_t(stream_rows(which)) * channels;
    std::vector<float> sums(size_t(stream_shares(p, last, each.chip())) * rows, NAN);
    std::vector<float> merged(rows, NAN);
    p.sums = with_sums ? sums.data() : nullptr;
    report.launched(stream(which, p, type_of<T>, last, each.chip(), merged.data(), nullptr));
    return merged;
  };
  const auto channel_of = [&](size_t i) { return i / size_t(plane) % channels; };

  run(Stream::normalise, true, false);
  for (size_t i = 0; i < count; ++i) {
    const size_t c = channel_of(i);
    const double right = tables.normalised(values[i] + bias[c], c) + others[i];
    report.compare("normalised", i, float(output.at(i)), as_stored<T>(right));
  }
  const std::vector<float> of_bias = run(Stream::value_gradient, true, true);
  std::vector<double> bias_sums(channels), sums(2 * channels);
  std::vector<std::vector<double>> seen(channels);
  for (size_t i = 0; i < count; ++i) {
    const size_t c = channel_of(i);
    const double exact = tables.value_gradient(values[i] + bias[c], others[i], c);
    report.compare("gradient", i, float(output.at(i)), as_stored<T>(exact));
    bias_sums[c] += exact;
    const double activated = std::max(values[i] + bias[c], 0.0);
    sums[c] += others[i];
    sums[channels + c] += others[i] * (activated - tables.row(0, c));
    seen[c].push_back(activated);
  }
  for (size_t c = 0; c < channels; ++c) report.compare("bias", c, of_bias[c], bias_sums[c]);
  const std::vector<float> two = run(Stream::sum_gradients, false, true);
  for (size_t i = 0; i < sums.size(); ++i) report.compare("sum", i, two[i], sums[i]);
  const std::vector<float> three = run(Stream::moments, false, true);
  for (size_t c = 0; c < channels; ++c) compare_moments(report, seen[c], three.data(), channels, c);
  return report.right();
}

bool run(const std::string& role, int size) {
  bool right = true, other = size == 9;
  if (role == "batch_norm") {
    for (const Case& each : streams) right &= streams_are_right<__half, Strides>(each);
    for (const Case& each : channels_last_streams)
      right &= streams_are_right<Brain, PixelStrides>(each);
  } else if (role == "channels_last_fused_forward") {
    for (const Case& each : channels_last_cases) {
      right &= other ? forward_is_right<Brain, PixelStrides>(each, size, true)
                     : forward_is_right<__half, PixelStrides>(each, size, false);
      other = !other;
    }
  } else {
    for (const Case& each : contiguous_cases) {
      if (role == "fused_forward") {
        right &= other ? forward_is_right<Brain, Strides>(each, size, true)
                       : forward_is_right<__half, Strides>(each, size, false);
        right &= moments_forward_is_right<Brain>(each, size);
      } else {
        right &= backward_is_right<__half>(each, size, size <= 11);
        right &= backward_is_right<Brain>(each, size, false);
      }
      other = !other;
    }
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
