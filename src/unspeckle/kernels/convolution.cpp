// 3 x 3 convolutions in bfloat16 with 4/9 of the products, for x86 processors with AVX-512 BF16: Winograd's F(2 x 2, 3 x 3)
// (Lavin & Gray 2015). Each 4 x 4 window of the input becomes 16 frequencies, each of them is a matrix product over the
// channels (oneDNN's brgemm), and of the 16 results come 2 x 2 pixels. Of a picture whose pixels are doubled first, 7 of the
// 16 frequencies are always 0 and are left out.
//
// What comes before and after a convolution in a residual block is done on the way, in float32: normalisation and SiLU as
// the input is read, bias and sum as the output is written. Memory is channels-last: (batch, height, width, channels).

#include <ATen/native/CPUBlas.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "vectors.h"

using at::BFloat16;
using at::native::cpublas::brgemm;
using at::native::cpublas::brgemm_release;

namespace {

constexpr int64_t CHANNELS = 32;  // read at once: a line of the cache
constexpr int64_t OUTPUTS = 64;   // of a product
constexpr int64_t TILES = 64;     // of a product
constexpr int64_t GROUP = 4 << 20;  // bytes of frequencies that are kept until they are multiplied
constexpr int64_t APART = 96;     // numbers between planes, which else lie where a cache keeps only a few
constexpr int64_t PIECE = 64;     // places whose sums are taken in float32
constexpr int64_t PLANE = TILES * OUTPUTS + APART;  // of products

__m512 widened(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
__m512 load(const uint16_t* from) { return widened(_mm256_loadu_si256((const __m256i*)from)); }
void store(uint16_t* to, __m512 x) { _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x)); }

__m512 silu(__m512 x) {  // x / (1 + 2^-(x · log2 e)), by an exponential that wants x <= 0
  const __m512 one = _mm512_set1_ps(1), e = exp2(_mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(-1.4426950408889634f)));
  const __m512 below = _mm512_add_ps(one, e);
  __m512 inverse = _mm512_rcp14_ps(below);
  inverse = _mm512_mul_ps(inverse, _mm512_fnmadd_ps(below, inverse, _mm512_set1_ps(2)));
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mul_ps(_mm512_mul_ps(x, inverse), _mm512_mask_mov_ps(one, negative, e));
}

template <bool DOUBLED>
struct Shape {
  static constexpr int64_t SIDE = DOUBLED ? 3 : 4;  // of a window, in pixels and in frequencies
  static constexpr int64_t STEP = DOUBLED ? 1 : 2;  // pixels from one window to the next

  int64_t batch, high, wide, enter, leave;                                                // of the input; channels
  int64_t rows() const { return DOUBLED ? high : (high + 1) / 2; }                        // of tiles, in one picture
  int64_t columns() const { return DOUBLED ? wide : (wide + 1) / 2; }
  int64_t out_high() const { return DOUBLED ? 2 * high : high; }
  int64_t out_wide() const { return DOUBLED ? 2 * wide : wide; }
};

// The frequencies of a window along one side, in place; of a doubled one without that which is 0.
template <bool DOUBLED>
inline __attribute__((always_inline)) void to_frequencies(__m512* d) {
  if constexpr (DOUBLED) {
    d[0] = _mm512_sub_ps(d[0], d[1]), d[2] = _mm512_sub_ps(d[1], d[2]);
  } else {
    const __m512 sum = _mm512_add_ps(d[1], d[2]), less = _mm512_sub_ps(d[2], d[1]);
    d[0] = _mm512_sub_ps(d[0], d[2]), d[3] = _mm512_sub_ps(d[1], d[3]), d[1] = sum, d[2] = less;
  }
}

// One row of a picture, CHANNELS of it from c on, as float32 with a zero on each side (two behind), normalised and through a
// SiLU where scale is given; zeros outside of the picture.
template <bool DOUBLED>
void read_row(const Shape<DOUBLED>& s, const uint16_t* x, int64_t b, int64_t h, int64_t c, const float* scale, const float* shift,
              float* row) {
  if (h < 0 || h >= s.high) {
    std::fill_n(row, (s.wide + 3) * CHANNELS, 0.0f);
    return;
  }
  std::fill_n(row, CHANNELS, 0.0f), std::fill_n(row + (s.wide + 1) * CHANNELS, 2 * CHANNELS, 0.0f);
  const uint16_t* from = x + (b * s.high + h) * s.wide * s.enter + c;
  for (int64_t half = 0; half < CHANNELS; half += LANES) {
    float* to = row + CHANNELS + half;
    if (!scale) {
      for (int64_t w = 0; w < s.wide; ++w) _mm512_store_ps(to + w * CHANNELS, load(from + w * s.enter + half));
      continue;
    }
    const __m512 by = _mm512_loadu_ps(scale + b * s.enter + c + half), more = _mm512_loadu_ps(shift + b * s.enter + c + half);
    for (int64_t w = 0; w < s.wide; ++w)
      _mm512_store_ps(to + w * CHANNELS, silu(_mm512_fmadd_ps(load(from + w * s.enter + half), by, more)));
  }
}

// Frequencies of the tiles in rows [from, to) of all pictures' rows, CHANNELS of them from c on, to v (frequency, tile, channel).
template <bool DOUBLED>
void transform(const Shape<DOUBLED>& s, const uint16_t* x, int64_t from, int64_t to, int64_t c, const float* scale,
               const float* shift, float* rows, uint16_t* v, int64_t plane) {
  constexpr int64_t N = Shape<DOUBLED>::SIDE, STEP = Shape<DOUBLED>::STEP;
  const int64_t length = (s.wide + 3) * CHANNELS;
  for (int64_t r = from; r < to; ++r) {
    const int64_t b = r / s.rows(), i = r % s.rows(), top = STEP * i - 1;
    const bool follows = r > from && i > 0;  // the rows before are there still
    for (int64_t k = follows ? N - STEP : 0; k < N; ++k)
      read_row(s, x, b, top + k, c, scale, shift, rows + (top + k & 3) * length);
    const float* lines[N];
    for (int64_t k = 0; k < N; ++k) lines[k] = rows + (top + k & 3) * length;
    for (int64_t half = 0; half < CHANNELS; half += LANES) {
      __m512 d[N][N];  // (column, row), and frequencies along the rows
      const auto column = [&](int64_t w, int64_t at) {
#pragma GCC unroll 4
        for (int64_t k = 0; k < N; ++k) d[w][k] = _mm512_load_ps(lines[k] + at * CHANNELS + half);
        to_frequencies<DOUBLED>(d[w]);
      };
#pragma GCC unroll 2
      for (int64_t w = STEP; w < N; ++w) column(w, w - STEP);
      for (int64_t j = 0; j < s.columns(); ++j) {
#pragma GCC unroll 2
        for (int64_t w = STEP; w < N; ++w)
#pragma GCC unroll 4
          for (int64_t k = 0; k < N; ++k) d[w - STEP][k] = d[w][k];
#pragma GCC unroll 2
        for (int64_t w = N - STEP; w < N; ++w) column(w, STEP * j + w);
        uint16_t* out = v + ((r - from) * s.columns() + j) * s.enter + c + half;
#pragma GCC unroll 4
        for (int64_t k = 0; k < N; ++k) {
          __m512 line[N];
#pragma GCC unroll 4
          for (int64_t w = 0; w < N; ++w) line[w] = d[w][k];
          to_frequencies<DOUBLED>(line);
#pragma GCC unroll 4
          for (int64_t w = 0; w < N; ++w) store(out + (k * N + w) * plane, line[w]);
        }
      }
    }
  }
}

// The two results of a side from its frequencies.
template <bool DOUBLED>
inline __attribute__((always_inline)) void results(const __m512* m, __m512* out) {
  if constexpr (DOUBLED) {
    out[0] = _mm512_add_ps(m[0], m[1]), out[1] = _mm512_sub_ps(m[1], m[2]);
  } else {
    out[0] = _mm512_add_ps(_mm512_add_ps(m[0], m[1]), m[2]);
    out[1] = _mm512_sub_ps(_mm512_sub_ps(m[1], m[2]), m[3]);
  }
}

// The pixels of tiles [at, at + count) of a group that begins with row from, OUTPUTS channels of them from o on.
template <bool DOUBLED>
void leave(const Shape<DOUBLED>& s, const float* products, int64_t from, int64_t at, int64_t count, int64_t o, const float* bias,
           int64_t bias_stride, const uint16_t* beside, uint16_t* out) {
  constexpr int64_t N = Shape<DOUBLED>::SIDE;
  const int64_t width = std::min(OUTPUTS, s.leave - o);
  for (int64_t t = 0; t < count; ++t) {
    const int64_t r = from + (at + t) / s.columns(), j = (at + t) % s.columns(), b = r / s.rows(), i = r % s.rows();
    for (int64_t lane = 0; lane < width; lane += LANES) {
      __m512 half[2][N];
#pragma GCC unroll 4
      for (int64_t w = 0; w < N; ++w) {
        __m512 m[N], two[2];
#pragma GCC unroll 4
        for (int64_t k = 0; k < N; ++k) m[k] = _mm512_load_ps(products + (k * N + w) * PLANE + t * OUTPUTS + lane);
        results<DOUBLED>(m, two);
        half[0][w] = two[0], half[1][w] = two[1];
      }
      const __mmask16 seen = first(width - lane);
      const __m512 more = _mm512_maskz_loadu_ps(seen, bias + b * bias_stride + o + lane);
#pragma GCC unroll 2
      for (int64_t down = 0; down < 2; ++down) {
        __m512 two[2];
        results<DOUBLED>(half[down], two);
#pragma GCC unroll 2
        for (int64_t right = 0; right < 2; ++right) {
          if (2 * i + down >= s.out_high() || 2 * j + right >= s.out_wide()) continue;
          const int64_t place = ((b * s.out_high() + 2 * i + down) * s.out_wide() + 2 * j + right) * s.leave + o + lane;
          __m512 value = _mm512_add_ps(two[right], more);
          if (beside) value = _mm512_add_ps(value, widened(_mm256_maskz_loadu_epi16(seen, beside + place)));
          _mm256_mask_storeu_epi16(out + place, seen, (__m256i)_mm512_cvtneps_pbh(value));
        }
      }
    }
  }
}

// Memory that the calling thread keeps, in huge pages where there are such: planes lie far apart, and with small pages, of
// which a processor remembers a few thousand, writing them takes three times as long.
uint16_t* workspace(size_t bytes) {
  constexpr size_t PAGE = 2 << 20;
  struct Kept {
    void* at = nullptr;
    size_t bytes = 0;
    ~Kept() { std::free(at); }
  };
  thread_local Kept kept;
  if (kept.bytes < bytes) {
    const size_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
    std::free(kept.at);
    kept.bytes = 0, kept.at = std::aligned_alloc(PAGE, whole);
    if (!kept.at) throw std::bad_alloc();
    kept.bytes = whole;
    madvise(kept.at, whole, MADV_HUGEPAGE);
    std::memset(kept.at, 0, whole);
#ifdef MADV_COLLAPSE
    madvise(kept.at, whole, MADV_COLLAPSE);
#endif
  }
  return static_cast<uint16_t*>(kept.at);
}

template <bool DOUBLED>
void convolve(const Shape<DOUBLED>& s, const uint16_t* x, const BFloat16* weights, const float* scale, const float* shift,
              const float* bias, int64_t bias_stride, const uint16_t* beside, uint16_t* out, int threads) {
  constexpr int64_t N = Shape<DOUBLED>::SIDE * Shape<DOUBLED>::SIDE;
  const int64_t enter = s.enter, all = s.batch * s.rows(), blocks = (s.leave + OUTPUTS - 1) / OUTPUTS;
  const int64_t row = N * s.columns() * enter * 2;
  const int64_t few = (2 * TILES + s.columns() - 1) / s.columns();  // else weights are read for too little
  const int64_t most = std::min(all, std::max(few, GROUP / row));
  const int64_t groups = (all + most - 1) / most, each = (all + groups - 1) / groups;
  uint16_t* frequencies = workspace(each * row + N * APART * 2);

#pragma omp parallel num_threads(threads)
  {
    const Lines<float> rows(4 * (s.wide + 3) * CHANNELS), products(N * PLANE);
    for (int64_t from = 0; from < all; from += each) {
      const int64_t to = std::min(all, from + each), tiles = (to - from) * s.columns(), turns = (tiles + TILES - 1) / TILES;
      const int64_t plane = tiles * enter + APART;
#pragma omp for schedule(dynamic)
      for (int64_t c = 0; c < enter; c += CHANNELS)
        transform(s, x, from, to, c, scale, shift, rows.get(), frequencies, plane);
#pragma omp for schedule(dynamic) collapse(2)
      for (int64_t o = 0; o < blocks; ++o)
        for (int64_t turn = 0; turn < turns; ++turn) {
          const int64_t at = turn * TILES, count = std::min(TILES, tiles - at);
          for (int64_t f = 0; f < N; ++f)
            brgemm(count, OUTPUTS, enter, enter, OUTPUTS, OUTPUTS, false,
                   reinterpret_cast<const BFloat16*>(frequencies) + f * plane + at * enter,
                   weights + (o * N + f) * enter * OUTPUTS, products.get() + f * PLANE, true);
          leave(s, products.get(), from, at, count, o * OUTPUTS, bias, bias_stride, beside, out);
        }
    }
    brgemm_release(true);
  }
}

}  // namespace

// x (batch, high, wide, enter) to out (batch, high, wide, leave), twice as high and wide if doubled. weights (leave /
// OUTPUTS, frequency, enter / 2, OUTPUTS, 2). scale and shift (batch, enter), or none; bias (batch or 1, leave); beside as out, or
// none. enter is a multiple of CHANNELS; what is missing of the last OUTPUTS is 0 in the weights.
extern "C" void unspeckle_convolution(
    const uint16_t* x, const BFloat16* weights, const float* scale, const float* shift, const float* bias,
    int64_t bias_stride, const uint16_t* beside, uint16_t* out, int64_t batch, int64_t high, int64_t wide, int64_t enter,
    int64_t leaving, bool doubled, int threads) {
  if (doubled)
    convolve(Shape<true>{batch, high, wide, enter, leaving}, x, weights, scale, shift, bias, bias_stride, beside, out, threads);
  else
    convolve(Shape<false>{batch, high, wide, enter, leaving}, x, weights, scale, shift, bias, bias_stride, beside, out, threads);
}

// Weights (leave, enter, 3, 3) as unspeckle_convolution reads them; of those for doubled pixels the second of a window's
// frequencies is halved, as its pixels are not summed but taken once. enter is even.
extern "C" void unspeckle_transform_weights(
    const float* weights, uint16_t* out, int64_t enter, int64_t leaving, bool doubled, int threads) {
  constexpr int64_t BOTH = 2 * OUTPUTS;  // of two channels, in turns
  const int64_t side = doubled ? 3 : 4, blocks = (leaving + OUTPUTS - 1) / OUTPUTS;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t o = 0; o < blocks; ++o)
    for (int64_t c = 0; c < enter; c += 2) {
      alignas(64) float taps[3][3][BOTH] = {}, along[4][3][BOTH], made[4][4][BOTH];
      for (int64_t i = 0; i < std::min(OUTPUTS, leaving - o * OUTPUTS); ++i)
        for (int64_t half = 0; half < 2; ++half)
          for (int64_t tap = 0; tap < 9; ++tap)
            taps[tap / 3][tap % 3][2 * i + half] = weights[((o * OUTPUTS + i) * enter + c + half) * 9 + tap];
      const auto to_frequencies = [=](const float* a, const float* b, const float* c, float* f0, float* f1, float* f2, float* f3) {
        for (int64_t i = 0; i < BOTH; ++i) {
          const float outer = a[i] + c[i];
          f0[i] = a[i], f1[i] = doubled ? outer + b[i] : (outer + b[i]) / 2;
          f2[i] = doubled ? c[i] : (outer - b[i]) / 2, f3[i] = c[i];
        }
      };
      for (int64_t w = 0; w < 3; ++w)
        to_frequencies(taps[0][w], taps[1][w], taps[2][w], along[0][w], along[1][w], along[2][w], along[3][w]);
      for (int64_t k = 0; k < side; ++k) {
        to_frequencies(along[k][0], along[k][1], along[k][2], made[k][0], made[k][1], made[k][2], made[k][3]);
        for (int64_t w = 0; w < side; ++w) {
          uint16_t* to = out + ((o * side * side + k * side + w) * enter + c) * OUTPUTS;
          for (int64_t i = 0; i < BOTH; i += LANES) store(to + i, _mm512_load_ps(made[k][w] + i));
        }
      }
    }
}

// Group normalisation of x (batch, places, channels) as a factor and a summand for each picture and channel. weight and
// bias (channels); scale and shift (batch, channels).
extern "C" void unspeckle_group_norm(
    const uint16_t* x, const float* weight, const float* bias, float* scale, float* shift, int64_t batch, int64_t places,
    int64_t channels, int64_t groups, double eps, int threads) {
  const int64_t pieces = (places + PIECE - 1) / PIECE, each = channels / groups;
  std::vector<float> sums(batch * pieces * 2 * channels);
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t piece = 0; piece < pieces; ++piece) {
      float *sum = sums.data() + (b * pieces + piece) * 2 * channels, *squares = sum + channels;
      for (int64_t p = piece * PIECE; p < std::min(places, (piece + 1) * PIECE); ++p)
        for (int64_t c = 0; c < channels; c += LANES) {
          const __m512 value = load(x + (b * places + p) * channels + c);
          _mm512_storeu_ps(sum + c, _mm512_add_ps(_mm512_loadu_ps(sum + c), value));
          _mm512_storeu_ps(squares + c, _mm512_fmadd_ps(value, value, _mm512_loadu_ps(squares + c)));
        }
    }
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t g = 0; g < groups; ++g) {
      double sum = 0, squares = 0;
      for (int64_t piece = 0; piece < pieces; ++piece)
        for (int64_t c = g * each; c < (g + 1) * each; ++c) {
          const float* of = sums.data() + (b * pieces + piece) * 2 * channels + c;
          sum += of[0], squares += of[channels];
        }
      const double count = static_cast<double>(places * each), mean = sum / count;
      const double factor = 1 / std::sqrt(std::max(0.0, squares / count - mean * mean) + eps);
      for (int64_t c = g * each; c < (g + 1) * each; ++c) {
        scale[b * channels + c] = static_cast<float>(weight[c] * factor);
        shift[b * channels + c] = static_cast<float>(bias[c] - mean * weight[c] * factor);
      }
    }
}
