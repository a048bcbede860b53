// The Python module. Raw addresses and sizes come in; what Python must check, it has checked.
// Arguments are positional: pybind11 takes 0.28 us for fifteen positional integers and 1.7 us for the
// same as keywords.
#include <pybind11/pybind11.h>

#include <sstream>
#include <stdexcept>
#include <utility>

#include "dispatch.h"

#ifdef CONVMIXER_KERNELS_EMULATED
#include "emulation/counters.h"
#define MODULE_NAME _emulated
#else
#define MODULE_NAME _cuda
#endif

namespace {

using namespace depthwise;

template <class Pointer>
Pointer pointer(uintptr_t address) {
  return reinterpret_cast<Pointer>(address);
}

// The module brings its own CUDA runtime, which must be told of PyTorch's current device.
void use_device(int device) {
  const cudaError_t status = cudaSetDevice(device);
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("cannot use CUDA device ") + std::to_string(device) +
                             ": " + cudaGetErrorString(status));
}

void check(cudaError_t status, const char* operation, const Shape& shape, int filter_size) {
  if (status == cudaSuccess) return;
  std::ostringstream text;
  text << operation << " of " << shape.images << "x" << shape.channels << "x" << shape.height << "x"
       << shape.width << " with kernel size " << filter_size
       << " could not be launched: " << cudaGetErrorString(status);
  throw std::runtime_error(text.str());
}

void forward_at(int device, uintptr_t stream, int type, uintptr_t input, uintptr_t weight,
                uintptr_t bias, uintptr_t output, int images, int channels, int height, int width,
                int filter_size, bool flipped, ptrdiff_t input_image, ptrdiff_t input_channel,
                ptrdiff_t output_image, ptrdiff_t output_channel, int multiprocessors) {
  ForwardArguments p{};
  p.input = pointer<const void*>(input);
  p.weight = pointer<const void*>(weight);
  p.bias = pointer<const float*>(bias);
  p.output = pointer<void*>(output);
  p.shape = {images, channels, height, width};
  p.input_strides = {input_image, input_channel};
  p.output_strides = {output_image, output_channel};
  p.filter_size = filter_size;
  p.flipped = flipped;
  use_device(device);
  check(forward(p, Type(type), multiprocessors, pointer<cudaStream_t>(stream)),
        flipped ? "input gradient" : "forward pass", p.shape, filter_size);
}

int shares(int images, int channels, int height, int width, int multiprocessors) {
  return weight_gradient_shares({images, channels, height, width}, multiprocessors);
}

void weight_gradient_at(int device, uintptr_t stream, int type, uintptr_t input,
                        uintptr_t output_gradient, uintptr_t weight_sums, uintptr_t bias_sums,
                        uintptr_t workspace, int images, int channels, int height, int width,
                        int filter_size, ptrdiff_t input_image, ptrdiff_t input_channel,
                        ptrdiff_t gradient_image, ptrdiff_t gradient_channel, int multiprocessors) {
  WeightGradientArguments p{};
  p.input = pointer<const void*>(input);
  p.output_gradient = pointer<const void*>(output_gradient);
  p.shape = {images, channels, height, width};
  p.input_strides = {input_image, input_channel};
  p.gradient_strides = {gradient_image, gradient_channel};
  p.filter_size = filter_size;
  use_device(device);
  check(weight_gradient(p, Type(type), multiprocessors, pointer<float*>(weight_sums),
                        pointer<float*>(bias_sums), pointer<float*>(workspace),
                        pointer<cudaStream_t>(stream)),
        "weight gradient", p.shape, filter_size);
}

void forward_channels_last_at(int device, uintptr_t stream, int type, uintptr_t input,
                              uintptr_t weight, uintptr_t bias, uintptr_t output, int images,
                              int channels, int height, int width, int filter_size, bool flipped,
                              ptrdiff_t input_image, ptrdiff_t input_row, ptrdiff_t input_pixel,
                              ptrdiff_t output_image, ptrdiff_t output_row, ptrdiff_t output_pixel,
                              int multiprocessors) {
  ChannelsLastForwardArguments p{};
  p.input = pointer<const void*>(input);
  p.weight = pointer<const void*>(weight);
  p.bias = pointer<const float*>(bias);
  p.output = pointer<void*>(output);
  p.shape = {images, channels, height, width};
  p.input_strides = {input_image, input_row, input_pixel};
  p.output_strides = {output_image, output_row, output_pixel};
  p.filter_size = filter_size;
  p.flipped = flipped;
  use_device(device);
  check(forward(p, Type(type), multiprocessors, pointer<cudaStream_t>(stream)),
        flipped ? "channels-last input gradient" : "channels-last forward pass", p.shape,
        filter_size);
}

int shares_channels_last(int images, int channels, int height, int width, int filter_size,
                         int multiprocessors) {
  return channels_last_weight_gradient_shares({images, channels, height, width}, filter_size,
                                              multiprocessors);
}

void weight_gradient_channels_last_at(int device, uintptr_t stream, int type, uintptr_t input,
                                      uintptr_t output_gradient, uintptr_t weight_sums,
                                      uintptr_t bias_sums, uintptr_t workspace, int images,
                                      int channels, int height, int width, int filter_size,
                                      ptrdiff_t input_image, ptrdiff_t input_row,
                                      ptrdiff_t input_pixel, ptrdiff_t gradient_image,
                                      ptrdiff_t gradient_row, ptrdiff_t gradient_pixel,
                                      int multiprocessors) {
  ChannelsLastWeightGradientArguments p{};
  p.input = pointer<const void*>(input);
  p.output_gradient = pointer<const void*>(output_gradient);
  p.shape = {images, channels, height, width};
  p.input_strides = {input_image, input_row, input_pixel};
  p.gradient_strides = {gradient_image, gradient_row, gradient_pixel};
  p.filter_size = filter_size;
  use_device(device);
  check(weight_gradient(p, Type(type), multiprocessors, pointer<float*>(weight_sums),
                        pointer<float*>(bias_sums), pointer<float*>(workspace),
                        pointer<cudaStream_t>(stream)),
        "channels-last weight gradient", p.shape, filter_size);
}

}  // namespace

PYBIND11_MODULE(MODULE_NAME, extension) {
  extension.doc() =
      "Depthwise convolution kernels on raw addresses; see convmixer_kernels.backends.cuda.";
  extension.def("forward", &forward_at, pybind11::call_guard<pybind11::gil_scoped_release>());
  extension.def("weight_gradient_shares", &shares);
  extension.def("weight_gradient", &weight_gradient_at,
                pybind11::call_guard<pybind11::gil_scoped_release>());
  extension.def("forward_channels_last", &forward_channels_last_at,
                pybind11::call_guard<pybind11::gil_scoped_release>());
  extension.def("weight_gradient_shares_channels_last", &shares_channels_last);
  extension.def("weight_gradient_channels_last", &weight_gradient_channels_last_at,
                pybind11::call_guard<pybind11::gil_scoped_release>());
#ifdef CONVMIXER_KERNELS_EMULATED
  // What the kernels have asked of the machine since the last call.
  extension.def("take_counters", [] {
    const emulation::Counters taken = std::exchange(emulation::counters, {});
    pybind11::dict result;
    result["global_bytes_read"] = taken.global_bytes_read;
    result["global_bytes_written"] = taken.global_bytes_written;
    result["matrices_read"] = taken.matrices_read;
    result["matrix_passes"] = taken.matrix_passes;
    return result;
  });
#endif
}
