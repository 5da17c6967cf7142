// To and from products of bytes, for x86 processors with AVX-512 and bfloat16: each function reads its input once or twice
// where torch takes five operations and as many copies. A byte q stands for (q - zero) · scale.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t PIECE = 1 << 14;

__mmask32 both(int64_t count) { return count >= 32 ? ~0u : (1u << std::max<int64_t>(count, 0)) - 1; }

__m512 load(const uint16_t* from, __mmask16 seen) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(seen, from)), 16));
}

void store(uint16_t* to, __mmask16 seen, __m512 values) {
  _mm256_mask_storeu_epi16(to, seen, (__m256i)_mm512_cvtneps_pbh(values));
}

float wide(uint16_t bits) {
  const uint32_t whole = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &whole, 4);
  return value;
}

// The largest magnitude. Compared as whole numbers, so that what is no number counts as the largest.
float most(const uint16_t* row, int64_t count) {
  __m512i found = _mm512_setzero_si512();
  for (int64_t j = 0; j < count; j += 32) {
    const __m512i bits = _mm512_maskz_loadu_epi16(both(count - j), row + j);
    found = _mm512_max_epu16(found, _mm512_and_si512(bits, _mm512_set1_epi16(0x7fff)));
  }
  uint16_t each[32];
  _mm512_storeu_si512(each, found);
  return wide(*std::max_element(each, each + 32));
}

// bfloat16 as whole numbers of the same order, and back again.
__m512i ordered(__m512i bits) {
  return _mm512_xor_si512(bits, _mm512_and_si512(_mm512_srai_epi16(bits, 15), _mm512_set1_epi16(0x7fff)));
}
int16_t ordered(int16_t bits) { return bits ^ ((bits >> 15) & 0x7fff); }

void write(uint8_t* to, __mmask16 seen, __m512 values, __m512 by, __m512i zero) {
  const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(values, by)), zero);
  _mm_mask_storeu_epi8(to, seen, _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_setzero_si512())));
}

void write(uint8_t* to, const uint16_t* from, int64_t count, float by, int32_t zero) {
  for (int64_t j = 0; j < count; j += LANES)
    write(to + j, first(count - j), load(from + j, first(count - j)), _mm512_set1_ps(by), _mm512_set1_epi32(zero));
}

}  // namespace

// Each row of x (rows, width) by a scale of its own, zero = 128. scales (rows).
extern "C" void unspeckle_quantize_rows(const uint16_t* x, int64_t rows, int64_t width, uint8_t* out, float* scales, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t r = 0; r < rows; ++r) {
    const float largest = most(x + r * width, width);
    scales[r] = largest == 0 ? 1 : largest / 127;
    write(out + r * width, x + r * width, width, 1 / scales[r], 128);
  }
}

// All of x (count) by one scale and one zero, so that 0 is exact.
extern "C" void unspeckle_quantize_tensor(const uint16_t* x, int64_t count, uint8_t* out, float* scale, int32_t* zero, int threads) {
  int16_t low = 0, high = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : low) reduction(max : high)
  for (int64_t at = 0; at < count; at += PIECE) {
    __m512i least = _mm512_setzero_si512(), largest = least;
    for (int64_t j = at; j < std::min(count, at + PIECE); j += 32) {
      const __m512i values = ordered(_mm512_maskz_loadu_epi16(both(count - j), x + j));
      least = _mm512_min_epi16(least, values), largest = _mm512_max_epi16(largest, values);
    }
    int16_t each[2][32];
    _mm512_storeu_si512(each[0], least), _mm512_storeu_si512(each[1], largest);
    low = std::min(low, *std::min_element(each[0], each[0] + 32));
    high = std::max(high, *std::max_element(each[1], each[1] + 32));
  }
  const float from = wide(uint16_t(ordered(low))), to = wide(uint16_t(ordered(high)));
  *scale = to == from ? 1 : (to - from) / 255;
  *zero = int32_t(std::min(255.0f, std::max(0.0f, std::nearbyint(-from / *scale))));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t at = 0; at < count; at += PIECE)
    write(out + at, x + at, std::min(PIECE, count - at), 1 / *scale, *zero);
}

// x (rows, width) · scales (rows) + bias (width, or none), in place.
extern "C" void unspeckle_scale_rows(
    uint16_t* x, int64_t rows, int64_t width, const float* scales, const float* bias, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t r = 0; r < rows; ++r) {
    uint16_t* row = x + r * width;
    const __m512 by = _mm512_set1_ps(scales[r]);
    for (int64_t j = 0; j < width; j += LANES) {
      const __mmask16 seen = first(width - j);
      const __m512 more = bias ? _mm512_maskz_loadu_ps(seen, bias + j) : _mm512_setzero_ps();
      store(row + j, seen, _mm512_fmadd_ps(load(row + j, seen), by, more));
    }
  }
}

// value · gelu(gate) of x (rows, 2 · width), value first, once scaled as above; each row by a scale of its own, zero = 128.
extern "C" void unspeckle_quantize_geglu(
    const uint16_t* x, int64_t rows, int64_t width, const float* scales, const float* bias, uint8_t* out, float* own,
    int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> row(width + LANES);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      const uint16_t *value = x + 2 * r * width, *gate = value + width;
      const __m512 by = _mm512_set1_ps(scales[r]);
      __m512i largest = _mm512_setzero_si512();
      for (int64_t j = 0; j < width; j += LANES) {
        const __mmask16 seen = first(width - j);
        const __m512 v = _mm512_fmadd_ps(load(value + j, seen), by, _mm512_maskz_loadu_ps(seen, bias + j));
        const __m512 g = _mm512_fmadd_ps(load(gate + j, seen), by, _mm512_maskz_loadu_ps(seen, bias + width + j));
        const __m512 made = _mm512_maskz_mul_ps(seen, v, gelu(g));
        _mm512_storeu_ps(row.data() + j, made);
        largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(made)));
      }
      const uint32_t bits = _mm512_reduce_max_epu32(largest);
      float most;
      std::memcpy(&most, &bits, 4);
      own[r] = most == 0 ? 1 : most / 127;
      for (int64_t j = 0; j < width; j += LANES)
        write(out + r * width + j, first(width - j), _mm512_loadu_ps(row.data() + j), _mm512_set1_ps(1 / own[r]),
              _mm512_set1_epi32(128));
    }
  }
}
