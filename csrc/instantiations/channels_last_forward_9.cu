#include "../launch_channels_last.cuh"

template cudaError_t depthwise::launch_forward_channels_last<9>(const ChannelsLastForwardArguments&,
                                                                Type, const Plan&, cudaStream_t);
