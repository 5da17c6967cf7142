// Softmax attention in bfloat16 for x86 processors with AVX-512 BF16, in blocks that stay in a core's cache: Dao et al. 2022
// (FlashAttention). A lane is a query, so that a softmax needs no sums across lanes, and scores become exponentials in the
// registers where they were made.
//
// They are taken relative to a reference, which need not be the highest score: any of about its size does. It is the highest of a
// query's first scores, and is raised only where a later one passes it by more than ROOM.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

constexpr int64_t VECTORS = 4;                // of queries in a block
constexpr int64_t QUERIES = VECTORS * LANES;  // of a block
constexpr int64_t KEYS = 192;                 // of a block
constexpr int64_t AT_ONCE = 6;                // keys, or channels of values, whose products fill the registers
constexpr float ROOM = 24;                    // in powers of 2

int64_t whole(int64_t count, int64_t of) { return (count + of - 1) / of * of; }

using Products = __m512[AT_ONCE][VECTORS];

// made[i][v] += sum over count pairs of left[i][pair] · right[pair][v], for the first N of i; rows of left lie stride apart.
template <int64_t N>
inline __attribute__((always_inline)) void multiply(
    const uint32_t* left, int64_t stride, const uint32_t* right, int64_t count, Products& made) {
  for (int64_t p = 0; p < count; ++p) {
    __m512bh r[VECTORS];
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; ++v) r[v] = (__m512bh)_mm512_load_si512(right + p * QUERIES + v * LANES);
#pragma GCC unroll 6
    for (int64_t i = 0; i < N; ++i) {
      const __m512bh l = (__m512bh)_mm512_set1_epi32(left[i * stride + p]);
#pragma GCC unroll 4
      for (int64_t v = 0; v < VECTORS; ++v) made[i][v] = _mm512_dpbf16_ps(made[i][v], r[v], l);
    }
  }
}

// 2^x, off by at most 1e-4 of itself: bfloat16 keeps 4e-3.
__m512 power(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  __m512 p = _mm512_set1_ps(0.07907993f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.22417862f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69672484f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99989295f));
  return _mm512_scalef_ps(p, x);
}

struct Order {  // of 32 numbers, the first 16 and the last 16 in turns
  uint16_t places[32] = {};
  constexpr Order() {
    for (int i = 0; i < LANES; ++i) places[2 * i] = i, places[2 * i + 1] = i + LANES;
  }
};

// Two rows of numbers as one of pairs.
__m512i interleaved(__m512 even, __m512 odd) {
  alignas(64) static constexpr Order order;
  return _mm512_permutexvar_epi16(_mm512_load_si512(&order), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

struct Softmax {  // of a block's queries, so far; as powers of 2
  __m512 reference[VECTORS] = {}, most[VECTORS] = {}, sum[VECTORS] = {};
};

// The exponentials of the first seen of AT_ONCE keys' scores, as pairs of keys.
template <bool ALL>
inline __attribute__((always_inline)) void exponentials(
    const uint32_t* keys, const uint32_t* queries, int64_t half, int64_t seen, __m512 scale, bool begins, Softmax& so_far,
    uint32_t* shares) {
  Products made = {};
  multiply<AT_ONCE>(keys, half, queries, half, made);
#pragma GCC unroll 4
  for (int64_t v = 0; v < VECTORS; ++v) {
    __m512 most = made[0][v], sum = so_far.sum[v];
#pragma GCC unroll 6
    for (int64_t i = 1; i < AT_ONCE; ++i)
      if (ALL || i < seen) most = _mm512_max_ps(most, made[i][v]);
    most = _mm512_mul_ps(most, scale);
    if (begins) so_far.reference[v] = most;
    so_far.most[v] = begins ? most : _mm512_max_ps(so_far.most[v], most);
#pragma GCC unroll 6
    for (int64_t i = 0; i < AT_ONCE; ++i) {
      made[i][v] = power(_mm512_fmsub_ps(made[i][v], scale, so_far.reference[v]));
      if (!ALL && i >= seen) made[i][v] = _mm512_setzero_ps();
    }
#pragma GCC unroll 3
    for (int64_t i = 0; i < AT_ONCE; i += 2) {
      const __m512i pairs = interleaved(made[i][v], made[i + 1][v]);
      _mm512_store_si512(shares + i / 2 * QUERIES + v * LANES, pairs);
      sum = _mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)_mm512_set1_epi16(0x3f80));  // as rounded, each times 1
    }
    so_far.sum[v] = sum;
  }
}

// The same of a block of count keys.
void exponentials(const uint32_t* keys, const uint32_t* queries, int64_t half, int64_t count, __m512 scale, bool begins,
                  Softmax& so_far, uint32_t* shares) {
  int64_t k = 0;
  for (; k + AT_ONCE <= count; k += AT_ONCE)
    exponentials<true>(keys + k * half, queries, half, AT_ONCE, scale, begins && k == 0, so_far, shares + k / 2 * QUERIES);
  if (k < count)
    exponentials<false>(keys + k * half, queries, half, count - k, scale, begins && k == 0, so_far, shares + k / 2 * QUERIES);
}

// Whether a score has passed a reference by too much.
bool passed(const Softmax& so_far) {
  int far = 0;
  for (int64_t v = 0; v < VECTORS; ++v)
    far |= _mm512_cmp_ps_mask(_mm512_sub_ps(so_far.most[v], so_far.reference[v]), _mm512_set1_ps(ROOM), _CMP_GT_OQ);
  return far;
}

// N channels of the sum of values by their shares.
template <int64_t N>
void add(const uint32_t* values, int64_t stride, const uint32_t* shares, int64_t count, float* sums) {
  Products made;
#pragma GCC unroll 6
  for (int64_t i = 0; i < N; ++i)
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; ++v) made[i][v] = _mm512_load_ps(sums + i * QUERIES + v * LANES);
  multiply<N>(values, stride, shares, count, made);
#pragma GCC unroll 6
  for (int64_t i = 0; i < N; ++i)
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; ++v) _mm512_store_ps(sums + i * QUERIES + v * LANES, made[i][v]);
}

// Each query's sums (width, QUERIES) times its own number.
void multiply(float* sums, int64_t width, int64_t v, __m512 by) {
  for (int64_t c = 0; c < width; ++c) {
    float* at = sums + c * QUERIES + v * LANES;
    _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), by));
  }
}

// Values (count, width) as (width, pairs) of neighbouring keys, a zero behind an odd last.
void turn(const uint16_t* values, int64_t stride, int64_t count, int64_t width, uint32_t* packed) {
  const int64_t pairs = whole(count, 2) / 2;
  for (int64_t from = 0; from < pairs; from += LANES)
    for (int64_t c = 0; c < width; ++c)
      for (int64_t p = from; p < std::min(pairs, from + LANES); ++p) {
        const uint32_t low = values[2 * p * stride + c], high = 2 * p + 1 < count ? values[(2 * p + 1) * stride + c] : 0;
        packed[c * pairs + p] = low | high << 16;
      }
}

// One block of queries: the softmax of their scores (keys) times values, to sums (width, QUERIES).
void attend(const uint32_t* queries, const uint32_t* keys, const uint32_t* values, int64_t count, int64_t width,
            uint32_t* shares, float* sums) {
  const int64_t half = width / 2, pairs = whole(count, 2) / 2;
  const __m512 scale = _mm512_set1_ps(1.4426950408889634f / std::sqrt(static_cast<float>(width)));  // to powers of 2
  std::fill_n(sums, width * QUERIES, 0.0f);
  Softmax so_far;
  for (int64_t k = 0; k < count; k += KEYS) {
    const int64_t seen = std::min(KEYS, count - k);
    const Softmax before = so_far;
    exponentials(keys + k * half, queries, half, seen, scale, k == 0, so_far, shares);
    if (passed(so_far)) {  // once more, relative to what is the highest now
      for (int64_t v = 0; v < VECTORS; ++v) {
        const __m512 old = k ? before.reference[v] : so_far.reference[v], shrink = power(_mm512_sub_ps(old, so_far.most[v]));
        so_far.reference[v] = so_far.most[v], so_far.sum[v] = _mm512_mul_ps(before.sum[v], shrink);
        multiply(sums, width, v, shrink);
      }
      exponentials(keys + k * half, queries, half, seen, scale, false, so_far, shares);
    }
    int64_t c = 0;
    for (; c + AT_ONCE <= width; c += AT_ONCE)
      add<AT_ONCE>(values + c * pairs + k / 2, pairs, shares, whole(seen, 2) / 2, sums + c * QUERIES);
    for (; c < width; c += 2) add<2>(values + c * pairs + k / 2, pairs, shares, whole(seen, 2) / 2, sums + c * QUERIES);
  }
  for (int64_t v = 0; v < VECTORS; ++v) multiply(sums, width, v, _mm512_div_ps(_mm512_set1_ps(1), so_far.sum[v]));
}

// Sums (width, QUERIES) as the first count rows of out.
void leave(const float* sums, int64_t count, int64_t width, int64_t stride, uint16_t* out) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(QUERIES));
  for (int64_t r = 0; r < count; ++r)
    for (int64_t c = 0; c < width; c += LANES) {
      const __mmask16 seen = first(width - c);
      const __m512 row = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), seen, places, sums + c * QUERIES + r, 4);
      _mm256_mask_storeu_epi16(out + r * stride + c, seen, (__m256i)_mm512_cvtneps_pbh(row));
    }
}

}  // namespace

// query (batch, queries, heads · width), key and value (batch, keys, heads · width), out as query but contiguous. The
// strides are those of the batch and of a row. width must be even. Returns nothing; every address must be valid.
extern "C" void unspeckle_attention(
    const uint16_t* query, const uint16_t* key, const uint16_t* value, uint16_t* out, int64_t batch, int64_t heads,
    int64_t queries, int64_t keys, int64_t width, const int64_t* strides, int threads) {
  const int64_t half = width / 2, pairs = whole(keys, 2) / 2, padded = whole(keys, AT_ONCE) * half;
  const Lines<uint32_t> packed_keys(batch * heads * padded), packed_values(batch * heads * width * pairs);

#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t at = 0; at < batch * heads; ++at) {
      const int64_t b = at / heads, h = at % heads * width;
      uint32_t* to = packed_keys.get() + at * padded;
      for (int64_t k = 0; k < keys; ++k) std::memcpy(to + k * half, key + b * strides[2] + k * strides[3] + h, 2 * width);
      std::fill(to + keys * half, to + padded, 0u);
      turn(value + b * strides[4] + h, strides[5], keys, width, packed_values.get() + at * width * pairs);
    }

    const Lines<uint32_t> asked(half * QUERIES), shares((KEYS / 2) * QUERIES);
    const Lines<float> sums(width * QUERIES);
    const int64_t turns = whole(queries, QUERIES) / QUERIES;
#pragma omp for schedule(dynamic)
    for (int64_t at = 0; at < batch * heads * turns; ++at) {
      const int64_t place = at / turns, b = place / heads, h = place % heads * width, q = at % turns * QUERIES;
      const int64_t count = std::min(QUERIES, queries - q);
      std::fill_n(asked.get(), half * QUERIES, 0u);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t j = 0; j < half; ++j)
          std::memcpy(&asked[j * QUERIES + r], query + b * strides[0] + (q + r) * strides[1] + h + 2 * j, 4);
      attend(asked.get(), packed_keys.get() + place * padded, packed_values.get() + place * width * pairs, keys, width,
             shares.get(), sums.get());
      leave(sums.get(), count, width, heads * width, out + (b * queries + q) * heads * width + h);
    }
  }
}
