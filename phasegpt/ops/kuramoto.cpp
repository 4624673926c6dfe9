// Kuramoto oscillators on a CPU: Euler steps and their exact adjoint, for the two couplings of
// phasegpt.ops. Plain C++ and OpenMP behind extern "C"; phasegpt/ops/cpu.py builds and calls it.
//
// All arrays are float32, contiguous, row-major. B batch, T time, H heads, N oscillators,
// C channels, S steps, P running sums. c and s are cos theta and sin theta.
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
//
// Vectors. A Vec holds LANES floats. For rows a lane is a row: LANES rows are transposed on the
// way in and out, so any N fills the vectors and a mean needs no sum across lanes. For a scan a
// lane is a channel, and a block of V vectors is in flight to hide the latency of each step.
//
// Determinism. Work is cut into parts by the sizes alone, never by the threads; a gradient that
// many rows share is summed inside each part, then over the parts in order.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#define INLINE inline __attribute__((always_inline))

namespace {

// --- vectors ---------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

struct Pair {
  Vec cos, sin;
};

// cos x and sin x within about 1.5e-7 for |x| up to 1e4, and within the rounding of x itself up
// to 1e6; NaN and infinity give NaN. x = k pi + r with |r| <= pi/2. Adding 1.5 * 2^23 rounds
// x / pi to the integer k and leaves k's parity, the sign of both results, in the lowest bit. pi
// is split in three (Cody and Waite) so that k times the first two parts is exact, with or
// without fused multiply-add. The polynomials are minimax on [-pi/2, pi/2] to 5e-9 and 4e-10.
INLINE Pair cos_sin(Vec x) {
  constexpr float ROUND = 12582912.f;
  const Vec shifted = x * 0.318309886f + ROUND;
  const Vec k = shifted - ROUND;
  const Vec r = x - k * 3.140625f - k * 9.67502593994140625e-4f - k * 1.509957990978376432e-7f;
  const Vec z = r * r;
  Vec s = 2.5999033549e-6f * z - 1.98065471524e-4f;
  s = (s * z + 8.33301635608e-3f) * z - 1.66666570586e-1f;
  s = s * (z * r) + r;
  Vec c = -2.619248551e-7f * z + 2.4769240744e-5f;
  c = (c * z - 1.38885682144e-3f) * z + 4.166665573e-2f;
  c = (c * z - 0.5f) * z + 1.f;
  const Ints sign = reinterpret_cast<Ints>(shifted) << 31;
  return {reinterpret_cast<Vec>(reinterpret_cast<Ints>(c) ^ sign),
          reinterpret_cast<Vec>(reinterpret_cast<Ints>(s) ^ sign)};
}

// `count` floats, at most a vector of them: one move when it is full.
INLINE void copy(void* to, const void* from, int count) {
  if (count == LANES)
    std::memcpy(to, from, sizeof(Vec));
  else
    std::memcpy(to, from, count * sizeof(float));
}

// --- memory and threads ----------------------------------------------------------------------

// Working memory of one thread. The pieces that one part asked for serve the next part, which asks
// for much the same; they are not cleared.
class Scratch {
 public:
  void reset() { next_ = 0; }

  Pair* pairs(size_t count) {
    if (next_ == pieces_.size()) pieces_.emplace_back();
    Piece& piece = pieces_[next_++];
    if (piece.size < count) piece = {std::unique_ptr<Pair[]>(new Pair[count]), count};
    return piece.data.get();
  }
  Vec* vectors(size_t count) { return &pairs((count + 1) / 2)->cos; }

 private:
  struct Piece {
    std::unique_ptr<Pair[]> data;
    size_t size = 0;
  };
  std::vector<Piece> pieces_;
  size_t next_ = 0;
};

// body(part, scratch) for every part, each on one of the threads.
template <class Body>
void for_parts(int64_t parts, int threads, Body body) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Scratch scratch;
#pragma omp for schedule(static)
    for (int64_t part = 0; part < parts; ++part) {
      scratch.reset();
      body(part, scratch);
    }
  }
}

// out[size] as a sum over parts, each of which writes or adds to its own zeros first.
class PartialSums {
 public:
  PartialSums(float* out, int64_t parts, int64_t size)
      : out_(out), parts_(parts), size_(size), partial_(parts * size) {}

  float* of(int64_t part) { return partial_.data() + part * size_; }

  void finish() {
    std::copy_n(of(0), size_, out_);
    for (int64_t part = 1; part < parts_; ++part)
      for (int64_t i = 0; i < size_; ++i) out_[i] += of(part)[i];
  }

 private:
  float* out_;
  int64_t parts_, size_;
  std::vector<float> partial_;
};

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
