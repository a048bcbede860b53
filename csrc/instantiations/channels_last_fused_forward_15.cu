#include "../launch_fused_channels_last.cuh"

template cudaError_t depthwise::launch_fused_forward_channels_last<15>(
    const ChannelsLastFusedForwardArguments&, Type, const Plan&, cudaStream_t);
