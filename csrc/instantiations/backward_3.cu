#include "../launch_fused.cuh"

template cudaError_t depthwise::launch_backward<3>(const BackwardArguments&, Type, const Plan&,
                                                   cudaStream_t);
