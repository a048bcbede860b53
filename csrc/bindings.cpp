// The Python module. It takes raw addresses and sizes, which convmixer_kernels has checked. Arguments are
// positional, since pybind11 takes six times as long for keywords.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <bit>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "core/filter_sizes.h"
#include "host/dispatch.h"
#include "host/elementwise_plan.h"
#include "host/launch.h"

namespace {

using namespace depthwise;

// ---- arguments -----------------------------------------------------------------------------------

// Device, stream, element type, and the members of Chip.
using LaunchContext = std::array<intptr_t, 6>;
using Sizes = std::array<int, 4>;  // images, channels, height, width

cudaStream_t stream_of(const LaunchContext& context) {
  return reinterpret_cast<cudaStream_t>(context[1]);
}
ElementType type_of(const LaunchContext& context) { return ElementType(context[2]); }
Chip chip_of(const LaunchContext& context) {
  return {int(context[3]), int(context[4]), int(context[5])};
}

Shape shape_of(const Sizes& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3]}; }

// The address of a tensor, 0 for none, and its strides.
template <class AnyStrides>
using Tensor = std::pair<uintptr_t, std::array<ptrdiff_t, sizeof(AnyStrides) / sizeof(ptrdiff_t)>>;

template <class AnyStrides>
void* data(const Tensor<AnyStrides>& tensor) {
  if (tensor.first % 2 != 0)
    throw std::invalid_argument("a tensor of 16-bit elements begins at an odd address");
  return reinterpret_cast<void*>(tensor.first);
}
template <class AnyStrides>
AnyStrides strides(const Tensor<AnyStrides>& tensor) {
  return std::bit_cast<AnyStrides>(tensor.second);
}
void* bytes(uintptr_t address) { return reinterpret_cast<void*>(address); }
float* floats(uintptr_t address) { return reinterpret_cast<float*>(address); }

// ---- errors --------------------------------------------------------------------------------------

// Makes a device the current one: the module brings its own CUDA runtime, which does not know
// PyTorch's.
void use_device(const LaunchContext& context) {
  const cudaError_t status = cudaSetDevice(int(context[0]));
  if (status != cudaSuccess)
    throw std::runtime_error("cannot use CUDA device " + std::to_string(context[0]) + ": " +
                             cudaGetErrorString(status));
}

// Gives the reason why a device does not take the kernels, or an empty text if it does.
std::string refusal(int device) {
  cudaError_t status = cudaSetDevice(device);
  if (status == cudaSuccess) status = find_kernels();
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

std::ostream& operator<<(std::ostream& text, const Shape& shape) {
  return text << shape.images << "x" << shape.channels << "x" << shape.height << "x" << shape.width;
}

void check(cudaError_t status, const char* operation, const Shape& shape, int filter_size = 0) {
  if (status == cudaSuccess) return;
  std::ostringstream text;
  text << operation << " of " << shape;
  if (filter_size) text << " with kernel size " << filter_size;
  text << " could not be launched: " << cudaGetErrorString(status);
  throw std::runtime_error(text.str());
}

template <class AnyStrides>
constexpr bool channels_last = std::is_same_v<AnyStrides, PixelStrides>;

// The name of an operation in messages.
template <class AnyStrides>
const char* named(const char* planes, const char* pixels) {
  return channels_last<AnyStrides> ? pixels : planes;
}

// ---- convolutions --------------------------------------------------------------------------------

template <class AnyStrides>
void forward_at(const LaunchContext& context, const Sizes& sizes, int filter_size, bool flipped,
                const Tensor<AnyStrides>& input, uintptr_t weight, uintptr_t bias,
                const Tensor<AnyStrides>& output) {
  ForwardArgumentsOf<AnyStrides> p{};
  p.input = data<AnyStrides>(input);
  p.weight = bytes(weight);
  p.bias = floats(bias);
  p.output = data<AnyStrides>(output);
  p.shape = shape_of(sizes);
  p.input_strides = strides<AnyStrides>(input);
  p.output_strides = strides<AnyStrides>(output);
  p.filter_size = filter_size;
  p.flipped = flipped;
  use_device(context);
  check(forward(p, type_of(context), chip_of(context), stream_of(context)),
        flipped ? named<AnyStrides>("input gradient", "channels-last input gradient")
                : named<AnyStrides>("forward pass", "channels-last forward pass"),
        p.shape, filter_size);
}

// The height, width, row dilation and column dilation of a filter.
using Filter = std::array<int, 4>;

LargeFilter filter_of(const Filter& sizes) {
  const LargeFilter filter{sizes[0], sizes[1], sizes[2], sizes[3]};
  if (!fits(filter)) throw std::invalid_argument("no kernel for a filter of this extent");
  return filter;
}

void forward_large_at(const LaunchContext& context, const Sizes& sizes, const Filter& filter,
                      bool flipped, const Tensor<Strides>& input, uintptr_t weight, uintptr_t bias,
                      const Tensor<Strides>& output) {
  LargeForwardArguments p{};
  p.input = data<Strides>(input);
  p.weight = bytes(weight);
  p.bias = floats(bias);
  p.output = data<Strides>(output);
  p.shape = shape_of(sizes);
  p.input_strides = strides<Strides>(input);
  p.output_strides = strides<Strides>(output);
  p.filter = filter_of(filter);
  p.flipped = flipped;
  use_device(context);
  check(forward(p, type_of(context), chip_of(context), stream_of(context)),
        flipped ? "input gradient" : "forward pass", p.shape);
}

int splits_large(const LaunchContext& context, const Sizes& sizes, const Filter& filter) {
  return weight_gradient_splits(shape_of(sizes), filter_of(filter), chip_of(context));
}

void weight_gradient_large_at(const LaunchContext& context, const Sizes& sizes,
                              const Filter& filter, const Tensor<Strides>& input,
                              const Tensor<Strides>& output_gradient, uintptr_t weight_sums,
                              uintptr_t bias_sums, uintptr_t workspace) {
  LargeWeightGradientArguments p{};
  p.input = data<Strides>(input);
  p.output_gradient = data<Strides>(output_gradient);
  p.shape = shape_of(sizes);
  p.input_strides = strides<Strides>(input);
  p.gradient_strides = strides<Strides>(output_gradient);
  p.filter = filter_of(filter);
  use_device(context);
  check(weight_gradient(p, type_of(context), chip_of(context), floats(weight_sums),
                        floats(bias_sums), floats(workspace), stream_of(context)),
        "weight gradient", p.shape);
}

int splits(const LaunchContext& context, const Sizes& sizes, int filter_size) {
  return weight_gradient_splits(shape_of(sizes), filter_size, chip_of(context));
}
int splits_channels_last(const LaunchContext& context, const Sizes& sizes, int filter_size) {
  return channels_last_weight_gradient_splits(shape_of(sizes), filter_size, chip_of(context));
}

template <class AnyStrides>
void weight_gradient_at(const LaunchContext& context, const Sizes& sizes, int filter_size,
                        const Tensor<AnyStrides>& input, const Tensor<AnyStrides>& output_gradient,
                        uintptr_t weight_sums, uintptr_t bias_sums, uintptr_t workspace) {
  WeightGradientArgumentsOf<AnyStrides> p{};
  p.input = data<AnyStrides>(input);
  p.output_gradient = data<AnyStrides>(output_gradient);
  p.shape = shape_of(sizes);
  p.input_strides = strides<AnyStrides>(input);
  p.gradient_strides = strides<AnyStrides>(output_gradient);
  p.filter_size = filter_size;
  use_device(context);
  check(weight_gradient(p, type_of(context), chip_of(context), floats(weight_sums),
                        floats(bias_sums), floats(workspace), stream_of(context)),
        named<AnyStrides>("weight gradient", "channels-last weight gradient"), p.shape,
        filter_size);
}

// ---- fused operations ----------------------------------------------------------------------------

Normalisation normalisation_of(uintptr_t rows, const Sizes& sizes) {
  return {floats(rows), sizes[1]};
}

template <class AnyStrides>
void fused_forward_at(const LaunchContext& context, const Sizes& sizes, int filter_size,
                      bool flipped, const Tensor<AnyStrides>& input, uintptr_t weight,
                      uintptr_t bias, const Tensor<AnyStrides>& output, uintptr_t normalisation,
                      int activation, bool residual, uintptr_t added) {
  FusedForwardArgumentsOf<AnyStrides> p{};
  p.input = data<AnyStrides>(input);
  p.weight = bytes(weight);
  p.bias = floats(bias);
  p.output = data<AnyStrides>(output);
  p.shape = shape_of(sizes);
  p.input_strides = strides<AnyStrides>(input);
  p.output_strides = strides<AnyStrides>(output);
  p.filter_size = filter_size;
  p.flipped = flipped;
  p.normalisation = normalisation_of(normalisation, sizes);
  p.activation = Activation(activation);
  p.residual = residual;
  p.added = bytes(added);
  use_device(context);
  check(fused_forward(p, type_of(context), chip_of(context), stream_of(context)),
        named<AnyStrides>("fused forward pass", "channels-last fused forward pass"), p.shape,
        filter_size);
}

int splits_of_whole_planes(const LaunchContext& context, const Sizes& sizes, int filter_size,
                           bool backward) {
  return whole_plane_splits(shape_of(sizes), filter_size, backward ? Pass::backward : Pass::forward,
                            chip_of(context));
}

void moments_forward_at(const LaunchContext& context, const Sizes& sizes, int filter_size,
                        const Tensor<Strides>& input, uintptr_t weight, uintptr_t bias,
                        const Tensor<Strides>& output, int activation, uintptr_t moments,
                        uintptr_t merged) {
  MomentsForwardArguments p{};
  p.input = data<Strides>(input);
  p.weight = bytes(weight);
  p.bias = floats(bias);
  p.output = data<Strides>(output);
  p.shape = shape_of(sizes);
  p.input_strides = strides<Strides>(input);
  p.output_strides = strides<Strides>(output);
  p.filter_size = filter_size;
  p.activation = Activation(activation);
  p.moments = floats(moments);
  use_device(context);
  check(moments_forward(p, type_of(context), chip_of(context), floats(merged), stream_of(context)),
        "forward pass with statistics", p.shape, filter_size);
}

void backward_at(const LaunchContext& context, const Sizes& sizes, int filter_size,
                 const Tensor<Strides>& input, const Tensor<Strides>& value,
                 const Tensor<Strides>& output_gradient, uintptr_t weight, uintptr_t normalisation,
                 uintptr_t gradient_sums, int activation, bool residual,
                 const Tensor<Strides>& input_gradient, const Tensor<Strides>& value_gradient,
                 uintptr_t weight_gradient, uintptr_t bias_gradient, uintptr_t workspace) {
  BackwardArguments p{};
  p.input = data<Strides>(input);
  p.value = data<Strides>(value);
  p.output_gradient = data<Strides>(output_gradient);
  p.weight = bytes(weight);
  p.normalisation = normalisation_of(normalisation, sizes);
  p.gradient_sums = floats(gradient_sums);
  p.input_gradient = data<Strides>(input_gradient);
  p.value_gradient = data<Strides>(value_gradient);
  p.shape = shape_of(sizes);
  p.input_strides = strides<Strides>(input);
  p.value_strides = strides<Strides>(value);
  p.output_gradient_strides = strides<Strides>(output_gradient);
  p.input_gradient_strides = strides<Strides>(input_gradient);
  p.value_gradient_strides = strides<Strides>(value_gradient);
  p.activation = Activation(activation);
  p.filter_size = filter_size;
  p.residual = residual;
  use_device(context);
  check(backward(p, type_of(context), chip_of(context), floats(weight_gradient),
                 floats(bias_gradient), floats(workspace), stream_of(context)),
        "fused backward pass", p.shape, filter_size);
}

// Counts images as the outer index of planes, and pixels as that of channels-last tensors.
ElementwiseArguments elementwise_arguments(const Sizes& sizes, bool last,
                                           const Tensor<Steps>& value, const Tensor<Steps>& other,
                                           const Tensor<Steps>& output, int activation) {
  const int64_t pixels = int64_t(sizes[2]) * sizes[3], outer = last ? sizes[0] * pixels : sizes[0];
  if (outer > most_outer || pixels > INT32_MAX) {
    std::ostringstream text;
    text << "input of shape " << shape_of(sizes) << " has more than " << most_outer
         << " pixels; split the batch";
    throw std::invalid_argument(text.str());
  }
  ElementwiseArguments p{};
  p.value = data<Steps>(value);
  p.other = data<Steps>(other);
  p.output = data<Steps>(output);
  p.value_steps = strides<Steps>(value);
  p.other_steps = strides<Steps>(other);
  p.output_steps = strides<Steps>(output);
  p.channels = sizes[1];
  p.outer = int(outer);
  p.inner = last ? 1 : int(pixels);
  p.activation = Activation(activation);
  return p;
}

int splits_of_elementwise_pass(const LaunchContext& context, const Sizes& sizes, bool last,
                               const Tensor<Steps>& value, const Tensor<Steps>& other,
                               const Tensor<Steps>& output) {
  return elementwise_splits(elementwise_arguments(sizes, last, value, other, output, 0), last,
                            chip_of(context));
}

void elementwise_at(int pass, const LaunchContext& context, const Sizes& sizes, bool last,
                    const Tensor<Steps>& value, const Tensor<Steps>& other,
                    const Tensor<Steps>& output, int activation, uintptr_t bias,
                    uintptr_t normalisation, uintptr_t gradient_sums, uintptr_t sums,
                    uintptr_t merged) {
  ElementwiseArguments p = elementwise_arguments(sizes, last, value, other, output, activation);
  p.bias = floats(bias);
  p.normalisation = normalisation_of(normalisation, sizes);
  p.gradient_sums = floats(gradient_sums);
  p.sums = floats(sums);
  use_device(context);
  static constexpr const char* names[] = {"statistics", "normalisation", "gradient sums",
                                          "gradient of the activation"};
  check(elementwise(ElementwisePass(pass), p, type_of(context), last, chip_of(context),
                    floats(merged), stream_of(context)),
        names[pass], shape_of(sizes));
}

void normalisation_at(const LaunchContext& context, uintptr_t moments, int parts, int channels,
                      uintptr_t gamma, uintptr_t beta, uintptr_t running_mean,
                      uintptr_t running_variance, float momentum, float epsilon, uintptr_t to) {
  NormalisationArguments p{};
  p.moments = floats(moments);
  p.parts = parts;
  p.channels = channels;
  p.gamma = floats(gamma);
  p.beta = floats(beta);
  p.running_mean = floats(running_mean);
  p.running_variance = floats(running_variance);
  p.momentum = momentum;
  p.epsilon = epsilon;
  p.normalisation = floats(to);
  use_device(context);
  check(launch_normalisation(p, stream_of(context)), "normalisation", {1, channels, 1, 1});
}

}  // namespace

PYBIND11_MODULE(_cuda, extension) {
  extension.doc() =
      "Depthwise convolution kernels on raw addresses; see convmixer_kernels.backends.cuda.";
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  extension.attr("filter_sizes") = std::to_array(filter_sizes);
  extension.attr("element_types") = std::to_array(element_types);
  extension.attr("activations") = std::to_array(activations);
  extension.def("refusal", &refusal);

  extension.def("forward", &forward_at<Strides>, without_gil);
  extension.def("forward_channels_last", &forward_at<PixelStrides>, without_gil);
  extension.def("weight_gradient_splits", &splits);
  extension.def("weight_gradient_splits_channels_last", &splits_channels_last);
  extension.def("weight_gradient", &weight_gradient_at<Strides>, without_gil);
  extension.def("weight_gradient_channels_last", &weight_gradient_at<PixelStrides>, without_gil);

  extension.def("forward_large", &forward_large_at, without_gil);
  extension.def("weight_gradient_large_splits", &splits_large);
  extension.def("weight_gradient_large", &weight_gradient_large_at, without_gil);

  extension.def("fused_forward", &fused_forward_at<Strides>, without_gil);
  extension.def("fused_forward_channels_last", &fused_forward_at<PixelStrides>, without_gil);
  extension.def("whole_plane_splits", &splits_of_whole_planes);
  extension.def("whole_planes",
                [](int height, int width) { return whole_planes({1, 1, height, width}); });
  extension.def("moments_forward", &moments_forward_at, without_gil);
  extension.def("backward_gives_weight_gradient", &backward_gives_weight_gradient);
  extension.def("backward", &backward_at, without_gil);
  extension.def("elementwise_pass_splits", &splits_of_elementwise_pass);
  extension.def("elementwise_pass", &elementwise_at, without_gil);
  extension.def("normalisation", &normalisation_at, without_gil);
}
