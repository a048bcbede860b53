// Times the kernels of k = 9 by the number of splits, beside the number that the planner chooses. Prints one
// line of JSON for each.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "kernels/forward.cu"
#include "kernels/forward_channels_last.cu"
#include "kernels/weight_gradient.cu"
#include "kernels/weight_gradient_channels_last.cu"
#include "measuring.cuh"

namespace {

using namespace depthwise;

constexpr int size = 9, rounds = 5;
constexpr size_t elements = size_t(1) << 26;  // of each tensor that calls walk through

struct Tensors {
  __half *input = random_tensor(elements, 1), *other = random_tensor(elements, 2);
  __half* weight = random_tensor(size_t(1536) * size * size, 3);
  float* sums = nullptr;
  Tensors() { CHECK(cudaMalloc(&sums, size_t(1) << 30)); }
};

// Median microseconds of `call(offset)` in elements of the tensors; calls walk through these, so that none
// finds its own in the cache.
template <class Call>
double microseconds(size_t step, Call call) {
  const size_t places = elements / step;
  const int calls = int(std::clamp<size_t>(places, 4, 10));
  return median_microseconds(rounds, calls,
                             [&](int number) { call(size_t(number) % places * step); });
}

// Numbers about a quarter apart, and that of the planner.
std::vector<int> candidates(int planned, int most) {
  std::vector<int> found{planned};
  for (int splits = 1; splits <= most && splits <= 64; splits += std::max(1, splits / 4))
    if (splits != planned) found.push_back(splits);
  return found;
}

void report(const char* pass, const char* layout, const Shape& shape, int splits, bool planned,
            double took) {
  std::printf(
      "{\"name\": \"splits\", \"pass\": \"%s\", \"layout\": \"%s\", \"images\": %d, "
      "\"channels\": %d, \"plane\": %d, \"splits\": %d, \"planned\": %s, \"microseconds\": %.1f}\n",
      pass, layout, shape.images, shape.channels, shape.width, splits, planned ? "true" : "false",
      took);
}

// Calls time(plan) for every candidate.
template <class Time>
void sweep(const char* pass, const char* layout, const Shape& shape, Plan plan, int most,
           Time time) {
  const int planned = plan.splits;
  for (const int splits : candidates(planned, most)) {
    plan.splits = splits;
    report(pass, layout, shape, splits, splits == planned, time(plan));
  }
}

// The kernels for a plan in float16. All planes that are measured here move in pieces of 16 bytes if they are
// whole.
template <class Kernels>
const Kernels& kernels_for(const Plan& plan, int option) {
  static const KernelTable<Kernels> table = [] {
    KernelTable<Kernels> all;
    add_kernels<size>(all);
    return all;
  }();
  return *table.find({ElementType::half, plan.tile, option});
}

template <class Arguments, class AnyStrides>
Arguments arguments(const Shape& shape, AnyStrides strides) {
  Arguments p{};
  p.shape = shape;
  p.filter_size = size;
  p.input_strides = strides;
  if constexpr (requires { p.output_strides; }) p.output_strides = strides;
  else p.gradient_strides = strides;
  return p;
}

template <class Arguments, class AnyStrides, class Launch>
void forward(const Tensors& tensors, const char* layout, const Shape& shape, AnyStrides strides,
             const Plan& plan, int most, Launch launch) {
  auto p = arguments<Arguments>(shape, strides);
  p.weight = tensors.weight;
  const size_t step = size_t(shape.images) * shape.channels * shape.height * shape.width;
  sweep("forward", layout, shape, plan, most, [&](const Plan& chosen) {
    return microseconds(step, [&](size_t offset) {
      p.input = tensors.input + offset;
      p.output = tensors.other + offset;
      CHECK(launch(p, chosen));
    });
  });
}

template <class Arguments, class AnyStrides, class Launch>
void weight_gradient(const Tensors& tensors, const char* layout, const Shape& shape,
                     AnyStrides strides, const Plan& plan, int most, int parts, Launch launch) {
  auto p = arguments<Arguments>(shape, strides);
  p.weight_sums = tensors.sums;
  const size_t step = size_t(shape.images) * shape.channels * shape.height * shape.width;
  const ptrdiff_t weights = ptrdiff_t(shape.channels) * size * size;
  float* const result = tensors.sums + (size_t(1) << 27);
  sweep("weight gradient", layout, shape, plan, most, [&](const Plan& chosen) {
    return microseconds(step, [&](size_t offset) {
      p.input = tensors.input + offset;
      p.output_gradient = tensors.other + offset;
      CHECK(launch(p, chosen));
      if (chosen.splits * parts > 1)
        CHECK(launch_add_splits(result, p.weight_sums, chosen.splits * parts, weights,
                                cudaStream_t(0)));
    });
  });
}

void all_passes(const Tensors& tensors, const Chip& chip, int images, int channels, int plane) {
  const Shape shape{images, channels, plane, plane};
  const ptrdiff_t pixels = ptrdiff_t(plane) * plane;
  const Strides planar{channels * pixels, pixels};
  const int aligned = alignment(0, plane, planar);
  const bool whole = move_whole(shape, aligned);
  const cudaStream_t stream(0);

  const Plan chosen = plan(shape, size, Pass::forward, chip);
  const auto& planes = kernels_for<ForwardKernels>(chosen, whole);
  forward<ForwardArguments>(tensors, "contiguous", shape, planar, chosen, chosen.tiling.items,
                            [&](const auto& p, const Plan& with) {
                              return launch_by_channels(planes, planes.plain, with, stream, p,
                                                        aligned, aligned);
                            });
  const Plan summed = plan(shape, size, Pass::weight_gradient, chip);
  const auto& sums = kernels_for<WeightGradientKernels>(summed, whole);
  weight_gradient<WeightGradientArguments>(
      tensors, "contiguous", shape, planar, summed, summed.tiling.items, 1,
      [&](const auto& p, const Plan& with) {
        return launch_by_channels(sums, sums.kernel, with, stream, p, aligned, aligned);
      });

  // Channels are multiples of 8.
  const PixelStrides last{channels * pixels, ptrdiff_t(channels) * plane, channels};
  const Plan blocks = channels_last_plan(shape, size, Pass::forward, chip);
  const auto& pixel_blocks = kernels_for<ChannelsLastForwardKernels>(blocks, blocks.channels);
  forward<ChannelsLastForwardArguments>(
      tensors, "channels_last", shape, last, blocks, blocks.tiling.items / sections(blocks.tiling),
      [&](const auto& p, const Plan& with) {
        return launch_by_sections(pixel_blocks, pixel_blocks.plain, with, stream, p, true, true);
      });
  const Plan parted = channels_last_plan(shape, size, Pass::weight_gradient, chip);
  const int parts = sections(parted.tiling);
  const auto& pixel_sums = kernels_for<ChannelsLastWeightGradientKernels>(parted, parted.channels);
  weight_gradient<ChannelsLastWeightGradientArguments>(
      tensors, "channels_last", shape, last, parted, parted.tiling.items / parts, parts,
      [&](const auto& p, const Plan& with) {
        return launch_by_sections(pixel_sums, pixel_sums.kernel, with, stream, p, true, true);
      });
}

}  // namespace

int main() {
  int shared = 0, major = 0, minor = 0;
  CHECK(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  const Chip chip{multiprocessors(), shared, 10 * major + minor};
  const Tensors tensors;
  for (const int plane : {7, 8, 14, 16, 28}) all_passes(tensors, chip, 64, 768, plane);
  all_passes(tensors, chip, 64, 384, 32);
  all_passes(tensors, chip, 64, 96, 56);
  all_passes(tensors, chip, 64, 192, 28);
  all_passes(tensors, chip, 8, 768, 32);
  all_passes(tensors, chip, 1, 768, 32);
  return 0;
}
