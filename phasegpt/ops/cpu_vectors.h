// Vectors, working memory and threads of the CPU kernels. Part of kuramoto.cpp.
//
// Vectors. A Vec holds LANES floats. For rows a lane is a row: LANES rows are transposed on the
// way in and out, so any N fills the vectors and a mean needs no sum across lanes. For a scan a
// lane is a channel, and a block of V vectors is in flight to hide the latency of each step.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
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

}  // namespace
