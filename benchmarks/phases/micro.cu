// Small measurements behind choices of the planner. Prints one line of JSON for each:
//   mma      clocks of a multiprocessor's quarter for each mma.sync, m16n8k8 and m16n8k16;
//   copy     a copy through shared memory by cp.async, by stages of 2 KB a warp and warps;
//   bulk copy  the same by cp.async.bulk in both directions;
//   forward  the kernel of k = 9 and 15, by warps of a multiprocessor and splits of a channel's items;
//   channels_last  the kernel of k = 9 and 15, by channels of a block and splits.
// A program that is compiled from altered headers times their choice with the same code.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/forward.cu"
#include "kernels/forward_channels_last.cu"
#include "measuring.cuh"

namespace {

using namespace depthwise;

constexpr int images = 64, channels = 1536, plane = 32;
constexpr size_t elements = size_t(images) * channels * plane * plane;
constexpr int buffers = 3, rounds = 21, calls = 4;

// Tensors that calls rotate through, so that none finds its own in the cache.
struct Tensors {
  __half *input[buffers], *output[buffers], *weight;
  Tensors() {
    for (int i = 0; i < buffers; ++i) {
      input[i] = random_tensor(elements, unsigned(i + 1));
      output[i] = random_tensor(elements, 0);
    }
    weight = random_tensor(size_t(channels) * 15 * 15, 99);
  }
};

// Median microseconds of `call(i)` with the number of the buffer to use.
template <class Call>
double microseconds(Call call) {
  return median_microseconds(rounds, calls, [&](int number) { call(number % buffers); });
}

template <int Chunks, int Chains>
__global__ void multiply_only(float* out, long long* clocks, int turns) {
  float sums[Chains][4] = {};
  const uint32_t a[4] = {threadIdx.x, threadIdx.x * 3, 5, 7}, b[2] = {threadIdx.x, 9};
  __syncthreads();
  const long long begin = clock64();
  for (int turn = 0; turn < turns; ++turn)
#pragma unroll
    for (int chain = 0; chain < Chains; ++chain)
      device::mma<__half, Chunks>(sums[chain], a, b, sums[chain]);
  __syncthreads();
  const long long took = clock64() - begin;
  float sum = 0;
  for (int chain = 0; chain < Chains; ++chain) sum += sums[chain][0] + sums[chain][3];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  if (threadIdx.x == 0) clocks[blockIdx.x] = took;
}

// One chain gives the latency, several in several warps the rate.
template <int Chunks, int Chains>
void mma(int warps) {
  constexpr int turns = 2000;
  const int blocks = multiprocessors();
  float* out = nullptr;
  long long* clocks = nullptr;
  CHECK(cudaMalloc(&out, sizeof(float) * size_t(blocks) * 32 * size_t(warps)));
  CHECK(cudaMalloc(&clocks, sizeof(long long) * size_t(blocks)));
  for (int round = 0; round < 2; ++round)
    multiply_only<Chunks, Chains><<<unsigned(blocks), unsigned(32 * warps)>>>(out, clocks, turns);
  std::vector<long long> took(size_t(blocks), 0);
  CHECK(cudaMemcpy(took.data(), clocks, sizeof(long long) * took.size(), cudaMemcpyDeviceToHost));
  std::sort(took.begin(), took.end());
  const double each = double(took[took.size() / 2]) / (double(turns) * Chains * warps / 4);
  std::printf("{\"name\": \"mma\", \"k\": %d, \"chains\": %d, \"warps\": %d, \"clocks\": %.2f}\n",
              8 * Chunks, Chains, warps, each);
  CHECK(cudaFree(out));
  CHECK(cudaFree(clocks));
}

// Every warp copies planes of 2 KB by way of its own stages.
template <int Stages>
__global__ void copy_staged(const uint4* from, uint4* to, int planes) {
  constexpr int per_plane = plane * plane * 2 / 16;
  device::SharedMemory memory;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int all = int(gridDim.x * blockDim.x) / 32;
  const int own = int(blockIdx.x * blockDim.x) / 32 + warp;
  uint4* const stages =
      memory.take<uint4>(size_t(blockDim.x / 32) * Stages * per_plane) + warp * Stages * per_plane;
  const auto fetch = [&](int number) {
    const ptrdiff_t at = (own + ptrdiff_t(number) * all) * per_plane;
    if (own + ptrdiff_t(number) * all < planes)
      for (int i = lane; i < per_plane; i += 32)
        device::copy_async<16>(stages + number % Stages * per_plane + i, from + at + i, true);
    device::copy_commit();
  };
  for (int number = 0; number < Stages - 1; ++number) fetch(number);
  for (int number = 0; own + ptrdiff_t(number) * all < planes; ++number) {
    fetch(number + Stages - 1);
    device::copy_wait<Stages - 1>();
    __syncwarp();
    const ptrdiff_t at = (own + ptrdiff_t(number) * all) * per_plane;
    for (int i = lane; i < per_plane; i += 32) to[at + i] = stages[number % Stages * per_plane + i];
    __syncwarp();
  }
}

template <int Stages>
void copy(const Tensors& tensors, int blocks_resident) {
  constexpr unsigned threads = 128;
  const size_t needed = size_t(threads / 32) * Stages * plane * plane * 2;
  const dim3 grid(unsigned(multiprocessors() * blocks_resident));
  const double took = microseconds([&](int i) {
    CHECK(device::launch(copy_staged<Stages>, grid, threads, needed, cudaStream_t(0),
                         reinterpret_cast<const uint4*>(tensors.input[i]),
                         reinterpret_cast<uint4*>(tensors.output[i]), images * channels));
  });
  std::printf("{\"name\": \"copy\", \"stages\": %d, \"warps\": %d, \"microseconds\": %.1f}\n",
              Stages, int(threads / 32) * blocks_resident, took);
}

// Every warp copies planes of 2 KB by bulk copies, which one of its lanes starts: section "Data Movement and
// Conversion Instructions: Bulk copy" of the PTX ISA.
template <int Stages>
__global__ void copy_in_bulk(const uint4* from, uint4* to, int planes) {
#if __CUDA_ARCH__ >= 900
  constexpr unsigned plane_bytes = plane * plane * 2;
  device::SharedMemory memory;
  const int warp = int(threadIdx.x) / 32;
  char* const stages = memory.take<char>(size_t(blockDim.x / 32) * Stages * plane_bytes) +
                       size_t(warp) * Stages * plane_bytes;
  uint64_t* const arrived = memory.take<uint64_t>(size_t(blockDim.x / 32) * Stages) + warp * Stages;
  if (threadIdx.x % 32 != 0) return;
  const int all = int(gridDim.x * blockDim.x) / 32;
  const int own = int(blockIdx.x * blockDim.x) / 32 + warp;
  const auto shared = [](const void* at) { return unsigned(__cvta_generic_to_shared(at)); };
  for (int stage = 0; stage < Stages; ++stage)
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared(arrived + stage)));
  asm volatile("fence.proxy.async;" ::: "memory");
  const auto offset = [&](int number) { return (own + size_t(number) * all) * plane_bytes; };
  const auto exists = [&](int number) { return own + int64_t(number) * all < planes; };
  const auto fetch = [&](int number) {
    if (!exists(number)) return;
    const unsigned barrier = shared(arrived + number % Stages);
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier),
                 "r"(plane_bytes)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared(stages + number % Stages * plane_bytes)),
        "l"(reinterpret_cast<const char*>(from) + offset(number)), "r"(plane_bytes), "r"(barrier)
        : "memory");
  };
  for (int number = 0; number < Stages - 1; ++number) fetch(number);
  for (int number = 0; exists(number); ++number) {
    // The stage of the next copy is free when all writes but the latest have read theirs.
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    fetch(number + Stages - 1);
    asm volatile(
        "{.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;}" ::"r"(shared(arrived + number % Stages)),
        "r"(number / Stages % 2)
        : "memory");
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                     reinterpret_cast<char*>(to) + offset(number)),
                 "r"(shared(stages + number % Stages * plane_bytes)), "r"(plane_bytes)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  }
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}

template <int Stages>
void bulk_copy(const Tensors& tensors, int blocks_resident) {
  int major = 0;
  CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  if (major < 9) return;
  constexpr unsigned threads = 128;
  // Barriers lie in dynamic shared memory as well: with any static one `allow_shared_memory` fails.
  const size_t stages = size_t(threads / 32) * Stages;
  const size_t needed = device::SharedMemory::bytes<char>(stages * plane * plane * 2) +
                        device::SharedMemory::bytes<uint64_t>(stages);
  const dim3 grid(unsigned(multiprocessors() * blocks_resident));
  CHECK(device::allow_shared_memory(reinterpret_cast<const void*>(copy_in_bulk<Stages>)));
  CHECK(cudaMemset(tensors.output[0], 0, 2 * elements));
  const double took = microseconds([&](int i) {
    CHECK(device::launch(copy_in_bulk<Stages>, grid, threads, needed, cudaStream_t(0),
                         reinterpret_cast<const uint4*>(tensors.input[i]),
                         reinterpret_cast<uint4*>(tensors.output[i]), images * channels));
  });
  std::vector<uint4> first(1 << 20), second(1 << 20);
  for (const auto& [host, on_gpu] :
       {std::pair(&first, tensors.input[0]), std::pair(&second, tensors.output[0])})
    CHECK(cudaMemcpy(host->data(), on_gpu + elements - 8 * host->size(), 16 * host->size(),
                     cudaMemcpyDeviceToHost));
  const bool right = std::memcmp(first.data(), second.data(), 16 * first.size()) == 0;
  std::printf(
      "{\"name\": \"bulk copy\", \"stages\": %d, \"warps\": %d, \"right\": %s, "
      "\"microseconds\": %.1f}\n",
      Stages, int(threads / 32) * blocks_resident, right ? "true" : "false", took);
}

Strides plane_strides() { return {ptrdiff_t(channels) * plane * plane, ptrdiff_t(plane) * plane}; }

// More shared memory than the kernel needs leaves room for fewer blocks.
template <int Size>
void forward(const Tensors& tensors, size_t spare_bytes, int splits) {
  using Block = ForwardBlock<Size, 2, 4>;
  const auto kernel = depthwise_forward<__half, Size, 2, 4, true>;
  const size_t bytes = Block::shared_bytes(most_warps, mma_rows) + spare_bytes;
  CHECK(device::allow_shared_memory(reinterpret_cast<const void*>(kernel)));
  int blocks = 0;
  CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, 32 * most_warps, bytes));
  ForwardArguments p{};
  p.weight = tensors.weight;
  p.shape = {images, channels, plane, plane};
  p.filter_size = Size;
  p.input_strides = p.output_strides = plane_strides();
  const Tiling tiling = whole_tiling(mma_rows, images);
  const dim3 grid(unsigned(channels / most_warps), unsigned(splits));
  const double took = microseconds([&](int i) {
    p.input = tensors.input[i];
    p.output = tensors.output[i];
    CHECK(device::launch(kernel, grid, unsigned(32 * most_warps), bytes, cudaStream_t(0), p, tiling,
                         8, 8));
  });
  std::printf(
      "{\"name\": \"forward\", \"kernel_size\": %d, \"warps\": %d, \"splits\": %d, "
      "\"microseconds\": %.1f}\n",
      Size, most_warps * blocks, splits, took);
}

template <int Size, int Channels>
void channels_last(const Tensors& tensors, int factor) {
  ChannelsLastForwardArguments p{};
  p.weight = tensors.weight;
  p.shape = {images, channels, plane, plane};
  p.filter_size = Size;
  p.input_strides = p.output_strides = {ptrdiff_t(plane) * plane * channels,
                                        ptrdiff_t(plane) * channels, ptrdiff_t(channels)};
  const Chip chip{multiprocessors(), 227 * 1024, 90};
  Plan chosen = channels_last_plan(p.shape, Size, Pass::forward, chip);
  chosen.splits = std::clamp(chosen.splits * factor / 2, 1, images);
  const auto block = channels_last_block<ChannelsLastForwardBlock<Size, 2, 4, Channels>>(
      {ElementType::half, {2, 4}, Channels});
  const double took = microseconds([&](int i) {
    p.input = tensors.input[i];
    p.output = tensors.output[i];
    CHECK(launch_by_sections(block, depthwise_forward_channels_last<__half, Size, 2, 4, Channels>,
                             chosen, cudaStream_t(0), p, true, true));
  });
  std::printf(
      "{\"name\": \"channels_last\", \"kernel_size\": %d, \"channels\": %d, \"splits\": %d, "
      "\"microseconds\": %.1f}\n",
      Size, Channels, chosen.splits, took);
}

}  // namespace

int main() {
  mma<2, 1>(4);
  mma<1, 1>(4);
  for (const int warps : {8, 16}) {
    mma<2, 8>(warps);
    mma<1, 8>(warps);
  }
  const Tensors tensors;
  for (const int blocks : {1, 2, 4}) {
    copy<2>(tensors, blocks);
    copy<3>(tensors, blocks);
    copy<4>(tensors, blocks);
    bulk_copy<3>(tensors, blocks);
    bulk_copy<6>(tensors, blocks);
  }
  for (const size_t spare : {size_t(0), size_t(36), size_t(76), size_t(180)})
    for (const int splits : {1, 2, 4, 8}) forward<9>(tensors, spare << 10, splits);
  for (const int splits : {1, 2, 4, 8}) forward<15>(tensors, 0, splits);
  for (const int factor : {1, 2, 4}) {  // halves of the planner's number
    channels_last<9, 16>(tensors, factor);
    channels_last<15, 16>(tensors, factor);
    channels_last<15, 8>(tensors, factor);
  }
  return 0;
}
