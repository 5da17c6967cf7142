// What the kernels share: vectors of float32 on processors with AVX-512.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t LANES = 16;  // float32 in a vector

// The lanes of the first numbers.
__mmask16 first(int64_t count) { return count >= LANES ? 0xffff : (1u << std::max<int64_t>(count, 0)) - 1; }

// 2^x for x <= 0, off by at most 3e-6 of itself.
__m512 exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  __m512 p = _mm512_set1_ps(0.013534167615713966f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.05201146118757943f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24144275655040726f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6930038345327209f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000025933689805f));
  return _mm512_scalef_ps(p, x);  // p · 2^floor(x)
}

}  // namespace
