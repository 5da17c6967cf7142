// The entry of a gated feed-forward in bfloat16 for x86 processors with AVX-512 BF16: two products by oneDNN's brgemm, whose
// blocks are still in the cache, and float32, when the one is multiplied by the gelu of the other.

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>

#include "vectors.h"

using at::BFloat16;
using at::native::cpublas::brgemm;
using at::native::cpublas::brgemm_release;

namespace {

constexpr int64_t OUTPUTS = 64;  // of a product
constexpr int64_t ROWS = 64;     // of a product

}  // namespace

// value · gelu(gate) of x (rows, enter) to out (rows, leave); leave is a multiple of OUTPUTS. weights (2 · leave / OUTPUTS, enter / 2,
// OUTPUTS, 2) and bias (2 · leave), those of the value before those of the gate.
extern "C" void unspeckle_geglu(const BFloat16* x, const BFloat16* weights, const float* bias, uint16_t* out,
                                        int64_t rows, int64_t enter, int64_t leave, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Lines<float> value(ROWS * OUTPUTS), gate(ROWS * OUTPUTS);
#pragma omp for schedule(dynamic) collapse(2)
    for (int64_t row = 0; row < rows; row += ROWS)
      for (int64_t o = 0; o < leave; o += OUTPUTS) {
        const int64_t count = std::min(ROWS, rows - row);
        const auto product = [=](int64_t place, float* made) {
          brgemm(count, OUTPUTS, enter, enter, OUTPUTS, OUTPUTS, false, x + row * enter, weights + place * enter, made, true);
        };
        product(o, value.get()), product(leave + o, gate.get());
        for (int64_t r = 0; r < count; ++r)
          for (int64_t j = 0; j < OUTPUTS; j += LANES) {
            const auto of = [&](const Lines<float>& made, int64_t place) {
              return _mm512_add_ps(_mm512_loadu_ps(made.get() + r * OUTPUTS + j), _mm512_loadu_ps(bias + place + j));
            };
            const __m512 gated = _mm512_mul_ps(of(value, o), gelu(of(gate, leave + o)));
            _mm256_storeu_si256((__m256i*)(out + (row + r) * leave + o + j), (__m256i)_mm512_cvtneps_pbh(gated));
          }
      }
    brgemm_release(true);
  }
}
