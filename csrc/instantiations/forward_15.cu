#include "../launch.cuh"

template cudaError_t depthwise::launch_forward<15>(const ForwardArguments&, Type, const Plan&,
                                                   cudaStream_t);
