// Oscillators coupled inside a row, and their adjoint. Part of kuramoto.cpp, which has the names.
//
// Rows. One row is the N oscillators of one (batch, token, head). The coupling is complex,
// kappa = K exp(-i lag), stored as the pair (kc, ks) = (K cos lag, K sin lag). With the mean
// field Z = (C, Q) = mean over n of (c_n, s_n), the field F = kappa Z is
//     Fc = kc C + ks Q,   Fs = kc Q - ks C,
// and a step is theta_n <- theta_n + dt (omega_n + Fs c_n - Fc s_n).
// Adjoint of one step, lam_n = dL/dtheta_n after it, (gC, gQ) = the cotangent of its Z:
//     A = sum_n lam_n c_n,   D = sum_n lam_n s_n,   dL/dFs = dt A,   dL/dFc = -dt D
//     dL/dC = gC + kc dL/dFc - ks dL/dFs,   dL/dQ = gQ + ks dL/dFc + kc dL/dFs
//     dL/dkc += C dL/dFc + Q dL/dFs,   dL/dks += Q dL/dFc - C dL/dFs,   dL/domega_n += dt lam_n
//     lam_n <- lam_n (1 - dt (Fs s_n + Fc c_n)) + (dL/dQ c_n - dL/dC s_n) / N

#pragma once

#include "cpu_vectors.h"

namespace {

// --- rows: LANES of them side by side --------------------------------------------------------

template <bool HIGH>
INLINE Vec interleave(Vec a, Vec b) {  // a0 b0 a1 b1 ... of the lower or of the upper halves
  Ints order;
  for (int i = 0; i < LANES; ++i) order[i] = i / 2 + (HIGH ? LANES / 2 : 0) + (i % 2 ? LANES : 0);
#ifdef __clang__
  Vec mixed;
  for (int i = 0; i < LANES; ++i) mixed[i] = order[i] < LANES ? a[order[i]] : b[order[i] - LANES];
  return mixed;
#else
  return __builtin_shuffle(a, b, order);
#endif
}

INLINE void transpose(Vec (&tile)[LANES]) {
  for (int stage = 1; stage < LANES; stage *= 2) {
    Vec next[LANES];
    for (int i = 0; i < LANES / 2; ++i) {
      next[2 * i] = interleave<false>(tile[i], tile[i + LANES / 2]);
      next[2 * i + 1] = interleave<true>(tile[i], tile[i + LANES / 2]);
    }
    std::copy_n(next, LANES, tile);
  }
}

// Consecutive rows that are worked on together, one in each lane; the last group has fewer.
struct Group {
  int64_t first;
  int count;
};

// matrix[rows][width]: what belongs to each row, or, with fewer rows, to each head, read
// cyclically (omega[H,N]).
template <class Float>
struct Matrix {
  Float* data;
  int64_t rows;
  int width;

  // The row of every lane; lanes without one repeat the last.
  INLINE void find(Float* (&row)[LANES], Group group) const {
    int64_t index = group.first % rows;
    for (int lane = 0; lane < LANES; ++lane) {
      row[lane] = data + index * width;
      if (lane + 1 < group.count && ++index == rows) index = 0;
    }
  }
};
using Input = Matrix<const float>;
using Output = Matrix<float>;

// to[i][lane] = from[row of the lane][i]
INLINE void load(Vec* to, const Input& from, Group group) {
  const float* row[LANES];
  from.find(row, group);
  for (int i = 0; i < from.width; i += LANES) {
    const int width = std::min(LANES, from.width - i);
    Vec tile[LANES] = {};
    for (int lane = 0; lane < LANES; ++lane) copy(&tile[lane], row[lane] + i, width);
    transpose(tile);
    if (width == LANES)
      std::copy_n(tile, LANES, to + i);
    else
      std::copy_n(tile, width, to + i);
  }
}

// to[row of the lane][i] = from[i][lane], or += from[i][lane]
template <bool ADD>
INLINE void store(const Output& to, const Vec* from, Group group) {
  float* row[LANES];
  to.find(row, group);
  for (int i = 0; i < to.width; i += LANES) {
    const int width = std::min(LANES, to.width - i);
    Vec tile[LANES] = {};
    if (width == LANES)
      std::copy_n(from + i, LANES, tile);
    else
      std::copy_n(from + i, width, tile);
    transpose(tile);
    for (int lane = 0; lane < group.count; ++lane) {
      if (ADD) {
        Vec before = {};
        copy(&before, row[lane] + i, width);
        tile[lane] += before;
      }
      copy(row[lane] + i, &tile[lane], width);
    }
  }
}

// --- rows: integration and adjoint -----------------------------------------------------------

struct Rows {
  Input theta, omega, coupling;
  int steps;
  float dt;
};

// A group's phases on their way through the steps.
struct State {
  const int N;
  const float dt;
  Vec *theta, *omega;
  Pair kappa;

  INLINE State(const Rows& rows, Group group, Scratch& scratch)
      : N(rows.theta.width), dt(rows.dt), theta(scratch.vectors(N)), omega(scratch.vectors(N)) {
    load(theta, rows.theta, group);
    load(omega, rows.omega, group);
    const float* pair[LANES];
    rows.coupling.find(pair, group);
    for (int lane = 0; lane < LANES; ++lane) {
      kappa.cos[lane] = pair[lane][0];
      kappa.sin[lane] = pair[lane][1];
    }
  }

  // Z, the mean of exp(i theta); leaves the cosines and sines in `units`.
  INLINE Pair mean_field(Pair* units) const {
    Pair sum = {};
    for (int n = 0; n < N; ++n) {
      const Pair unit = units[n] = cos_sin(theta[n]);
      sum.cos += unit.cos;
      sum.sin += unit.sin;
    }
    return {sum.cos / float(N), sum.sin / float(N)};
  }

  // F = kappa Z
  INLINE Pair field(Pair Z) const {
    return {kappa.cos * Z.cos + kappa.sin * Z.sin, kappa.cos * Z.sin - kappa.sin * Z.cos};
  }

  INLINE void step(Pair Z, const Pair* units) {
    const Pair F = field(Z);
    for (int n = 0; n < N; ++n)
      theta[n] += dt * (omega[n] + (F.sin * units[n].cos - F.cos * units[n].sin));
  }
};

// What rows_forward writes; the means' data is null unless they are wanted.
struct RowsResult {
  Output theta, mean_cos, mean_sin;
};

void integrate(const Rows& rows, Group group, Scratch& scratch, const RowsResult& result) {
  const int S = rows.steps;
  const bool order = result.mean_cos.data;
  State state(rows, group, scratch);
  Pair* units = scratch.pairs(state.N);
  Vec *Zc = scratch.vectors(S + 1), *Zs = scratch.vectors(S + 1);
  for (int j = 0; j < S + order; ++j) {
    const Pair Z = state.mean_field(units);
    Zc[j] = Z.cos;
    Zs[j] = Z.sin;
    if (j < S) state.step(Z, units);
  }
  store<false>(result.theta, state.theta, group);
  if (order) {
    store<false>(result.mean_cos, Zc, group);
    store<false>(result.mean_sin, Zs, group);
  }
}

// Cotangents of a RowsResult; the means' data is null unless they were returned.
struct RowsCotangents {
  Input theta, mean_cos, mean_sin;
};

// Where the gradients of a part go; those that rows share are added to.
struct RowsGradients {
  Output theta, omega, coupling;
  bool omega_shared, coupling_shared;
};

void adjoint(const Rows& rows, Group group, Scratch& scratch, const RowsCotangents& cotangents,
             const RowsGradients& gradients) {
  const int S = rows.steps;
  const bool order = cotangents.mean_cos.data;
  State state(rows, group, scratch);
  const int N = state.N;
  const float dt = state.dt;
  const Pair kappa = state.kappa;
  Pair *units = scratch.pairs((S + 1) * N), *Z = scratch.pairs(S + 1);
  for (int j = 0; j < S + order; ++j) {
    Z[j] = state.mean_field(units + j * N);
    if (j < S) state.step(Z[j], units + j * N);
  }

  Vec *lam = scratch.vectors(N), *g_omega = scratch.vectors(N);
  Vec *gC = scratch.vectors(S + 1), *gQ = scratch.vectors(S + 1);
  load(lam, cotangents.theta, group);
  std::fill_n(g_omega, N, Vec{});
  if (order) {
    load(gC, cotangents.mean_cos, group);
    load(gQ, cotangents.mean_sin, group);
    for (int n = 0; n < N; ++n)
      lam[n] += (gQ[S] * units[S * N + n].cos - gC[S] * units[S * N + n].sin) / float(N);
  } else {
    std::fill_n(gC, S + 1, Vec{});
    std::fill_n(gQ, S + 1, Vec{});
  }

  Pair g_kappa = {};
  for (int j = S - 1; j >= 0; --j) {
    const Pair* unit = units + j * N;
    Vec A = {}, D = {};
    for (int n = 0; n < N; ++n) {
      A += lam[n] * unit[n].cos;
      D += lam[n] * unit[n].sin;
      g_omega[n] += dt * lam[n];
    }
    const Vec gFs = dt * A, gFc = -dt * D;
    g_kappa.cos += Z[j].cos * gFc + Z[j].sin * gFs;
    g_kappa.sin += Z[j].sin * gFc - Z[j].cos * gFs;
    const Vec dC = (gC[j] + kappa.cos * gFc - kappa.sin * gFs) / float(N);
    const Vec dQ = (gQ[j] + kappa.sin * gFc + kappa.cos * gFs) / float(N);
    const Pair F = state.field(Z[j]);
    const Vec dt_Fc = dt * F.cos, dt_Fs = dt * F.sin;
    for (int n = 0; n < N; ++n)
      lam[n] += (dQ - lam[n] * dt_Fc) * unit[n].cos - (dC + lam[n] * dt_Fs) * unit[n].sin;
  }

  store<false>(gradients.theta, lam, group);
  if (gradients.omega_shared)
    store<true>(gradients.omega, g_omega, group);
  else
    store<false>(gradients.omega, g_omega, group);
  float* pair[LANES];
  gradients.coupling.find(pair, group);
  for (int lane = 0; lane < group.count; ++lane) {
    const bool add = gradients.coupling_shared;
    pair[lane][0] = g_kappa.cos[lane] + (add ? pair[lane][0] : 0.f);
    pair[lane][1] = g_kappa.sin[lane] + (add ? pair[lane][1] : 0.f);
  }
}

// Groups of rows dealt to parts: large enough for a thread, few enough to sum over.
struct Partition {
  int64_t rows, groups, parts;

  explicit Partition(int64_t rows)
      : rows(rows),
        groups((rows + LANES - 1) / LANES),
        parts(std::clamp<int64_t>(groups / 32, 1, 256)) {}

  template <class Body>
  void run(int threads, Body body) const {
    for_parts(parts, threads, [&](int64_t part, Scratch& scratch) {
      const int64_t end = groups * (part + 1) / parts;
      for (int64_t g = groups * part / parts; g < end; ++g) {
        scratch.reset();
        body(part, Group{g * LANES, int(std::min<int64_t>(LANES, rows - g * LANES))}, scratch);
      }
    });
  }
};

// A gradient[rows][width], of every row by itself or summed over those that share it.
class RowsSum {
 public:
  RowsSum(Output out, const Partition& partition)
      : shared(out.rows < partition.rows),
        out_(out),
        sums_(out.data, shared ? partition.parts : 0, out.rows * out.width) {}

  Output of(int64_t part) { return shared ? Output{sums_.of(part), out_.rows, out_.width} : out_; }
  void finish() {
    if (shared) sums_.finish();
  }
  const bool shared;

 private:
  Output out_;
  PartialSums sums_;
};

}  // namespace
