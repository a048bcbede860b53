// The launchers of launch_fused.h for planes; as launch.cuh.
#pragma once
#include "host/launch.cuh"
#include "host/launch_fused.h"
#include "kernels/backward.cuh"

namespace depthwise {

template <int Size>
cudaError_t launch_fused_forward(const FusedForwardArguments& p, Type type, const Plan& plan,
                                 cudaStream_t stream) {
  const int width = p.shape.width;
  const int input = alignment(uintptr_t(p.input), width, p.input_strides);
  // What is added has the output's strides, and moves in the same pieces.
  const int output = alignment(uintptr_t(p.output) | uintptr_t(p.added), width, p.output_strides);
  const bool whole = move_whole(p.shape, input, output);
  return with_tile(type, plan.tile, whole, [&](auto element, auto step, auto tiles, auto is_whole) {
    using T = decltype(element);
    constexpr int Step = decltype(step)::value, Tiles = decltype(tiles)::value;
    constexpr bool Whole = decltype(is_whole)::value;
    return launch_by_channels<ForwardLayout<Size, Step, Tiles>, T>(
        depthwise_forward_fused<T, Size, Step, Tiles, Whole>, plan, stream, p, input, output);
  });
}

// Calls `launch` as with_tile does, for whole planes only.
template <class Launch>
cudaError_t with_whole_tile(Type type, const Shape& shape, TileShape tile, int alignment,
                            Launch launch) {
  if (!move_whole(shape, alignment, alignment)) return cudaErrorInvalidValue;
  return with_tile(type, tile, true, [&](auto element, auto step, auto tiles, auto is_whole) {
    if constexpr (decltype(is_whole)::value) return launch(element, step, tiles);
    else return cudaErrorInvalidValue;
  });
}

template <int Size>
cudaError_t launch_moments_forward(const MomentsForwardArguments& p, Type type, const Plan& plan,
                                   cudaStream_t stream) {
  const int width = p.shape.width;
  const int input = alignment(uintptr_t(p.input), width, p.input_strides);
  const int output = alignment(uintptr_t(p.output), width, p.output_strides);
  return with_whole_tile(
      type, p.shape, plan.tile, input < output ? input : output,
      [&](auto element, auto step, auto tiles) {
        using T = decltype(element);
        constexpr int Step = decltype(step)::value, Tiles = decltype(tiles)::value;
        return launch_by_channels<ForwardLayout<Size, Step, Tiles>, T>(
            depthwise_forward_moments<T, Size, Step, Tiles>, plan, stream, p, input, output);
      });
}

template <int Size>
cudaError_t launch_backward(const BackwardArguments& p, Type type, const Plan& plan,
                            cudaStream_t stream) {
  const struct {
    const void* tensor;
    const Strides& strides;
  } tensors[] = {{p.input, p.input_strides},
                 {p.value, p.value_strides},
                 {p.output_gradient, p.output_gradient_strides},
                 {p.input_gradient, p.input_gradient_strides},
                 {p.value_gradient, p.value_gradient_strides}};
  int least = 8;
  for (const auto& each : tensors) {
    const int its = alignment(uintptr_t(each.tensor), p.shape.width, each.strides);
    if (each.tensor != nullptr && its < least) least = its;
  }
  const auto launch = [&](auto element, auto step, auto tiles, auto with_weight) {
    using T = decltype(element);
    constexpr int Step = decltype(step)::value, Tiles = decltype(tiles)::value;
    constexpr bool WithWeight = decltype(with_weight)::value;
    return launch_by_channels<BackwardLayout<Size, Step, Tiles, WithWeight>, T>(
        depthwise_backward<T, Size, Step, Tiles, WithWeight>, plan, stream, p);
  };
  return with_whole_tile(type, p.shape, plan.tile, least, [&](auto element, auto step, auto tiles) {
    if (p.input == nullptr) return launch(element, step, tiles, std::false_type());
    if constexpr (backward_with_weight(Size)) return launch(element, step, tiles, std::true_type());
    else return cudaErrorInvalidValue;
  });
}

}  // namespace depthwise
