// 3 x 3 convolutions in bfloat16 with 4/9 of the multiplications, for x86 processors with AVX-512 BF16: Winograd's F(2
// x 2, 3 x 3) (Lavin & Gray 2016). Each 4 x 4 window of the input becomes 16 frequencies, each frequency is a matrix
// product over the channels (oneDNN's brgemm), and the 16 results become 2 x 2 pixels. For an input that is upsampled
// first, 7 of the 16 frequencies are always 0 and left out.
//
// What surrounds a convolution in a residual block is computed on the way, in float32: normalization and SiLU as the
// input is read, bias and residual as the output is written. Memory is channels-last: (batch, height, width, channels).

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

constexpr int64_t CHANNEL_BLOCK = 32;       // input channels that are read together: a cache line
constexpr int64_t OUTPUT_BLOCK = 64;        // output channels of a matrix product
constexpr int64_t TILE_BLOCK = 64;          // tiles of a matrix product
constexpr int64_t GROUP_BYTES = 4 << 20;    // frequencies that are computed before they are multiplied
constexpr int64_t PLANE_PADDING = 96;       // numbers between planes, which would else compete for the same cache lines
constexpr int64_t PIXEL_CHUNK = 64;         // pixels whose sum is taken in float32
constexpr int64_t PRODUCT_PLANE = TILE_BLOCK * OUTPUT_BLOCK + PLANE_PADDING;

__m512 bf16_to_float(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
__m512 load_bf16(const uint16_t* from) { return bf16_to_float(_mm256_loadu_si256((const __m256i*)from)); }
void store_bf16(uint16_t* to, __m512 x) { _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x)); }

__m512 silu(__m512 x) {  // x / (1 + 2^-(x · log2 e)), by an exponential that needs x <= 0
  const __m512 one = _mm512_set1_ps(1), e = exp2(_mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(-1.4426950408889634f)));
  const __m512 denominator = _mm512_add_ps(one, e);
  __m512 inverse = _mm512_rcp14_ps(denominator);
  // One step of Newton's method.
  inverse = _mm512_mul_ps(inverse, _mm512_fnmadd_ps(denominator, inverse, _mm512_set1_ps(2)));
  const __mmask16 is_negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mul_ps(_mm512_mul_ps(x, inverse), _mm512_mask_mov_ps(one, is_negative, e));
}

// The sizes of a convolution. UPSAMPLE: height and width of the input are doubled first.
template <bool UPSAMPLE>
struct Shape {
  static constexpr int64_t WINDOW = UPSAMPLE ? 3 : 4;  // side of a window, in input pixels and in frequencies
  static constexpr int64_t STEP = UPSAMPLE ? 1 : 2;    // input pixels from one window to the next

  int64_t batch, height, width, in_channels, out_channels;  // height and width of the input
  int64_t tile_rows() const { return UPSAMPLE ? height : (height + 1) / 2; }  // of one image
  int64_t tile_columns() const { return UPSAMPLE ? width : (width + 1) / 2; }
  int64_t out_height() const { return UPSAMPLE ? 2 * height : height; }
  int64_t out_width() const { return UPSAMPLE ? 2 * width : width; }
};

// The frequencies of a window along one side, in place; with UPSAMPLE without the one that is 0.
template <bool UPSAMPLE>
inline __attribute__((always_inline)) void to_frequencies(__m512* d) {
  if constexpr (UPSAMPLE) {
    d[0] = _mm512_sub_ps(d[0], d[1]), d[2] = _mm512_sub_ps(d[1], d[2]);
  } else {
    const __m512 sum = _mm512_add_ps(d[1], d[2]), difference = _mm512_sub_ps(d[2], d[1]);
    d[0] = _mm512_sub_ps(d[0], d[2]), d[3] = _mm512_sub_ps(d[1], d[3]), d[1] = sum, d[2] = difference;
  }
}

// Read row h of image b, CHANNEL_BLOCK channels from c on, as float32 with one zero before and two after it; normalized
// and through SiLU if scale is given. Rows outside the image are zeros.
template <bool UPSAMPLE>
void read_row(const Shape<UPSAMPLE>& s, const uint16_t* x, int64_t b, int64_t h, int64_t c, const float* scale,
              const float* shift, float* row) {
  if (h < 0 || h >= s.height) {
    std::fill_n(row, (s.width + 3) * CHANNEL_BLOCK, 0.0f);
    return;
  }
  std::fill_n(row, CHANNEL_BLOCK, 0.0f), std::fill_n(row + (s.width + 1) * CHANNEL_BLOCK, 2 * CHANNEL_BLOCK, 0.0f);
  const uint16_t* from = x + (b * s.height + h) * s.width * s.in_channels + c;
  for (int64_t half = 0; half < CHANNEL_BLOCK; half += LANES) {
    float* to = row + CHANNEL_BLOCK + half;
    if (!scale) {
      for (int64_t w = 0; w < s.width; ++w)
        _mm512_store_ps(to + w * CHANNEL_BLOCK, load_bf16(from + w * s.in_channels + half));
      continue;
    }
    const __m512 scales = _mm512_loadu_ps(scale + b * s.in_channels + c + half);
    const __m512 shifts = _mm512_loadu_ps(shift + b * s.in_channels + c + half);
    for (int64_t w = 0; w < s.width; ++w)
      _mm512_store_ps(to + w * CHANNEL_BLOCK,
                      silu(_mm512_fmadd_ps(load_bf16(from + w * s.in_channels + half), scales, shifts)));
  }
}

// Transform the tile rows [start, stop), counted through all images, CHANNEL_BLOCK channels from c on, to frequencies
// (frequency, tile, channel); plane is the distance from one frequency to the next.
template <bool UPSAMPLE>
void transform(const Shape<UPSAMPLE>& s, const uint16_t* x, int64_t start, int64_t stop, int64_t c, const float* scale,
               const float* shift, float* rows, uint16_t* frequencies, int64_t plane) {
  constexpr int64_t N = Shape<UPSAMPLE>::WINDOW, STEP = Shape<UPSAMPLE>::STEP;
  const int64_t row_size = (s.width + 3) * CHANNEL_BLOCK;
  for (int64_t r = start; r < stop; ++r) {
    const int64_t b = r / s.tile_rows(), i = r % s.tile_rows(), top = STEP * i - 1;
    const bool has_rows_before = r > start && i > 0;  // whether the window's upper rows have been read
    for (int64_t k = has_rows_before ? N - STEP : 0; k < N; ++k)
      read_row(s, x, b, top + k, c, scale, shift, rows + (top + k & 3) * row_size);
    const float* window_rows[N];
    for (int64_t k = 0; k < N; ++k) window_rows[k] = rows + (top + k & 3) * row_size;
    for (int64_t half = 0; half < CHANNEL_BLOCK; half += LANES) {
      __m512 d[N][N];  // (column, row) of the window; frequencies along the rows
      const auto read_column = [&](int64_t column, int64_t w) {
#pragma GCC unroll 4
        for (int64_t k = 0; k < N; ++k) d[column][k] = _mm512_load_ps(window_rows[k] + w * CHANNEL_BLOCK + half);
        to_frequencies<UPSAMPLE>(d[column]);
      };
#pragma GCC unroll 2
      for (int64_t w = STEP; w < N; ++w) read_column(w, w - STEP);
      for (int64_t j = 0; j < s.tile_columns(); ++j) {
#pragma GCC unroll 2
        for (int64_t w = STEP; w < N; ++w)
#pragma GCC unroll 4
          for (int64_t k = 0; k < N; ++k) d[w - STEP][k] = d[w][k];
#pragma GCC unroll 2
        for (int64_t w = N - STEP; w < N; ++w) read_column(w, STEP * j + w);
        uint16_t* out = frequencies + ((r - start) * s.tile_columns() + j) * s.in_channels + c + half;
#pragma GCC unroll 4
        for (int64_t k = 0; k < N; ++k) {
          __m512 row[N];
#pragma GCC unroll 4
          for (int64_t w = 0; w < N; ++w) row[w] = d[w][k];
          to_frequencies<UPSAMPLE>(row);
#pragma GCC unroll 4
          for (int64_t w = 0; w < N; ++w) store_bf16(out + (k * N + w) * plane, row[w]);
        }
      }
    }
  }
}

// The two pixels of a side from its frequencies.
template <bool UPSAMPLE>
inline __attribute__((always_inline)) void to_pixels(const __m512* m, __m512* pixels) {
  if constexpr (UPSAMPLE) {
    pixels[0] = _mm512_add_ps(m[0], m[1]), pixels[1] = _mm512_sub_ps(m[1], m[2]);
  } else {
    pixels[0] = _mm512_add_ps(_mm512_add_ps(m[0], m[1]), m[2]);
    pixels[1] = _mm512_sub_ps(_mm512_sub_ps(m[1], m[2]), m[3]);
  }
}

// Write the pixels of tiles [first_tile, first_tile + count) of a group that begins with tile row start, OUTPUT_BLOCK
// channels from o on, with bias and residual.
template <bool UPSAMPLE>
void write_tiles(const Shape<UPSAMPLE>& s, const float* products, int64_t start, int64_t first_tile, int64_t count,
                 int64_t o, const float* bias, int64_t bias_stride, const uint16_t* residual, uint16_t* out) {
  constexpr int64_t N = Shape<UPSAMPLE>::WINDOW;
  const int64_t channels = std::min(OUTPUT_BLOCK, s.out_channels - o);
  for (int64_t t = 0; t < count; ++t) {
    const int64_t r = start + (first_tile + t) / s.tile_columns(), j = (first_tile + t) % s.tile_columns();
    const int64_t b = r / s.tile_rows(), i = r % s.tile_rows();
    for (int64_t lane = 0; lane < channels; lane += LANES) {
      __m512 halves[2][N];
#pragma GCC unroll 4
      for (int64_t w = 0; w < N; ++w) {
        __m512 m[N], pixels[2];
#pragma GCC unroll 4
        for (int64_t k = 0; k < N; ++k)
          m[k] = _mm512_load_ps(products + (k * N + w) * PRODUCT_PLANE + t * OUTPUT_BLOCK + lane);
        to_pixels<UPSAMPLE>(m, pixels);
        halves[0][w] = pixels[0], halves[1][w] = pixels[1];
      }
      const __mmask16 mask = lane_mask(channels - lane);
      const __m512 biases = _mm512_maskz_loadu_ps(mask, bias + b * bias_stride + o + lane);
#pragma GCC unroll 2
      for (int64_t down = 0; down < 2; ++down) {
        __m512 pixels[2];
        to_pixels<UPSAMPLE>(halves[down], pixels);
#pragma GCC unroll 2
        for (int64_t right = 0; right < 2; ++right) {
          const int64_t row = 2 * i + down, column = 2 * j + right;
          if (row >= s.out_height() || column >= s.out_width()) continue;
          const int64_t index = ((b * s.out_height() + row) * s.out_width() + column) * s.out_channels + o + lane;
          __m512 value = _mm512_add_ps(pixels[right], biases);
          if (residual) value = _mm512_add_ps(value, bf16_to_float(_mm256_maskz_loadu_epi16(mask, residual + index)));
          _mm256_mask_storeu_epi16(out + index, mask, (__m256i)_mm512_cvtneps_pbh(value));
        }
      }
    }
  }
}

// Memory that the calling thread keeps for later calls, in huge pages if the system has them: planes lie far apart, and
// with small pages, of which a processor remembers a few thousand, writing them takes three times as long.
uint16_t* workspace(size_t bytes) {
  constexpr size_t PAGE = 2 << 20;
  struct Memory {
    void* data = nullptr;
    size_t bytes = 0;
    ~Memory() { std::free(data); }
  };
  thread_local Memory memory;
  if (memory.bytes < bytes) {
    const size_t rounded = (bytes + PAGE - 1) / PAGE * PAGE;
    std::free(memory.data);
    memory.bytes = 0, memory.data = std::aligned_alloc(PAGE, rounded);
    if (!memory.data) throw std::bad_alloc();
    memory.bytes = rounded;
    madvise(memory.data, rounded, MADV_HUGEPAGE);
    std::memset(memory.data, 0, rounded);
#ifdef MADV_COLLAPSE
    madvise(memory.data, rounded, MADV_COLLAPSE);
#endif
  }
  return static_cast<uint16_t*>(memory.data);
}

template <bool UPSAMPLE>
void convolve(const Shape<UPSAMPLE>& s, const uint16_t* x, const BFloat16* weights, const float* scale,
              const float* shift, const float* bias, int64_t bias_stride, const uint16_t* residual, uint16_t* out,
              int threads) {
  constexpr int64_t N = Shape<UPSAMPLE>::WINDOW * Shape<UPSAMPLE>::WINDOW;  // frequencies
  const int64_t in_channels = s.in_channels, all_rows = s.batch * s.tile_rows();
  const int64_t output_blocks = (s.out_channels + OUTPUT_BLOCK - 1) / OUTPUT_BLOCK;
  const int64_t row_bytes = N * s.tile_columns() * in_channels * 2;
  // At least two blocks of tiles, or the weights would be read for too few.
  const int64_t min_rows = (2 * TILE_BLOCK + s.tile_columns() - 1) / s.tile_columns();
  const int64_t max_rows = std::min(all_rows, std::max(min_rows, GROUP_BYTES / row_bytes));
  const int64_t groups = (all_rows + max_rows - 1) / max_rows, group_rows = (all_rows + groups - 1) / groups;
  uint16_t* frequencies = workspace(group_rows * row_bytes + N * PLANE_PADDING * 2);

#pragma omp parallel num_threads(threads)
  {
    const AlignedArray<float> rows(4 * (s.width + 3) * CHANNEL_BLOCK), products(N * PRODUCT_PLANE);
    for (int64_t start = 0; start < all_rows; start += group_rows) {
      const int64_t stop = std::min(all_rows, start + group_rows), tiles = (stop - start) * s.tile_columns();
      const int64_t tile_blocks = (tiles + TILE_BLOCK - 1) / TILE_BLOCK, plane = tiles * in_channels + PLANE_PADDING;
#pragma omp for schedule(dynamic)
      for (int64_t c = 0; c < in_channels; c += CHANNEL_BLOCK)
        transform(s, x, start, stop, c, scale, shift, rows.get(), frequencies, plane);
#pragma omp for schedule(dynamic) collapse(2)
      for (int64_t o = 0; o < output_blocks; ++o)
        for (int64_t block = 0; block < tile_blocks; ++block) {
          const int64_t first_tile = block * TILE_BLOCK, count = std::min(TILE_BLOCK, tiles - first_tile);
          for (int64_t f = 0; f < N; ++f)
            brgemm(count, OUTPUT_BLOCK, in_channels, in_channels, OUTPUT_BLOCK, OUTPUT_BLOCK, false,
                   reinterpret_cast<const BFloat16*>(frequencies) + f * plane + first_tile * in_channels,
                   weights + (o * N + f) * in_channels * OUTPUT_BLOCK, products.get() + f * PRODUCT_PLANE, true);
          write_tiles(s, products.get(), start, first_tile, count, o * OUTPUT_BLOCK, bias, bias_stride, residual, out);
        }
    }
    brgemm_release(true);
  }
}

}  // namespace

// x (batch, height, width, in_channels) to out (batch, height, width, out_channels), of twice the height and width with
// upsample. weights (out_channels / OUTPUT_BLOCK, frequency, in_channels / 2, OUTPUT_BLOCK, 2), with zeros for what the
// last block lacks. scale and shift (batch, in_channels), or null; bias (batch or 1, out_channels), with bias_stride 0
// for 1; residual of out's shape, or null. in_channels is a multiple of CHANNEL_BLOCK.
extern "C" void unspeckle_convolution(
    const uint16_t* x, const BFloat16* weights, const float* scale, const float* shift, const float* bias,
    int64_t bias_stride, const uint16_t* residual, uint16_t* out, int64_t batch, int64_t height, int64_t width,
    int64_t in_channels, int64_t out_channels, bool upsample, int threads) {
  if (upsample)
    convolve(Shape<true>{batch, height, width, in_channels, out_channels}, x, weights, scale, shift, bias, bias_stride,
             residual, out, threads);
  else
    convolve(Shape<false>{batch, height, width, in_channels, out_channels}, x, weights, scale, shift, bias, bias_stride,
             residual, out, threads);
}

// Transform weights (out_channels, in_channels, 3, 3) to the layout that unspeckle_convolution reads; in_channels is
// even. With upsample the second of a side's frequencies is not halved, as the pixels of a window are not summed but
// taken once.
extern "C" void unspeckle_transform_weights(
    const float* weights, uint16_t* out, int64_t in_channels, int64_t out_channels, bool upsample, int threads) {
  constexpr int64_t PAIRS = 2 * OUTPUT_BLOCK;  // the weights of two input channels, interleaved
  const int64_t side = upsample ? 3 : 4, output_blocks = (out_channels + OUTPUT_BLOCK - 1) / OUTPUT_BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t o = 0; o < output_blocks; ++o)
    for (int64_t c = 0; c < in_channels; c += 2) {
      alignas(64) float taps[3][3][PAIRS] = {}, columns[4][3][PAIRS], frequencies[4][4][PAIRS];
      for (int64_t i = 0; i < std::min(OUTPUT_BLOCK, out_channels - o * OUTPUT_BLOCK); ++i)
        for (int64_t parity = 0; parity < 2; ++parity)
          for (int64_t tap = 0; tap < 9; ++tap)
            taps[tap / 3][tap % 3][2 * i + parity] =
                weights[((o * OUTPUT_BLOCK + i) * in_channels + c + parity) * 9 + tap];
      const auto to_frequencies = [=](const float* a, const float* b, const float* c, float* f0, float* f1, float* f2,
                                      float* f3) {
        for (int64_t i = 0; i < PAIRS; ++i) {
          const float outer = a[i] + c[i];
          f0[i] = a[i], f1[i] = upsample ? outer + b[i] : (outer + b[i]) / 2;
          f2[i] = upsample ? c[i] : (outer - b[i]) / 2, f3[i] = c[i];
        }
      };
      for (int64_t w = 0; w < 3; ++w)
        to_frequencies(taps[0][w], taps[1][w], taps[2][w], columns[0][w], columns[1][w], columns[2][w], columns[3][w]);
      for (int64_t k = 0; k < side; ++k) {
        to_frequencies(columns[k][0], columns[k][1], columns[k][2], frequencies[k][0], frequencies[k][1],
                       frequencies[k][2], frequencies[k][3]);
        for (int64_t w = 0; w < side; ++w) {
          uint16_t* to = out + ((o * side * side + k * side + w) * in_channels + c) * OUTPUT_BLOCK;
          for (int64_t i = 0; i < PAIRS; i += LANES) store_bf16(to + i, _mm512_load_ps(frequencies[k][w] + i));
        }
      }
    }
}

// The group normalization of x (batch, pixels, channels) as a scale and a shift for each image and channel. weight and
// bias (channels); scale and shift (batch, channels).
extern "C" void unspeckle_group_norm(
    const uint16_t* x, const float* weight, const float* bias, float* scale, float* shift, int64_t batch,
    int64_t pixels, int64_t channels, int64_t groups, double eps, int threads) {
  const int64_t chunks = (pixels + PIXEL_CHUNK - 1) / PIXEL_CHUNK, group_channels = channels / groups;
  std::vector<float> sums(batch * chunks * 2 * channels);
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      float *sum = sums.data() + (b * chunks + chunk) * 2 * channels, *squares = sum + channels;
      for (int64_t p = chunk * PIXEL_CHUNK; p < std::min(pixels, (chunk + 1) * PIXEL_CHUNK); ++p)
        for (int64_t c = 0; c < channels; c += LANES) {
          const __m512 value = load_bf16(x + (b * pixels + p) * channels + c);
          _mm512_storeu_ps(sum + c, _mm512_add_ps(_mm512_loadu_ps(sum + c), value));
          _mm512_storeu_ps(squares + c, _mm512_fmadd_ps(value, value, _mm512_loadu_ps(squares + c)));
        }
    }
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t g = 0; g < groups; ++g) {
      double sum = 0, squares = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int64_t c = g * group_channels; c < (g + 1) * group_channels; ++c) {
          const float* channel_sums = sums.data() + (b * chunks + chunk) * 2 * channels + c;
          sum += channel_sums[0], squares += channel_sums[channels];
        }
      const double count = static_cast<double>(pixels * group_channels), mean = sum / count;
      const double inverse_std = 1 / std::sqrt(std::max(0.0, squares / count - mean * mean) + eps);
      for (int64_t c = g * group_channels; c < (g + 1) * group_channels; ++c) {
        scale[b * channels + c] = static_cast<float>(weight[c] * inverse_std);
        shift[b * channels + c] = static_cast<float>(bias[c] - mean * weight[c] * inverse_std);
      }
    }
}
