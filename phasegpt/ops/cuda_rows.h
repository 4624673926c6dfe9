// The N oscillators of one row, that is of one (batch, token, head), couple. L lanes of a warp
// share a row, V neighbouring oscillators each, and sum over it by shuffles.

// Oscillators per lane: the smallest power of two with which L lanes hold N.
__host__ __device__ constexpr int per_lane(int N, int L) {
  int V = 1;
  while (V * L < N) V *= 2;
  return V;
}

// A row of N floats in L lanes; lane l has places l V ... l V + V - 1, those from N on are empty.
template <int N, int L> struct Row {
  static constexpr int V = per_lane(N, L);
  struct alignas(V < 4 ? 4 * V : 16) Block {
    float v[V];
  };

  __device__ __forceinline__ static bool owns(int lane, int i) {
    return V * L == N || lane * V + i < N;
  }

  // Empty places, and all of a row that is not `live`, read as 0.
  __device__ __forceinline__ static void load(
      float (&x)[V], const float* row, int lane, bool live) {
    if constexpr (N % V == 0) {  // a lane's block is aligned, and all in the row or all outside
      Block block = {};
      if (live && owns(lane, 0)) block = reinterpret_cast<const Block*>(row)[lane];
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] = block.v[i];
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] = live && owns(lane, i) ? row[lane * V + i] : 0.f;
    }
  }

  __device__ __forceinline__ static void store(float* row, const float (&x)[V], int lane) {
    if constexpr (N % V == 0) {
      Block block;
#pragma unroll
      for (int i = 0; i < V; ++i) block.v[i] = x[i];
      if (owns(lane, 0)) reinterpret_cast<Block*>(row)[lane] = block;
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (owns(lane, i)) row[lane * V + i] = x[i];
    }
  }

  // (cos, sin) of the lane's phases, 0 in empty places.
  __device__ __forceinline__ static void units(Pair (&z)[V], const float (&theta)[V], int lane) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      z[i] = unit(theta[i]);
      if (!owns(lane, i)) z[i] = {0.f, 0.f};
    }
  }

  // The sum over the row, known to all of its lanes.
  __device__ __forceinline__ static Pair sum(Pair z) {
#pragma unroll
    for (int offset = L / 2; offset > 0; offset /= 2) {
      z.c += __shfl_xor_sync(WHOLE_WARP, z.c, offset);
      z.s += __shfl_xor_sync(WHOLE_WARP, z.s, offset);
    }
    return z;
  }

  __device__ __forceinline__ static Pair sum(const Pair (&z)[V]) {
    Pair total = z[0];
#pragma unroll
    for (int i = 1; i < V; ++i) total = {total.c + z[i].c, total.s + z[i].s};
    return sum(total);
  }

  // theta' by dt omega and dt F. Small numbers first: only one rounding is that of a large theta.
  __device__ __forceinline__ static void step(
      float (&theta)[V], const float (&drift)[V], const Pair (&z)[V], Pair field) {
#pragma unroll
    for (int i = 0; i < V; ++i)
      theta[i] += drift[i] + field.s * z[i].c - field.c * z[i].s;
  }
};

// kappa z
__device__ __forceinline__ Pair turned(Pair kappa, Pair z) {
  return {kappa.c * z.c + kappa.s * z.s, kappa.c * z.s - kappa.s * z.c};
}

// The sum over the rows in a warp, place by place.
template <int L> __device__ __forceinline__ float sum_over_rows(float x) {
#pragma unroll
  for (int offset = L; offset < WARP; offset *= 2) x += __shfl_xor_sync(WHOLE_WARP, x, offset);
  return x;
}

// Block (h, y) integrates rows of head h, as many tokens at a time as its threads have lanes for.
// theta[tokens,heads,N]; omega and coupling have a value for every head, their stride from token
// to token being 0, or for every row, and the stride is the number of heads.
template <int N, int S, int L, bool ORDER>
__global__ void __launch_bounds__(256) rows_forward(
    const float* __restrict__ theta_in, const float* __restrict__ omega,
    const Pair* __restrict__ coupling, float* __restrict__ theta_out,
    float* __restrict__ mean_cos, float* __restrict__ mean_sin, unsigned tokens, int omega_stride,
    int coupling_stride, float dt) {
  using R = Row<N, L>;
  const int lane = threadIdx.x % L, rows = blockDim.x / L;
  // The bound is the block's, not the row's: all lanes of a warp take part in its shuffles.
#pragma unroll 1
  for (unsigned first = blockIdx.y * rows; first < tokens; first += gridDim.y * rows) {
    const unsigned mine = first + threadIdx.x / L;
    const bool live = mine < tokens;
    const long long token = live ? mine : 0, row = token * gridDim.x + blockIdx.x;
    const Pair k = coupling[token * coupling_stride + blockIdx.x];
    const Pair kappa = {k.c * (dt / N), k.s * (dt / N)};
    float theta[R::V], drift[R::V];
    R::load(theta, theta_in + row * N, lane, live);
    R::load(drift, omega + (token * omega_stride + blockIdx.x) * N, lane, live);
#pragma unroll
    for (int i = 0; i < R::V; ++i) drift[i] *= dt;
    Pair mean = {};  // lane l keeps and writes those of steps l, l + L, ...
#pragma unroll(S <= UNROLLED_STEPS ? at_least_one(S + ORDER) : 2)
    for (int s = 0; s < S + ORDER; ++s) {
      Pair z[R::V];
      R::units(z, theta, lane);
      const Pair total = R::sum(z);
      if constexpr (ORDER) {
        if (lane == s % L) mean = {total.c * (1.f / N), total.s * (1.f / N)};
        const int kept = s - s % L + lane;
        if ((s % L == L - 1 || s == S) && live && kept <= s) {
          mean_cos[row * (S + 1) + kept] = mean.c;
          mean_sin[row * (S + 1) + kept] = mean.s;
        }
      }
      if (s < S) R::step(theta, drift, z, turned(kappa, total));
    }
    if (live) R::store(theta_out + row * N, theta, lane);
  }
}

// Registers that the backward's states and means take between its two loops.
__host__ __device__ constexpr int held_by_rows(int N, int S, int L) {
  return 2 * S * (per_lane(N, L) + 1);
}

// Blocks, tokens and strides as in the forward. A gradient of what heads have leaves as a partial
// sum for every warp, [gridDim.y * warps, heads, ...]; of what rows have, it is the whole gradient.
template <int N, int S, int L, bool ORDER>
__global__ void __maxnreg__(held_by_rows(N, S, L) > 100 ? 255 : ORDER ? 160 : 128) rows_backward(
    const float* __restrict__ theta_in, const float* __restrict__ omega,
    const Pair* __restrict__ coupling, const float* __restrict__ grad_theta,
    const float* __restrict__ grad_cos, const float* __restrict__ grad_sin,
    float* __restrict__ g_theta, float* __restrict__ g_omega, Pair* __restrict__ g_coupling,
    unsigned tokens, int omega_stride, int coupling_stride, float dt) {
  using R = Row<N, L>;
  constexpr int V = R::V, UNROLL = held_by_rows(N, S, L) <= 200 ? at_least_one(S) : 1;
  const int lane = threadIdx.x % L, rows = blockDim.x / L;
  float lam_total[V] = {};
  Pair k_total = {};
#pragma unroll 1
  for (unsigned first = blockIdx.y * rows; first < tokens; first += gridDim.y * rows) {
    const unsigned mine = first + threadIdx.x / L;
    const bool live = mine < tokens;
    const long long token = live ? mine : 0, row = token * gridDim.x + blockIdx.x;
    const Pair k = coupling[token * coupling_stride + blockIdx.x];
    const Pair kappa = {k.c * (dt / N), k.s * (dt / N)};
    float theta[V], drift[V];
    R::load(theta, theta_in + row * N, lane, live);
    R::load(drift, omega + (token * omega_stride + blockIdx.x) * N, lane, live);
#pragma unroll
    for (int i = 0; i < V; ++i) drift[i] *= dt;

    Pair z[at_least_one(S)][V], total[at_least_one(S)];
#pragma unroll(UNROLL)
    for (int s = 0; s < S; ++s) {
      R::units(z[s], theta, lane);
      total[s] = R::sum(z[s]);
      if (s < S - 1 || ORDER) R::step(theta, drift, z[s], turned(kappa, total[s]));
    }

    float lam[V];
    R::load(lam, grad_theta + row * N, lane, live);
    auto cotangent = [&](int s) -> Pair {  // of the mean before step s, over N
      if (!ORDER || !live) return {0.f, 0.f};
      return {grad_cos[row * (S + 1) + s] * (1.f / N), grad_sin[row * (S + 1) + s] * (1.f / N)};
    };
    if constexpr (ORDER) {
      Pair end[V];
      R::units(end, theta, lane);
      const Pair g = cotangent(S);
#pragma unroll
      for (int i = 0; i < V; ++i) lam[i] = lam[i] + g.s * end[i].c - g.c * end[i].s;
    }
    // kappa anew and rounded otherwise, so that the compiler does not keep the first loop's S
    // fields in registers until this loop wants them.
    const Pair kappa_again = {k.c * dt * (1.f / N), k.s * dt * (1.f / N)};
#pragma unroll(UNROLL)
    for (int s = S - 1; s >= 0; --s) {
      Pair pull = {};  // (A, D)
#pragma unroll
      for (int i = 0; i < V; ++i) {
        pull = {pull.c + lam[i] * z[s][i].c, pull.s + lam[i] * z[s][i].s};
        lam_total[i] += lam[i];
      }
      pull = R::sum(pull);
      k_total.c = k_total.c + total[s].s * pull.c - total[s].c * pull.s;
      k_total.s = k_total.s - total[s].s * pull.s - total[s].c * pull.c;
      const Pair field = turned(kappa_again, total[s]), g = cotangent(s);
      const float by_c = g.s + kappa_again.c * pull.c - kappa_again.s * pull.s;   // dL/dQ / N
      const float by_s = -g.c + kappa_again.c * pull.s + kappa_again.s * pull.c;  // -dL/dC / N
#pragma unroll
      for (int i = 0; i < V; ++i)
        lam[i] = lam[i] + z[s][i].c * (by_c - lam[i] * field.c)
                        + z[s][i].s * (by_s - lam[i] * field.s);
    }

    if (live) R::store(g_theta + row * N, lam, lane);
    if (omega_stride) {
#pragma unroll
      for (int i = 0; i < V; ++i) lam_total[i] *= dt;
      if (live) R::store(g_omega + row * N, lam_total, lane);
#pragma unroll
      for (int i = 0; i < V; ++i) lam_total[i] = 0.f;
    }
    if (coupling_stride) {
      if (live && lane == 0) g_coupling[row] = {k_total.c * (dt / N), k_total.s * (dt / N)};
      k_total = {};
    }
  }

  const int warps = blockDim.x / WARP, in_warp = threadIdx.x % WARP;
  const long long warp = (long long)blockIdx.y * warps + threadIdx.x / WARP;
  const long long partial = warp * gridDim.x + blockIdx.x;
  if (!omega_stride) {
#pragma unroll
    for (int i = 0; i < V; ++i) lam_total[i] = dt * sum_over_rows<L>(lam_total[i]);
    if (in_warp < L) R::store(g_omega + partial * N, lam_total, lane);
  }
  if (!coupling_stride) {
    k_total = {sum_over_rows<L>(k_total.c), sum_over_rows<L>(k_total.s)};
    if (in_warp == 0) g_coupling[partial] = {k_total.c * (dt / N), k_total.s * (dt / N)};
  }
}
