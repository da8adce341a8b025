// Training on a CPU with AVX2 and nothing more: maps in float32, channels last; 3x3 convolutions in tiles (Winograd F(4, 3)), the 36 products of a tile apart: (36, tiles, channels).
// Products in whole numbers of 11 bits and a sign, each row and column by its greatest: twice as many of them in an instruction as in float32.
#include <torch/extension.h>
#include <immintrin.h>
#include <cmath>
#include <vector>
typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
static inline v8 ld(const float* p) { return *(const v8*)p; }
static inline void st(float* p, v8 a) { *(v8*)p = a; }
static inline v8 all(float a) { return (v8)_mm256_set1_ps(a); }

at::Tensor squares6(at::Tensor x) {
  int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), P = N * H * W / 16;
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous(at::MemoryFormat::ChannelsLast) && H % 4 == 0 && W % 4 == 0 && C % 8 == 0);
  auto out = at::empty({36, P, C}, x.options().memory_format(at::MemoryFormat::Contiguous)); const float* X = x.data_ptr<float>(); float* O = out.data_ptr<float>(); int64_t S = P * C;
  std::vector<float> zeros(C, 0);
  for (int64_t n = 0; n < N; n++) for (int64_t r = 0; r < H; r += 4) for (int64_t w = 0; w < W; w += 4, O += C) {
    const float* p[36];
    for (int i = 0; i < 6; i++) for (int j = 0; j < 6; j++) { int64_t y = r + i - 1, z = w + j - 1; p[i * 6 + j] = (y < 0 || y >= H || z < 0 || z >= W) ? zeros.data() : X + ((n * H + y) * W + z) * C; }
    for (int64_t c = 0; c < C; c += 8) {
      v8 t[36];
      for (int j = 0; j < 6; j++) {
        v8 a = ld(p[j] + c), b = ld(p[6 + j] + c), d = ld(p[12 + j] + c), e = ld(p[18 + j] + c), f = ld(p[24 + j] + c), g = ld(p[30 + j] + c);
        v8 u = f - 4 * d, q = e - 4 * b, s = f - d, z = 2 * (e - b);
        t[j] = 4 * a - 5 * d + f; t[6 + j] = u + q; t[12 + j] = u - q; t[18 + j] = s + z; t[24 + j] = s - z; t[30 + j] = 4 * b - 5 * e + g;
      }
      for (int i = 0; i < 6; i++) {
        v8* m = t + 6 * i; float* o = O + 6 * i * S + c;
        v8 u = m[4] - 4 * m[2], q = m[3] - 4 * m[1], s = m[4] - m[2], z = 2 * (m[3] - m[1]);
        st(o, 4 * m[0] - 5 * m[2] + m[4]); st(o + S, u + q); st(o + 2 * S, u - q); st(o + 3 * S, s + z); st(o + 4 * S, s - z); st(o + 5 * S, 4 * m[1] - 5 * m[3] + m[5]);
      }
    }
  }
  return out;
}
at::Tensor squares4(at::Tensor x) {
  int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), P = N * H * W / 16;
  auto out = at::empty({36, P, C}, x.options().memory_format(at::MemoryFormat::Contiguous)); const float* X = x.data_ptr<float>(); float* O = out.data_ptr<float>(); int64_t S = P * C;
  for (int64_t n = 0; n < N; n++) for (int64_t r = 0; r < H; r += 4) for (int64_t w = 0; w < W; w += 4, O += C) {
    const float* p = X + ((n * H + r) * W + w) * C;
    for (int64_t c = 0; c < C; c += 8) {
      v8 t[24];
      for (int j = 0; j < 4; j++) {
        v8 a = ld(p + j * C + c), b = ld(p + (W + j) * C + c), d = ld(p + (2 * W + j) * C + c), e = ld(p + (3 * W + j) * C + c);
        v8 u = a + d, q = b + e, s = a + 4 * d, z = 2 * b + 8 * e;
        t[j] = a; t[4 + j] = u + q; t[8 + j] = u - q; t[12 + j] = s + z; t[16 + j] = s - z; t[20 + j] = e;
      }
      for (int i = 0; i < 6; i++) {
        v8 a = t[4 * i], b = t[4 * i + 1], d = t[4 * i + 2], e = t[4 * i + 3]; float* o = O + 6 * i * S + c;
        v8 u = a + d, q = b + e, s = a + 4 * d, z = 2 * b + 8 * e;
        st(o, a); st(o + S, u + q); st(o + 2 * S, u - q); st(o + 3 * S, s + z); st(o + 4 * S, s - z); st(o + 5 * S, e);
      }
    }
  }
  return out;
}
at::Tensor maps(at::Tensor products, int64_t N, int64_t H, int64_t W) {
  int64_t K = products.size(2), S = products.size(1) * K;
  auto out = at::empty({N, K, H, W}, products.options().memory_format(at::MemoryFormat::ChannelsLast)); const float* M = products.data_ptr<float>(); float* Y = out.data_ptr<float>();
  for (int64_t n = 0; n < N; n++) for (int64_t r = 0; r < H; r += 4) for (int64_t w = 0; w < W; w += 4, M += K) {
    float* y = Y + ((n * H + r) * W + w) * K;
    for (int64_t c = 0; c < K; c += 8) {
      v8 t[24];
      for (int j = 0; j < 6; j++) {
        const float* m = M + j * S + c;
        v8 a = ld(m), b = ld(m + 6 * S), d = ld(m + 12 * S), e = ld(m + 18 * S), f = ld(m + 24 * S), g = ld(m + 30 * S);
        v8 u = b + d, q = b - d, s = e + f, z = e - f;
        t[j] = a + u + s; t[6 + j] = q + 2 * z; t[12 + j] = u + 4 * s; t[18 + j] = q + 8 * z + g;
      }
      for (int i = 0; i < 4; i++) {
        v8* m = t + 6 * i; float* o = y + i * W * K + c;
        v8 u = m[1] + m[2], q = m[1] - m[2], s = m[3] + m[4], z = m[3] - m[4];
        st(o, m[0] + u + s); st(o + K, q + 2 * z); st(o + 2 * K, u + 4 * s); st(o + 3 * K, q + 8 * z + m[5]);
      }
    }
  }
  return out;
}

// ---- products in whole numbers: at most 512 terms of 2047 x 2047 stay below 2^31
const int TOP = 2047, DEPTH = 512, CHUNK = 96;
static float greatest(const float* p, int64_t n) { float m = 0; for (int64_t i = 0; i < n; i++) { float a = std::fabs(p[i]); m = a > m ? a : m; } return m; }
static inline __m256i whole(const float* p, __m256 s) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(p), s)); }
// of 8 columns, the whole numbers of two rows side by side
static inline __m256i both(const float* p, const float* q, __m256 s) { return _mm256_blend_epi16(whole(p, s), _mm256_slli_epi32(whole(q, s), 16), 0xAA); }
static void scales(const float* b, int64_t rows, int64_t K, float* to, float* back) {
  for (int64_t k = 0; k < K; k++) to[k] = 0;
  for (int64_t r = 0; r < rows; r++) for (int64_t k = 0; k < K; k++) { float a = std::fabs(b[r * K + k]); to[k] = a > to[k] ? a : to[k]; }
  for (int64_t k = 0; k < K; k++) { back[k] = to[k] / TOP; to[k] = to[k] > 1e-30f ? TOP / to[k] : 0; }
}
// (rows, K) -> blocks of 16 columns, in each the pairs of rows one after the other
static void pack(const float* b, int64_t rows, int64_t K, const float* to, int32_t* o, const float* zeros) {
  for (int64_t r = 0; r < rows; r += 8) for (int64_t k = 0; k < K; k += 16) {
    int32_t* q = o + k * ((rows + 1) / 2) + r * 8; __m256 s = _mm256_loadu_ps(to + k), t = _mm256_loadu_ps(to + k + 8);
    for (int64_t i = r; i < std::min(r + 8, rows); i += 2, q += 16) {
      const float *x = b + i * K + k, *y = i + 1 < rows ? x + K : zeros;
      _mm256_storeu_si256((__m256i*)q, both(x, y, s)); _mm256_storeu_si256((__m256i*)(q + 8), both(x + 8, y + 8, t));
    }
  }
}
// 6 x 16 sums of `pairs` pairs, in float32 and scaled back, put into c or added to it
// (by hand: a compiler keeps the sums in memory)
static void block(const int32_t* a, int64_t ra, int64_t ka, const int32_t* b, int64_t pairs, float* c, int64_t lc, int rows, const float* sa, const float* sb, bool add) {
  float t[6][16]; const int32_t* d = a + 3 * ra;
  asm volatile("vpxor %%ymm0, %%ymm0, %%ymm0\n vpxor %%ymm1, %%ymm1, %%ymm1\n vpxor %%ymm2, %%ymm2, %%ymm2\n vpxor %%ymm3, %%ymm3, %%ymm3\n vpxor %%ymm4, %%ymm4, %%ymm4\n vpxor %%ymm5, %%ymm5, %%ymm5\n vpxor %%ymm6, %%ymm6, %%ymm6\n vpxor %%ymm7, %%ymm7, %%ymm7\n vpxor %%ymm8, %%ymm8, %%ymm8\n vpxor %%ymm9, %%ymm9, %%ymm9\n vpxor %%ymm10, %%ymm10, %%ymm10\n vpxor %%ymm11, %%ymm11, %%ymm11\n \n"
    "1: vmovdqu (%[b]), %%ymm12\n vmovdqu 32(%[b]), %%ymm13\n"
    "vpbroadcastd (%[a]), %%ymm14\n vpmaddwd %%ymm12, %%ymm14, %%ymm15\n vpmaddwd %%ymm13, %%ymm14, %%ymm14\n vpaddd %%ymm15, %%ymm0, %%ymm0\n vpaddd %%ymm14, %%ymm1, %%ymm1\n"
    "vpbroadcastd (%[a],%[ra]), %%ymm14\n vpmaddwd %%ymm12, %%ymm14, %%ymm15\n vpmaddwd %%ymm13, %%ymm14, %%ymm14\n vpaddd %%ymm15, %%ymm2, %%ymm2\n vpaddd %%ymm14, %%ymm3, %%ymm3\n"
    "vpbroadcastd (%[a],%[ra],2), %%ymm14\n vpmaddwd %%ymm12, %%ymm14, %%ymm15\n vpmaddwd %%ymm13, %%ymm14, %%ymm14\n vpaddd %%ymm15, %%ymm4, %%ymm4\n vpaddd %%ymm14, %%ymm5, %%ymm5\n"
    "vpbroadcastd (%[d]), %%ymm14\n vpmaddwd %%ymm12, %%ymm14, %%ymm15\n vpmaddwd %%ymm13, %%ymm14, %%ymm14\n vpaddd %%ymm15, %%ymm6, %%ymm6\n vpaddd %%ymm14, %%ymm7, %%ymm7\n"
    "vpbroadcastd (%[d],%[ra]), %%ymm14\n vpmaddwd %%ymm12, %%ymm14, %%ymm15\n vpmaddwd %%ymm13, %%ymm14, %%ymm14\n vpaddd %%ymm15, %%ymm8, %%ymm8\n vpaddd %%ymm14, %%ymm9, %%ymm9\n"
    "vpbroadcastd (%[d],%[ra],2), %%ymm14\n vpmaddwd %%ymm12, %%ymm14, %%ymm15\n vpmaddwd %%ymm13, %%ymm14, %%ymm14\n vpaddd %%ymm15, %%ymm10, %%ymm10\n vpaddd %%ymm14, %%ymm11, %%ymm11\n"
    "add $64, %[b]\n add %[ka], %[a]\n add %[ka], %[d]\n dec %[n]\n jnz 1b\n"
    "vcvtdq2ps %%ymm0, %%ymm0\n vmovups %%ymm0, 0(%[t])\n vcvtdq2ps %%ymm1, %%ymm1\n vmovups %%ymm1, 32(%[t])\n vcvtdq2ps %%ymm2, %%ymm2\n vmovups %%ymm2, 64(%[t])\n vcvtdq2ps %%ymm3, %%ymm3\n vmovups %%ymm3, 96(%[t])\n vcvtdq2ps %%ymm4, %%ymm4\n vmovups %%ymm4, 128(%[t])\n vcvtdq2ps %%ymm5, %%ymm5\n vmovups %%ymm5, 160(%[t])\n vcvtdq2ps %%ymm6, %%ymm6\n vmovups %%ymm6, 192(%[t])\n vcvtdq2ps %%ymm7, %%ymm7\n vmovups %%ymm7, 224(%[t])\n vcvtdq2ps %%ymm8, %%ymm8\n vmovups %%ymm8, 256(%[t])\n vcvtdq2ps %%ymm9, %%ymm9\n vmovups %%ymm9, 288(%[t])\n vcvtdq2ps %%ymm10, %%ymm10\n vmovups %%ymm10, 320(%[t])\n vcvtdq2ps %%ymm11, %%ymm11\n vmovups %%ymm11, 352(%[t])\n \n"
    : [a] "+r"(a), [d] "+r"(d), [b] "+r"(b), [n] "+r"(pairs) : [ra] "r"(ra * 4), [ka] "r"(ka * 4), [t] "r"(t) : "memory", "cc", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm12", "ymm13", "ymm14", "ymm15");
  for (int r = 0; r < rows; r++) for (int j = 0; j < 16; j += 8) { v8 z = ld(t[r] + j) * (all(sa[r]) * ld(sb + j)); float* o = c + r * lc + j; st(o, add ? ld(o) + z : z); }
}
static void check(const at::Tensor& a, const at::Tensor& b) { TORCH_CHECK(a.is_contiguous() && b.is_contiguous() && a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat && a.size(2) % 16 == 0 && b.size(2) % 16 == 0 && a.size(0) == b.size(0)); }
// (S, P, C) x (S, C, K) -> (S, P, K)
at::Tensor product(at::Tensor a, at::Tensor b) {
  check(a, b); int64_t S = a.size(0), P = a.size(1), C = a.size(2), K = b.size(2); auto out = at::empty({S, P, K}, a.options());
  const float *A = a.data_ptr<float>(), *B = b.data_ptr<float>(); float* O = out.data_ptr<float>();
  std::vector<int32_t> packed(C * K / 2); std::vector<int16_t> left(CHUNK * C); std::vector<float> to(K), sb(K), sa(CHUNK), zeros(K, 0);
  for (int64_t s = 0; s < S; s++, A += P * C, B += C * K, O += P * K) {
    scales(B, C, K, to.data(), sb.data());
    for (int64_t c = 0; c < C; c += DEPTH) pack(B + c * K, std::min<int64_t>(DEPTH, C - c), K, to.data(), packed.data() + c * K / 2, zeros.data());
    for (int64_t p = 0; p < P; p += CHUNK) {
      int64_t n = std::min<int64_t>(CHUNK, P - p);
      for (int64_t r = 0; r < n; r++) {
        const float* row = A + (p + r) * C; float m = greatest(row, C); sa[r] = m / TOP; __m256 z = _mm256_set1_ps(m > 1e-30f ? TOP / m : 0); int16_t* o = left.data() + r * C;
        for (int64_t c = 0; c < C; c += 16) _mm256_storeu_si256((__m256i*)(o + c), _mm256_permute4x64_epi64(_mm256_packs_epi32(whole(row + c, z), whole(row + c + 8, z)), 0xD8));
      }
      for (int64_t c = 0; c < C; c += DEPTH) { int64_t d = std::min<int64_t>(DEPTH, C - c);
        for (int64_t k = 0; k < K; k += 16) for (int64_t r = 0; r < n; r += 6)
          block((const int32_t*)(left.data() + r * C + c), C / 2, 1, packed.data() + c * K / 2 + k * d / 2, d / 2, O + (p + r) * K + k, K, std::min<int64_t>(6, n - r), sa.data() + r, sb.data() + k, c > 0); }
    }
  }
  return out;
}
// (S, P, C) transposed x (S, P, K) -> (S, C, K)
at::Tensor outer(at::Tensor a, at::Tensor b) {
  check(a, b); int64_t S = a.size(0), P = a.size(1), C = a.size(2), K = b.size(2), groups = (C + 5) / 6; auto out = at::empty({S, C, K}, a.options());
  const float *A = a.data_ptr<float>(), *B = b.data_ptr<float>(); float* O = out.data_ptr<float>();
  std::vector<int32_t> packed(DEPTH * K / 2), left(groups * 6 * DEPTH / 2), row(groups * 6, 0); std::vector<float> to(K), sb(K), ta(C), sa(groups * 6, 0), zeros(std::max(C, K), 0);
  for (int64_t s = 0; s < S; s++, A += P * C, B += P * K, O += C * K) for (int64_t p = 0; p < P; p += DEPTH) {
    int64_t n = std::min<int64_t>(DEPTH, P - p), pairs = (n + 1) / 2;
    scales(A + p * C, n, C, ta.data(), sa.data()); scales(B + p * K, n, K, to.data(), sb.data()); pack(B + p * K, n, K, to.data(), packed.data(), zeros.data());
    for (int64_t k = 0; k < pairs; k++) {
      const float *x = A + (p + 2 * k) * C, *y = 2 * k + 1 < n ? x + C : zeros.data();
      for (int64_t c = 0; c < C; c += 8) _mm256_storeu_si256((__m256i*)(row.data() + c), both(x + c, y + c, _mm256_loadu_ps(ta.data() + c)));
      for (int64_t g = 0; g < groups; g++) std::memcpy(left.data() + (g * pairs + k) * 6, row.data() + g * 6, 24);
    }
    for (int64_t h = 0; h < groups; h += 16) for (int64_t k = 0; k < K; k += 16) for (int64_t g = h; g < std::min(h + 16, groups); g++)
      block(left.data() + g * pairs * 6, 1, 6, packed.data() + k * pairs, pairs, O + g * 6 * K + k, K, std::min<int64_t>(6, C - g * 6), sa.data() + g * 6, sb.data() + k, p > 0);
  }
  return out;
}

// ---- the LSTM's recurrence, in float32
static inline v8 vexp(v8 x) {
  x = (v8)_mm256_min_ps(_mm256_max_ps((__m256)x, _mm256_set1_ps(-80.f)), _mm256_set1_ps(80.f));
  v8 t = x * 1.44269504f, r = (v8)_mm256_round_ps((__m256)t, 8), z = t - r, p = all(1.33336e-3f);
  p = p * z + 9.61812e-3f; p = p * z + 5.550411e-2f; p = p * z + 2.4022651e-1f; p = p * z + 6.9314718e-1f; p = p * z + 1.f;
  return p * (v8)_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32((__m256)r), _mm256_set1_epi32(127)), 23);
}
static inline v8 sig(v8 x) { return 1.f / (1.f + vexp(-x)); }
static inline v8 vtanh(v8 x) { return 2.f * sig(x + x) - 1.f; }
// out[4][OUT] = v[4][K] x W, W packed [OUT / 16][K][16]
template <int K, int OUT> static void gemv(const float* W, const float* v, float* out) {
  for (int b = 0; b < OUT; b += 16) {
    v8 a[2][4]; for (auto& r : a) for (auto& q : r) q = all(0);
    for (int k = 0; k < K; k++, W += 16) { v8 x = ld(W), y = ld(W + 8);
      #pragma GCC unroll 4
      for (int n = 0; n < 4; n++) { v8 s = all(v[n * K + k]); a[0][n] += x * s; a[1][n] += y * s; } }
    for (int n = 0; n < 4; n++) { st(out + n * OUT + b, a[0][n]); st(out + n * OUT + b + 8, a[1][n]); }
  }
}
const int H = 256;
std::vector<at::Tensor> lstm_fwd(at::Tensor xp, at::Tensor wf, at::Tensor wb) {
  TORCH_CHECK(xp.is_contiguous() && xp.scalar_type() == at::kFloat && xp.size(2) == 8 * H && xp.size(1) <= 4);
  int64_t T = xp.size(0), N = xp.size(1);
  auto y = at::empty({T, N, 2 * H}, xp.options()), gs = at::empty({2, T, 4, 4 * H}, xp.options()), cs = at::empty({2, T, 4, H}, xp.options());
  std::vector<float> P(4 * H * H), hv(4 * H), g(4 * 4 * H), c(4 * H);
  for (int d = 0; d < 2; d++) {
    auto wc = (d ? wb : wf).contiguous(); const float* w = wc.data_ptr<float>();
    for (int b = 0; b < 4 * H; b += 16) for (int k = 0; k < H; k++) for (int o = 0; o < 16; o++) P[(size_t)b * H + k * 16 + o] = w[(b + o) * H + k];
    std::fill(hv.begin(), hv.end(), 0.f); std::fill(c.begin(), c.end(), 0.f);
    for (int64_t s = 0; s < T; s++) {
      int64_t t = d ? T - 1 - s : s;
      gemv<H, 4 * H>(P.data(), hv.data(), g.data());
      for (int64_t n = 0; n < N; n++) {
        const float* x = xp.data_ptr<float>() + (t * N + n) * 8 * H + d * 4 * H; float* gp = gs.data_ptr<float>() + ((d * T + t) * 4 + n) * 4 * H; float* cp = cs.data_ptr<float>() + ((d * T + t) * 4 + n) * H;
        float* yp = y.data_ptr<float>() + (t * N + n) * 2 * H + d * H; const float* q = g.data() + n * 4 * H;
        for (int k = 0; k < H; k += 8) {
          v8 i = sig(ld(x + k) + ld(q + k)), fo = sig(ld(x + H + k) + ld(q + H + k)), u = vtanh(ld(x + 2 * H + k) + ld(q + 2 * H + k)), o = sig(ld(x + 3 * H + k) + ld(q + 3 * H + k));
          v8 cc = fo * ld(c.data() + n * H + k) + i * u, hh = o * vtanh(cc);
          st(c.data() + n * H + k, cc); st(cp + k, cc); st(gp + k, i); st(gp + H + k, fo); st(gp + 2 * H + k, u); st(gp + 3 * H + k, o); st(yp + k, hh); st(hv.data() + n * H + k, hh);
        }
      }
    }
  }
  return {y, gs, cs};
}
at::Tensor lstm_bwd(at::Tensor dy, at::Tensor gs, at::Tensor cs, at::Tensor wf, at::Tensor wb) {
  dy = dy.contiguous(); int64_t T = dy.size(0), N = dy.size(1); auto dx = at::empty({T, N, 8 * H}, dy.options());
  std::vector<float> P(4 * H * H), dv(4 * 4 * H), dh(4 * H), dc(4 * H);
  for (int d = 0; d < 2; d++) {
    auto wc = (d ? wb : wf).contiguous(); const float* w = wc.data_ptr<float>();
    for (int b = 0; b < H; b += 16) for (int o = 0; o < 4 * H; o++) for (int k = 0; k < 16; k++) P[(size_t)b * 4 * H + o * 16 + k] = w[o * H + b + k];
    std::fill(dh.begin(), dh.end(), 0.f); std::fill(dc.begin(), dc.end(), 0.f); std::fill(dv.begin(), dv.end(), 0.f);
    for (int64_t s = T - 1; s >= 0; s--) {
      int64_t t = d ? T - 1 - s : s, before = d ? t + 1 : t - 1;
      for (int64_t n = 0; n < N; n++) {
        const float* gp = gs.data_ptr<float>() + ((d * T + t) * 4 + n) * 4 * H; const float* cp = cs.data_ptr<float>() + ((d * T + t) * 4 + n) * H;
        const float* pp = s ? cs.data_ptr<float>() + ((d * T + before) * 4 + n) * H : nullptr;
        const float* g = dy.data_ptr<float>() + (t * N + n) * 2 * H + d * H; float* xo = dx.data_ptr<float>() + (t * N + n) * 8 * H + d * 4 * H; float* vo = dv.data() + n * 4 * H;
        for (int k = 0; k < H; k += 8) {
          v8 i = ld(gp + k), fo = ld(gp + H + k), u = ld(gp + 2 * H + k), o = ld(gp + 3 * H + k), e = ld(g + k) + ld(dh.data() + n * H + k), tc = vtanh(ld(cp + k));
          v8 cprev = pp ? ld(pp + k) : all(0), dcc = e * o * (1.f - tc * tc) + ld(dc.data() + n * H + k);
          v8 di = dcc * u * i * (1.f - i), df = dcc * cprev * fo * (1.f - fo), du = dcc * i * (1.f - u * u), dout = e * tc * o * (1.f - o);
          st(dc.data() + n * H + k, dcc * fo);
          st(xo + k, di); st(vo + k, di); st(xo + H + k, df); st(vo + H + k, df); st(xo + 2 * H + k, du); st(vo + 2 * H + k, du); st(xo + 3 * H + k, dout); st(vo + 3 * H + k, dout);
        }
      }
      gemv<4 * H, H>(P.data(), dv.data(), dh.data());
    }
  }
  return dx;
}

// ---- the first convolution with its norm, ReLU and pooling (see fast.cpp)
const int C = 64;
std::vector<at::Tensor> first_fwd(at::Tensor x, at::Tensor wt, at::Tensor bias, at::Tensor gamma, at::Tensor beta, at::Tensor rm, at::Tensor rv, double momentum, double eps) {
  int64_t N = x.size(0), R = x.size(2), W = x.size(3), PW = W + 2, PR = R + 2; TORCH_CHECK(R % 2 == 0 && W % 2 == 0 && wt.size(0) == C);
  auto xp = at::constant_pad_nd(x, {1, 1, 1, 1}).contiguous(); const float* X = xp.data_ptr<float>();
  auto mo = at::zeros({10, 9}, at::kDouble); double* M = mo.data_ptr<double>();
  for (int64_t r = 0; r < N * R; r++) {
    const float* base = X + ((r / R) * PR + r % R) * PW; const float* p[9]; for (int a = 0; a < 9; a++) p[a] = base + (a / 3) * PW + a % 3;
    for (int a = 0; a < 9; a++) { float s = 0; const float* pa = p[a]; for (int64_t k = 0; k < W; k++) s += pa[k]; M[81 + a] += s;
      for (int b = a; b < 9; b++) { float q = 0; const float* pb = p[b]; for (int64_t k = 0; k < W; k++) q += pa[k] * pb[k]; M[a * 9 + b] += q; } }
  }
  for (int a = 0; a < 9; a++) for (int b = 0; b < a; b++) M[a * 9 + b] = M[b * 9 + a];
  double n = double(N) * R * W; auto inv = at::empty({C}, at::kFloat); float* I = inv.data_ptr<float>(); auto wc = wt.contiguous(); const float* w = wc.data_ptr<float>();
  std::vector<float> A(9 * C), B(C);
  for (int c = 0; c < C; c++) {
    double m = 0, q = 0; for (int a = 0; a < 9; a++) { m += w[c * 9 + a] * M[81 + a] / n; for (int b = 0; b < 9; b++) q += (double)w[c * 9 + a] * w[c * 9 + b] * M[a * 9 + b] / n; }
    double v = std::max(0.0, q - m * m); I[c] = 1 / std::sqrt(v + eps); float s = gamma.data_ptr<float>()[c] * I[c];
    for (int a = 0; a < 9; a++) A[a * C + c] = w[c * 9 + a] * s; B[c] = beta.data_ptr<float>()[c] - s * m;
    rm.data_ptr<float>()[c] += momentum * (m + bias.data_ptr<float>()[c] - rm.data_ptr<float>()[c]); rv.data_ptr<float>()[c] += momentum * (v * n / (n - 1) - rv.data_ptr<float>()[c]);
  }
  int64_t R2 = R / 2, W2 = W / 2; auto y = at::empty({N, C, R2, W2}, x.options().memory_format(at::MemoryFormat::ChannelsLast)); auto idx = at::empty({N, R2, W2, C}, at::kByte);
  float* Y = y.data_ptr<float>(); uint8_t* D = idx.data_ptr<uint8_t>();
  for (int64_t r = 0; r < N * R2; r++) { const float* base = X + ((r / R2) * PR + 2 * (r % R2)) * PW;
    for (int64_t k = 0; k < W2; k++) { const float* p = base + 2 * k; float* yo = Y + (r * W2 + k) * C; uint8_t* dO = D + (r * W2 + k) * C; int32_t places[C];
      for (int b = 0; b < C; b += 8) {
        __m256 a[4]; for (auto& v : a) v = _mm256_loadu_ps(B.data() + b);
        #pragma GCC unroll 3
        for (int i = 0; i < 3; i++)
          #pragma GCC unroll 3
          for (int j = 0; j < 3; j++) { __m256 q = _mm256_loadu_ps(A.data() + (i * 3 + j) * C + b);
            #pragma GCC unroll 4
            for (int z = 0; z < 4; z++) a[z] = _mm256_fmadd_ps(q, _mm256_set1_ps(p[(i + z / 2) * PW + j + z % 2]), a[z]); }
        __m256 best = a[0], pos = _mm256_setzero_ps();
        for (int z = 1; z < 4; z++) { __m256 gt = _mm256_cmp_ps(a[z], best, _CMP_GT_OQ); best = _mm256_blendv_ps(best, a[z], gt); pos = _mm256_blendv_ps(pos, (__m256)_mm256_set1_epi32(z), gt); }
        pos = _mm256_blendv_ps(pos, (__m256)_mm256_set1_epi32(9), _mm256_cmp_ps(best, _mm256_setzero_ps(), _CMP_LE_OQ));
        _mm256_storeu_ps(yo + b, _mm256_max_ps(best, _mm256_setzero_ps())); _mm256_storeu_ps((float*)(places + b), pos);
      }
      for (int c = 0; c < C; c++) dO[c] = (uint8_t)places[c];
    } }
  return {y, idx, inv, mo, xp};
}
std::vector<at::Tensor> first_bwd(at::Tensor g, at::Tensor idx, at::Tensor inv, at::Tensor mo, at::Tensor xp, at::Tensor wt, at::Tensor gamma) {
  g = g.contiguous(at::MemoryFormat::ChannelsLast);
  int64_t N = g.size(0), R2 = g.size(2), W2 = g.size(3), PW = xp.size(3), PR = xp.size(2); const float* X = xp.data_ptr<float>(); const float* G = g.data_ptr<float>(); const uint8_t* D = idx.data_ptr<uint8_t>();
  std::vector<double> S(10 * C, 0.0);
  for (int64_t r = 0; r < N * R2; r++) { const float* base = X + ((r / R2) * PR + 2 * (r % R2)) * PW;
    for (int b = 0; b < C; b += 8) {
      __m256 s[10]; for (auto& v : s) v = _mm256_setzero_ps();
      for (int64_t k = 0; k < W2; k++) { const float* p = base + 2 * k;
        __m256i place = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(D + (r * W2 + k) * C + b))); __m256 gv = _mm256_loadu_ps(G + (r * W2 + k) * C + b);
        #pragma GCC unroll 4
        for (int z = 0; z < 4; z++) {
          __m256 gz = _mm256_and_ps(gv, (__m256)_mm256_cmpeq_epi32(place, _mm256_set1_epi32(z))); s[9] = _mm256_add_ps(s[9], gz);
          #pragma GCC unroll 9
          for (int i = 0; i < 9; i++) s[i] = _mm256_fmadd_ps(gz, _mm256_set1_ps(p[(i / 3 + z / 2) * PW + i % 3 + z % 2]), s[i]);
        } }
      for (int a = 0; a < 10; a++) { float q[8]; _mm256_storeu_ps(q, s[a]); for (int c = 0; c < 8; c++) S[a * C + b + c] += q[c]; }
    } }
  double n = double(N) * R2 * W2 * 4; const double* M = mo.data_ptr<double>(); auto wc = wt.contiguous(); const float* w = wc.data_ptr<float>();
  auto dw = at::empty({C, 9}, at::kFloat), dg = at::empty({C}, at::kFloat), db = at::empty({C}, at::kFloat);
  for (int c = 0; c < C; c++) { double I = inv.data_ptr<float>()[c], wm = 0, ws = 0; for (int a = 0; a < 9; a++) { wm += w[c * 9 + a] * M[81 + a] / n; ws += w[c * 9 + a] * S[a * C + c]; }
    double s0 = S[9 * C + c], gg = I * (ws - wm * s0), e = gamma.data_ptr<float>()[c] * I; dg.data_ptr<float>()[c] = gg; db.data_ptr<float>()[c] = s0;
    for (int a = 0; a < 9; a++) { double xp_ = 0; for (int b = 0; b < 9; b++) xp_ += w[c * 9 + b] * M[b * 9 + a]; xp_ = I * (xp_ - wm * M[81 + a]);
      dw.data_ptr<float>()[c * 9 + a] = e * (S[a * C + c] - s0 / n * M[81 + a] - gg / n * xp_); } }
  return {dw, dg, db};
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("squares6", &squares6); m.def("squares4", &squares4); m.def("maps", &maps); m.def("product", &product); m.def("outer", &outer); m.def("lstm_fwd", &lstm_fwd); m.def("lstm_bwd", &lstm_bwd); m.def("first_fwd", &first_fwd); m.def("first_bwd", &first_bwd); }
