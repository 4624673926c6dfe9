// Oscillators coupled over the prefix, and their adjoint. Part of kuramoto.cpp, which has the names.
//
// Scan. One channel of one batch entry couples over the tokens u <= t. Every step j has its own
// running sums, f is 1 or the forgetting factor:
//     Pc_j(t) = f Pc_j(t-1) + c_j(t),   Ps_j(t) = f Ps_j(t-1) + s_j(t),   W(t) = f W(t-1) + 1
//     theta_{j+1}(t) = theta_j(t) + dt (omega + K (Ps_j c_j - Pc_j s_j) / W(t))
// P = S, or S + 1 when the mean fields Z_j(t) = P_j(t) / W(t) are wanted: the last sum is of the
// final phases. Adjoint, t from last to first and j from last to first; (ac_j, as_j) is
// dL/dP_j(t), gW is dL/dW(t), both begin as the cotangents of the state after the last token;
// q = Ps c - Pc s and k = dt K / W:
//     ac_j -= lam k s - gZc_j / W,   as_j += lam k c + gZs_j / W,   gW -= (lam k q + gZ . Z) / W
//     dL/domega += dt lam,   dL/dK += dt lam q / W
//     lam <- lam (1 - k (Ps s + Pc c)) + as_j c - ac_j s                  (lam terms for j < S)
// and from t to t-1:  dL/df += sum_j a_j . P_j(t-1) + gW W(t-1),   a_j <- f a_j,   gW <- f gW.
//
// Uniform weights are f = 1. The adjoint needs the sums of every token: it sums once more from the
// initial state, keeping the sums before every SEGMENT-th token, then takes the segments from the
// last to the first, summing inside each again with all that the adjoint reads kept on a tape.
// (Taking tokens off the final sums, which needs no tape, would leave the rounding of sums as
// large as T in those of the first tokens.)

#pragma once

#include <type_traits>

#include "cpu_vectors.h"

namespace {

// --- scan ------------------------------------------------------------------------------------

struct Scan {
  const float *theta, *omega, *coupling, *forget;  // forget is null for uniform weights
  const float *cos_sums, *sin_sums, *weight;
  int64_t B, T, C;
  int steps, sums;
  float dt;
};

// Consecutive channels of one batch entry.
struct Channels {
  int64_t batch, first;
  int count;
};

// V vectors of channels, the last of them padded with zeros.
template <int V>
INLINE void load(Vec (&to)[V], const float* from, int count) {
  if (count == V * LANES) {
    std::memcpy(to, from, sizeof to);
  } else {
    std::fill_n(to, V, Vec{});
    std::memcpy(to, from, count * sizeof(float));
  }
}

template <int V>
INLINE void store(float* to, const Vec (&from)[V], int count) {
  if (count == V * LANES)
    std::memcpy(to, from, sizeof from);
  else
    std::memcpy(to, from, count * sizeof(float));
}

// Fetches V vectors that will be loaded or stored soon. The means of one token lie far apart in
// memory, one place per step, which the hardware does not foresee: this halves their cost.
template <int V>
INLINE void prefetch(const float* address) {
  constexpr int LINE = 64 / sizeof(float);
  for (int i = 0; i < V * LANES; i += LINE) __builtin_prefetch(address + i);
}

// body(v) for v < V, unrolled so that arrays of V vectors live in registers.
template <int V, class Body>
INLINE void each(Body body) {
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) body(v);
}

// The parameters of V vectors of channels, and where their data is. Sums, like all that comes
// one per step, are arrays [sums][V].
template <int V>
struct Block {
  const Scan& scan;
  const Channels at;
  const int size;  // of an array [sums][V]
  Vec dt_omega[V], dt_K[V], forget[V];

  INLINE Block(const Scan& scan, Channels at) : scan(scan), at(at), size(scan.sums * V) {
    load(dt_omega, scan.omega + at.first, at.count);
    load(dt_K, scan.coupling + at.first, at.count);
    std::fill_n(forget, V, Vec{} + 1.f);
    if (scan.forget) load(forget, scan.forget + at.first, at.count);
    each<V>([&](int v) {
      dt_omega[v] *= scan.dt;
      dt_K[v] *= scan.dt;
    });
  }

  int64_t token(int64_t t) const { return (at.batch * scan.T + t) * scan.C + at.first; }
  int64_t sum(int j) const { return (j * scan.B + at.batch) * scan.C + at.first; }
  int64_t mean(int j, int64_t t) const { return j * scan.B * scan.T * scan.C + token(t); }

  INLINE void load_sums(Pair* sums, const float* cos_sums, const float* sin_sums) const {
    for (int j = 0; j < scan.sums; ++j, sums += V) {
      Vec c[V], s[V];
      load(c, cos_sums + sum(j), at.count);
      load(s, sin_sums + sum(j), at.count);
      each<V>([&](int v) { sums[v] = {c[v], s[v]}; });
    }
  }

  INLINE void store_sums(float* cos_sums, float* sin_sums, const Pair* sums) const {
    for (int j = 0; j < scan.sums; ++j, sums += V) {
      Vec c[V], s[V];
      each<V>([&](int v) {
        c[v] = sums[v].cos;
        s[v] = sums[v].sin;
      });
      store(cos_sums + sum(j), c, at.count);
      store(sin_sums + sum(j), s, at.count);
    }
  }

  // The running sums and their weight from before token t to after it (`before` may be `after`).
  // Leaves the token's final phases in theta and, with UNITS, its cosines and sines in `units`.
  template <bool UNITS>
  void advance(int64_t t, Vec (&theta)[V], Vec (&W)[V], const Pair* before, Pair* after,
               Pair* units) const {
    load(theta, scan.theta + token(t), at.count);
    Vec k[V];
    each<V>([&](int v) {
      W[v] = forget[v] * W[v] + 1.f;
      k[v] = dt_K[v] / W[v];
    });
    for (int j = 0; j < scan.sums; ++j, before += V, after += V)
      each<V>([&](int v) {
        const Pair unit = cos_sin(theta[v]);
        const Pair P = {forget[v] * before[v].cos + unit.cos,
                        forget[v] * before[v].sin + unit.sin};
        after[v] = P;
        if (UNITS) units[j * V + v] = unit;
        if (j < scan.steps)
          theta[v] += dt_omega[v] + k[v] * (P.sin * unit.cos - P.cos * unit.sin);
      });
  }
};

struct ScanResult {
  float *theta, *cos_sums, *sin_sums, *weight;
  float *mean_cos, *mean_sin;  // null unless wanted
};

template <int V>
void integrate(const Scan& scan, Channels at, Scratch& scratch, const ScanResult& result) {
  const Block<V> block(scan, at);
  Pair* sums = scratch.pairs(block.size);
  Vec theta[V], W[V];
  block.load_sums(sums, scan.cos_sums, scan.sin_sums);
  load(W, scan.weight + at.first, at.count);
  for (int64_t t = 0; t < scan.T; ++t) {
    block.template advance<false>(t, theta, W, sums, sums, nullptr);
    store(result.theta + block.token(t), theta, at.count);
    if (!result.mean_cos) continue;
    for (int j = 0; j < scan.sums; ++j) {
      Vec c[V], s[V];
      each<V>([&](int v) {
        c[v] = sums[j * V + v].cos / W[v];
        s[v] = sums[j * V + v].sin / W[v];
      });
      store(result.mean_cos + block.mean(j, t), c, at.count);
      store(result.mean_sin + block.mean(j, t), s, at.count);
      const int64_t next = block.mean(j, std::min(t + 1, scan.T - 1));
      prefetch<V>(result.mean_cos + next);
      prefetch<V>(result.mean_sin + next);
    }
  }
  block.store_sums(result.cos_sums, result.sin_sums, sums);
  if (at.batch == 0) store(result.weight + at.first, W, at.count);
}

// Cotangents of a ScanResult; the means' are null unless they were returned.
struct ScanCotangents {
  const float *theta, *cos_sums, *sin_sums, *weight, *mean_cos, *mean_sin;
};

struct ScanGradients {
  float *theta, *cos_sums, *sin_sums;
  PartialSums omega, coupling, forget, weight;  // a part is a batch entry
};

// The adjoint on its way from the last token to the first; FORGET adds what only forgetting needs.
template <int V, bool FORGET>
struct Adjoint {
  const Block<V>& block;
  const ScanCotangents& cotangents;
  Pair* a;
  Vec weight[V] = {};
  // Sums over the tokens of a segment, then over segments: fewer additions in a row, less rounding.
  struct Parameters {
    Vec omega[V], coupling[V], forget[V];
  } part = {}, total = {};

  INLINE Adjoint(const Block<V>& block, const ScanCotangents& cotangents, Scratch& scratch)
      : block(block), cotangents(cotangents), a(scratch.pairs(block.size)) {
    block.load_sums(a, cotangents.cos_sums, cotangents.sin_sums);
    const Channels& at = block.at;  // the weight is one for the batch: it counts once
    if (FORGET && at.batch == 0) load(weight, cotangents.weight + at.first, at.count);
  }

  // lam from after token t to before it; W, sums and units as they are with token t.
  INLINE void token(int64_t t, Vec (&lam)[V], const Vec* W, const Pair* sums, const Pair* units) {
    const int steps = block.scan.steps;
    Vec share[V], k[V];
    each<V>([&](int v) {
      share[v] = 1.f / W[v];
      k[v] = block.dt_K[v] * share[v];
    });
    for (int j = block.scan.sums - 1; j >= 0; --j) {
      if (cotangents.mean_cos) add_mean(t, j, share, sums);
      each<V>([&](int v) {
        const Pair unit = units[j * V + v], P = sums[j * V + v];
        Pair& aj = a[j * V + v];
        if (j < steps) {
          const Vec pulled = lam[v] * k[v];
          const Vec torque = lam[v] * share[v] * (P.sin * unit.cos - P.cos * unit.sin);
          part.omega[v] += lam[v];
          part.coupling[v] += torque;
          if (FORGET) weight[v] -= k[v] * torque;
          aj.cos -= pulled * unit.sin;
          aj.sin += pulled * unit.cos;
          lam[v] -= pulled * (P.sin * unit.sin + P.cos * unit.cos);
        }
        lam[v] += aj.sin * unit.cos - aj.cos * unit.sin;
      });
    }
  }

  // The cotangent of Z_j(t) = P_j(t) / W(t).
  INLINE void add_mean(int64_t t, int j, const Vec (&share)[V], const Pair* sums) {
    Vec c[V], s[V];
    load(c, cotangents.mean_cos + block.mean(j, t), block.at.count);
    load(s, cotangents.mean_sin + block.mean(j, t), block.at.count);
    const int64_t next = block.mean(j, std::max<int64_t>(t - 1, 0));
    prefetch<V>(cotangents.mean_cos + next);
    prefetch<V>(cotangents.mean_sin + next);
    each<V>([&](int v) {
      const Pair P = sums[j * V + v], g = {c[v] * share[v], s[v] * share[v]};
      a[j * V + v].cos += g.cos;
      a[j * V + v].sin += g.sin;
      if (FORGET) weight[v] -= (g.cos * P.cos + g.sin * P.sin) * share[v];
    });
  }

  // From token t to t - 1, after which the sums and the weight were `sums` and W.
  INLINE void fade(const Vec* W, const Pair* sums) {
    each<V>([&](int v) {
      part.forget[v] += weight[v] * W[v];
      weight[v] *= block.forget[v];
    });
    for (int j = 0; j < block.scan.sums; ++j)
      each<V>([&](int v) {
        Pair& aj = a[j * V + v];
        part.forget[v] += aj.cos * sums[j * V + v].cos + aj.sin * sums[j * V + v].sin;
        aj.cos *= block.forget[v];
        aj.sin *= block.forget[v];
      });
  }

  INLINE void end_segment() {
    each<V>([&](int v) {
      total.omega[v] += block.scan.dt * part.omega[v];
      total.coupling[v] += block.scan.dt * part.coupling[v];
      total.forget[v] += part.forget[v];
    });
    part = {};
  }

  INLINE void finish(ScanGradients& gradients) {
    const Channels& at = block.at;
    block.store_sums(gradients.cos_sums, gradients.sin_sums, a);
    store(gradients.omega.of(at.batch) + at.first, total.omega, at.count);
    store(gradients.coupling.of(at.batch) + at.first, total.coupling, at.count);
    if (!FORGET) return;
    store(gradients.forget.of(at.batch) + at.first, total.forget, at.count);
    store(gradients.weight.of(at.batch) + at.first, weight, at.count);
  }
};

constexpr int SEGMENT = 16;

template <int V, bool FORGET>
void adjoint(const Scan& scan, Channels at, Scratch& scratch, const ScanCotangents& cotangents,
             ScanGradients& gradients) {
  const Block<V> block(scan, at);
  const int64_t n = block.size, segments = (scan.T + SEGMENT - 1) / SEGMENT;
  // Before every segment, and, for one segment, before it and after each of its tokens.
  Pair *kept_sums = scratch.pairs(segments * n), *sums = scratch.pairs((SEGMENT + 1) * n);
  Vec *kept_W = scratch.vectors(segments * V), *W = scratch.vectors((SEGMENT + 1) * V);
  Pair* units = scratch.pairs(SEGMENT * n);
  Vec theta[V], lam[V], weight[V];

  load(weight, scan.weight + at.first, at.count);
  block.load_sums(sums, scan.cos_sums, scan.sin_sums);
  for (int64_t segment = 0; segment < segments; ++segment) {
    std::copy_n(sums, n, kept_sums + segment * n);
    std::copy_n(weight, V, kept_W + segment * V);
    const int64_t first = segment * SEGMENT;
    if (segment + 1 < segments)
      for (int64_t t = first; t < first + SEGMENT; ++t)
        block.template advance<false>(t, theta, weight, sums, sums, nullptr);
  }

  Adjoint<V, FORGET> adjoint(block, cotangents, scratch);
  for (int64_t segment = segments - 1; segment >= 0; --segment) {
    const int64_t first = segment * SEGMENT;
    const int count = std::min<int64_t>(SEGMENT, scan.T - first);
    std::copy_n(kept_sums + segment * n, n, sums);
    std::copy_n(kept_W + segment * V, V, W);
    std::copy_n(W, V, weight);
    for (int i = 0; i < count; ++i) {
      Pair *before = sums + i * n, *after = before + n;
      block.template advance<true>(first + i, theta, weight, before, after, units + i * n);
      std::copy_n(weight, V, W + (i + 1) * V);
    }
    for (int i = count - 1; i >= 0; --i) {
      const int64_t token = block.token(first + i);
      load(lam, cotangents.theta + token, at.count);
      adjoint.token(first + i, lam, W + (i + 1) * V, sums + (i + 1) * n, units + i * n);
      store(gradients.theta + token, lam, at.count);
      if (FORGET) adjoint.fade(W + i * V, sums + i * n);
    }
    adjoint.end_segment();
  }
  adjoint.finish(gradients);
}

// body(V, channels, scratch) for all channels of all batch entries, in blocks of V vectors.
template <class Body>
void for_blocks(const Scan& scan, int threads, Body body) {
  constexpr int64_t WIDE = 8 * LANES, NARROW = 4 * LANES;
  const int64_t blocks = (scan.C + WIDE - 1) / WIDE;
  for_parts(scan.B * blocks, threads, [&](int64_t part, Scratch& scratch) {
    const int64_t first = part % blocks * WIDE, left = scan.C - first;
    const Channels at = {part / blocks, first, int(std::min(WIDE, left))};
    if (left > NARROW)
      body(std::integral_constant<int, 8>(), at, scratch);
    else
      body(std::integral_constant<int, 4>(), at, scratch);
  });
}

}  // namespace
