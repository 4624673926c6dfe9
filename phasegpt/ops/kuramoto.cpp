// Kuramoto oscillators on a CPU: Euler steps and their exact adjoint, for the two couplings of
// phasegpt.ops. Plain C++ and OpenMP behind extern "C"; phasegpt/ops/cpu.py builds and calls it.
//
// All arrays are float32, contiguous, row-major. B batch, T time, H heads, N oscillators,
// C channels, S steps, P running sums. c and s are cos theta and sin theta.
//
// cpu_rows.h and cpu_scan.h derive and hold the two couplings; both stand on cpu_vectors.h.
//
// Determinism. Work is cut into parts by the sizes alone, never by the threads; a gradient that
// many rows share is summed inside each part, then over the parts in order.

#include "cpu_rows.h"
#include "cpu_scan.h"

// --- entry points: arguments as in phasegpt/ops/cpu.py, null for an absent tensor ------------

extern "C" {

void rows_forward(const float* theta, const float* omega, const float* coupling, float* theta_out,
                  float* mean_cos, float* mean_sin, int64_t rows, int64_t omega_rows,
                  int64_t coupling_rows, int N, int steps, float dt, int threads) {
  const Rows input = {
      {theta, rows, N}, {omega, omega_rows, N}, {coupling, coupling_rows, 2}, steps, dt};
  const RowsResult result = {
      {theta_out, rows, N}, {mean_cos, rows, steps + 1}, {mean_sin, rows, steps + 1}};
  Partition(rows).run(threads, [&](int64_t, Group group, Scratch& scratch) {
    integrate(input, group, scratch, result);
  });
}

void rows_backward(const float* theta, const float* omega, const float* coupling,
                   const float* grad_theta, const float* grad_cos, const float* grad_sin,
                   float* g_theta, float* g_omega, float* g_coupling, int64_t rows,
                   int64_t omega_rows, int64_t coupling_rows, int N, int steps, float dt,
                   int threads) {
  const Rows input = {
      {theta, rows, N}, {omega, omega_rows, N}, {coupling, coupling_rows, 2}, steps, dt};
  const RowsCotangents cotangents = {
      {grad_theta, rows, N}, {grad_cos, rows, steps + 1}, {grad_sin, rows, steps + 1}};
  const Partition partition(rows);
  RowsSum omega_sum({g_omega, omega_rows, N}, partition);
  RowsSum coupling_sum({g_coupling, coupling_rows, 2}, partition);
  partition.run(threads, [&](int64_t part, Group group, Scratch& scratch) {
    const RowsGradients gradients = {{g_theta, rows, N},
                                     omega_sum.of(part),
                                     coupling_sum.of(part),
                                     omega_sum.shared,
                                     coupling_sum.shared};
    adjoint(input, group, scratch, cotangents, gradients);
  });
  omega_sum.finish();
  coupling_sum.finish();
}

void scan_forward(const float* theta, const float* omega, const float* coupling,
                  const float* forget, const float* cos_sums, const float* sin_sums,
                  const float* weight, float* theta_out, float* cos_sums_out, float* sin_sums_out,
                  float* weight_out, float* mean_cos, float* mean_sin, int64_t B, int64_t T,
                  int64_t C, int steps, int sums, float dt, int threads) {
  const Scan scan = {theta,  omega, coupling, forget, cos_sums, sin_sums,
                     weight, B,     T,        C,      steps,    sums,     dt};
  const ScanResult result = {theta_out, cos_sums_out, sin_sums_out, weight_out, mean_cos, mean_sin};
  for_blocks(scan, threads, [&](auto V, Channels at, Scratch& scratch) {
    integrate<V>(scan, at, scratch, result);
  });
}

void scan_backward(const float* theta, const float* omega, const float* coupling,
                   const float* forget, const float* cos_sums, const float* sin_sums,
                   const float* weight, const float* grad_theta, const float* grad_cos_sums,
                   const float* grad_sin_sums, const float* grad_weight, const float* grad_cos,
                   const float* grad_sin, float* g_theta, float* g_omega, float* g_coupling,
                   float* g_forget, float* g_cos_sums, float* g_sin_sums, float* g_weight,
                   int64_t B, int64_t T, int64_t C, int steps, int sums, float dt, int threads) {
  const Scan scan = {theta,  omega, coupling, forget, cos_sums, sin_sums,
                     weight, B,     T,        C,      steps,    sums,     dt};
  const ScanCotangents cotangents = {grad_theta,  grad_cos_sums, grad_sin_sums,
                                     grad_weight, grad_cos,      grad_sin};
  const int64_t parts = forget ? B : 0;
  ScanGradients gradients = {g_theta,
                             g_cos_sums,
                             g_sin_sums,
                             {g_omega, B, C},
                             {g_coupling, B, C},
                             {g_forget, parts, C},
                             {g_weight, parts, C}};
  for_blocks(scan, threads, [&](auto V, Channels at, Scratch& scratch) {
    if (forget)
      adjoint<V, true>(scan, at, scratch, cotangents, gradients);
    else
      adjoint<V, false>(scan, at, scratch, cotangents, gradients);
  });
  gradients.omega.finish();
  gradients.coupling.finish();
  if (!forget) return;
  gradients.forget.finish();
  gradients.weight.finish();
}
}
