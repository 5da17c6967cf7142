// What the kernels share: vectors of 16 float32 numbers (AVX-512), and aligned memory.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

constexpr int64_t LANES = 16;  // float32 numbers in a vector

// An uninitialized array that begins at a cache line: a vector that crosses two lines takes two reads.
template <typename T>
class AlignedArray {
 public:
  explicit AlignedArray(int64_t size)
      : data_(static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64))) {
    if (!data_) throw std::bad_alloc();
  }
  ~AlignedArray() { std::free(data_); }
  AlignedArray(const AlignedArray&) = delete;
  AlignedArray& operator=(const AlignedArray&) = delete;
  T* get() const { return data_; }
  T& operator[](int64_t index) const { return data_[index]; }

 private:
  T* data_;
};

// The mask of the first count lanes; of all for larger counts.
__mmask16 lane_mask(int64_t count) { return count >= LANES ? 0xffff : (1u << std::max<int64_t>(count, 0)) - 1; }

// 2^x for x <= 0, with a relative error of at most 3e-6.
__m512 exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  __m512 p = _mm512_set1_ps(0.013534167615713966f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.05201146118757943f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24144275655040726f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6930038345327209f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000025933689805f));
  return _mm512_scalef_ps(p, x);  // p · 2^floor(x)
}

// x · Φ(x), with Φ by Abramowitz & Stegun 7.1.26; the error is at most 1e-6.
__m512 gelu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1), z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
  __m512 p = _mm512_set1_ps(1.061405429f);
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
  const __m512 e = exp2(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.4426950408889634f)));
  const __m512 tail = _mm512_mul_ps(_mm512_set1_ps(0.5f), _mm512_mul_ps(_mm512_mul_ps(p, t), e));  // Φ(-|x|)
  const __mmask16 is_negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mul_ps(x, _mm512_mask_mov_ps(_mm512_sub_ps(one, tail), is_negative, tail));
}

}  // namespace
