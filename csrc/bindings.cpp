// The Python module: the operations of the CUDA backend on PyTorch's tensors. Each brings its operands
// into a layout that kernels read, allocates its results and runs its passes. Arguments are positional,
// since pybind11 takes six times as long for keywords.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "host/passes.h"
#include "host/pytorch.h"

namespace {

using namespace depthwise;
using pytorch::Extents;
using pytorch::Tensor;
using MaybeTensor = std::optional<Tensor>;

// ---- operands ------------------------------------------------------------------------------------

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

Shape shape_of(const Tensor& image) {
  require(image.dimensions == 4, "an image has four dimensions");
  for (const int64_t size : image.sizes)
    require(size <= INT32_MAX, "a dimension of an image has at most 2^31 - 1 elements");
  return {int(image.sizes[0]), int(image.sizes[1]), int(image.sizes[2]), int(image.sizes[3])};
}

bool is_empty(const Tensor& tensor) {
  const auto end = tensor.sizes.begin() + tensor.dimensions;
  return std::find(tensor.sizes.begin(), end, 0) != end;
}

void require_alike(const Tensor& tensor, const Tensor& image) {
  require(tensor.type == image.type && tensor.device == image.device,
          "tensors of an operation have one dtype and device");
}

void require_same_shape(const Tensor& tensor, const Tensor& image) {
  require(tensor.dimensions == 4 && tensor.sizes == image.sizes, "images have one shape");
  require_alike(tensor, image);
}

bool is_contiguous(const Tensor& tensor) {
  int64_t expected = 1;
  for (int i = std::min(tensor.dimensions, 4) - 1; i >= 0; --i) {
    if (tensor.sizes[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.sizes[i];
  }
  return tensor.dimensions <= 4;
}

Tensor contiguous(const Tensor& tensor) {
  return is_contiguous(tensor) ? tensor : call(tensor, "contiguous");
}

// Filters as kernels read them, [channel][height][width].
Tensor filters_of(const Tensor& weight, const Tensor& image) {
  require(weight.dimensions == 4 && weight.sizes[0] == image.sizes[1] && weight.sizes[1] == 1,
          "filters are (C, 1, height, width)");
  require_alike(weight, image);
  return contiguous(weight);
}

// Values of each channel, [channel], in float32.
MaybeTensor of_channels(const MaybeTensor& tensor, const Tensor& image) {
  if (!tensor) return tensor;
  require(tensor->dimensions == 1 && tensor->sizes[0] == image.sizes[1] &&
              tensor->device == image.device,
          "there is a value for each channel");
  return contiguous(tensor->type == pytorch::Type::float32 ? *tensor : call(*tensor, "float"));
}

// A table [rows][channel] in float32.
Tensor table_of(const Tensor& table, int rows, const Tensor& image) {
  require(table.dimensions == 2 && table.sizes[0] == rows && table.sizes[1] == image.sizes[1] &&
              table.type == pytorch::Type::float32 && table.device == image.device,
          "a table is (rows, C), float32");
  return contiguous(table);
}

constexpr int normalisation_rows = 5;

const float* read_floats(const MaybeTensor& tensor) {
  return tensor ? static_cast<const float*>(to_read(*tensor)) : nullptr;
}
float* write_floats(const MaybeTensor& tensor) {
  return tensor ? static_cast<float*>(to_write(*tensor)) : nullptr;
}
Normalisation read_normalisation(const MaybeTensor& table, const Tensor& image) {
  return {read_floats(table), ptrdiff_t(image.sizes[1])};
}

void set(Strides& strides, const Tensor& image) { strides = {image.strides[0], image.strides[1]}; }
void set(PixelStrides& strides, const Tensor& image) {
  strides = {image.strides[0], image.strides[2], image.strides[3]};
}

// These give a kernel's arguments the address and the strides of an image.
template <class AnyStrides>
void read(const void*& address, AnyStrides& strides, const Tensor& image) {
  address = to_read(image);
  set(strides, image);
}
template <class AnyStrides>
void write(void*& address, AnyStrides& strides, const Tensor& image) {
  address = to_write(image);
  set(strides, image);
}

// ---- where passes run ----------------------------------------------------------------------------

std::map<int, Chip> chips;

void set_chip(int device, int multiprocessors, int shared_bytes, int capability) {
  chips[device] = {multiprocessors, shared_bytes, capability};
}

Target target_of(int device, ElementType type) {
  const auto chip = chips.find(device);
  if (chip == chips.end()) throw std::invalid_argument("set_chip was not called for the device");
  return {device, pytorch::current_stream(device), type, chip->second};
}

Target target_of(const Tensor& image) {
  switch (image.type) {
    case pytorch::Type::float16: return target_of(image.device, ElementType::half);
    case pytorch::Type::bfloat16: return target_of(image.device, ElementType::bfloat16);
    default: throw std::invalid_argument("kernels take images of float16 and bfloat16");
  }
}

// Launches kernels while other threads of Python run.
template <class Launch>
void run(const Target& target, Launch launch) {
  const pytorch::CurrentDevice current(target.device);
  const pybind11::gil_scoped_release without_gil;
  launch();
}

// ---- layouts, as convmixer_kernels/layout.py describes them -----------------------------------------

bool is_planar(const Tensor& image) {
  const auto& [images, channels, height, width] = image.sizes;
  const auto& [of_image, of_channel, row, pixel] = image.strides;
  return (width == 1 || pixel == 1) && (height == 1 || row == width);
}

bool is_channels_last(const Tensor& image) { return image.strides[1] == 1 && !is_planar(image); }

Extents strides_in(const Extents& sizes, bool channels_last) {
  const auto& [images, channels, height, width] = sizes;
  if (channels_last) return {channels * height * width, 1, channels * width, channels};
  return {channels * height * width, height * width, width, 1};
}

Extents output_strides(const Tensor& image) {
  const auto& [images, channels, height, width] = image.sizes;
  const auto& [of_image, of_channel, row, pixel] = image.strides;
  if (!is_planar(image)) return strides_in(image.sizes, of_channel == 1);
  if (images > 1 && channels > 1 && 0 < of_image && of_image < of_channel)
    return {height * width, images * height * width, width, 1};
  return strides_in(image.sizes, false);
}

Tensor empty_like_input(const Tensor& image) {
  return empty(image, image.sizes, output_strides(image));
}

// The distance of pixels that lie at one distance from each other, if they do.
std::optional<int64_t> pixel_step(const Tensor& image) {
  const auto& [images, channels, height, width] = image.sizes;
  const auto& [of_image, of_channel, row, pixel] = image.strides;
  // The first dimension that has more than one gives the distance.
  const int64_t step = width > 1 ? pixel : height > 1 ? row : images > 1 ? of_image : channels;
  const bool even = (channels == 1 || of_channel == 1) && (height == 1 || row == width * step) &&
                    (images == 1 || of_image == height * width * step);
  return even ? std::optional(step) : std::nullopt;
}

// Copies an image to another of its shape and dtype. Between channels_last and planes a kernel copies,
// since PyTorch's reaches a seventh of the copy bandwidth of an H200 there; else PyTorch.
void copy(const Tensor& source, const Tensor& target) {
  const Shape shape = shape_of(source);
  require_same_shape(target, source);
  const bool to_planes = is_channels_last(source) && is_planar(target);
  if (!to_planes && !(is_planar(source) && is_channels_last(target))) {
    call(target, "copy_", source);
    return;
  }
  if (is_empty(source)) return;
  LayoutCopy p{};
  p.shape = shape;
  p.pixels = to_planes ? to_read(source) : to_write(target);
  p.planes = to_planes ? to_write(target) : to_read(source);
  set(p.pixel_strides, to_planes ? source : target);
  set(p.plane_strides, to_planes ? target : source);
  const Target place = target_of(source);
  run(place, [&] { copy_layout(place, p, to_planes); });
}

// Gives the image itself if it is dense in a layout, else a copy.
Tensor dense(const Tensor& image, bool channels_last) {
  const Extents strides = strides_in(image.sizes, channels_last);
  bool as_it_is = true;
  for (int i = 0; i < 4; ++i) as_it_is &= image.sizes[i] == 1 || image.strides[i] == strides[i];
  if (as_it_is) return image;
  const Tensor target = empty(image, image.sizes, strides);
  copy(image, target);
  return target;
}

Tensor planar(const Tensor& image) { return is_planar(image) ? image : dense(image, false); }

// Gives an image of whose pixels the channels are adjacent.
Tensor with_adjacent_channels(const Tensor& image) {
  return image.strides[1] == 1 || image.sizes[1] == 1 ? image : dense(image, true);
}

// Gives an image as kernels read it beside one that is channels_last, or else planar.
Tensor arranged(const Tensor& image, bool channels_last) {
  shape_of(image);
  if (!channels_last) return planar(image);
  const bool repeats =
      std::find(image.strides.begin(), image.strides.end(), 0) != image.strides.end();
  return image.strides[1] == 1 && !repeats ? image : dense(image, true);
}

// ---- forward pass and input gradient -------------------------------------------------------------

LargeFilter filter_of(const Tensor& weight, int row_dilation, int column_dilation) {
  require(weight.dimensions == 4 && weight.sizes[2] <= INT32_MAX && weight.sizes[3] <= INT32_MAX,
          "filters are (C, 1, height, width)");
  return {int(weight.sizes[2]), int(weight.sizes[3]), row_dilation, column_dilation};
}

// The kernel size of square filters without dilation that have kernels of their own, else 0.
int own_size(const LargeFilter& filter) {
  const auto& [height, width, row_dilation, column_dilation] = filter;
  const bool square = width == height && row_dilation == 1 && column_dilation == 1;
  const auto* const end = std::end(filter_sizes);
  return square && std::find(std::begin(filter_sizes), end, height) != end ? height : 0;
}

template <class Arguments>
Arguments forward_arguments(const Tensor& input, const Tensor& weight, const MaybeTensor& bias,
                            bool flipped, const Tensor& output) {
  Arguments p{};
  p.shape = shape_of(input);
  p.filter_size = int(weight.sizes[2]);
  p.flipped = flipped;
  read(p.input, p.input_strides, input);
  p.weight = to_read(weight);
  p.bias = read_floats(bias);
  write(p.output, p.output_strides, output);
  return p;
}

// Convolves with kernels for planes or channels_last; `set` completes their arguments.
template <template <class> class ArgumentsOf, class Set>
Tensor convolve(const Tensor& input, const Tensor& weight, const MaybeTensor& bias, bool flipped,
                Set set) {
  shape_of(input);
  const Tensor filters = filters_of(weight, input);
  require(own_size(filter_of(filters, 1, 1)) != 0, "no kernel for this filter");
  const MaybeTensor precise = of_channels(bias, input);
  const Tensor output = empty_like_input(input);
  if (is_empty(input)) return output;
  const Target target = target_of(input);
  const auto launch = [&]<class Arguments>(const Tensor& source) {
    auto p = forward_arguments<Arguments>(source, filters, precise, flipped, output);
    set(p);
    run(target, [&] { forward(target, p); });
  };
  if (is_channels_last(input)) launch.template operator()<ArgumentsOf<PixelStrides>>(input);
  else launch.template operator()<ArgumentsOf<Strides>>(planar(input));
  return output;
}

Tensor forward_normalised(const Tensor& input, const Tensor& weight, const MaybeTensor& bias,
                          const Tensor& normalisation, Activation activation, bool residual) {
  shape_of(input);
  const Tensor table = table_of(normalisation, normalisation_rows, input);
  return convolve<FusedForwardArgumentsOf>(input, weight, bias, false, [&](auto& p) {
    p.normalisation = read_normalisation(table, input);
    p.activation = activation;
    p.residual = residual;
  });
}

// The input gradient of a convolution, with another gradient added to it.
Tensor input_gradient_added(const Tensor& grad, const Tensor& weight, const Tensor& addend) {
  shape_of(grad);
  require_same_shape(addend, grad);
  const Extents strides = output_strides(grad);
  Tensor added = addend;
  if (added.strides != strides) {
    added = empty(grad, grad.sizes, strides);
    copy(addend, added);
  }
  return convolve<FusedForwardArgumentsOf>(grad, weight, {}, true, [&](auto& p) {
    p.activation = Activation::identity;
    p.added = to_read(added);
  });
}

// ---- gradients of the filter ---------------------------------------------------------------------

using WeightAndBias = std::tuple<Tensor, MaybeTensor>;

// A gradient of filters in float32, or rounded to the type of the images.
Tensor empty_filters(const Tensor& image, std::array<int, 2> size, bool rounded) {
  const Extents sizes{image.sizes[1], 1, size[0], size[1]};
  return rounded ? empty(image, sizes, strides_in(sizes, false))
                 : empty_floats(image, {sizes[0], sizes[1], sizes[2], sizes[3]});
}

FilterGradient write_filters(const MaybeTensor& weight, const MaybeTensor& bias,
                             const MaybeTensor& workspace, bool rounded) {
  if (!weight || !rounded)
    return {write_floats(weight), write_floats(bias), write_floats(workspace), nullptr};
  return {nullptr, write_floats(bias), write_floats(workspace), to_write(*weight)};
}

// Runs a pass that sums gradients of filters and, if asked, biases.
template <class Arguments>
WeightAndBias sum_weight_gradient(Arguments p, const Tensor& input, const Tensor& grad,
                                  std::array<int, 2> size, bool with_bias, bool rounded) {
  const int channels = p.shape.channels;
  const Tensor weight = empty_filters(input, size, rounded);
  MaybeTensor bias, workspace;
  if (with_bias) bias = empty_floats(input, {channels});
  if (is_empty(input)) {
    call(weight, "zero_");
    if (bias) call(*bias, "zero_");
    return {weight, bias};
  }
  const Target target = target_of(input);
  const auto room = workspace_floats(splits(target, p), channels, size[0] * size[1], rounded);
  if (room) workspace = empty_floats(input, {room});
  read(p.input, p.input_strides, input);
  read(p.output_gradient, p.gradient_strides, grad);
  const FilterGradient to = write_filters(weight, bias, workspace, rounded);
  run(target, [&] { weight_gradient(target, p, to); });
  return {weight, bias};
}

WeightAndBias weight_gradient_of(const Tensor& input, const Tensor& grad, const LargeFilter& filter,
                                 bool with_bias, bool rounded) {
  const Shape shape = shape_of(input);
  require_same_shape(grad, input);
  const std::array size{filter.height, filter.width};
  const int own = own_size(filter);
  if (own && is_channels_last(input)) {
    ChannelsLastWeightGradientArguments p{};
    p.shape = shape;
    p.filter_size = own;
    return sum_weight_gradient(p, input, with_adjacent_channels(grad), size, with_bias, rounded);
  }
  if (own) {
    WeightGradientArguments p{};
    p.shape = shape;
    p.filter_size = own;
    return sum_weight_gradient(p, planar(input), planar(grad), size, with_bias, rounded);
  }
  require(fits(filter), "no kernel for a filter of this extent");
  LargeWeightGradientArguments p{};
  p.shape = shape;
  p.filter = filter;
  return sum_weight_gradient(p, planar(input), planar(grad), size, with_bias, rounded);
}

// ---- convolutions of any filter ------------------------------------------------------------------

// Convolves with filters of up to 31 x 31 that have no kernel of their own.
Tensor forward_large(const Tensor& input, const Tensor& weight, const MaybeTensor& bias,
                     const LargeFilter& filter, bool flipped) {
  LargeForwardArguments p{};
  p.shape = shape_of(input);
  const Tensor filters = filters_of(weight, input);
  p.filter = filter;
  p.flipped = flipped;
  const MaybeTensor precise = of_channels(bias, input);
  const Tensor output = empty_like_input(input);
  if (is_empty(input)) return output;
  // The kernel reads and writes planes; channels_last takes a copy there and one back.
  const Tensor source = planar(input);
  const Tensor planes = is_planar(output) ? output : empty_like_input(source);
  read(p.input, p.input_strides, source);
  p.weight = to_read(filters);
  p.bias = read_floats(precise);
  write(p.output, p.output_strides, planes);
  const Target target = target_of(source);
  run(target, [&] { forward(target, p); });
  if (!is_planar(output)) copy(planes, output);
  return output;
}

Tensor forward_any(const Tensor& input, const Tensor& weight, const MaybeTensor& bias,
                   const LargeFilter& filter, bool flipped) {
  return own_size(filter) ? convolve<ForwardArgumentsOf>(input, weight, bias, flipped, [](auto&) {})
                          : forward_large(input, weight, bias, filter, flipped);
}

// Tells whether filters had better be embedded in square ones that have a kernel of their own: in
// channels_last, of which that kernel needs no copies. The functions below give nothing then.
bool is_embedded(const LargeFilter& filter, const Tensor& image) {
  if (own_size(filter) || !fits(filter) || !is_channels_last(image)) return false;
  const int size = odd_size(std::max(filter.rows(), filter.columns()));
  return own_size({size, size, 1, 1}) != 0;
}

MaybeTensor forward_of(const Tensor& input, const Tensor& weight, const MaybeTensor& bias,
                       int row_dilation, int column_dilation, bool flipped) {
  shape_of(input);
  const LargeFilter filter = filter_of(weight, row_dilation, column_dilation);
  if (is_embedded(filter, input)) return {};
  return forward_any(input, weight, bias, filter, flipped);
}

std::optional<WeightAndBias> exact_weight_gradient(const Tensor& input, const Tensor& grad,
                                                   int height, int width, int row_dilation,
                                                   int column_dilation, bool with_bias) {
  shape_of(input);
  const LargeFilter filter{height, width, row_dilation, column_dilation};
  if (is_embedded(filter, input)) return {};
  return weight_gradient_of(input, grad, filter, with_bias, false);
}

// The gradients of input, weight and bias; empty where they are not wanted.
using Gradients = std::tuple<MaybeTensor, MaybeTensor, MaybeTensor>;

// There are none of weight and bias without `input`.
std::optional<Gradients> gradients_of(const Tensor& output_gradient, const MaybeTensor& input,
                                      const Tensor& weight, int row_dilation, int column_dilation,
                                      bool needs_input, bool with_bias) {
  shape_of(output_gradient);
  if (input) require_same_shape(*input, output_gradient);
  const LargeFilter filter = filter_of(weight, row_dilation, column_dilation);
  if (is_embedded(filter, input ? *input : output_gradient)) return {};
  const Tensor grad = input ? arranged(output_gradient, is_channels_last(*input)) : output_gradient;
  MaybeTensor grad_input, grad_weight, grad_bias;
  if (needs_input) grad_input = forward_any(grad, weight, {}, filter, true);
  if (input)
    std::tie(grad_weight, grad_bias) = weight_gradient_of(*input, grad, filter, with_bias, true);
  return Gradients{grad_input, grad_weight, grad_bias};
}

// ---- elementwise passes and statistics -----------------------------------------------------------

// An activation that is to be applied to value + bias.
struct PreActivation {
  Tensor value;
  MaybeTensor bias;
  Activation activation;
};

// A pass reads planes, or in channels_last pixels that lie at one distance from each other.
Tensor readable(const Tensor& image, bool channels_last) {
  if (!channels_last) return planar(image);
  return pixel_step(image) ? image : dense(image, true);
}

Steps steps_of(const Tensor& image, bool channels_last) {
  if (channels_last) return {*pixel_step(image), 1};
  return {image.strides[0], image.strides[1]};
}

// The operands of a pass beside the value: the residual or the gradient of the output, the image
// that it writes, and the tables.
struct PassOperands {
  MaybeTensor other, output, normalisation, gradient_sums;
};

// Runs a pass and gives its sums, [rows][channel] or [channel] of a single row, if they are wanted.
MaybeTensor run_pass(ElementwisePass pass, const PreActivation& before, PassOperands operands,
                     bool with_sums) {
  const Shape shape = shape_of(before.value);
  const bool last = is_channels_last(operands.output ? *operands.output : before.value);
  const Tensor value = readable(before.value, last);
  const MaybeTensor bias = of_channels(before.bias, value);
  const Target target = target_of(value);
  ElementwiseArguments p{};
  set_sizes(p, shape, last);
  p.activation = before.activation;
  p.value = to_read(value);
  p.value_steps = steps_of(value, last);
  if (operands.other) {
    require_same_shape(*operands.other, value);
    operands.other = readable(*operands.other, last);
    p.other = to_read(*operands.other);
    p.other_steps = steps_of(*operands.other, last);
  }
  if (operands.output) {
    p.output = to_write(*operands.output);
    p.output_steps = steps_of(*operands.output, last);
  }
  p.bias = read_floats(bias);
  p.normalisation = read_normalisation(operands.normalisation, value);
  p.gradient_sums = read_floats(operands.gradient_sums);
  MaybeTensor merged, parts;
  if (const int rows = summed_rows(pass); with_sums && rows) {
    const int count = splits(target, p, last);
    // Two tensors: the sums may live on as the gradient of a bias, their parts need not.
    merged = rows == 1 ? empty_floats(value, {shape.channels})
                       : empty_floats(value, {rows, shape.channels});
    parts = empty_floats(value, {count, rows, shape.channels});
  }
  p.sums = write_floats(parts);
  float* const to = write_floats(merged);
  run(target, [&] { elementwise(target, pass, p, last, to, shape); });
  return merged;
}

Tensor moments(const Tensor& value, const MaybeTensor& bias, Activation activation) {
  return *run_pass(ElementwisePass::moments, {value, bias, activation}, {}, true);
}

Tensor normalise(const Tensor& value, const MaybeTensor& bias, Activation activation,
                 const Tensor& normalisation, const MaybeTensor& residual) {
  shape_of(value);
  const Tensor table = table_of(normalisation, normalisation_rows, value);
  const Tensor output = empty_like_input(value);
  run_pass(ElementwisePass::normalise, {value, bias, activation}, {residual, output, table, {}},
           false);
  return output;
}

Tensor gradient_sums(const Tensor& value, const MaybeTensor& bias, Activation activation,
                     const Tensor& grad, const Tensor& normalisation) {
  const Tensor table = table_of(normalisation, normalisation_rows, value);
  return *run_pass(ElementwisePass::sum_gradients, {value, bias, activation}, {grad, {}, table, {}},
                   true);
}

std::tuple<Tensor, MaybeTensor> value_gradient(const Tensor& value, const MaybeTensor& bias,
                                               Activation activation, const Tensor& grad,
                                               const Tensor& normalisation, const Tensor& sums,
                                               bool with_bias) {
  shape_of(value);
  const Tensor table = table_of(normalisation, normalisation_rows, value);
  const Tensor both = table_of(sums, summed_rows(ElementwisePass::sum_gradients), value);
  const Tensor output = empty_like_input(value);
  const MaybeTensor grad_bias = run_pass(ElementwisePass::value_gradient, {value, bias, activation},
                                         {grad, output, table, both}, with_bias);
  return {output, grad_bias};
}

// Makes a normalisation from moments, (3, C) or (parts, 3, C), or else from running statistics.
Tensor normalisation_of(const MaybeTensor& moments, const MaybeTensor& gamma,
                        const MaybeTensor& beta, const MaybeTensor& running_mean,
                        const MaybeTensor& running_variance, float momentum, float epsilon) {
  require(moments || (running_mean && running_variance), "there are moments or running statistics");
  const int of_parts = moments && moments->dimensions == 3;
  require(!moments || (moments->dimensions == 2 + of_parts && moments->sizes[of_parts] == 3),
          "moments are (3, C) or (parts, 3, C)");
  require(running_mean.has_value() == running_variance.has_value(), "both statistics or none");
  const Tensor& source = moments ? *moments : *running_mean;
  const int64_t channels = source.sizes[moments ? 1 + of_parts : 0];
  for (const MaybeTensor& each : {gamma, beta, running_mean, running_variance})
    require(!each || (each->dimensions == 1 && each->sizes[0] == channels &&
                      each->type == pytorch::Type::float32 && each->device == source.device &&
                      is_contiguous(*each)),
            "parameters and statistics are (C,), float32, contiguous");
  require(source.type == pytorch::Type::float32, "moments are float32");
  const MaybeTensor parts = moments ? contiguous(*moments) : moments;
  const Tensor table = empty_floats(source, {normalisation_rows, channels});
  const auto statistics = [&](const MaybeTensor& each) {
    return moments ? write_floats(each) : const_cast<float*>(read_floats(each));
  };
  NormalisationArguments p{};
  p.moments = read_floats(parts);
  p.parts = of_parts ? int(moments->sizes[0]) : int(moments.has_value());
  p.channels = int(channels);
  p.gamma = read_floats(gamma);
  p.beta = read_floats(beta);
  p.running_mean = statistics(running_mean);
  p.running_variance = statistics(running_variance);
  p.momentum = momentum;
  p.epsilon = epsilon;
  p.normalisation = write_floats(table);
  // The kernel has no tensors of 16 bits, so any of their types will do.
  const Target target = target_of(source.device, ElementType::half);
  run(target, [&] { normalisation(target, p); });
  return table;
}

std::tuple<MaybeTensor, MaybeTensor> affine_gradients_of(const Tensor& sums,
                                                         const Tensor& normalisation,
                                                         bool with_gamma, bool with_beta) {
  for (const Tensor& each : {sums, normalisation})
    require(each.dimensions == 2 && each.sizes[1] == sums.sizes[1] && is_contiguous(each) &&
                each.type == pytorch::Type::float32 && each.device == sums.device,
            "tables are (rows, C), float32, contiguous");
  require(sums.sizes[0] == summed_rows(ElementwisePass::sum_gradients) &&
              normalisation.sizes[0] == normalisation_rows,
          "tables have their rows");
  const int64_t channels = sums.sizes[1];
  MaybeTensor gamma, beta;
  if (with_gamma) gamma = empty_floats(sums, {channels});
  if (with_beta) beta = empty_floats(sums, {channels});
  const Target target = target_of(sums.device, ElementType::half);
  const float* const from = read_floats(sums);
  const Normalisation table{read_floats(normalisation), ptrdiff_t(channels)};
  float *const to_gamma = write_floats(gamma), *const to_beta = write_floats(beta);
  run(target, [&] { affine_gradients(target, from, table, to_gamma, to_beta); });
  return {gamma, beta};
}

// ---- convolution with statistics, and the backward pass of both --------------------------------------

// Tells whether each plane is one that an item of a kernel covers, on 16-byte boundaries.
bool are_whole(const Shape& shape, std::initializer_list<const Tensor*> images) {
  return whole_planes(shape) && std::all_of(images.begin(), images.end(), [](const Tensor* image) {
           return is_planar(*image) && uintptr_t(image->address) % 16 == 0 &&
                  image->strides[0] % 8 == 0 && image->strides[1] % 8 == 0;
         });
}

std::tuple<Tensor, Tensor> forward_moments(const Tensor& input, const Tensor& weight,
                                           const MaybeTensor& bias, Activation activation) {
  if (!are_whole(shape_of(input), {&input})) {
    const Tensor value = convolve<ForwardArgumentsOf>(input, weight, bias, false, [](auto&) {});
    return {value, moments(value, {}, activation)};
  }
  const Tensor filters = filters_of(weight, input);
  require(own_size(filter_of(filters, 1, 1)) != 0, "no kernel for this filter");
  const MaybeTensor precise = of_channels(bias, input);
  const Tensor value = empty_like_input(input);
  const Target target = target_of(input);
  auto p = forward_arguments<MomentsForwardArguments>(input, filters, precise, false, value);
  p.activation = activation;
  const Tensor parts = empty_floats(input, {splits(target, p), 3, p.shape.channels});
  const Tensor merged = empty_floats(input, {3, p.shape.channels});
  p.moments = write_floats(parts);
  float* const to = write_floats(merged);
  run(target, [&] { forward(target, p, to); });
  return {value, merged};
}

// The operands of the backward pass of a convolution that activation and normalisation follow.
struct FusedBackward {
  MaybeTensor input;
  Tensor weight, value, grad, normalisation, sums;
  Activation activation;
  bool residual, with_bias, rounded;
};

Gradients whole_backward(const FusedBackward& call) {
  const Tensor& value = call.value;
  const Tensor filters = filters_of(call.weight, value);
  BackwardArguments p{};
  p.shape = shape_of(value);
  p.filter_size = own_size(filter_of(filters, 1, 1));
  p.activation = call.activation;
  p.residual = call.residual;
  const int size = p.filter_size, channels = p.shape.channels;
  require(size != 0, "no kernel for this filter");
  const bool at_once = call.input && backward_with_weight(odd_size(size));
  const Tensor grad_input = empty_like_input(value);
  MaybeTensor grad_value, grad_weight, grad_bias, workspace;
  // If registers do not hold both gradients, that of the weight comes from a pass of its own.
  if (call.input && !at_once) grad_value = empty_like_input(value);
  if (at_once) grad_weight = empty_filters(value, {size, size}, call.rounded);
  if (call.with_bias) grad_bias = empty_floats(value, {channels});
  const Target target = target_of(value);
  const bool rounded = at_once && call.rounded;
  if (const auto room = workspace_floats(splits(target, p), channels, size * size, rounded))
    workspace = empty_floats(value, {room});
  if (at_once) read(p.input, p.input_strides, *call.input);
  read(p.value, p.value_strides, value);
  read(p.output_gradient, p.output_gradient_strides, call.grad);
  p.weight = to_read(filters);
  p.normalisation = read_normalisation(call.normalisation, value);
  p.gradient_sums = read_floats(call.sums);
  write(p.input_gradient, p.input_gradient_strides, grad_input);
  if (grad_value) write(p.value_gradient, p.value_gradient_strides, *grad_value);
  const FilterGradient to = write_filters(grad_weight, grad_bias, workspace, rounded);
  run(target, [&] { backward(target, p, to); });
  if (grad_value)
    grad_weight = std::get<0>(
        weight_gradient_of(*call.input, *grad_value, {size, size, 1, 1}, false, call.rounded));
  return {grad_input, grad_weight, grad_bias};
}

// There is no weight gradient without `input`, and no input gradient without `weight`.
Gradients fused_backward(const MaybeTensor& input, const MaybeTensor& weight, const Tensor& value,
                         const Tensor& output_gradient, const Tensor& normalisation,
                         const Tensor& sums, Activation activation, bool residual, int filter_size,
                         bool with_bias, bool rounded) {
  const Shape shape = shape_of(value);
  require_same_shape(output_gradient, value);
  if (input) require_same_shape(*input, value);
  const Tensor table = table_of(normalisation, normalisation_rows, value);
  const Tensor both = table_of(sums, summed_rows(ElementwisePass::sum_gradients), value);
  Tensor grad = output_gradient;
  MaybeTensor source = input;
  if (weight && are_whole(shape, {&value})) {
    grad = planar(grad);
    if (source) source = planar(*source);
    if (are_whole(shape, {&grad, source ? &*source : &grad}))
      return whole_backward(
          {source, *weight, value, grad, table, both, activation, residual, with_bias, rounded});
  }
  const auto [grad_value, grad_bias] =
      value_gradient(value, {}, activation, grad, table, both, with_bias);
  MaybeTensor grad_input, grad_weight;
  if (weight && residual) grad_input = input_gradient_added(grad_value, *weight, grad);
  if (weight && !residual)
    grad_input = convolve<ForwardArgumentsOf>(grad_value, *weight, {}, true, [](auto&) {});
  if (source) {
    const LargeFilter filter{filter_size, filter_size, 1, 1};
    require(own_size(filter) != 0, "no kernel for this filter");
    grad_weight = std::get<0>(weight_gradient_of(*source, grad_value, filter, false, rounded));
  }
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace

namespace pybind11::detail {

// An activation is passed by its name.
template <>
struct type_caster<Activation> {
  PYBIND11_TYPE_CASTER(Activation, const_name("str"));

  bool load(handle source, bool) {
    if (!PyUnicode_Check(source.ptr())) return false;
    const auto* const name =
        std::find_if(std::begin(activations), std::end(activations), [&](const char* each) {
          return PyUnicode_CompareWithASCIIString(source.ptr(), each) == 0;
        });
    value = Activation(name - std::begin(activations));
    return name != std::end(activations);
  }
};

}  // namespace pybind11::detail

PYBIND11_MODULE(_cuda, extension) {
  extension.doc() = "Depthwise convolution kernels; see convmixer_kernels.backends.cuda.";
  extension.attr("filter_sizes") = std::to_array(filter_sizes);
  extension.def("refusal", &refusal);
  extension.def("set_chip", &set_chip);
  extension.def("watch", &pytorch::watch);
  extension.def("use_attributes", &pytorch::use_attributes);

  extension.def("forward", &forward_of);
  extension.def("weight_gradient", &exact_weight_gradient);
  extension.def("gradients", &gradients_of);
  extension.def("forward_normalised", &forward_normalised);
  extension.def("forward_moments", &forward_moments);
  extension.def("fused_backward", &fused_backward);
  extension.def("moments", &moments);
  extension.def("normalise", &normalise);
  extension.def("gradient_sums", &gradient_sums);
  extension.def("value_gradient", &value_gradient);
  extension.def("normalisation", &normalisation_of);
  extension.def("affine_gradients", &affine_gradients_of);
  extension.def("arranged", &arranged);
}
