// What a test may vary about an emulated launch, and how a launch fails.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace emulation {

// A kernel did what a GPU would not survive, or would not do twice alike. Thrown by the launch.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Which of the threads that can go on runs next, and which block.
enum class Order { forward, reverse, shuffle };

// When an asynchronous copy takes place: as late or as early as the hardware may do it, or either.
enum class Copies { late, early, random };

struct Settings {
  Order order = Order::forward;
  Copies copies = Copies::late;
  uint64_t seed = 1;
  uint64_t shared_bytes = 227 << 10;  // the most that a block may have; compute capability 9.0

  // From CONVMIXER_KERNELS_EMULATION_ORDER (forward, reverse, shuffle), _SEED (a number, for
  // shuffle and random), _COPIES (late, early, random; random if not given and the order is
  // shuffle) and _SHARED_BYTES (a number). Read at each launch.
  static Settings from_environment() {
    Settings settings;
    const std::string order = read("CONVMIXER_KERNELS_EMULATION_ORDER", "forward");
    if (order == "forward") settings.order = Order::forward;
    else if (order == "reverse") settings.order = Order::reverse;
    else if (order == "shuffle") settings.order = Order::shuffle;
    else reject("CONVMIXER_KERNELS_EMULATION_ORDER", order, "forward, reverse or shuffle");

    const std::string copies = read("CONVMIXER_KERNELS_EMULATION_COPIES",
                                    settings.order == Order::shuffle ? "random" : "late");
    if (copies == "late") settings.copies = Copies::late;
    else if (copies == "early") settings.copies = Copies::early;
    else if (copies == "random") settings.copies = Copies::random;
    else reject("CONVMIXER_KERNELS_EMULATION_COPIES", copies, "late, early or random");

    settings.seed = read_number("CONVMIXER_KERNELS_EMULATION_SEED", settings.seed);
    settings.shared_bytes =
        read_number("CONVMIXER_KERNELS_EMULATION_SHARED_BYTES", settings.shared_bytes);
    return settings;
  }

 private:
  static std::string read(const char* name, const char* otherwise) {
    const char* const value = getenv(name);
    return value && *value ? value : otherwise;
  }
  static uint64_t read_number(const char* name, uint64_t otherwise) {
    const std::string value = read(name, "");
    if (value.empty()) return otherwise;
    char* end = nullptr;
    const uint64_t number = strtoull(value.c_str(), &end, 10);
    if (*end != 0) reject(name, value, "a number");
    return number;
  }
  [[noreturn]] static void reject(const char* name, const std::string& value,
                                  const char* accepted) {
    throw Fault(std::string(name) + " is \"" + value + "\"; it must be " + accepted);
  }
};

}  // namespace emulation
