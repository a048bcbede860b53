// The Python module. Its functions take raw addresses and sizes, which convmixer_kernels has checked; each
// plans its pass, finds the kernel and launches it. Arguments are positional, since pybind11 takes six
// times as long for keywords.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <bit>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "host/launch.h"
#include "host/layouts.h"

namespace {

using namespace depthwise;

// ---- arguments -----------------------------------------------------------------------------------

// Integers that Python passes as a tuple.
template <class Integer, size_t N>
struct Integers : std::array<Integer, N> {};

// Device, stream, element type, and the members of Chip.
using LaunchContext = Integers<intptr_t, 6>;
using Sizes = Integers<int, 4>;  // images, channels, height, width

cudaStream_t stream_of(const LaunchContext& context) {
  return reinterpret_cast<cudaStream_t>(context[1]);
}
ElementType type_of(const LaunchContext& context) { return ElementType(context[2]); }
Chip chip_of(const LaunchContext& context) {
  return {int(context[3]), int(context[4]), int(context[5])};
}

Shape shape_of(const Sizes& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3]}; }

template <class AnyStrides>
struct Tensor {
  uintptr_t address;  // 0 for none
  Integers<ptrdiff_t, sizeof(AnyStrides) / sizeof(ptrdiff_t)> strides;
};

template <class AnyStrides>
void* data(const Tensor<AnyStrides>& tensor) {
  if (tensor.address % 2 != 0)
    throw std::invalid_argument("a tensor of 16-bit elements begins at an odd address");
  return reinterpret_cast<void*>(tensor.address);
}
template <class AnyStrides>
AnyStrides strides(const Tensor<AnyStrides>& tensor) {
  return std::bit_cast<AnyStrides>(tensor.strides);
}
// Gives a kernel's arguments the data and the strides of a tensor.
template <class Data, class AnyStrides>
void take(Data& to, AnyStrides& to_strides, const Tensor<AnyStrides>& tensor) {
  to = data<AnyStrides>(tensor);
  to_strides = strides<AnyStrides>(tensor);
}
void* bytes(uintptr_t address) { return reinterpret_cast<void*>(address); }
float* floats(uintptr_t address) { return reinterpret_cast<float*>(address); }

Normalisation normalisation_of(uintptr_t rows, const Sizes& sizes) {
  return {floats(rows), sizes[1]};
}

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

[[noreturn]] void refuse(const Shape& shape, const std::string& reason) {
  std::ostringstream text;
  text << "input of shape " << shape << " has more " << reason;
  throw std::invalid_argument(text.str());
}

template <class AnyStrides>
constexpr bool channels_last = std::is_same_v<AnyStrides, PixelStrides>;

template <class AnyStrides = Strides>
void check(cudaError_t status, const char* operation, const Shape& shape, int filter_size = 0) {
  if (status == cudaSuccess) return;
  std::ostringstream text;
  text << (channels_last<AnyStrides> ? "channels-last " : "") << operation << " of " << shape;
  if (filter_size) text << " with kernel size " << filter_size;
  text << " could not be launched: " << cudaGetErrorString(status);
  throw std::runtime_error(text.str());
}

// ---- plans and kernels ---------------------------------------------------------------------------

template <class AnyStrides>
Plan plan_of(const LaunchContext& context, const Sizes& sizes, int filter_size, Pass pass) {
  const Shape shape = shape_of(sizes);
  const Plan result = channels_last<AnyStrides>
                          ? channels_last_plan(shape, filter_size, pass, chip_of(context))
                          : plan(shape, filter_size, pass, chip_of(context));
  if (result.tiling.items < 0) refuse(shape, "tiles in a channel than fit 32 bits");
  return result;
}

// Parts of the images that are summed apart.
template <class AnyStrides>
int parts_of(const Plan& plan) {
  return channels_last<AnyStrides> ? plan.splits * sections(plan.tiling) : plan.splits;
}

template <class Kernels>
const Kernels& find(int filter_size, const Variant& variant) {
  static const auto tables = [] {
    std::array<KernelTable<Kernels>, std::size(filter_sizes)> all;
    [&]<size_t... I>(std::index_sequence<I...>) {
      (add_kernels<odd_size(filter_sizes[I])>(all[I]), ...);
    }(std::make_index_sequence<std::size(filter_sizes)>());
    return all;
  }();
  const auto* const size = std::find(std::begin(filter_sizes), std::end(filter_sizes), filter_size);
  if (size == std::end(filter_sizes))
    throw std::invalid_argument("no kernel for filter size " + std::to_string(filter_size));
  const Kernels* const found = tables[size_t(size - filter_sizes)].find(variant);
  if (found == nullptr)
    throw std::invalid_argument("no kernel for element type " + std::to_string(int(variant.type)));
  return *found;
}

// ---- forward and input gradient ------------------------------------------------------------------

template <class Arguments, class AnyStrides>
Arguments forward_arguments(const Sizes& sizes, const Tensor<AnyStrides>& input, uintptr_t weight,
                            uintptr_t bias, const Tensor<AnyStrides>& output) {
  Arguments p{};
  take(p.input, p.input_strides, input);
  p.weight = bytes(weight);
  p.bias = floats(bias);
  take(p.output, p.output_strides, output);
  p.shape = shape_of(sizes);
  return p;
}

// The tensor that is added, if there is one, has the output's strides and moves in the same pieces.
template <class Arguments>
cudaError_t launch_forward(const LaunchContext& context, const Plan& plan, const Arguments& p,
                           const void* added = nullptr) {
  using AnyStrides = decltype(p.input_strides);
  const uintptr_t from = uintptr_t(p.input), to = uintptr_t(p.output) | uintptr_t(added);
  if constexpr (channels_last<AnyStrides>) {
    const auto& kernels = find<ChannelsLastForwardKernels>(
        p.filter_size, {type_of(context), plan.tile, plan.channels});
    return launch_by_sections(kernels, kernels.of(p), plan, stream_of(context), p,
                              in_units(from, p.shape.channels, p.input_strides),
                              in_units(to, p.shape.channels, p.output_strides));
  } else {
    const int input = alignment(from, p.shape.width, p.input_strides);
    const int output = alignment(to, p.shape.width, p.output_strides);
    const auto& kernels = find<ForwardKernels>(
        p.filter_size, {type_of(context), plan.tile, move_whole(p.shape, std::min(input, output))});
    if (kernels.of(p) == nullptr) return cudaErrorInvalidValue;
    return launch_by_channels(kernels, kernels.of(p), plan, stream_of(context), p, input, output);
  }
}

template <class AnyStrides>
void forward_at(const LaunchContext& context, const Sizes& sizes, int filter_size, bool flipped,
                const Tensor<AnyStrides>& input, uintptr_t weight, uintptr_t bias,
                const Tensor<AnyStrides>& output) {
  auto p = forward_arguments<ForwardArgumentsOf<AnyStrides>, AnyStrides>(sizes, input, weight, bias,
                                                                         output);
  p.filter_size = filter_size;
  p.flipped = flipped;
  const Plan plan = plan_of<AnyStrides>(context, sizes, filter_size, Pass::forward);
  use_device(context);
  check<AnyStrides>(launch_forward(context, plan, p), flipped ? "input gradient" : "forward pass",
                    p.shape, filter_size);
}

template <class AnyStrides>
void fused_forward_at(const LaunchContext& context, const Sizes& sizes, int filter_size,
                      bool flipped, const Tensor<AnyStrides>& input, uintptr_t weight,
                      uintptr_t bias, const Tensor<AnyStrides>& output, uintptr_t normalisation,
                      int activation, bool residual, uintptr_t added) {
  auto p = forward_arguments<FusedForwardArgumentsOf<AnyStrides>, AnyStrides>(sizes, input, weight,
                                                                              bias, output);
  p.filter_size = filter_size;
  p.flipped = flipped;
  p.normalisation = normalisation_of(normalisation, sizes);
  p.activation = Activation(activation);
  p.residual = residual;
  p.added = bytes(added);
  if (added && (bias || normalisation || residual || p.activation != Activation::identity))
    throw std::invalid_argument(
        "a tensor is added to a convolution alone: no bias, activation, normalisation or residual");
  const Plan plan = plan_of<AnyStrides>(context, sizes, filter_size, Pass::forward);
  use_device(context);
  check<AnyStrides>(launch_forward(context, plan, p, p.added), "fused forward pass", p.shape,
                    filter_size);
}

// The moments [3][channel] of the activation go to `merged`; `moments` is room for those of the splits.
void moments_forward_at(const LaunchContext& context, const Sizes& sizes, int filter_size,
                        const Tensor<Strides>& input, uintptr_t weight, uintptr_t bias,
                        const Tensor<Strides>& output, int activation, uintptr_t moments,
                        uintptr_t merged) {
  auto p = forward_arguments<MomentsForwardArguments, Strides>(sizes, input, weight, bias, output);
  p.filter_size = filter_size;
  p.activation = Activation(activation);
  p.moments = floats(moments);
  const Plan plan = plan_of<Strides>(context, sizes, filter_size, Pass::forward);
  use_device(context);
  cudaError_t status = launch_forward(context, plan, p);
  if (status == cudaSuccess)
    status = launch_merge_moments(p.moments, plan.splits, p.shape.channels, floats(merged),
                                  stream_of(context));
  check(status, "forward pass with statistics", p.shape, filter_size);
}

// ---- gradients of the filter ---------------------------------------------------------------------

template <class AnyStrides>
int taps(const WeightGradientArgumentsOf<AnyStrides>& p) {
  return p.filter_size * p.filter_size;
}
int taps(const BackwardArguments& p) { return p.filter_size * p.filter_size; }
int taps(const LargeWeightGradientArguments& p) { return p.filter.taps(); }

// The results, [channel][size][size] and [channel], either of which may be null. Several splits are
// summed apart, in a workspace of splits * channels * (size * size + 1) floats, and then added up.
struct FilterGradient {
  float *weight, *bias, *workspace;
  int splits;

  template <class Arguments>
  void set_targets(Arguments& p) const {
    const ptrdiff_t weights = weights_of(p);
    const bool several = splits > 1;
    p.weight_sums = several && weight ? workspace : weight;
    p.bias_sums = several && bias ? workspace + splits * weights : bias;
  }

  template <class Arguments>
  cudaError_t add_up(const Arguments& p, cudaStream_t stream) const {
    cudaError_t status = cudaSuccess;
    if (splits <= 1) return status;
    if (weight) status = launch_add_splits(weight, p.weight_sums, splits, weights_of(p), stream);
    if (status == cudaSuccess && bias)
      status = launch_add_splits(bias, p.bias_sums, splits, p.shape.channels, stream);
    return status;
  }

 private:
  template <class Arguments>
  static ptrdiff_t weights_of(const Arguments& p) {
    return ptrdiff_t(p.shape.channels) * taps(p);
  }
};

template <class AnyStrides>
int weight_gradient_splits(const LaunchContext& context, const Sizes& sizes, int filter_size) {
  return parts_of<AnyStrides>(
      plan_of<AnyStrides>(context, sizes, filter_size, Pass::weight_gradient));
}

template <class AnyStrides>
void weight_gradient_at(const LaunchContext& context, const Sizes& sizes, int filter_size,
                        const Tensor<AnyStrides>& input, const Tensor<AnyStrides>& output_gradient,
                        uintptr_t weight_gradient, uintptr_t bias_gradient, uintptr_t workspace) {
  WeightGradientArgumentsOf<AnyStrides> p{};
  take(p.input, p.input_strides, input);
  take(p.output_gradient, p.gradient_strides, output_gradient);
  p.shape = shape_of(sizes);
  p.filter_size = filter_size;
  const Plan plan = plan_of<AnyStrides>(context, sizes, filter_size, Pass::weight_gradient);
  const FilterGradient results{floats(weight_gradient), floats(bias_gradient), floats(workspace),
                               parts_of<AnyStrides>(plan)};
  results.set_targets(p);
  const cudaStream_t stream = stream_of(context);
  use_device(context);
  cudaError_t status;
  if constexpr (channels_last<AnyStrides>) {
    const auto& kernels = find<ChannelsLastWeightGradientKernels>(
        filter_size, {type_of(context), plan.tile, plan.channels});
    status =
        launch_by_sections(kernels, kernels.kernel, plan, stream, p,
                           in_units(input.address, p.shape.channels, p.input_strides),
                           in_units(output_gradient.address, p.shape.channels, p.gradient_strides));
  } else {
    const int from = alignment(input.address, p.shape.width, p.input_strides);
    const int other = alignment(output_gradient.address, p.shape.width, p.gradient_strides);
    const auto& kernels = find<WeightGradientKernels>(
        filter_size, {type_of(context), plan.tile, move_whole(p.shape, std::min(from, other))});
    status = launch_by_channels(kernels, kernels.kernel, plan, stream, p, from, other);
  }
  if (status == cudaSuccess) status = results.add_up(p, stream);
  check<AnyStrides>(status, "weight gradient", p.shape, filter_size);
}

// ---- filters of up to 31 x 31 --------------------------------------------------------------------

// The height, width, row dilation and column dilation of a filter.
using Filter = Integers<int, 4>;

LargeFilter filter_of(const Filter& sizes) {
  const LargeFilter filter{sizes[0], sizes[1], sizes[2], sizes[3]};
  if (!fits(filter)) throw std::invalid_argument("no kernel for a filter of this extent");
  return filter;
}

Plan large_plan_of(const LaunchContext& context, const Sizes& sizes, const LargeFilter& filter,
                   Pass pass) {
  const Plan result = large_plan(shape_of(sizes), filter, pass, chip_of(context));
  if (result.tiling.items < 0) refuse(shape_of(sizes), "tiles in a channel than fit 32 bits");
  return result;
}

void forward_large_at(const LaunchContext& context, const Sizes& sizes, const Filter& filter,
                      bool flipped, const Tensor<Strides>& input, uintptr_t weight, uintptr_t bias,
                      const Tensor<Strides>& output) {
  auto p = forward_arguments<LargeForwardArguments, Strides>(sizes, input, weight, bias, output);
  p.filter = filter_of(filter);
  p.flipped = flipped;
  const Plan plan = large_plan_of(context, sizes, p.filter, Pass::forward);
  use_device(context);
  check(launch_forward_large(p, type_of(context), plan, stream_of(context)),
        flipped ? "input gradient" : "forward pass", p.shape);
}

int weight_gradient_large_splits(const LaunchContext& context, const Sizes& sizes,
                                 const Filter& filter) {
  return large_plan_of(context, sizes, filter_of(filter), Pass::weight_gradient).splits;
}

void weight_gradient_large_at(const LaunchContext& context, const Sizes& sizes,
                              const Filter& filter, const Tensor<Strides>& input,
                              const Tensor<Strides>& output_gradient, uintptr_t weight_gradient,
                              uintptr_t bias_gradient, uintptr_t workspace) {
  LargeWeightGradientArguments p{};
  take(p.input, p.input_strides, input);
  take(p.output_gradient, p.gradient_strides, output_gradient);
  p.shape = shape_of(sizes);
  p.filter = filter_of(filter);
  const Plan plan = large_plan_of(context, sizes, p.filter, Pass::weight_gradient);
  const FilterGradient results{floats(weight_gradient), floats(bias_gradient), floats(workspace),
                               plan.splits};
  results.set_targets(p);
  use_device(context);
  cudaError_t status = launch_weight_gradient_large(p, type_of(context), plan, stream_of(context));
  if (status == cudaSuccess) status = results.add_up(p, stream_of(context));
  check(status, "weight gradient", p.shape);
}

// ---- backward pass of whole planes on 16-byte boundaries -----------------------------------------

int splits_of_whole_planes(const LaunchContext& context, const Sizes& sizes, int filter_size,
                           bool backward) {
  return plan_of<Strides>(context, sizes, filter_size, backward ? Pass::backward : Pass::forward)
      .splits;
}

void backward_at(const LaunchContext& context, const Sizes& sizes, int filter_size,
                 const Tensor<Strides>& input, const Tensor<Strides>& value,
                 const Tensor<Strides>& output_gradient, uintptr_t weight, uintptr_t normalisation,
                 uintptr_t gradient_sums, int activation, bool residual,
                 const Tensor<Strides>& input_gradient, const Tensor<Strides>& value_gradient,
                 uintptr_t weight_gradient, uintptr_t bias_gradient, uintptr_t workspace) {
  BackwardArguments p{};
  take(p.input, p.input_strides, input);
  take(p.value, p.value_strides, value);
  take(p.output_gradient, p.output_gradient_strides, output_gradient);
  p.weight = bytes(weight);
  p.normalisation = normalisation_of(normalisation, sizes);
  p.gradient_sums = floats(gradient_sums);
  take(p.input_gradient, p.input_gradient_strides, input_gradient);
  take(p.value_gradient, p.value_gradient_strides, value_gradient);
  p.shape = shape_of(sizes);
  p.activation = Activation(activation);
  p.filter_size = filter_size;
  p.residual = residual;
  const Plan plan = plan_of<Strides>(context, sizes, filter_size, Pass::backward);
  const FilterGradient results{floats(weight_gradient), floats(bias_gradient), floats(workspace),
                               plan.splits};
  results.set_targets(p);
  int least = 8;
  for (const auto& tensor : {input, value, output_gradient, input_gradient, value_gradient})
    if (tensor.address)
      least = std::min(least, alignment(tensor.address, p.shape.width, strides<Strides>(tensor)));
  const bool with_weight = p.input != nullptr;
  use_device(context);
  cudaError_t status = cudaErrorInvalidValue;
  if (move_whole(p.shape, least) && (!with_weight || backward_with_weight(odd_size(filter_size)))) {
    const auto& kernels =
        find<BackwardKernels>(filter_size, {type_of(context), plan.tile, with_weight});
    status = launch_by_channels(kernels, kernels.kernel, plan, stream_of(context), p);
  }
  if (status == cudaSuccess) status = results.add_up(p, stream_of(context));
  check(status, "fused backward pass", p.shape, filter_size);
}

// ---- elementwise passes and statistics -----------------------------------------------------------

// Counts images as the outer index of planes, and pixels as that of channels-last tensors.
ElementwiseArguments elementwise_arguments(const Sizes& sizes, bool last,
                                           const Tensor<Steps>& value, const Tensor<Steps>& other,
                                           const Tensor<Steps>& output, int activation) {
  const int64_t pixels = int64_t(sizes[2]) * sizes[3], outer = last ? sizes[0] * pixels : sizes[0];
  if (outer > most_outer || pixels > INT32_MAX)
    refuse(shape_of(sizes), "than " + std::to_string(most_outer) + " pixels; split the batch");
  ElementwiseArguments p{};
  take(p.value, p.value_steps, value);
  take(p.other, p.other_steps, other);
  take(p.output, p.output_steps, output);
  p.channels = sizes[1];
  p.outer = int(outer);
  p.inner = last ? 1 : int(pixels);
  p.activation = Activation(activation);
  return p;
}

int elementwise_splits(const LaunchContext& context, const Sizes& sizes, bool last,
                       const Tensor<Steps>& value, const Tensor<Steps>& other,
                       const Tensor<Steps>& output) {
  const auto p = elementwise_arguments(sizes, last, value, other, output, 0);
  return elementwise_plan(p, last, chip_of(context)).splits;
}

// Floats of one channel that a pass sums in a split: three moments, two sums, one bias gradient.
constexpr int summed_rows(ElementwisePass pass) {
  return pass == ElementwisePass::moments ? 3 : pass == ElementwisePass::sum_gradients ? 2 : 1;
}

// The sums of a pass go to `merged`; `sums` is room for those of the splits, or null.
void elementwise_at(int number, const LaunchContext& context, const Sizes& sizes, bool last,
                    const Tensor<Steps>& value, const Tensor<Steps>& other,
                    const Tensor<Steps>& output, int activation, uintptr_t bias,
                    uintptr_t normalisation, uintptr_t gradient_sums, uintptr_t sums,
                    uintptr_t merged) {
  const ElementwisePass pass = ElementwisePass(number);
  ElementwiseArguments p = elementwise_arguments(sizes, last, value, other, output, activation);
  p.bias = floats(bias);
  p.normalisation = normalisation_of(normalisation, sizes);
  p.gradient_sums = floats(gradient_sums);
  p.sums = floats(sums);
  const ElementwisePlan plan = elementwise_plan(p, last, chip_of(context));
  const cudaStream_t stream = stream_of(context);
  use_device(context);
  cudaError_t status = launch_elementwise(pass, p, type_of(context), last, plan, stream);
  if (status == cudaSuccess && p.sums)
    status = pass == ElementwisePass::moments
                 ? launch_merge_moments(p.sums, plan.splits, p.channels, floats(merged), stream)
                 : launch_add_splits(floats(merged), p.sums, plan.splits,
                                     ptrdiff_t(p.channels) * summed_rows(pass), stream);
  static constexpr const char* names[] = {"statistics", "normalisation", "gradient sums",
                                          "gradient of the activation"};
  check(status, names[number], shape_of(sizes));
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

// ---- layouts -------------------------------------------------------------------------------------

// Copies an image from channels last to planes, or back.
void copy_layout_at(const LaunchContext& context, const Sizes& sizes, bool to_planes,
                    const Tensor<PixelStrides>& pixels, const Tensor<Strides>& planes) {
  LayoutCopy copy{};
  take(copy.pixels, copy.pixel_strides, pixels);
  take(copy.planes, copy.plane_strides, planes);
  copy.shape = shape_of(sizes);
  if (int64_t(copy.shape.height) * copy.shape.width > INT32_MAX)
    refuse(copy.shape, "pixels in a plane than fit 32 bits");
  use_device(context);
  check(launch_layout_copy(copy, to_planes, stream_of(context)), "copy to another layout",
        copy.shape);
}

}  // namespace

// ---- conversion ----------------------------------------------------------------------------------

// The casters of pybind11/stl.h go through the protocol of sequences, which takes three times as long.
namespace pybind11::detail {

template <class Integer, size_t N>
struct type_caster<Integers<Integer, N>> {
  using Tuple = Integers<Integer, N>;
  PYBIND11_TYPE_CASTER(Tuple, const_name("tuple"));

  bool load(handle source, bool convert) {
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != N) return false;
    make_caster<Integer> integer;
    for (size_t i = 0; i < N; i++) {
      if (!integer.load(PyTuple_GET_ITEM(source.ptr(), i), convert)) return false;
      value[i] = integer;
    }
    return true;
  }
};

template <class AnyStrides>
struct type_caster<Tensor<AnyStrides>> {
  PYBIND11_TYPE_CASTER(Tensor<AnyStrides>, const_name("tuple"));

  bool load(handle source, bool convert) {
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 2) return false;
    make_caster<uintptr_t> address;
    make_caster<decltype(value.strides)> strides;
    if (!address.load(PyTuple_GET_ITEM(source.ptr(), 0), convert) ||
        !strides.load(PyTuple_GET_ITEM(source.ptr(), 1), convert))
      return false;
    value = {address, strides};
    return true;
  }
};

}  // namespace pybind11::detail

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
  extension.def("weight_gradient_splits", &weight_gradient_splits<Strides>);
  extension.def("weight_gradient_splits_channels_last", &weight_gradient_splits<PixelStrides>);
  extension.def("weight_gradient", &weight_gradient_at<Strides>, without_gil);
  extension.def("weight_gradient_channels_last", &weight_gradient_at<PixelStrides>, without_gil);

  extension.def("forward_large", &forward_large_at, without_gil);
  extension.def("weight_gradient_large_splits", &weight_gradient_large_splits);
  extension.def("weight_gradient_large", &weight_gradient_large_at, without_gil);
  extension.def("fused_forward", &fused_forward_at<Strides>, without_gil);
  extension.def("fused_forward_channels_last", &fused_forward_at<PixelStrides>, without_gil);
  extension.def("whole_plane_splits", &splits_of_whole_planes);
  extension.def("whole_planes",
                [](int height, int width) { return whole_planes({1, 1, height, width}); });
  extension.def("moments_forward", &moments_forward_at, without_gil);
  extension.def("backward_gives_weight_gradient",
                [](int filter_size) { return backward_with_weight(odd_size(filter_size)); });
  extension.def("backward", &backward_at, without_gil);
  extension.def("elementwise_pass_splits", &elementwise_splits);
  extension.def("elementwise_pass", &elementwise_at, without_gil);
  extension.def("normalisation", &normalisation_at, without_gil);
  extension.def("copy_layout", &copy_layout_at, without_gil);
}
