// Softmax attention in bfloat16 for x86 processors with AMX, in blocks that stay in a core's cache (FlashAttention; Dao
// et al. 2022), with matrix products by oneDNN's brgemm. Exponentials are only as exact as bfloat16 needs: PyTorch
// 2.13's own kernel spends most of its time on theirs. It runs without AMX too, as in tests, but attention.cpp is
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

constexpr int64_t QUERY_BLOCK = 64;  // queries of a block
constexpr int64_t KEY_BLOCK = 256;   // keys of a block

int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Keys (count, width) as (width / 2, KEY_BLOCK) pairs of neighboring channels, with zeros after the last key.
void pack_keys(const BFloat16* keys, int64_t stride, int64_t count, int64_t width, uint32_t* packed) {
  for (int64_t j = 0; j < width / 2; ++j) std::fill_n(packed + j * KEY_BLOCK + count, KEY_BLOCK - count, 0u);
  for (int64_t k = 0; k < count; ++k)
    for (int64_t j = 0; j < width / 2; ++j) std::memcpy(packed + j * KEY_BLOCK + k, keys + k * stride + 2 * j, 4);
}

// Values (count, width) as (KEY_BLOCK / 2, padded_width) pairs of neighboring keys, with zeros after the last.
void pack_values(
    const BFloat16* values, int64_t stride, int64_t count, int64_t width, int64_t padded_width, uint16_t* packed) {
  for (int64_t k = 0; k < round_up(count, LANES); k += 2) {
    uint16_t* row = packed + k * padded_width;
    std::fill_n(row, 2 * padded_width, uint16_t(0));
    for (int64_t parity = 0; parity < 2 && k + parity < count; ++parity) {
      const uint16_t* value = reinterpret_cast<const uint16_t*>(values + (k + parity) * stride);
      for (int64_t j = 0; j < width; ++j) row[2 * j + parity] = value[j];
    }
  }
}

struct Softmax {  // the state of one query after some of the keys
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0;
};

// The exponentials of count scores of one query, relative to the highest so far. Returns the factor for earlier sums.
float exponentials_of_scores(const float* scores, int64_t count, float scale, BFloat16* out, Softmax& state) {
  __m512 maxima = _mm512_set1_ps(state.max);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) maxima = _mm512_max_ps(maxima, _mm512_loadu_ps(scores + i));
  if (i < count) maxima = _mm512_mask_max_ps(maxima, lane_mask(count - i), maxima, _mm512_loadu_ps(scores + i));
  const float max = _mm512_reduce_max_ps(maxima);
  const float factor = std::exp2((state.max - max) * scale);
  const __m512 scales = _mm512_set1_ps(scale), offset = _mm512_set1_ps(-max * scale);
  __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (i = 0; i < count; i += 2 * LANES) {
    __m512 e[2];
    for (int64_t half = 0; half < 2; ++half) {
      const __mmask16 mask = lane_mask(count - i - half * LANES);
      e[half] = exp2(_mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, scores + i + half * LANES), scales, offset));
      e[half] = _mm512_maskz_mov_ps(mask, e[half]);
      sums[half] = _mm512_add_ps(sums[half], e[half]);
    }
    _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(e[1], e[0]));
  }
  state.sum = state.sum * factor + _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
  state.max = max;
  return factor;
}

void scale_row(float* row, int64_t width, float factor) {
  for (int64_t j = 0; j < width; j += LANES)
    _mm512_storeu_ps(row + j, _mm512_mul_ps(_mm512_loadu_ps(row + j), _mm512_set1_ps(factor)));
}

}  // namespace

// query (batch, queries, heads · width), key and value (batch, keys, heads · width); out has query's shape and is
// contiguous. strides: of the batch and of a row, for query, key and value. width must be even, and all addresses
// valid.
extern "C" void unspeckle_attention(
    const BFloat16* query, const BFloat16* key, const BFloat16* value, BFloat16* out, int64_t batch, int64_t heads,
    int64_t queries, int64_t keys, int64_t width, const int64_t* strides, int threads) {
  const int64_t key_blocks = round_up(keys, KEY_BLOCK) / KEY_BLOCK, padded_width = round_up(width, LANES);
  const float scale = 1.4426950408889634f / std::sqrt(static_cast<float>(width));  // to powers of 2
  const AlignedArray<uint32_t> packed_keys(batch * heads * key_blocks * (width / 2) * KEY_BLOCK);
  const AlignedArray<uint16_t> packed_values(batch * heads * key_blocks * padded_width * KEY_BLOCK);

#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t index = 0; index < batch * heads * key_blocks; ++index) {
    const int64_t b = index / key_blocks / heads, h = index / key_blocks % heads, k = index % key_blocks * KEY_BLOCK;
    const int64_t count = std::min(KEY_BLOCK, keys - k);
    pack_keys(key + b * strides[2] + k * strides[3] + h * width, strides[3], count, width,
              packed_keys.get() + index * (width / 2) * KEY_BLOCK);
    pack_values(value + b * strides[4] + k * strides[5] + h * width, strides[5], count, width, padded_width,
                packed_values.get() + index * padded_width * KEY_BLOCK);
  }

  const int64_t query_blocks = round_up(queries, QUERY_BLOCK) / QUERY_BLOCK;
#pragma omp parallel num_threads(threads)
  {
    const AlignedArray<float> scores(QUERY_BLOCK * KEY_BLOCK), sums(QUERY_BLOCK * padded_width);
    const AlignedArray<BFloat16> exponentials(QUERY_BLOCK * KEY_BLOCK);
    std::vector<Softmax> states(QUERY_BLOCK);
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < batch * heads * query_blocks; ++index) {
      const int64_t b = index / query_blocks / heads, h = index / query_blocks % heads;
      const int64_t q = index % query_blocks * QUERY_BLOCK, count = std::min(QUERY_BLOCK, queries - q);
      const BFloat16* block_queries = query + b * strides[0] + q * strides[1] + h * width;
      std::fill(states.begin(), states.end(), Softmax());
      for (int64_t block = 0; block < key_blocks; ++block) {
        const int64_t block_keys = std::min(KEY_BLOCK, keys - block * KEY_BLOCK), columns = round_up(block_keys, LANES);
        const int64_t packed_block = (b * heads + h) * key_blocks + block;
        const auto* k = reinterpret_cast<const BFloat16*>(packed_keys.get() + packed_block * (width / 2) * KEY_BLOCK);
        const auto* v =
            reinterpret_cast<const BFloat16*>(packed_values.get() + packed_block * padded_width * KEY_BLOCK);
        brgemm(count, columns, width, strides[1], KEY_BLOCK, KEY_BLOCK, false, block_queries, k, scores.get(), true);
        for (int64_t r = 0; r < count; ++r) {
          const float factor = exponentials_of_scores(scores.get() + r * KEY_BLOCK, block_keys, scale,
                                                      exponentials.get() + r * KEY_BLOCK, states[r]);
          if (block && factor != 1) scale_row(sums.get() + r * padded_width, padded_width, factor);
        }
        brgemm(count, padded_width, columns, KEY_BLOCK, padded_width, padded_width, block > 0, exponentials.get(), v,
               sums.get(), true);
      }
      for (int64_t r = 0; r < count; ++r) {
        scale_row(sums.get() + r * padded_width, padded_width, 1 / states[r].sum);
        BFloat16* row = out + (b * queries + q + r) * heads * width + h * width;
        for (int64_t j = 0; j < width; j += LANES)
          _mm256_mask_storeu_epi16(row + j, lane_mask(width - j),
                                   (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(sums.get() + r * padded_width + j)));
      }
    }
    brgemm_release(true);
  }
}
