#include "../launch_channels_last.cuh"

template cudaError_t depthwise::launch_weight_gradient_channels_last<13>(
    const ChannelsLastWeightGradientArguments&, Type, const Plan&, cudaStream_t);
