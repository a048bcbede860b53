// Copies of images between channels last and planes.
#pragma once
#include <cuda_runtime_api.h>

#include "arguments.h"

namespace depthwise {

// An image of 16-bit elements in both layouts: the one that is read and the one that is written.
struct LayoutCopy {
  void* pixels;
  void* planes;
  Shape shape;
  PixelStrides pixel_strides;
  Strides plane_strides;
};

// Planes have at most INT32_MAX pixels; there is an image, a channel and a pixel.
cudaError_t launch_layout_copy(const LayoutCopy&, bool to_planes, cudaStream_t);

}  // namespace depthwise
