#include "../launch.cuh"

template cudaError_t depthwise::launch_weight_gradient<11>(const WeightGradientArguments&, Type,
                                                           const Plan&, cudaStream_t);
