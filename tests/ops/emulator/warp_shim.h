// Runs a CUDA kernel on a CPU: the threads of a block are fibers, and a shuffle hands over to the
// next one, so that all have written before any reads. One block at a time.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __maxnreg__(...)

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;
using std::max;
using std::min;

inline float __fadd_rn(float a, float b) { return a + b; }  // compile with -ffp-contract=off
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }

// Rounds an angle as a GPU does: to turns, by a rounded 1 / (2 pi), and towards zero.
extern "C" {
bool coarse_angles = false;
}
inline double coarse(float x) {
  const double exact = double(x) * 0.15915494f;
  float turns = float(exact);
  if (std::fabs(double(turns)) > std::fabs(exact)) turns = std::nextafter(turns, 0.f);
  return 2 * M_PI * turns;
}
// What its table of sines adds: 2^-21.4 at most, here any number below that, by the angle.
inline double table_error(double angle, unsigned which) {
  const double turns = angle / (2 * M_PI);
  unsigned hash = unsigned((turns - std::floor(turns)) * (1 << 22)) * 2654435761u + which;
  hash = (hash ^ hash >> 15) * 2246822519u;
  return (hash / 2147483648.0 - 1) * std::exp2(-21.4);
}
inline void __sincosf(float x, float* sine, float* cosine) {
  const double angle = coarse_angles ? coarse(x) : double(x);
  *sine = float(std::sin(angle) + (coarse_angles ? table_error(angle, 1) : 0));
  *cosine = float(std::cos(angle) + (coarse_angles ? table_error(angle, 2) : 0));
}

namespace shim {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  bool done;
};

static std::vector<Fiber> fibers;
static ucontext_t home;
static std::function<void()> body;
static unsigned running, live, turn[1024];
static float slot[2][1024];  // two, since a fiber may write again before the last has read

inline void hand_over() {  // to the next fiber that is not done
  const unsigned from = running;
  do running = (running + 1) % fibers.size();
  while (fibers[running].done);
  threadIdx.x = running;
  if (running != from) swapcontext(&fibers[from].context, &fibers[running].context);
}

inline void enter() {
  body();
  fibers[running].done = true;
  if (--live == 0) setcontext(&home);
  hand_over();
}

inline void run_block(unsigned threads) {
  fibers.resize(threads);
  live = threads;
  running = threadIdx.x = 0;
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.done = false;
    turn[i] = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.data(), 0, fiber.stack.size()};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  swapcontext(&home, &fibers[0].context);
}

inline void launch(Dim3 grid, unsigned threads, std::function<void()> kernel) {
  gridDim = grid;
  blockDim = {threads, 1, 1};
  body = std::move(kernel);
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(threads);
}

}  // namespace shim

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  const unsigned lane = shim::running, half = shim::turn[lane]++ & 1;
  shim::slot[half][lane] = value;
  shim::hand_over();
  return shim::slot[half][lane ^ mask];
}
