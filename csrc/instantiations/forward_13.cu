#include "../launch.cuh"

template cudaError_t depthwise::launch_forward<13>(const ForwardArguments&, Type, const Plan&,
                                                   cudaStream_t);
