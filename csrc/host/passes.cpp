#include "host/passes.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "host/launch.h"

namespace depthwise {
namespace {

// ---- errors --------------------------------------------------------------------------------------

// Makes a device the current one: the extension brings its own CUDA runtime, which does not know
// PyTorch's.
void use_device(const Target& target) {
  const cudaError_t status = cudaSetDevice(target.device);
  if (status != cudaSuccess)
    throw std::runtime_error("cannot use CUDA device " + std::to_string(target.device) + ": " +
                             cudaGetErrorString(status));
}

std::ostream& operator<<(std::ostream& text, const Shape& shape) {
  return text << shape.images << "x" << shape.channels << "x" << shape.height << "x" << shape.width;
}

template <class Arguments>
constexpr bool channels_last = requires(Arguments p) { p.input_strides.pixel; };

void check(cudaError_t status, const char* operation, const Shape& shape, int filter_size = 0,
           bool last = false) {
  if (status == cudaSuccess) return;
  std::ostringstream text;
  text << (last ? "channels-last " : "") << operation << " of " << shape;
  if (filter_size) text << " with kernel size " << filter_size;
  text << " could not be launched: " << cudaGetErrorString(status);
  throw std::runtime_error(text.str());
}

// ---- plans and kernels ---------------------------------------------------------------------------

Plan checked(const Plan& plan, const Shape& shape) {
  if (plan.tiling.items < 0) refuse(shape, "tiles in a channel than fit 32 bits");
  return plan;
}

template <class Arguments>
Plan plan_of(const Target& target, const Arguments& p, Pass pass) {
  if constexpr (channels_last<Arguments>)
    return checked(channels_last_plan(p.shape, p.filter_size, pass, target.chip), p.shape);
  else return checked(plan(p.shape, p.filter_size, pass, target.chip), p.shape);
}

template <class Arguments>
Plan large_plan_of(const Target& target, const Arguments& p, Pass pass) {
  if (!fits(p.filter)) throw std::invalid_argument("no kernel for a filter of this extent");
  return checked(large_plan(p.shape, p.filter, pass, target.chip), p.shape);
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

// ---- forward pass --------------------------------------------------------------------------------

// The tensor that is added, if there is one, has the output's strides and moves in the same pieces.
template <class Arguments>
cudaError_t launch_forward(const Target& target, const Plan& plan, const Arguments& p,
                           const void* added = nullptr) {
  const uintptr_t from = uintptr_t(p.input), to = uintptr_t(p.output) | uintptr_t(added);
  if constexpr (channels_last<Arguments>) {
    const auto& kernels =
        find<ChannelsLastForwardKernels>(p.filter_size, {target.type, plan.tile, plan.channels});
    return launch_by_sections(kernels, kernels.of(p), plan, target.stream, p,
                              in_units(from, p.shape.channels, p.input_strides),
                              in_units(to, p.shape.channels, p.output_strides));
  } else {
    const int input = alignment(from, p.shape.width, p.input_strides);
    const int output = alignment(to, p.shape.width, p.output_strides);
    const auto& kernels = find<ForwardKernels>(
        p.filter_size, {target.type, plan.tile, move_whole(p.shape, std::min(input, output))});
    if (kernels.of(p) == nullptr) return cudaErrorInvalidValue;
    return launch_by_channels(kernels, kernels.of(p), plan, target.stream, p, input, output);
  }
}

template <class Arguments>
void plain_forward(const Target& target, const Arguments& p) {
  const Plan plan = plan_of(target, p, Pass::forward);
  use_device(target);
  check(launch_forward(target, plan, p), p.flipped ? "input gradient" : "forward pass", p.shape,
        p.filter_size, channels_last<Arguments>);
}

template <class Arguments>
void fused_forward(const Target& target, const Arguments& p) {
  if (p.added &&
      (p.bias || p.normalisation.rows || p.residual || p.activation != Activation::identity))
    throw std::invalid_argument(
        "a tensor is added to a convolution alone: no bias, activation, normalisation or residual");
  const Plan plan = plan_of(target, p, Pass::forward);
  use_device(target);
  check(launch_forward(target, plan, p, p.added), "fused forward pass", p.shape, p.filter_size,
        channels_last<Arguments>);
}

// ---- gradients of the filter ---------------------------------------------------------------------

template <class AnyStrides>
int taps(const WeightGradientArgumentsOf<AnyStrides>& p) {
  return p.filter_size * p.filter_size;
}
int taps(const BackwardArguments& p) { return p.filter_size * p.filter_size; }
int taps(const LargeWeightGradientArguments& p) { return p.filter.taps(); }

template <class Arguments>
ptrdiff_t weights_of(const Arguments& p) {
  return ptrdiff_t(p.shape.channels) * taps(p);
}

// Parts of the images that are summed apart.
template <class Arguments>
int parts_of(const Plan& plan) {
  return channels_last<Arguments> ? plan.splits * sections(plan.tiling) : plan.splits;
}

template <class Arguments>
void set_targets(Arguments& p, const FilterGradient& to, int splits) {
  const bool several = splits > 1;
  p.weight_sums = to.rounded || (several && to.weight) ? to.workspace : to.weight;
  p.bias_sums = several && to.bias ? to.workspace + splits * weights_of(p) : to.bias;
}

template <class Arguments>
cudaError_t add_up(const Target& target, const Arguments& p, const FilterGradient& to, int splits) {
  const auto add = [&](auto* sums, const float* partial_sums, ptrdiff_t elements) {
    return launch_add_splits(sums, partial_sums, splits, elements, target.stream);
  };
  cudaError_t status = cudaSuccess;
  if (to.rounded && target.type == ElementType::half)
    status = add(static_cast<__half*>(to.rounded), p.weight_sums, weights_of(p));
  else if (to.rounded)
    status = add(static_cast<__nv_bfloat16*>(to.rounded), p.weight_sums, weights_of(p));
  else if (splits > 1 && to.weight) status = add(to.weight, p.weight_sums, weights_of(p));
  if (status == cudaSuccess && splits > 1 && to.bias)
    status = add(to.bias, p.bias_sums, p.shape.channels);
  return status;
}

template <class Arguments>
cudaError_t launch_weight_gradient(const Target& target, const Plan& plan, const Arguments& p) {
  const uintptr_t from = uintptr_t(p.input), other = uintptr_t(p.output_gradient);
  if constexpr (channels_last<Arguments>) {
    const auto& kernels = find<ChannelsLastWeightGradientKernels>(
        p.filter_size, {target.type, plan.tile, plan.channels});
    return launch_by_sections(kernels, kernels.kernel, plan, target.stream, p,
                              in_units(from, p.shape.channels, p.input_strides),
                              in_units(other, p.shape.channels, p.gradient_strides));
  } else {
    const int input = alignment(from, p.shape.width, p.input_strides);
    const int gradient = alignment(other, p.shape.width, p.gradient_strides);
    const auto& kernels = find<WeightGradientKernels>(
        p.filter_size, {target.type, plan.tile, move_whole(p.shape, std::min(input, gradient))});
    return launch_by_channels(kernels, kernels.kernel, plan, target.stream, p, input, gradient);
  }
}

template <class Arguments>
void square_weight_gradient(const Target& target, Arguments& p, const FilterGradient& to) {
  const Plan plan = plan_of(target, p, Pass::weight_gradient);
  const int splits = parts_of<Arguments>(plan);
  set_targets(p, to, splits);
  use_device(target);
  cudaError_t status = launch_weight_gradient(target, plan, p);
  if (status == cudaSuccess) status = add_up(target, p, to, splits);
  check(status, "weight gradient", p.shape, p.filter_size, channels_last<Arguments>);
}

}  // namespace

std::string refusal(int device) {
  cudaError_t status = cudaSetDevice(device);
  if (status == cudaSuccess) status = find_kernels();
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

void refuse(const Shape& shape, const std::string& has_more) {
  std::ostringstream text;
  text << "input of shape " << shape << " has more " << has_more;
  throw std::invalid_argument(text.str());
}

void forward(const Target& target, const ForwardArguments& p) { plain_forward(target, p); }
void forward(const Target& target, const ChannelsLastForwardArguments& p) {
  plain_forward(target, p);
}
void forward(const Target& target, const FusedForwardArguments& p) { fused_forward(target, p); }
void forward(const Target& target, const ChannelsLastFusedForwardArguments& p) {
  fused_forward(target, p);
}

void forward(const Target& target, const LargeForwardArguments& p) {
  const Plan plan = large_plan_of(target, p, Pass::forward);
  use_device(target);
  check(launch_forward_large(p, target.type, plan, target.stream),
        p.flipped ? "input gradient" : "forward pass", p.shape);
}

int splits(const Target& target, const MomentsForwardArguments& p) {
  return plan_of(target, p, Pass::forward).splits;
}

void forward(const Target& target, const MomentsForwardArguments& p, float* merged) {
  const Plan plan = plan_of(target, p, Pass::forward);
  use_device(target);
  cudaError_t status = launch_forward(target, plan, p);
  if (status == cudaSuccess)
    status = launch_merge_moments(p.moments, plan.splits, p.shape.channels, merged, target.stream);
  check(status, "forward pass with statistics", p.shape, p.filter_size);
}

int splits(const Target& target, const WeightGradientArguments& p) {
  return plan_of(target, p, Pass::weight_gradient).splits;
}
int splits(const Target& target, const ChannelsLastWeightGradientArguments& p) {
  return parts_of<ChannelsLastWeightGradientArguments>(plan_of(target, p, Pass::weight_gradient));
}
int splits(const Target& target, const LargeWeightGradientArguments& p) {
  return large_plan_of(target, p, Pass::weight_gradient).splits;
}
int splits(const Target& target, const BackwardArguments& p) {
  return plan_of(target, p, Pass::backward).splits;
}

void weight_gradient(const Target& target, WeightGradientArguments p, const FilterGradient& to) {
  square_weight_gradient(target, p, to);
}
void weight_gradient(const Target& target, ChannelsLastWeightGradientArguments p,
                     const FilterGradient& to) {
  square_weight_gradient(target, p, to);
}

void weight_gradient(const Target& target, LargeWeightGradientArguments p,
                     const FilterGradient& to) {
  const Plan plan = large_plan_of(target, p, Pass::weight_gradient);
  set_targets(p, to, plan.splits);
  use_device(target);
  cudaError_t status = launch_weight_gradient_large(p, target.type, plan, target.stream);
  if (status == cudaSuccess) status = add_up(target, p, to, plan.splits);
  check(status, "weight gradient", p.shape);
}

void backward(const Target& target, BackwardArguments p, const FilterGradient& to) {
  const Plan plan = plan_of(target, p, Pass::backward);
  set_targets(p, to, plan.splits);
  int least = 8;
  for (const auto& [data, strides] : {std::pair(p.input, p.input_strides),
                                      {p.value, p.value_strides},
                                      {p.output_gradient, p.output_gradient_strides},
                                      {p.input_gradient, p.input_gradient_strides},
                                      {p.value_gradient, p.value_gradient_strides}})
    if (data) least = std::min(least, alignment(uintptr_t(data), p.shape.width, strides));
  const bool with_weight = p.input != nullptr;
  use_device(target);
  cudaError_t status = cudaErrorInvalidValue;
  if (move_whole(p.shape, least) &&
      (!with_weight || backward_with_weight(odd_size(p.filter_size)))) {
    const auto& kernels =
        find<BackwardKernels>(p.filter_size, {target.type, plan.tile, with_weight});
    status = launch_by_channels(kernels, kernels.kernel, plan, target.stream, p);
  }
  if (status == cudaSuccess) status = add_up(target, p, to, plan.splits);
  check(status, "fused backward pass", p.shape, p.filter_size);
}

void set_sizes(ElementwiseArguments& p, const Shape& shape, bool channels_last) {
  const int64_t pixels = int64_t(shape.height) * shape.width;
  const int64_t outer = channels_last ? shape.images * pixels : shape.images;
  if (outer > most_outer || pixels > INT32_MAX)
    refuse(shape, "than " + std::to_string(most_outer) + " pixels; split the batch");
  p.channels = shape.channels;
  p.outer = int(outer);
  p.inner = channels_last ? 1 : int(pixels);
}

int splits(const Target& target, const ElementwiseArguments& p, bool channels_last) {
  return elementwise_plan(p, channels_last, target.chip).splits;
}

void elementwise(const Target& target, ElementwisePass pass, const ElementwiseArguments& p,
                 bool channels_last, float* merged, const Shape& shape) {
  const ElementwisePlan plan = elementwise_plan(p, channels_last, target.chip);
  use_device(target);
  cudaError_t status = launch_elementwise(pass, p, target.type, channels_last, plan, target.stream);
  if (status == cudaSuccess && p.sums)
    status = pass == ElementwisePass::moments
                 ? launch_merge_moments(p.sums, plan.splits, p.channels, merged, target.stream)
                 : launch_add_splits(merged, p.sums, plan.splits,
                                     ptrdiff_t(p.channels) * summed_rows(pass), target.stream);
  static constexpr const char* names[] = {"statistics", "normalisation", "gradient sums",
                                          "gradient of the activation"};
  check(status, names[int(pass)], shape);
}

void normalisation(const Target& target, const NormalisationArguments& p) {
  use_device(target);
  check(launch_normalisation(p, target.stream), "normalisation", {1, p.channels, 1, 1});
}

void affine_gradients(const Target& target, const float* gradient_sums,
                      const Normalisation& normalisation, float* gamma, float* beta) {
  use_device(target);
  check(launch_affine_gradients(gradient_sums, normalisation, gamma, beta, target.stream),
        "gradients of scale and shift", {1, int(normalisation.channels), 1, 1});
}

void copy_layout(const Target& target, const LayoutCopy& copy, bool to_planes) {
  if (int64_t(copy.shape.height) * copy.shape.width > INT32_MAX)
    refuse(copy.shape, "pixels in a plane than fit 32 bits");
  use_device(target);
  check(launch_layout_copy(copy, to_planes, target.stream), "copy to another layout", copy.shape);
}

}  // namespace depthwise
