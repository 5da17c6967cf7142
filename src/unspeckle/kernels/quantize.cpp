// Quantization around products of 8-bit integers, for x86 processors with AVX-512 and bfloat16: each function reads its
// input once or twice, where PyTorch takes five operations and as many copies. A quantized value q stands for
// (q - zero_point) · scale.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t CHUNK = 1 << 14;        // numbers of a tensor that a thread reads at a time
constexpr int32_t ROW_ZERO_POINT = 128;
constexpr float MAX_MAGNITUDE = 127;      // of a row's quantized values, less the zero point

// The mask of the first count of 32 bfloat16 numbers.
__mmask32 bf16_mask(int64_t count) { return count >= 32 ? ~0u : (1u << std::max<int64_t>(count, 0)) - 1; }

__m512 load_bf16(const uint16_t* from, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}

void store_bf16(uint16_t* to, __mmask16 mask, __m512 values) {
  _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(values));
}

float bf16_to_float(uint16_t bits) {
  const uint32_t wide_bits = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide_bits, 4);
  return value;
}

// The largest magnitude of a row. Bits are compared as integers, so that a NaN counts as the largest.
float max_magnitude(const uint16_t* row, int64_t count) {
  __m512i largest = _mm512_setzero_si512();
  for (int64_t j = 0; j < count; j += 32) {
    const __m512i bits = _mm512_maskz_loadu_epi16(bf16_mask(count - j), row + j);
    largest = _mm512_max_epu16(largest, _mm512_and_si512(bits, _mm512_set1_epi16(0x7fff)));
  }
  uint16_t lanes[32];
  _mm512_storeu_si512(lanes, largest);
  return bf16_to_float(*std::max_element(lanes, lanes + 32));
}

// The bits of bfloat16 numbers as integers of the same order, and back again.
__m512i to_ordered(__m512i bits) {
  return _mm512_xor_si512(bits, _mm512_and_si512(_mm512_srai_epi16(bits, 15), _mm512_set1_epi16(0x7fff)));
}
int16_t to_ordered(int16_t bits) { return bits ^ ((bits >> 15) & 0x7fff); }

// Store values · inverse_scale + zero_point, rounded and clamped to bytes.
void store_quantized(uint8_t* to, __mmask16 mask, __m512 values, __m512 inverse_scale, __m512i zero_point) {
  const __m512i quantized = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(values, inverse_scale)), zero_point);
  _mm_mask_storeu_epi8(to, mask, _mm512_cvtusepi32_epi8(_mm512_max_epi32(quantized, _mm512_setzero_si512())));
}

void quantize(uint8_t* to, const uint16_t* from, int64_t count, float inverse_scale, int32_t zero_point) {
  for (int64_t j = 0; j < count; j += LANES) {
    const __mmask16 mask = lane_mask(count - j);
    store_quantized(to + j, mask, load_bf16(from + j, mask), _mm512_set1_ps(inverse_scale),
                    _mm512_set1_epi32(zero_point));
  }
}

}  // namespace

// Quantize the rows of x (rows, width), each with a scale of its own; scales (rows).
extern "C" void unspeckle_quantize_rows(
    const uint16_t* x, int64_t rows, int64_t width, uint8_t* out, float* scales, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t r = 0; r < rows; ++r) {
    const float largest = max_magnitude(x + r * width, width);
    scales[r] = largest == 0 ? 1 : largest / MAX_MAGNITUDE;
    quantize(out + r * width, x + r * width, width, 1 / scales[r], ROW_ZERO_POINT);
  }
}

// Quantize all of x (count) with one scale and one zero point, such that 0 is exact.
extern "C" void unspeckle_quantize_tensor(
    const uint16_t* x, int64_t count, uint8_t* out, float* scale, int32_t* zero_point, int threads) {
  int16_t low = 0, high = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : low) reduction(max : high)
  for (int64_t start = 0; start < count; start += CHUNK) {
    __m512i smallest = _mm512_setzero_si512(), largest = smallest;
    for (int64_t j = start; j < std::min(count, start + CHUNK); j += 32) {
      const __m512i values = to_ordered(_mm512_maskz_loadu_epi16(bf16_mask(count - j), x + j));
      smallest = _mm512_min_epi16(smallest, values), largest = _mm512_max_epi16(largest, values);
    }
    int16_t lanes[2][32];
    _mm512_storeu_si512(lanes[0], smallest), _mm512_storeu_si512(lanes[1], largest);
    low = std::min(low, *std::min_element(lanes[0], lanes[0] + 32));
    high = std::max(high, *std::max_element(lanes[1], lanes[1] + 32));
  }
  const float min = bf16_to_float(uint16_t(to_ordered(low))), max = bf16_to_float(uint16_t(to_ordered(high)));
  *scale = max == min ? 1 : (max - min) / 255;
  *zero_point = int32_t(std::min(255.0f, std::max(0.0f, std::nearbyint(-min / *scale))));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t start = 0; start < count; start += CHUNK)
    quantize(out + start, x + start, std::min(CHUNK, count - start), 1 / *scale, *zero_point);
}

// x (rows, width) · scales (rows) + bias (width, or null), in place.
extern "C" void unspeckle_scale_rows(
    uint16_t* x, int64_t rows, int64_t width, const float* scales, const float* bias, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t r = 0; r < rows; ++r) {
    uint16_t* row = x + r * width;
    const __m512 scale = _mm512_set1_ps(scales[r]);
    for (int64_t j = 0; j < width; j += LANES) {
      const __mmask16 mask = lane_mask(width - j);
      const __m512 offset = bias ? _mm512_maskz_loadu_ps(mask, bias + j) : _mm512_setzero_ps();
      store_bf16(row + j, mask, _mm512_fmadd_ps(load_bf16(row + j, mask), scale, offset));
    }
  }
}

// Scale the rows of x (rows, 2 · width) and add the bias, as above, and quantize the rows of value · gelu(gate), each
// with a scale of its own. The values come before the gates.
extern "C" void unspeckle_quantize_geglu(
    const uint16_t* x, int64_t rows, int64_t width, const float* scales, const float* bias, uint8_t* out,
    float* out_scales, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> row(width + LANES);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      const uint16_t *value = x + 2 * r * width, *gate = value + width;
      const __m512 scale = _mm512_set1_ps(scales[r]);
      __m512i largest = _mm512_setzero_si512();
      for (int64_t j = 0; j < width; j += LANES) {
        const __mmask16 mask = lane_mask(width - j);
        const __m512 value_bias = _mm512_maskz_loadu_ps(mask, bias + j);
        const __m512 gate_bias = _mm512_maskz_loadu_ps(mask, bias + width + j);
        const __m512 v = _mm512_fmadd_ps(load_bf16(value + j, mask), scale, value_bias);
        const __m512 g = _mm512_fmadd_ps(load_bf16(gate + j, mask), scale, gate_bias);
        const __m512 gated = _mm512_maskz_mul_ps(mask, v, gelu(g));
        _mm512_storeu_ps(row.data() + j, gated);
        largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(gated)));
      }
      const uint32_t bits = _mm512_reduce_max_epu32(largest);
      float magnitude;
      std::memcpy(&magnitude, &bits, 4);
      out_scales[r] = magnitude == 0 ? 1 : magnitude / MAX_MAGNITUDE;
      const __m512 inverse_scale = _mm512_set1_ps(1 / out_scales[r]);
      for (int64_t j = 0; j < width; j += LANES)
        store_quantized(out + r * width + j, lane_mask(width - j), _mm512_loadu_ps(row.data() + j), inverse_scale,
                        _mm512_set1_epi32(ROW_ZERO_POINT));
    }
  }
}
