// The first half of a GEGLU feed-forward layer in bfloat16, for x86 processors with AVX-512 BF16: two matrix products
// by oneDNN's brgemm, of blocks that are still in the cache, and in float32, when one is multiplied by the GELU of the
// other.

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>

#include "vectors.h"

using at::BFloat16;
using at::native::cpublas::brgemm;
using at::native::cpublas::brgemm_release;

namespace {

constexpr int64_t OUTPUT_BLOCK = 64;  // columns of a product
constexpr int64_t ROW_BLOCK = 64;     // rows of a product

}  // namespace

// value · gelu(gate) of x (rows, in_features) to out (rows, out_features); out_features is a multiple of OUTPUT_BLOCK.
// weights (2 · out_features / OUTPUT_BLOCK, in_features / 2, OUTPUT_BLOCK, 2) and bias (2 · out_features): those of the
// values come before those of the gates.
extern "C" void unspeckle_geglu(const BFloat16* x, const BFloat16* weights, const float* bias, uint16_t* out,
                                int64_t rows, int64_t in_features, int64_t out_features, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const AlignedArray<float> value(ROW_BLOCK * OUTPUT_BLOCK), gate(ROW_BLOCK * OUTPUT_BLOCK);
#pragma omp for schedule(dynamic) collapse(2)
    for (int64_t row = 0; row < rows; row += ROW_BLOCK)
      for (int64_t o = 0; o < out_features; o += OUTPUT_BLOCK) {
        const int64_t count = std::min(ROW_BLOCK, rows - row);
        const auto multiply = [=](int64_t output, float* product) {
          brgemm(count, OUTPUT_BLOCK, in_features, in_features, OUTPUT_BLOCK, OUTPUT_BLOCK, false,
                 x + row * in_features, weights + output * in_features, product, true);
        };
        multiply(o, value.get()), multiply(out_features + o, gate.get());
        for (int64_t r = 0; r < count; ++r)
          for (int64_t j = 0; j < OUTPUT_BLOCK; j += LANES) {
            const auto with_bias = [&](const AlignedArray<float>& product, int64_t output) {
              const __m512 values = _mm512_loadu_ps(product.get() + r * OUTPUT_BLOCK + j);
              return _mm512_add_ps(values, _mm512_loadu_ps(bias + output + j));
            };
            const __m512 gated = _mm512_mul_ps(with_bias(value, o), gelu(with_bias(gate, out_features + o)));
            _mm256_storeu_si256((__m256i*)(out + (row + r) * out_features + o + j), (__m256i)_mm512_cvtneps_pbh(gated));
          }
      }
    brgemm_release(true);
  }
}
