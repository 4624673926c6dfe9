// A channel couples with itself at the tokens up to its own; one thread is one (batch, channel) and
// carries a running sum for every step. There is no lag, and Z_s(t) = P_s(t) / W(t):
//   P_s(t) = f P_s(t-1) + (cos, sin) theta_s(t),   W(t) = f W(t-1) + 1,   f = forget, or 1

// The (batch, channel) of a thread, and where its values are. Every batch element has its own
// blocks, so that addresses are the same for a whole block but for the channel.
struct Channel {
  int time, channels, channel, batch;
  long long plane;  // B C

  __device__ __forceinline__ Channel(int batches, int time, int channels)
      : time(time), channels(channels), plane((long long)batches * channels) {
    const int blocks = (channels + blockDim.x - 1) / blockDim.x;
    batch = blockIdx.x / blocks;
    channel = (blockIdx.x - batch * blocks) * blockDim.x + threadIdx.x;
  }

  // Place in sums[P,B,C], for s = 0 in [B,C].
  __device__ __forceinline__ long long sum(int s) const {
    return s * plane + ((long long)batch * channels + channel);
  }

  // Place in theta[B,T,C].
  __device__ __forceinline__ long long token(int t) const {
    return ((long long)batch * time + t) * channels + channel;
  }

  // The tokens from `first` on; for those outside the sequence, some value of it.
  template <int G>
  __device__ __forceinline__ void load(float (&x)[G], const float* values, int first) const {
#pragma unroll
    for (int j = 0; j < G; ++j) x[j] = values[token(max(0, min(first + j, time - 1)))];
  }

  // TAKEN tokens leave the window at its start; as many come in at its end, from `first` on.
  template <int TAKEN, int SIZE>
  __device__ __forceinline__ void slide(
      float (&window)[SIZE], const float* values, int first) const {
    float fresh[TAKEN];
    load(fresh, values, first);
#pragma unroll
    for (int j = 0; j < SIZE; ++j)
      window[j] = j + TAKEN < SIZE ? window[j + TAKEN] : fresh[j + TAKEN - SIZE];
  }

  template <int G>
  __device__ __forceinline__ void store(float* values, const float (&x)[G], int first) const {
#pragma unroll
    for (int j = 0; j < G; ++j) values[token(first + j)] = x[j];
  }
};

// A systolic line: at tick tau, stage s takes step s of token tau - s, so that the steps of
// neighbouring tokens run side by side. Each result is rounded as it is written here, not
// contracted as the compiler sees fit: token by token gives the bits of one pass.
// theta[B,T,C]; omega, coupling, weight[C]; forget[C] or null; sums[P,B,C]; means[S+1,B,T,C].
template <int S, bool ORDER>
__global__ void __launch_bounds__(64) scan_forward(
    const float* __restrict__ theta_in, const float* __restrict__ omega,
    const float* __restrict__ coupling, const float* __restrict__ forget,
    const float* __restrict__ cos_in, const float* __restrict__ sin_in,
    const float* __restrict__ weight_in, float* __restrict__ theta_out,
    float* __restrict__ cos_out, float* __restrict__ sin_out, float* __restrict__ weight_out,
    float* __restrict__ mean_cos, float* __restrict__ mean_sin, int batches, int time,
    int channels, float dt) {
  constexpr int P = S + ORDER, TICKS = ORDER ? 2 : 4;  // TICKS at a time
  constexpr int AHEAD = 8;                             // tokens loaded ahead
  constexpr int UNROLL = S <= UNROLLED_STEPS ? at_least_one(P) : 1;
  const Channel at(batches, time, channels);
  if (at.channel >= channels) return;
  const float drift = __fmul_rn(dt, omega[at.channel]), k = __fmul_rn(dt, coupling[at.channel]);
  const float f = forget ? forget[at.channel] : 1.f;
  float weight = weight_in[at.channel];
  Pair sum[at_least_one(P)];
#pragma unroll(UNROLL)
  for (int s = 0; s < P; ++s) sum[s] = {cos_in[at.sum(s)], sin_in[at.sum(s)]};

  float theta[S + 1], scale[S + 1];  // what enters stage s: a phase, and with it 1 / W or dt K / W
  const long long up = at.plane * time - channels;  // from the mean of stage s to that of s + 1
  // `place` is that of token tau; at an edge of the sequence not every stage has a token.
  auto tick = [&](int tau, long long place, float entering, bool edge) {
    if (!edge || tau < time) {
      weight = __fmaf_rn(f, weight, 1.f);
      scale[0] = __fdividef(ORDER ? 1.f : k, weight);
      theta[0] = entering;
    }
    if (!edge || (tau >= S && tau - S < time))
      theta_out[place - (long long)S * channels] = theta[S];
    long long mean = place + S * up;
#pragma unroll(UNROLL)
    for (int s = P - 1; s >= 0; --s, mean -= up) {
      if (edge && (tau < s || tau - s >= time)) continue;
      const Pair z = unit(theta[s]);
      sum[s] = {__fmaf_rn(f, sum[s].c, z.c), __fmaf_rn(f, sum[s].s, z.s)};
      if constexpr (ORDER) {
        mean_cos[mean] = __fmul_rn(sum[s].c, scale[s]);
        mean_sin[mean] = __fmul_rn(sum[s].s, scale[s]);
      }
      if (s == S) continue;
      const float pull = __fmaf_rn(-sum[s].c, z.s, __fmul_rn(sum[s].s, z.c));
      const float rate = ORDER ? __fmul_rn(k, scale[s]) : scale[s];
      theta[s + 1] = __fadd_rn(theta[s], __fmaf_rn(rate, pull, drift));
      scale[s + 1] = scale[s];
    }
  };

  float ahead[AHEAD];  // the tokens from tau on
  at.load(ahead, theta_in, 0);
#pragma unroll 1
  for (int tau = 0; tau < time + S;) {
    const long long place = at.token(tau);
    if (tau < S || tau + TICKS > time) {
      tick(tau, place, ahead[0], true);
      at.slide<1>(ahead, theta_in, tau + AHEAD);
      tau += 1;
    } else {
#pragma unroll
      for (int j = 0; j < TICKS; ++j)
        tick(tau + j, place + (long long)j * channels, ahead[j], false);
      at.slide<TICKS>(ahead, theta_in, tau + AHEAD);
      tau += TICKS;
    }
  }

#pragma unroll(UNROLL)
  for (int s = 0; s < P; ++s) {
    cos_out[at.sum(s)] = sum[s].c;
    sin_out[at.sum(s)] = sum[s].s;
  }
  if (at.batch == 0) weight_out[at.channel] = weight;
}

// The backward of one channel, from its last token to its first, G neighbours at a time: their
// steps run side by side, as the forward's do. With a_s = dL/dP_s(t), b = dL/dW(t),
// k = dt K / W(t), u = (cos, sin) theta_s, v = (-sin, cos) theta_s and lam = dL/dtheta_{s+1}, a
// token gives, for s from the last to the first,
//   a_s += (gC_s, gQ_s) / W + lam k v
//   b -= (lam k P_s . v + (gC_s, gQ_s) . P_s / W) / W
//   dL/dK += dt lam P_s . v / W,   dL/domega += dt lam
//   lam <- lam (1 - k P_s . u) + a_s . v
// then dL/df += sum_s a_s . P_s(t-1) + b W(t-1), and a_s <- f a_s, b <- f b go to token t - 1.
template <int S, bool ORDER, bool FORGET> struct Adjoint {
  static constexpr int P = S + ORDER, HELD = at_least_one(P);
  static constexpr int UNROLL = S <= UNROLLED_STEPS ? HELD : 1;

  struct State {
    Pair sum[HELD];
    float weight;
  };

  // What G tokens, the earliest first, hold between their steps forward and the way back.
  template <int G> struct Group {
    float theta[G], lam[G], weight[G], inverse[G];
    Pair z[G][HELD];
  };

  const Channel& at;
  const float *grad_cos, *grad_sin;  // cotangents of the means
  float drift, k, f;
  State state;
  Pair a[HELD];
  float g_omega = 0.f, g_coupling = 0.f, g_forget = 0.f, g_weight = 0.f;

  // The steps of a group. FORGET: starts from the state before it, and MOVE takes that to the
  // state after it. Otherwise the state goes from the one after the group to the one before it,
  // by taking away what the tokens had added.
  template <bool MOVE, int G> __device__ __forceinline__ void advance(Group<G>& group) {
    float weight = state.weight;
#pragma unroll
    for (int i = 0; i < G; ++i) {
      const int j = FORGET ? i : G - 1 - i;
      if constexpr (FORGET) weight = f * weight + 1.f;
      group.weight[j] = weight;
      group.inverse[j] = __fdividef(1.f, weight);
      if constexpr (!FORGET) weight -= 1.f;
    }
    if constexpr (MOVE) state.weight = weight;
#pragma unroll(UNROLL + G - 1)
    for (int tick = 0; tick < P + G - 1; ++tick) {
#pragma unroll
      for (int i = 0; i < G; ++i) {
        const int s = tick - i, j = FORGET ? i : G - 1 - i;
        if (s < 0 || s >= P) continue;
        const Pair z = unit(group.theta[j]);
        group.z[j][s] = z;
        Pair sum = state.sum[s];
        if constexpr (FORGET) {
#pragma unroll
          for (int e = MOVE ? j : 0; e <= j; ++e)
            sum = {f * sum.c + group.z[e][s].c, f * sum.s + group.z[e][s].s};
        }
        if (s < S) {
          const float pull = sum.s * z.c - sum.c * z.s;
          group.theta[j] += k * group.inverse[j] * pull + drift;
        }
        if constexpr (!FORGET) sum = {sum.c - z.c, sum.s - z.s};
        if constexpr (MOVE) state.sum[s] = sum;
      }
    }
  }

  // group.lam from dL/dtheta after the steps to dL/dtheta before them. The state is the one before
  // the group, whose first token is t.
  template <int G> __device__ __forceinline__ void retreat(Group<G>& group, int t) {
    const long long plane = at.plane * at.time, place = at.token(t) + S * plane;
#pragma unroll
    for (int j = G - 1; j >= 0; --j) {
      const float inverse = group.inverse[j], rate = k * inverse;
      // Sums over the steps, apart from those over the tokens, which are larger and round more.
      float lam = group.lam[j], drifted = 0.f, pulled = 0.f, read = 0.f, faded = 0.f;
      long long mean = place + (long long)j * at.channels;
#pragma unroll(UNROLL)
      for (int s = P - 1; s >= 0; --s, mean -= plane) {
        const Pair z = group.z[j][s];
        Pair before = state.sum[s];  // P_s(t-1)
#pragma unroll
        for (int i = 0; i < j; ++i)
          before = {f * before.c + group.z[i][s].c, f * before.s + group.z[i][s].s};
        const Pair now = {f * before.c + z.c, f * before.s + z.s};
        if constexpr (ORDER) {
          const Pair g = {grad_cos[mean] * inverse, grad_sin[mean] * inverse};
          a[s] = {a[s].c + g.c, a[s].s + g.s};
          read = read + g.c * now.c + g.s * now.s;
        }
        const float later = a[s].s * z.c - a[s].c * z.s;
        if (s < S) {
          // Of a_s . v, the part that lam has just given to a_s is lam rate (v . v = 1): apart, it
          // leaves one multiplication and addition from one lam to the next.
          const float kept = 1.f + rate * (1.f - now.c * z.c - now.s * z.s), push = lam * rate;
          a[s] = {a[s].c - push * z.s, a[s].s + push * z.c};
          drifted += lam;
          pulled += lam * (now.s * z.c - now.c * z.s);
          lam = lam * kept + later;
        } else {
          lam += later;
        }
        if constexpr (FORGET) {
          faded = faded + a[s].c * before.c + a[s].s * before.s;
          a[s] = {f * a[s].c, f * a[s].s};
        }
      }
      group.lam[j] = lam;
      g_omega += drifted;
      g_coupling += pulled * inverse;
      if constexpr (FORGET) {
        g_weight -= (k * pulled * inverse + read) * inverse;
        g_forget += faded + g_weight * (j > 0 ? group.weight[j - 1] : state.weight);
        g_weight *= f;
      }
    }
  }
};

// CHUNK = 0: nothing is forgotten, and sums and weight are the final ones. Otherwise they are the
// initial ones, since what a tiny f has erased cannot be had back; the kernel first goes forward
// and leaves those at the start of every CHUNK tokens in checkpoints[chunks,2P+1,B,C].
// Gradients of what the batch shares (omega, coupling, forget, weight) leave as [B,C].
template <int S, bool ORDER, int CHUNK>
__global__ void __launch_bounds__(64) scan_backward(
    const float* __restrict__ theta_in, const float* __restrict__ omega,
    const float* __restrict__ coupling, const float* __restrict__ forget,
    const float* __restrict__ cos_sums, const float* __restrict__ sin_sums,
    const float* __restrict__ weight, const float* __restrict__ grad_theta,
    const float* __restrict__ grad_cos_sums, const float* __restrict__ grad_sin_sums,
    const float* __restrict__ grad_weight, const float* __restrict__ grad_cos,
    const float* __restrict__ grad_sin, float* __restrict__ g_theta,
    float* __restrict__ g_omega, float* __restrict__ g_coupling, float* __restrict__ g_forget,
    float* __restrict__ g_cos_sums, float* __restrict__ g_sin_sums,
    float* __restrict__ g_weight, float* __restrict__ checkpoints, int batches, int time,
    int channels, float dt) {
  constexpr bool FORGET = CHUNK > 0;
  using A = Adjoint<S, ORDER, FORGET>;
  constexpr int G = S <= UNROLLED_STEPS ? 2 : 1, UNROLL = A::UNROLL;
  using Single = typename A::template Group<1>;
  using Group = typename A::template Group<G>;
  const Channel at(batches, time, channels);
  if (at.channel >= channels) return;
  A adjoint{at, grad_cos, grad_sin};
  adjoint.drift = dt * omega[at.channel];
  adjoint.k = dt * coupling[at.channel];
  adjoint.f = FORGET ? forget[at.channel] : 1.f;
  adjoint.state.weight = weight[at.channel];
#pragma unroll(UNROLL)
  for (int s = 0; s < A::P; ++s) {
    adjoint.state.sum[s] = {cos_sums[at.sum(s)], sin_sums[at.sum(s)]};
    adjoint.a[s] = {grad_cos_sums[at.sum(s)], grad_sin_sums[at.sum(s)]};
  }

  if constexpr (!FORGET) {
    int t = time;
    if (t % G != 0) {
      Single last;
      t -= 1;
      at.load(last.theta, theta_in, t);
      at.load(last.lam, grad_theta, t);
      adjoint.template advance<true>(last);
      adjoint.retreat(last, t);
      at.store(g_theta, last.lam, t);
    }
    float next[G];
    at.load(next, theta_in, t - G);
#pragma unroll 1
    for (t -= G; t >= 0; t -= G) {
      Group group;
#pragma unroll
      for (int j = 0; j < G; ++j) group.theta[j] = next[j];
      at.load(next, theta_in, t - G);
      at.load(group.lam, grad_theta, t);
      adjoint.template advance<true>(group);
      adjoint.retreat(group, t);
      at.store(g_theta, group.lam, t);
    }
  } else {
    adjoint.g_weight = at.batch == 0 ? grad_weight[at.channel] : 0.f;  // the batch shares it
    const int chunks = (time + CHUNK - 1) / CHUNK;
    auto checkpoint = [&](int chunk, int row) -> float& {
      return checkpoints[((long long)chunk * (2 * A::P + 1) + row) * at.plane + at.sum(0)];
    };
    float next[G];  // the group at t, before advance(t)
    auto advance = [&](int t) {
      Group group;
#pragma unroll
      for (int j = 0; j < G; ++j) group.theta[j] = next[j];
      at.load(next, theta_in, t + G);
      adjoint.template advance<true>(group);
    };
    at.load(next, theta_in, 0);
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      checkpoint(chunk, 2 * A::P) = adjoint.state.weight;
#pragma unroll(UNROLL)
      for (int s = 0; s < A::P; ++s) {
        checkpoint(chunk, 2 * s) = adjoint.state.sum[s].c;
        checkpoint(chunk, 2 * s + 1) = adjoint.state.sum[s].s;
      }
      if (chunk == chunks - 1) break;
#pragma unroll 1
      for (int t = chunk * CHUNK; t < (chunk + 1) * CHUNK; t += G) advance(t);
    }

    static_assert(CHUNK % G == 0, "a chunk is whole groups");
    typename A::State kept[CHUNK / G];  // before every group of the chunk
#pragma unroll 1
    for (int chunk = chunks - 1; chunk >= 0; --chunk) {
      const int start = chunk * CHUNK, stop = min(start + CHUNK, time);
      const int groups = (stop - start) / G;
      adjoint.state.weight = checkpoint(chunk, 2 * A::P);
#pragma unroll(UNROLL)
      for (int s = 0; s < A::P; ++s)
        adjoint.state.sum[s] = {checkpoint(chunk, 2 * s), checkpoint(chunk, 2 * s + 1)};
      at.load(next, theta_in, start);
#pragma unroll 1
      for (int i = 0; i < groups; ++i) {
        kept[i] = adjoint.state;
        advance(start + i * G);
      }
      if (start + groups * G < stop) {
        Single last;
        at.load(last.theta, theta_in, stop - 1);
        at.load(last.lam, grad_theta, stop - 1);
        adjoint.template advance<false>(last);
        adjoint.retreat(last, stop - 1);
        at.store(g_theta, last.lam, stop - 1);
      }
#pragma unroll 1
      for (int i = groups - 1; i >= 0; --i) {
        Group group;
        adjoint.state = kept[i];
        at.load(group.theta, theta_in, start + i * G);
        at.load(group.lam, grad_theta, start + i * G);
        adjoint.template advance<false>(group);
        adjoint.retreat(group, start + i * G);
        at.store(g_theta, group.lam, start + i * G);
      }
    }
  }

  const long long here = at.sum(0);
  g_omega[here] = dt * adjoint.g_omega;
  g_coupling[here] = dt * adjoint.g_coupling;
#pragma unroll(UNROLL)
  for (int s = 0; s < A::P; ++s) {
    g_cos_sums[at.sum(s)] = adjoint.a[s].c;
    g_sin_sums[at.sum(s)] = adjoint.a[s].s;
  }
  if constexpr (FORGET) {
    g_forget[here] = adjoint.g_forget;
    g_weight[here] = adjoint.g_weight;
  }
}
