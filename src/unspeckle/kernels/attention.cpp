// Softmax attention in bfloat16 for x86 processors with AVX-512 BF16, in blocks that stay in a core's cache
// (FlashAttention; Dao et al. 2022). A lane is a query, so that a softmax needs no sums across lanes, and scores become
// exponentials in the registers in which they were computed.
//
// Exponentials are relative to a reference, which need not be the highest score, only close to it. It is the highest of
// a query's first scores, and is raised only when a later one exceeds it by more than MAX_EXCESS.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

constexpr int64_t VECTORS = 4;                    // vectors of queries in a block
constexpr int64_t QUERY_BLOCK = VECTORS * LANES;  // queries of a block
constexpr int64_t KEY_BLOCK = 192;                // keys of a block
constexpr int64_t STRIP = 6;                      // keys, or channels of values, whose products fill the registers
constexpr float MAX_EXCESS = 24;                  // of a score over its reference, in powers of 2

int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

using Products = __m512[STRIP][VECTORS];

// products[i][v] += the sum over count pairs p of left[i][p] · right[p][v], for the first N of i. left has rows of
// stride pairs.
template <int64_t N>
inline __attribute__((always_inline)) void multiply_add(
    const uint32_t* left, int64_t stride, const uint32_t* right, int64_t count, Products& products) {
  for (int64_t p = 0; p < count; ++p) {
    __m512bh r[VECTORS];
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; ++v) r[v] = (__m512bh)_mm512_load_si512(right + p * QUERY_BLOCK + v * LANES);
#pragma GCC unroll 6
    for (int64_t i = 0; i < N; ++i) {
      const __m512bh l = (__m512bh)_mm512_set1_epi32(left[i * stride + p]);
#pragma GCC unroll 4
      for (int64_t v = 0; v < VECTORS; ++v) products[i][v] = _mm512_dpbf16_ps(products[i][v], r[v], l);
    }
  }
}

// 2^x, with a relative error of at most 1e-4: bfloat16 has 4e-3.
__m512 fast_exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  __m512 p = _mm512_set1_ps(0.07907993f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.22417862f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69672484f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99989295f));
  return _mm512_scalef_ps(p, x);
}

struct Interleave {  // the permutation of 32 numbers that alternates between the first 16 and the last 16
  uint16_t indices[32] = {};
  constexpr Interleave() {
    for (int i = 0; i < LANES; ++i) indices[2 * i] = i, indices[2 * i + 1] = i + LANES;
  }
};

// Two rows of float32 as one row of bfloat16 pairs.
__m512i to_pairs(__m512 even, __m512 odd) {
  alignas(64) static constexpr Interleave interleave;
  return _mm512_permutexvar_epi16(_mm512_load_si512(&interleave), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

struct Softmax {  // the state of a block's queries after some of the keys; scores in powers of 2
  __m512 reference[VECTORS] = {}, max[VECTORS] = {}, sum[VECTORS] = {};
};

// The exponentials of the scores of the first count of STRIP keys, as pairs of keys. ALL: count is STRIP. is_first:
// these are the first keys, which give the reference.
template <bool ALL>
inline __attribute__((always_inline)) void exponentials_of_strip(
    const uint32_t* keys, const uint32_t* queries, int64_t half_width, int64_t count, __m512 scale, bool is_first,
    Softmax& state, uint32_t* exponentials) {
  Products scores = {};
  multiply_add<STRIP>(keys, half_width, queries, half_width, scores);
#pragma GCC unroll 4
  for (int64_t v = 0; v < VECTORS; ++v) {
    __m512 max = scores[0][v], sum = state.sum[v];
#pragma GCC unroll 6
    for (int64_t i = 1; i < STRIP; ++i)
      if (ALL || i < count) max = _mm512_max_ps(max, scores[i][v]);
    max = _mm512_mul_ps(max, scale);
    if (is_first) state.reference[v] = max;
    state.max[v] = is_first ? max : _mm512_max_ps(state.max[v], max);
#pragma GCC unroll 6
    for (int64_t i = 0; i < STRIP; ++i) {
      scores[i][v] = fast_exp2(_mm512_fmsub_ps(scores[i][v], scale, state.reference[v]));
      if (!ALL && i >= count) scores[i][v] = _mm512_setzero_ps();
    }
#pragma GCC unroll 3
    for (int64_t i = 0; i < STRIP; i += 2) {
      const __m512i pairs = to_pairs(scores[i][v], scores[i + 1][v]);
      _mm512_store_si512(exponentials + i / 2 * QUERY_BLOCK + v * LANES, pairs);
      // The sum of the rounded exponentials, as their products with 1.
      sum = _mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)_mm512_set1_epi16(0x3f80));
    }
    state.sum[v] = sum;
  }
}

// The same for a block of count keys.
void exponentials_of_block(const uint32_t* keys, const uint32_t* queries, int64_t half_width, int64_t count,
                           __m512 scale, bool is_first, Softmax& state, uint32_t* exponentials) {
  int64_t k = 0;
  for (; k + STRIP <= count; k += STRIP)
    exponentials_of_strip<true>(keys + k * half_width, queries, half_width, STRIP, scale, is_first && k == 0, state,
                                exponentials + k / 2 * QUERY_BLOCK);
  if (k < count)
    exponentials_of_strip<false>(keys + k * half_width, queries, half_width, count - k, scale, is_first && k == 0,
                                 state, exponentials + k / 2 * QUERY_BLOCK);
}

// Whether a score exceeds its reference by too much.
bool exceeds_reference(const Softmax& state) {
  int mask = 0;
  for (int64_t v = 0; v < VECTORS; ++v) {
    const __m512 excess = _mm512_sub_ps(state.max[v], state.reference[v]);
    mask |= _mm512_cmp_ps_mask(excess, _mm512_set1_ps(MAX_EXCESS), _CMP_GT_OQ);
  }
  return mask;
}

// Add the values' N channels, weighted by the exponentials, to sums.
template <int64_t N>
void add_weighted_values(
    const uint32_t* values, int64_t stride, const uint32_t* exponentials, int64_t count, float* sums) {
  Products products;
#pragma GCC unroll 6
  for (int64_t i = 0; i < N; ++i)
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; ++v) products[i][v] = _mm512_load_ps(sums + i * QUERY_BLOCK + v * LANES);
  multiply_add<N>(values, stride, exponentials, count, products);
#pragma GCC unroll 6
  for (int64_t i = 0; i < N; ++i)
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; ++v) _mm512_store_ps(sums + i * QUERY_BLOCK + v * LANES, products[i][v]);
}

// Multiply the sums (width, QUERY_BLOCK) of vector v's queries by a factor for each query.
void scale_sums(float* sums, int64_t width, int64_t v, __m512 factors) {
  for (int64_t c = 0; c < width; ++c) {
    float* sum = sums + c * QUERY_BLOCK + v * LANES;
    _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), factors));
  }
}

// Transpose values (count, width) to (width, pairs), pairs being those of neighboring keys; an odd last key has a zero.
void transpose_values(const uint16_t* values, int64_t stride, int64_t count, int64_t width, uint32_t* packed) {
  const int64_t pairs = round_up(count, 2) / 2;
  for (int64_t start = 0; start < pairs; start += LANES)
    for (int64_t c = 0; c < width; ++c)
      for (int64_t p = start; p < std::min(pairs, start + LANES); ++p) {
        const uint32_t low = values[2 * p * stride + c];
        const uint32_t high = 2 * p + 1 < count ? values[(2 * p + 1) * stride + c] : 0;
        packed[c * pairs + p] = low | high << 16;
      }
}

// The attention of one block of queries to count keys, to sums (width, QUERY_BLOCK).
void attend_block(const uint32_t* queries, const uint32_t* keys, const uint32_t* values, int64_t count, int64_t width,
                  uint32_t* exponentials, float* sums) {
  const int64_t half_width = width / 2, pairs = round_up(count, 2) / 2;
  const __m512 scale = _mm512_set1_ps(1.4426950408889634f / std::sqrt(static_cast<float>(width)));  // to powers of 2
  std::fill_n(sums, width * QUERY_BLOCK, 0.0f);
  Softmax state;
  for (int64_t k = 0; k < count; k += KEY_BLOCK) {
    const int64_t block = std::min(KEY_BLOCK, count - k);
    const Softmax before = state;
    exponentials_of_block(keys + k * half_width, queries, half_width, block, scale, k == 0, state, exponentials);
    if (exceeds_reference(state)) {  // compute them again, relative to the highest scores so far
      for (int64_t v = 0; v < VECTORS; ++v) {
        const __m512 old_reference = k ? before.reference[v] : state.reference[v];
        const __m512 factors = fast_exp2(_mm512_sub_ps(old_reference, state.max[v]));
        state.reference[v] = state.max[v], state.sum[v] = _mm512_mul_ps(before.sum[v], factors);
        scale_sums(sums, width, v, factors);
      }
      exponentials_of_block(keys + k * half_width, queries, half_width, block, scale, false, state, exponentials);
    }
    const int64_t block_pairs = round_up(block, 2) / 2;
    int64_t c = 0;
    for (; c + STRIP <= width; c += STRIP)
      add_weighted_values<STRIP>(values + c * pairs + k / 2, pairs, exponentials, block_pairs, sums + c * QUERY_BLOCK);
    for (; c < width; c += 2)
      add_weighted_values<2>(values + c * pairs + k / 2, pairs, exponentials, block_pairs, sums + c * QUERY_BLOCK);
  }
  for (int64_t v = 0; v < VECTORS; ++v) scale_sums(sums, width, v, _mm512_div_ps(_mm512_set1_ps(1), state.sum[v]));
}

// Store sums (width, QUERY_BLOCK) as the first count rows of out.
void store_transposed(const float* sums, int64_t count, int64_t width, int64_t stride, uint16_t* out) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i offsets = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(QUERY_BLOCK));
  for (int64_t r = 0; r < count; ++r)
    for (int64_t c = 0; c < width; c += LANES) {
      const __mmask16 mask = lane_mask(width - c);
      const __m512 row = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, offsets, sums + c * QUERY_BLOCK + r, 4);
      _mm256_mask_storeu_epi16(out + r * stride + c, mask, (__m256i)_mm512_cvtneps_pbh(row));
    }
}

}  // namespace

// query (batch, queries, heads · width), key and value (batch, keys, heads · width); out has query's shape and is
// contiguous. strides: of the batch and of a row, for query, key and value. width must be even, and all addresses
// valid.
extern "C" void unspeckle_attention(
    const uint16_t* query, const uint16_t* key, const uint16_t* value, uint16_t* out, int64_t batch, int64_t heads,
    int64_t queries, int64_t keys, int64_t width, const int64_t* strides, int threads) {
  const int64_t half_width = width / 2, pairs = round_up(keys, 2) / 2, padded_keys = round_up(keys, STRIP) * half_width;
  const AlignedArray<uint32_t> packed_keys(batch * heads * padded_keys), packed_values(batch * heads * width * pairs);

#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < batch * heads; ++index) {
      const int64_t b = index / heads, column = index % heads * width;
      uint32_t* packed = packed_keys.get() + index * padded_keys;
      for (int64_t k = 0; k < keys; ++k)
        std::memcpy(packed + k * half_width, key + b * strides[2] + k * strides[3] + column, 2 * width);
      std::fill(packed + keys * half_width, packed + padded_keys, 0u);
      transpose_values(value + b * strides[4] + column, strides[5], keys, width,
                       packed_values.get() + index * width * pairs);
    }

    const AlignedArray<uint32_t> packed_queries(half_width * QUERY_BLOCK), exponentials((KEY_BLOCK / 2) * QUERY_BLOCK);
    const AlignedArray<float> sums(width * QUERY_BLOCK);
    const int64_t blocks = round_up(queries, QUERY_BLOCK) / QUERY_BLOCK;
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < batch * heads * blocks; ++index) {
      const int64_t head = index / blocks, b = head / heads, column = head % heads * width;
      const int64_t q = index % blocks * QUERY_BLOCK, count = std::min(QUERY_BLOCK, queries - q);
      std::fill_n(packed_queries.get(), half_width * QUERY_BLOCK, 0u);
      for (int64_t r = 0; r < count; ++r) {
        const uint16_t* row = query + b * strides[0] + (q + r) * strides[1] + column;
        for (int64_t j = 0; j < half_width; ++j) std::memcpy(&packed_queries[j * QUERY_BLOCK + r], row + 2 * j, 4);
      }
      attend_block(packed_queries.get(), packed_keys.get() + head * padded_keys,
                   packed_values.get() + head * width * pairs, keys, width, exponentials.get(), sums.get());
      store_transposed(sums.get(), count, width, heads * width, out + (b * queries + q) * heads * width + column);
    }
  }
}
