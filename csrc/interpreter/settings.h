// The properties of the machine that a test may vary from launch to launch.
#pragma once
#include <cstdint>

namespace ptx {

// When an asynchronous copy takes place: in the wait for its group, at once, or either by chance.
enum class Copies { late, early, random };

// The choice of the warp of a block, and of the lanes of a diverged warp, that run next.
enum class Order { forward, reverse, random };

// The sum of a matrix product: bits beyond a float are cut off, or it is rounded to the nearest.
enum class MatrixSum { cut_off, rounded };

struct Settings {
  Copies copies = Copies::late;
  Order warp_order = Order::forward;
  Order lane_order = Order::forward;  // forward: the lanes that are furthest behind run first
  uint64_t seed = 1;  // for everything that happens by chance; used anew by each launch
  MatrixSum matrix_sum = MatrixSum::cut_off;
  // By how many units in the last place the results of approximate instructions (ex2, rcp, ...) are
  // off. A random number from -n to n each if `random_approximation`, otherwise always n.
  int approximation_error = 0;
  bool random_approximation = false;
  bool find_races = true;
  // If set, global memory that a launch writes twice is reported even where one warp does, which is
  // ordered but wasted. Needs find_races.
  bool find_rewrites = false;
  // If set, a cp.async that reads nothing (source size 0) must still name permitted memory.
  bool check_absent_copies = false;
  uint32_t shared_bytes_per_block = 227 << 10;  // compute capability 9.0
};

}  // namespace ptx
