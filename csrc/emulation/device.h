// The functions of ../device.h, on the CPU. Each takes the place it was called from besides.
#pragma once
#include "cuda_names.h"
#include "launch.h"
#include "matrices.h"

namespace emulation {
// Subnormals count as zero of the same sign.
inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }
}  // namespace emulation

namespace device {

using emulation::Place;

template <class T, int Chunks>
inline void mma(float (&d)[4], const uint32_t* a, const uint32_t* b, const float (&c)[4],
                Place place = Place::current()) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  static_assert(Chunks == 1 || Chunks == 2);
  emulation::mma<T, Chunks>(d, a, b, c, place);
}

template <bool Transposed>
inline void load_matrices(uint32_t (&r)[4], const void* row, Place place = Place::current()) {
  emulation::load_matrices<4, Transposed>(r, row, place);
}
template <bool Transposed>
inline void load_matrices(uint32_t (&r)[2], const void* row, Place place = Place::current()) {
  emulation::load_matrices<2, Transposed>(r, row, place);
}

inline void store_shared(void* to, uint4 value, Place place = Place::current()) {
  emulation::require_shared("st.shared.v4", place, to, sizeof(value));
  memcpy(to, &value, sizeof(value));
}
inline void store_shared(void* to, uint2 value, Place place = Place::current()) {
  emulation::require_shared("st.shared.v2", place, to, sizeof(value));
  memcpy(to, &value, sizeof(value));
}

template <int Bytes>
inline void copy_async(void* to, const void* from, bool present, Place place = Place::current()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  using namespace emulation;
  CopyQueue* queue;
  bool at_once;
  {
    const Quiet quiet;
    require_shared("cp.async", place, to, Bytes);
    // The source of a copy that only clears is not read, but must exist and be aligned too.
    require_aligned("cp.async", place, from, Bytes);
    require_addressable(to, Bytes);
    require_addressable(from, Bytes);
    ++counters.copies;
    if (present) counters.global_bytes_read += Bytes;
    const Copies when = block.settings.copies;
    at_once = when == Copies::early || (when == Copies::random && draw(2));
    queue = &block.running->copies;
  }
  queue->start(to, present ? from : nullptr, Bytes, at_once);
}
inline void copy_commit() { emulation::block.running->copies.commit(); }
template <int MayRemain>
inline void copy_wait() {
  emulation::block.running->copies.wait(MayRemain);
}

template <class T>
inline T load_global(const T* from, Place place = Place::current()) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  emulation::require_aligned("ld.global", place, from, sizeof(T));
  {
    const emulation::Quiet quiet;
    emulation::counters.global_bytes_read += sizeof(T);
  }
  T value;
  memcpy(&value, from, sizeof(T));
  return value;
}
template <class T>
inline void store_global(T* to, T value, Place place = Place::current()) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  emulation::require_aligned("st.global", place, to, sizeof(T));
  {
    const emulation::Quiet quiet;
    emulation::counters.global_bytes_written += sizeof(T);
  }
  memcpy(to, &value, sizeof(T));
}

inline float exp2(float x) { return emulation::flush(std::exp2(emulation::flush(x))); }
inline float maximum(float x, float y) {
  return std::isnan(x) || std::isnan(y) ? std::nanf("") : std::fmax(x, y);
}
inline int opaque(int x) { return x; }
inline float reciprocal(float x) { return emulation::flush(1.f / emulation::flush(x)); }

class SharedMemory {
 public:
  template <class T>
  static constexpr size_t bytes(size_t count) {
    return emulation::rounded_up(count * sizeof(T));
  }

  template <class T>
  T* take(size_t count, Place place = Place::current()) {
    void* const array = emulation::take_array(taken_++, used_, count * sizeof(T), place);
    used_ += bytes<T>(count);
    return static_cast<T*>(array);
  }

 private:
  size_t used_ = 0;
  unsigned taken_ = 0;
};

template <class... Parameters>
cudaError_t find_code(void (*)(Parameters...)) {
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t, std::type_identity_t<Parameters>... arguments) {
  const auto body = [&] { kernel(arguments...); };
  return emulation::launch(
      grid, block, shared_bytes,
      [](const void* body_of_kernel) { (*static_cast<const decltype(body)*>(body_of_kernel))(); },
      &body);
}

}  // namespace device
