// The Python module. Raw addresses and sizes come in; what Python must check, it has checked.
// Arguments are positional: pybind11 takes six times as long for the same as keywords.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <bit>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "host/dispatch.h"
#include "host/dispatch_fused.h"

namespace {

using namespace depthwise;

// ---- what comes in -------------------------------------------------------------------------------

// Device, stream, element type, and of the chip: multiprocessors and shared memory of a block.
using Place = std::array<intptr_t, 5>;
using Sizes = std::array<int, 4>;  // images, channels, height, width

cudaStream_t stream_of(const Place& place) { return reinterpret_cast<cudaStream_t>(place[1]); }
Type type_of(const Place& place) { return Type(place[2]); }
Chip chip_of(const Place& place) { return {int(place[3]), int(place[4])}; }

Shape shape_of(const Sizes& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3]}; }

// A tensor is its address, 0 for none, and the strides that its layout leaves free.
template <class Layout>
using Tensor = std::pair<uintptr_t, std::array<ptrdiff_t, sizeof(Layout) / sizeof(ptrdiff_t)>>;

template <class Layout>
void* data(const Tensor<Layout>& tensor) {
  if (tensor.first % 2 != 0)
    throw std::invalid_argument("a tensor of 16-bit elements begins at an odd address");
  return reinterpret_cast<void*>(tensor.first);
}
template <class Layout>
Layout strides(const Tensor<Layout>& tensor) {
  return std::bit_cast<Layout>(tensor.second);
}
void* bytes(uintptr_t address) { return reinterpret_cast<void*>(address); }
float* floats(uintptr_t address) { return reinterpret_cast<float*>(address); }

// ---- errors --------------------------------------------------------------------------------------

// The module brings its own CUDA runtime, which must be told of PyTorch's current device.
void use_device(const Place& place) {
  const cudaError_t status = cudaSetDevice(int(place[0]));
  if (status != cudaSuccess)
    throw std::runtime_error("cannot use CUDA device " + std::to_string(place[0]) + ": " +
                             cudaGetErrorString(status));
}

// Why a device does not take the kernels, or nothing if it does.
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

template <class Layout>
constexpr bool channels_last = std::is_same_v<Layout, PixelStrides>;

// The name of an operation as it stands in messages.
template <class Layout>
const char* named(const char* planes, const char* pixels) {
  return channels_last<Layout> ? pixels : planes;
}

// ---- convolutions --------------------------------------------------------------------------------

template <class Layout>
void forward_at(const Place& place, const Sizes& sizes, int filter_size, bool flipped,
                const Tensor<Layout>& input, uintptr_t weight, uintptr_t bias,
                const Tensor<Layout>& output) {
  ForwardArgumentsOf<Layout> p{};
  p.input = data<Layout>(input);
  p.weight = bytes(weight);
  p.bias = floats(bias);
  p.output = data<Layout>(output);
  p.shape = shape_of(sizes);
  p.input_strides = strides<Layout>(input);
  p.output_strides = strides<Layout>(output);
  p.filter_size = filter_size;
  p.flipped = flipped;
  use_device(place);
  check(forward(p, type_of(place), chip_of(place), stream_of(place)),
        flipped ? named<Layout>("input gradient", "channels-last input gradient")
                : named<Layout>("forward pass", "channels-last forward pass"),
        p.shape, filter_size);
}

int shares(const Place& place, const Sizes& sizes, int filter_size) {
  return weight_gradient_shares(shape_of(sizes), filter_size, chip_of(place));
}
int shares_channels_last(const Place& place, const Sizes& sizes, int filter_size) {
  return channels_last_weight_gradient_shares(shape_of(sizes), filter_size, chip_of(place));
}

template <class Layout>
void weight_gradient_at(const Place& place, const Sizes& sizes, int filter_size,
                        const Tensor<Layout>& input, const Tensor<Layout>& output_gradient,
                        uintptr_t weight_sums, uintptr_t bias_sums, uintptr_t workspace) {
  WeightGradientArgumentsOf<Layout> p{};
  p.input = data<Layout>(input);
  p.output_gradient = data<Layout>(output_gradient);
  p.shape = shape_of(sizes);
  p.input_strides = strides<Layout>(input);
  p.gradient_strides = strides<Layout>(output_gradient);
  p.filter_size = filter_size;
  use_device(place);
  check(weight_gradient(p, type_of(place), chip_of(place), floats(weight_sums), floats(bias_sums),
                        floats(workspace), stream_of(place)),
        named<Layout>("weight gradient", "channels-last weight gradient"), p.shape, filter_size);
}

// ---- fused operations ----------------------------------------------------------------------------

Normalisation normalisation_of(uintptr_t rows, const Sizes& sizes) {
  return {floats(rows), sizes[1]};
}

template <class Layout>
void fused_forward_at(const Place& place, const Sizes& sizes, int filter_size, bool flipped,
                      const Tensor<Layout>& input, uintptr_t weight, uintptr_t bias,
                      const Tensor<Layout>& output, uintptr_t normalisation, int activation,
                      bool residual, uintptr_t added) {
  FusedForwardArgumentsOf<Layout> p{};
  p.input = data<Layout>(input);
  p.weight = bytes(weight);
  p.bias = floats(bias);
  p.output = data<Layout>(output);
  p.shape = shape_of(sizes);
  p.input_strides = strides<Layout>(input);
  p.output_strides = strides<Layout>(output);
  p.filter_size = filter_size;
  p.flipped = flipped;
  p.normalisation = normalisation_of(normalisation, sizes);
  p.activation = Activation(activation);
  p.residual = residual;
  p.added = bytes(added);
  use_device(place);
  check(fused_forward(p, type_of(place), chip_of(place), stream_of(place)),
        named<Layout>("fused forward pass", "channels-last fused forward pass"), p.shape,
        filter_size);
}

int shares_of_whole_planes(const Place& place, const Sizes& sizes, int filter_size, bool backward) {
  return whole_plane_shares(shape_of(sizes), filter_size, backward ? Pass::backward : Pass::forward,
                            chip_of(place));
}

void moments_forward_at(const Place& place, const Sizes& sizes, int filter_size,
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
  use_device(place);
  check(moments_forward(p, type_of(place), chip_of(place), floats(merged), stream_of(place)),
        "forward pass with statistics", p.shape, filter_size);
}

void backward_at(const Place& place, const Sizes& sizes, int filter_size,
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
  use_device(place);
  check(backward(p, type_of(place), chip_of(place), floats(weight_gradient), floats(bias_gradient),
                 floats(workspace), stream_of(place)),
        "fused backward pass", p.shape, filter_size);
}

// Places in planes (images and channels have free strides) or pixels; see StreamArguments. Tensors
// are the value, the other one and the output.
StreamArguments stream_arguments(const Sizes& sizes, bool last, const Tensor<Steps>& value,
                                 const Tensor<Steps>& other, const Tensor<Steps>& output,
                                 int activation) {
  const int64_t pixels = int64_t(sizes[2]) * sizes[3], outer = last ? sizes[0] * pixels : sizes[0];
  if (outer > most_outer || pixels > INT32_MAX) {
    std::ostringstream text;
    text << "input of shape " << shape_of(sizes) << " has more than " << most_outer
         << " pixels; split the batch";
    throw std::invalid_argument(text.str());
  }
  StreamArguments p{};
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

int shares_of_stream(const Place& place, const Sizes& sizes, bool last, const Tensor<Steps>& value,
                     const Tensor<Steps>& other, const Tensor<Steps>& output) {
  return stream_shares(stream_arguments(sizes, last, value, other, output, 0), last,
                       chip_of(place));
}

void stream_at(int which, const Place& place, const Sizes& sizes, bool last,
               const Tensor<Steps>& value, const Tensor<Steps>& other, const Tensor<Steps>& output,
               int activation, uintptr_t bias, uintptr_t normalisation, uintptr_t gradient_sums,
               uintptr_t sums, uintptr_t merged) {
  StreamArguments p = stream_arguments(sizes, last, value, other, output, activation);
  p.bias = floats(bias);
  p.normalisation = normalisation_of(normalisation, sizes);
  p.gradient_sums = floats(gradient_sums);
  p.sums = floats(sums);
  use_device(place);
  static constexpr const char* names[] = {"statistics", "normalisation", "gradient sums",
                                          "gradient of the activation"};
  check(stream(Stream(which), p, type_of(place), last, chip_of(place), floats(merged),
               stream_of(place)),
        names[which], shape_of(sizes));
}

void normalisation_at(const Place& place, uintptr_t moments, int parts, int channels,
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
  use_device(place);
  check(normalisation(p, stream_of(place)), "normalisation", {1, channels, 1, 1});
}

}  // namespace

PYBIND11_MODULE(_cuda, extension) {
  extension.doc() =
      "Depthwise convolution kernels on raw addresses; see convmixer_kernels.backends.cuda.";
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  extension.def("refusal", &refusal);
  extension.def("forward", &forward_at<Strides>, without_gil);
  extension.def("forward_channels_last", &forward_at<PixelStrides>, without_gil);
  extension.def("weight_gradient_shares", &shares);
  extension.def("weight_gradient_shares_channels_last", &shares_channels_last);
  extension.def("weight_gradient", &weight_gradient_at<Strides>, without_gil);
  extension.def("weight_gradient_channels_last", &weight_gradient_at<PixelStrides>, without_gil);

  extension.def("fused_forward", &fused_forward_at<Strides>, without_gil);
  extension.def("fused_forward_channels_last", &fused_forward_at<PixelStrides>, without_gil);
  extension.def("whole_plane_shares", &shares_of_whole_planes);
  extension.def("whole_planes",
                [](int height, int width) { return whole_planes({1, 1, height, width}); });
  extension.def("moments_forward", &moments_forward_at, without_gil);
  extension.def("backward_gives_weight_gradient", &backward_gives_weight_gradient);
  extension.def("backward", &backward_at, without_gil);
  extension.def("stream_shares", &shares_of_stream);
  extension.def("stream", &stream_at, without_gil);
  extension.def("normalisation", &normalisation_at, without_gil);
}
