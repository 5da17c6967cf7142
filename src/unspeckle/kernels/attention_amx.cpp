// Softmax attention in bfloat16 for x86 processors with AMX, in blocks that stay in a core's cache: Dao et al. 2022
// (FlashAttention), with the products by oneDNN's brgemm. Exponentials are no more exact than what bfloat16 keeps of them,
// which torch 2.13's own kernel spends most of its time on. It runs without AMX too, as tests do, but attention.cpp is
// faster there.

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "vectors.h"

using at::BFloat16;
using at::native::cpublas::brgemm;
using at::native::cpublas::brgemm_release;

namespace {

constexpr int64_t ROWS = 64;       // queries of a block
constexpr int64_t COLUMNS = 256;   // keys of a block

int64_t whole(int64_t count, int64_t of) { return (count + of - 1) / of * of; }

// Keys (count, width) as (width / 2, COLUMNS) pairs of neighbours along the width, zeros behind the last key.
void pack_keys(const BFloat16* keys, int64_t stride, int64_t count, int64_t width, uint32_t* packed) {
  for (int64_t j = 0; j < width / 2; ++j) std::fill_n(packed + j * COLUMNS + count, COLUMNS - count, 0u);
  for (int64_t k = 0; k < count; ++k)
    for (int64_t j = 0; j < width / 2; ++j) std::memcpy(packed + j * COLUMNS + k, keys + k * stride + 2 * j, 4);
}

// Values (count, width) as (COLUMNS / 2, padded) pairs of neighbouring keys, zeros behind the last.
void pack_values(const BFloat16* values, int64_t stride, int64_t count, int64_t width, int64_t padded, uint16_t* packed) {
  for (int64_t k = 0; k < whole(count, LANES); k += 2) {
    uint16_t* row = packed + k * padded;
    std::fill_n(row, 2 * padded, uint16_t(0));
    for (int64_t half = 0; half < 2 && k + half < count; ++half) {
      const uint16_t* from = reinterpret_cast<const uint16_t*>(values + (k + half) * stride);
      for (int64_t j = 0; j < width; ++j) row[2 * j + half] = from[j];
    }
  }
}

struct Softmax {  // of one row, so far
  float most = -std::numeric_limits<float>::infinity();
  float sum = 0;
};

// One row's scores to their exponentials, relative to the most so far; returns what earlier ones must be multiplied by.
float exponentials(const float* scores, int64_t count, float scale, BFloat16* out, Softmax& row) {
  __m512 most = _mm512_set1_ps(row.most);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) most = _mm512_max_ps(most, _mm512_loadu_ps(scores + i));
  if (i < count) most = _mm512_mask_max_ps(most, first(count - i), most, _mm512_loadu_ps(scores + i));
  const float now = _mm512_reduce_max_ps(most);
  const float shrink = std::exp2((row.most - now) * scale);
  const __m512 by = _mm512_set1_ps(scale), less = _mm512_set1_ps(-now * scale);
  __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (i = 0; i < count; i += 2 * LANES) {
    __m512 e[2];
    for (int64_t half = 0; half < 2; ++half) {
      const __mmask16 seen = first(count - i - half * LANES);
      e[half] = exp2(_mm512_fmadd_ps(_mm512_maskz_loadu_ps(seen, scores + i + half * LANES), by, less));
      e[half] = _mm512_maskz_mov_ps(seen, e[half]);
      sums[half] = _mm512_add_ps(sums[half], e[half]);
    }
    _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(e[1], e[0]));
  }
  row.sum = row.sum * shrink + _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
  row.most = now;
  return shrink;
}

void multiply(float* row, int64_t width, float by) {
  for (int64_t j = 0; j < width; j += LANES)
    _mm512_storeu_ps(row + j, _mm512_mul_ps(_mm512_loadu_ps(row + j), _mm512_set1_ps(by)));
}

}  // namespace

// query (batch, queries, heads · width), key and value (batch, keys, heads · width), out as query but contiguous. The
// strides are those of the batch and of a row. width must be even. Returns nothing; every address must be valid.
extern "C" void unspeckle_attention(
    const BFloat16* query, const BFloat16* key, const BFloat16* value, BFloat16* out, int64_t batch, int64_t heads,
    int64_t queries, int64_t keys, int64_t width, const int64_t* strides, int threads) {
  const int64_t blocks = whole(keys, COLUMNS) / COLUMNS, padded = whole(width, LANES);
  const float scale = 1.4426950408889634f / std::sqrt(static_cast<float>(width));  // to powers of 2
  const Lines<uint32_t> packed_keys(batch * heads * blocks * (width / 2) * COLUMNS);
  const Lines<uint16_t> packed_values(batch * heads * blocks * padded * COLUMNS);

#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t at = 0; at < batch * heads * blocks; ++at) {
    const int64_t b = at / blocks / heads, h = at / blocks % heads, k = at % blocks * COLUMNS;
    const int64_t count = std::min(COLUMNS, keys - k);
    pack_keys(key + b * strides[2] + k * strides[3] + h * width, strides[3], count, width,
              packed_keys.get() + at * (width / 2) * COLUMNS);
    pack_values(value + b * strides[4] + k * strides[5] + h * width, strides[5], count, width, padded,
                packed_values.get() + at * padded * COLUMNS);
  }

  const int64_t turns = whole(queries, ROWS) / ROWS;
#pragma omp parallel num_threads(threads)
  {
    const Lines<float> scores(ROWS * COLUMNS), sums(ROWS * padded);
    const Lines<BFloat16> shares(ROWS * COLUMNS);
    std::vector<Softmax> rows(ROWS);
#pragma omp for schedule(dynamic)
    for (int64_t at = 0; at < batch * heads * turns; ++at) {
      const int64_t b = at / turns / heads, h = at / turns % heads, q = at % turns * ROWS;
      const int64_t count = std::min(ROWS, queries - q);
      const BFloat16* from = query + b * strides[0] + q * strides[1] + h * width;
      std::fill(rows.begin(), rows.end(), Softmax());
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t seen = std::min(COLUMNS, keys - block * COLUMNS), columns = whole(seen, LANES);
        const int64_t place = (b * heads + h) * blocks + block;
        const auto* k = reinterpret_cast<const BFloat16*>(packed_keys.get() + place * (width / 2) * COLUMNS);
        const auto* v = reinterpret_cast<const BFloat16*>(packed_values.get() + place * padded * COLUMNS);
        brgemm(count, columns, width, strides[1], COLUMNS, COLUMNS, false, from, k, scores.get(), true);
        for (int64_t r = 0; r < count; ++r) {
          const float shrink =
              exponentials(scores.get() + r * COLUMNS, seen, scale, shares.get() + r * COLUMNS, rows[r]);
          if (block && shrink != 1) multiply(sums.get() + r * padded, padded, shrink);
        }
        brgemm(count, padded, columns, COLUMNS, padded, padded, block > 0, shares.get(), v, sums.get(), true);
      }
      for (int64_t r = 0; r < count; ++r) {
        multiply(sums.get() + r * padded, padded, 1 / rows[r].sum);
        BFloat16* to = out + (b * queries + q + r) * heads * width + h * width;
        for (int64_t j = 0; j < width; j += LANES)
          _mm256_mask_storeu_epi16(to + j, first(width - j),
                                   (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(sums.get() + r * padded + j)));
      }
    }
    brgemm_release(true);
  }
}
