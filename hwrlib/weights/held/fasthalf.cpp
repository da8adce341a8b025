// Products of bfloat16 matrices for a CPU with AVX-512 float16 and no AMX: operands scaled to float16, sums of 64 terms in float16, those in float32.
#include <torch/extension.h>
#include <immintrin.h>
#include <cmath>
#include <vector>
typedef uint16_t bf; typedef _Float16 half;
static float to_half(const bf* p, int64_t n, float top) {  // the power of two that takes the greatest to at most `top`
  uint16_t most = 0; for (int64_t i = 0; i < n; i++) { uint16_t a = p[i] & 0x7fff; most = a > most ? a : most; }
  uint32_t bits = (uint32_t)most << 16; float m; memcpy(&m, &bits, 4);
  return m > 0 ? std::exp2(std::floor(std::log2(top / m))) : 1.f;
}
static inline void convert(const bf* p, half* o, int64_t n, float s) {
  __m512 z = _mm512_set1_ps(s);
  for (int64_t i = 0; i < n; i += 16) {
    __m512 v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(p + i))), 16));
    _mm256_storeu_si256((__m256i*)(o + i), _mm512_cvtps_ph(_mm512_mul_ps(v, z), 0));
  }
}
// each twice: 32 bits are broadcast from memory at no cost, 16 are not
static inline void convert_twice(const bf* p, uint32_t* o, int64_t n, float s) {
  __m512 z = _mm512_set1_ps(s);
  for (int64_t i = 0; i < n; i += 16) {
    __m512 v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(p + i))), 16));
    __m512i w = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(_mm512_mul_ps(v, z), 0));
    _mm512_storeu_si512(o + i, _mm512_or_si512(w, _mm512_slli_epi32(w, 16)));
  }
}
// 8 x 64 sums over `depth`: a[r * ra + k * ka] b[k * 64 + j], added to or put into c
static inline void block(const uint32_t* a, int64_t ra, int64_t ka, const half* b, int depth, float* c, int64_t lc, bool add) {
  __m512h s[8][2];
  #pragma GCC unroll 8
  for (int r = 0; r < 8; r++) s[r][0] = s[r][1] = _mm512_setzero_ph();
  for (int k = 0; k < depth; k++, a += ka, b += 64) {
    __m512h x = _mm512_loadu_ph(b), y = _mm512_loadu_ph(b + 32);
    #pragma GCC unroll 8
    for (int r = 0; r < 8; r++) { __m512h w = _mm512_castsi512_ph(_mm512_set1_epi32(a[r * ra])); s[r][0] = _mm512_fmadd_ph(w, x, s[r][0]); s[r][1] = _mm512_fmadd_ph(w, y, s[r][1]); }
  }
  #pragma GCC unroll 8
  for (int r = 0; r < 8; r++) for (int j = 0; j < 2; j++) {
    __m512i t = _mm512_castph_si512(s[r][j]); float* o = c + r * lc + 32 * j;
    __m512 lo = _mm512_cvtph_ps(_mm512_castsi512_si256(t)), hi = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(t, 1));
    if (add) { lo = _mm512_add_ps(lo, _mm512_loadu_ps(o)); hi = _mm512_add_ps(hi, _mm512_loadu_ps(o + 16)); }
    _mm512_storeu_ps(o, lo); _mm512_storeu_ps(o + 16, hi);
  }
}
// b (rows, K) -> columns of 64, one after the other: (K / 64, rows, 64)
static void pack(const bf* b, half* o, int64_t rows, int64_t K, float s) {
  for (int64_t k = 0; k < K; k += 64) for (int64_t r = 0; r < rows; r++, o += 64) convert(b + r * K + k, o, 64, s);
}
// (S, P, C) x (S, C, K) -> (S, P, K)
at::Tensor product(at::Tensor a, at::Tensor b) {
  int64_t S = a.size(0), P = a.size(1), C = a.size(2), K = b.size(2); TORCH_CHECK(a.is_contiguous() && b.is_contiguous() && C % 64 == 0 && K % 64 == 0 && a.scalar_type() == at::kBFloat16 && b.scalar_type() == at::kBFloat16, a.sizes(), a.strides(), a.scalar_type(), b.sizes(), b.strides(), b.scalar_type());
  auto out = at::empty({S, P, K}, a.options()); const bf *A = (const bf*)a.data_ptr(), *B = (const bf*)b.data_ptr(); bf* O = (bf*)out.data_ptr();
  std::vector<half> packed(C * K); std::vector<uint32_t> left(8 * C, 0); std::vector<float> sums(8 * K);
  for (int64_t s = 0; s < S; s++, A += P * C, B += C * K, O += P * K) {
    float sa = to_half(A, P * C, 32), sb = to_half(B, C * K, 8); __m512 back = _mm512_set1_ps(1 / (sa * sb));
    pack(B, packed.data(), C, K, sb);
    for (int64_t p = 0; p < P; p += 8) {
      int64_t n = std::min<int64_t>(8, P - p); convert_twice(A + p * C, left.data(), n * C, sa);
      for (int64_t k = 0; k < K; k += 64) for (int64_t c = 0; c < C; c += 64) block(left.data() + c, C, 1, packed.data() + k * C + c * 64, 64, sums.data() + k, K, c > 0);
      for (int64_t i = 0; i < n * K; i += 16) _mm256_storeu_si256((__m256i*)(O + p * K + i), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(sums.data() + i), back)));
    }
  }
  return out;
}
// (S, P, C) transposed x (S, P, K) -> (S, C, K), float32
at::Tensor outer(at::Tensor a, at::Tensor b) {
  int64_t S = a.size(0), P = a.size(1), C = a.size(2), K = b.size(2); TORCH_CHECK(a.is_contiguous() && b.is_contiguous() && C % 64 == 0 && K % 64 == 0 && a.scalar_type() == at::kBFloat16 && b.scalar_type() == at::kBFloat16, a.sizes(), a.strides(), a.scalar_type(), b.sizes(), b.strides(), b.scalar_type());
  auto out = at::empty({S, C, K}, a.options().dtype(at::kFloat)); const bf *A = (const bf*)a.data_ptr(), *B = (const bf*)b.data_ptr(); float* O = out.data_ptr<float>();
  std::vector<uint32_t> left(64 * C); std::vector<half> packed(64 * K);
  for (int64_t s = 0; s < S; s++, A += P * C, B += P * K, O += C * K) {
    float sa = to_half(A, P * C, 32), sb = to_half(B, P * K, 8);
    for (int64_t p = 0; p < P; p += 64) {
      int64_t n = std::min<int64_t>(64, P - p); convert_twice(A + p * C, left.data(), n * C, sa); pack(B + p * K, packed.data(), n, K, sb);
      for (int64_t k = 0; k < K; k += 64) for (int64_t c = 0; c < C; c += 8) block(left.data() + c, 1, C, packed.data() + k * n, n, O + c * K + k, K, p > 0);
    }
    float back = 1 / (sa * sb); for (int64_t i = 0; i < C * K; i++) O[i] *= back;
  }
  return out;
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("product", &product); m.def("outer", &outer); }
