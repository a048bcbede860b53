#include "../launch.cuh"

template cudaError_t depthwise::launch_weight_gradient<15>(const WeightGradientArguments&, Type,
                                                           const Plan&, cudaStream_t);
