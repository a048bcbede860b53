// The launchers of launch_fused.h for channels-last tensors.
#pragma once
#include "host/launch_channels_last.cuh"
#include "host/launch_fused.h"

namespace depthwise {

template <int Size>
cudaError_t launch_fused_forward_channels_last(const ChannelsLastFusedForwardArguments& p,
                                               Type type, const Plan& plan, cudaStream_t stream) {
  const int channels = p.shape.channels;
  const bool input = in_units(uintptr_t(p.input), channels, p.input_strides);
  const bool output =
      in_units(uintptr_t(p.output) | uintptr_t(p.added), channels, p.output_strides);
  const auto launch = [&](auto element, auto step, auto tiles) {
    using T = decltype(element);
    constexpr int Step = decltype(step)::value, Tiles = decltype(tiles)::value;
    return launch_by_sections<ChannelsLastForwardLayout<Size, Step, Tiles>, T>(
        depthwise_forward_fused_channels_last<T, Size, Step, Tiles>, plan, stream, p, input,
        output);
  };
  return with_channels_last_tile<Size, Pass::forward>(type, plan.tile, launch);
}

}  // namespace depthwise
