// What the address and the thread sanitizer have to be told; nothing in a plain build.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

namespace emulation {

#ifdef __SANITIZE_ADDRESS__
constexpr bool address_sanitizer = true;
#else
constexpr bool address_sanitizer = false;
#endif
#ifdef __SANITIZE_THREAD__
constexpr bool thread_sanitizer = true;
#else
constexpr bool thread_sanitizer = false;
#endif

// While one of these lives, the thread sanitizer takes no notice of what its CUDA thread reads and
// writes: the state of the emulation is not the kernel's.
struct Quiet {
#ifdef __SANITIZE_THREAD__
  Quiet() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  ~Quiet() { AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0); }
#else
  Quiet() {}
#endif
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};

// For the thread sanitizer, what a CUDA thread did before release_order(key) comes before what
// another does after acquire_order(key). Nothing else orders CUDA threads.
inline void release_order([[maybe_unused]] void* key) {
#ifdef __SANITIZE_THREAD__
  __tsan_release(key);
#endif
}
inline void acquire_order([[maybe_unused]] void* key) {
#ifdef __SANITIZE_THREAD__
  __tsan_acquire(key);
#endif
}

inline void poison([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(at, bytes);
#endif
}
inline void unpoison([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(at, bytes);
#endif
}

// Has the address sanitizer report poisoned memory now, where an access is asked for, rather than
// later where it takes place.
inline void require_addressable([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  if (void* const bad = __asan_region_is_poisoned(const_cast<void*>(at), bytes))
    (void)*static_cast<const volatile char*>(bad);
#endif
}

// Pages of memory.
class Pages {
 public:
  Pages() = default;
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { release(); }

  // Holds at least so many bytes from here on; what they held may be lost.
  void reserve(size_t bytes) {
    if (bytes <= bytes_) return;
    release();
    void* const pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    start_ = static_cast<char*>(pages);
    bytes_ = bytes;
  }

  // Makes the thread sanitizer forget who has used this memory, and in which order.
  void forget() {
    if (!thread_sanitizer) return;
    const size_t bytes = bytes_;
    release();
    reserve(bytes);
  }

  char* start() const { return start_; }

 private:
  void release() {
    if (!start_) return;
    unpoison(start_, bytes_);
    munmap(start_, bytes_);
    start_ = nullptr, bytes_ = 0;
  }

  char* start_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace emulation
