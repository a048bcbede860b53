#include "../launch.cuh"

template cudaError_t depthwise::launch_forward<11>(const ForwardArguments&, Type, const Plan&,
                                                   cudaStream_t);
