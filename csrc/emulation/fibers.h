// Fibers: functions that run on a stack of their own and hand over to each other.
#pragma once
#include <cstdint>

#include "sanitizers.h"

// x86-64 switches stacks in a dozen instructions; elsewhere ucontext does it, with a system call.
#if !defined(__x86_64__) && !defined(EMULATION_UCONTEXT)
#define EMULATION_UCONTEXT
#endif
#ifdef EMULATION_UCONTEXT
#include <ucontext.h>
#endif

namespace emulation {

class Fiber {
 public:
  // What the running stack belongs to: where the fibers are started from.
  void adopt_running_stack() {
    stack_ = nullptr;
#ifdef __SANITIZE_THREAD__
    thread_ = __tsan_get_current_fiber();
#endif
  }

  // Will run `entry`, which must never return, on the given stack once switched to. For the thread
  // sanitizer a fiber stays the same thread: whatever it ran before comes before.
  void prepare(void (*entry)(), char* stack, size_t bytes) {
    stack_ = stack, bytes_ = bytes, fake_stack_ = nullptr;
    unpoison(stack, bytes);
#ifdef __SANITIZE_THREAD__
    if (!thread_) thread_ = __tsan_create_fiber(0);
#endif
#ifdef EMULATION_UCONTEXT
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#else
    // As `continue_on` leaves a stack: six registers, the address to return to; above it the zero
    // that stands for entry's own return address and ends stack traces.
    uintptr_t* top = reinterpret_cast<uintptr_t*>(stack + bytes);
    *--top = 0;
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (int i = 0; i < 6; ++i) *--top = 0;
    top_ = top;
#endif
  }

  // To be called first thing on a new fiber's stack; `starter` is where the fibers are started
  // from.
  static void entered([[maybe_unused]] Fiber& starter) {
#ifdef __SANITIZE_ADDRESS__
    const void* stack = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
    if (!starter.stack_) starter.stack_ = stack, starter.bytes_ = bytes;  // only it is unknown
#endif
  }

  // Leaves the running fiber, this one, for another. Returns when something switches back, which
  // nothing may do if it was `for_good`.
  __attribute__((no_sanitize("thread"))) void switch_to(Fiber& other,
                                                        [[maybe_unused]] bool for_good = false) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, other.stack_, other.bytes_);
#endif
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(other.thread_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef EMULATION_UCONTEXT
    swapcontext(&context_, &other.context_);
#else
    continue_on(&top_, other.top_);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
  }

  // Forgets what the fiber was running; nothing of it is destroyed. It comes before what `starter`
  // goes on to do.
  __attribute__((no_sanitize("thread"))) void abandon([[maybe_unused]] Fiber& starter) {
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(thread_, __tsan_switch_to_fiber_no_sync);
    __tsan_switch_to_fiber(starter.thread_, 0);
    thread_ = nullptr;
#endif
  }

 private:
#ifdef EMULATION_UCONTEXT
  ucontext_t context_;
#else
  // Saves the registers a function must keep on the running stack, its place in *left, and takes
  // those of the stack `next` instead.
  __attribute__((naked, noinline)) static void continue_on(void** /*left*/, void* /*next*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n\t"
        "movq %rsp, (%rdi); movq %rsi, %rsp\n\t"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
  }
  void* top_ = nullptr;
#endif
  const void* stack_ = nullptr;
  size_t bytes_ = 0;
  [[maybe_unused]] void* fake_stack_ = nullptr;
  [[maybe_unused]] void* thread_ = nullptr;
};

}  // namespace emulation
