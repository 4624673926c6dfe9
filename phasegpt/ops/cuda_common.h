// Kuramoto oscillators integrated by Euler steps: forward and exact discrete adjoint, each one pass
// over device memory. The states of all S steps live in registers; the backward recomputes them.
//
// One step, with Z = (C, Q) the mean of (cos, sin) theta over the N that couple, and the complex
// coupling kappa = K exp(-i lag) given as the pair (kc, ks) = (K cos lag, K sin lag):
//   F = kappa Z:  Fc = kc C + ks Q,  Fs = kc Q - ks C
//   theta' = theta + dt (omega + Fs cos theta - Fc sin theta)
//
// Its adjoint, from lam = dL/dtheta' and the cotangent (gC, gQ) of this step's Z:
//   A = sum lam cos theta,  D = sum lam sin theta
//   dL/dC = gC - dt (kc D + ks A),   dL/dQ = gQ + dt (kc A - ks D)
//   dL/dkc += dt (Q A - C D),   dL/dks -= dt (Q D + C A),   dL/domega += dt lam
//   lam <- lam (1 - dt (Fs sin theta + Fc cos theta)) + (dL/dQ cos theta - dL/dC sin theta) / N
//
// Where ORDER is wanted, Z is written too, before every step and after the last: S + 1 values.
// No result depends on timing: gradients of what rows share leave as partial sums, one for each
// warp (rows) or batch element (scan), and the host adds them up.
//
// cuda_rows.h and cuda_scan.h follow this file in one text (source() of cuda.py), which needs no
// header: for NVRTC, and for g++ behind an emulator. Grids and blocks are chosen in cuda.py.

enum : unsigned { WHOLE_WARP = 0xffffffffu };
enum : int {
  WARP = 32,
  UNROLLED_STEPS = 16,  // more steps run in rolled loops, their arrays in local memory
};

// Cosine and sine part of a phase, of a sum of phases, or of a coupling.
struct alignas(8) Pair {
  float c, s;
};

__device__ __forceinline__ Pair unit(float phase) {
  Pair z;
  __sincosf(phase, &z.s, &z.c);
  return z;
}

__host__ __device__ constexpr int at_least_one(int count) { return count > 0 ? count : 1; }
