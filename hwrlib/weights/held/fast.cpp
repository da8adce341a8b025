// LSTM recurrence in bfloat16 (float32 states), and the first convolution with its batch norm, ReLU and pooling in one pass.
#include <torch/extension.h>
#include <immintrin.h>
#include <vector>
#include <cmath>
typedef uint16_t bf;
static inline float f(bf v) { uint32_t u = (uint32_t)v << 16; float r; __builtin_memcpy(&r, &u, 4); return r; }
static inline bf h(float v) { uint32_t u; __builtin_memcpy(&u, &v, 4); u += 0x7FFF + ((u >> 16) & 1); return (bf)(u >> 16); }
static inline __m512 ld(const bf* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16)); }
static inline void st(bf* p, __m512 v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }
static inline __m512 vexp(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-80.f)), _mm512_set1_ps(80.f));
  __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), r = _mm512_roundscale_ps(t, 8), z = _mm512_sub_ps(t, r);
  __m512 p = _mm512_set1_ps(1.33336e-3f);
  p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(9.61812e-3f)); p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(5.550411e-2f));
  p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(2.4022651e-1f)); p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(6.9314718e-1f)); p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(p, r);
}
static inline __m512 sig(__m512 x) { return _mm512_div_ps(_mm512_set1_ps(1.f), _mm512_add_ps(_mm512_set1_ps(1.f), vexp(_mm512_sub_ps(_mm512_setzero_ps(), x)))); }
static inline __m512 vtanh(__m512 x) { return _mm512_fmsub_ps(_mm512_set1_ps(2.f), sig(_mm512_add_ps(x, x)), _mm512_set1_ps(1.f)); }

// out[4][OUT] (float) = v[4][K] (bf16) x W, W packed [OUT/16][K/2][16][2]
template <int K, int OUT> static void gemv(const bf* W, const bf* v, float* out) {
  for (int b = 0; b < OUT / 16; b += 2) {
    __m512 a[2][4]; for (auto& r : a) for (auto& q : r) q = _mm512_setzero_ps();
    const bf *w0 = W + (size_t)b * K * 16, *w1 = w0 + K * 16;
    for (int k = 0; k < K; k += 2) {
      __m512bh x0 = (__m512bh)_mm512_loadu_si512(w0 + k * 16), x1 = (__m512bh)_mm512_loadu_si512(w1 + k * 16);
      for (int n = 0; n < 4; n++) { __m512bh s = (__m512bh)_mm512_set1_epi32(*(const int*)(v + n * K + k)); a[0][n] = _mm512_dpbf16_ps(a[0][n], x0, s); a[1][n] = _mm512_dpbf16_ps(a[1][n], x1, s); }
    }
    for (int n = 0; n < 4; n++) { _mm512_storeu_ps(out + n * OUT + b * 16, a[0][n]); _mm512_storeu_ps(out + n * OUT + b * 16 + 16, a[1][n]); }
  }
}
const int H = 256;
// xp (T, N, 8H) bf16; wf, wb (4H, H) float32 -> y (T, N, 2H) bf16, gates (2, T, 4, 4H) float32, cells (2, T, 4, H) float32
std::vector<at::Tensor> lstm_fwd(at::Tensor xp, at::Tensor wf, at::Tensor wb) {
  TORCH_CHECK(xp.is_contiguous() && xp.scalar_type() == at::kBFloat16 && xp.size(2) == 8 * H && xp.size(1) <= 4);
  int64_t T = xp.size(0), N = xp.size(1);
  auto y = at::empty({T, N, 2 * H}, xp.options()); auto gs = at::empty({2, T, 4, 4 * H}, at::kFloat), cs = at::empty({2, T, 4, H}, at::kFloat);
  std::vector<bf> P(4 * H * H), hv(4 * H); std::vector<float> g(4 * 4 * H), c(4 * H);
  for (int d = 0; d < 2; d++) {
    auto wc = (d ? wb : wf).contiguous(); const float* w = wc.data_ptr<float>();
    for (int b = 0; b < 4 * H / 16; b++) for (int k = 0; k < H; k += 2) for (int o = 0; o < 16; o++) for (int j = 0; j < 2; j++) P[(size_t)b * H * 16 + k * 16 + o * 2 + j] = h(w[(b * 16 + o) * H + k + j]);
    std::fill(hv.begin(), hv.end(), 0); std::fill(c.begin(), c.end(), 0.f);
    for (int64_t s = 0; s < T; s++) {
      int64_t t = d ? T - 1 - s : s;
      gemv<H, 4 * H>(P.data(), hv.data(), g.data());
      for (int64_t n = 0; n < N; n++) {
        const bf* x = (bf*)xp.data_ptr() + (t * N + n) * 8 * H + d * 4 * H; float* gp = gs.data_ptr<float>() + ((d * T + t) * 4 + n) * 4 * H; float* cp = cs.data_ptr<float>() + ((d * T + t) * 4 + n) * H;
        bf* yp = (bf*)y.data_ptr() + (t * N + n) * 2 * H + d * H; const float* q = g.data() + n * 4 * H;
        for (int k = 0; k < H; k += 16) {
          __m512 i = sig(_mm512_add_ps(ld(x + k), _mm512_loadu_ps(q + k))), fo = sig(_mm512_add_ps(ld(x + H + k), _mm512_loadu_ps(q + H + k)));
          __m512 u = vtanh(_mm512_add_ps(ld(x + 2 * H + k), _mm512_loadu_ps(q + 2 * H + k))), o = sig(_mm512_add_ps(ld(x + 3 * H + k), _mm512_loadu_ps(q + 3 * H + k)));
          __m512 cc = _mm512_fmadd_ps(fo, _mm512_loadu_ps(c.data() + n * H + k), _mm512_mul_ps(i, u));
          _mm512_storeu_ps(c.data() + n * H + k, cc); _mm512_storeu_ps(cp + k, cc); __m512 hh = _mm512_mul_ps(o, vtanh(cc));
          _mm512_storeu_ps(gp + k, i); _mm512_storeu_ps(gp + H + k, fo); _mm512_storeu_ps(gp + 2 * H + k, u); _mm512_storeu_ps(gp + 3 * H + k, o);
          st(yp + k, hh); st(hv.data() + n * H + k, hh);
        }
      }
    }
  }
  return {y, gs, cs};
}
// dy (T, N, 2H) bf16 -> gradient of xp (T, N, 8H) bf16
at::Tensor lstm_bwd(at::Tensor dy, at::Tensor gs, at::Tensor cs, at::Tensor wf, at::Tensor wb) {
  dy = dy.contiguous(); TORCH_CHECK(dy.scalar_type() == at::kBFloat16);
  int64_t T = dy.size(0), N = dy.size(1); auto dx = at::empty({T, N, 8 * H}, dy.options());
  std::vector<bf> P(4 * H * H), dv(4 * 4 * H); std::vector<float> dh(4 * H), dc(4 * H);
  for (int d = 0; d < 2; d++) {
    auto wc = (d ? wb : wf).contiguous(); const float* w = wc.data_ptr<float>();
    for (int b = 0; b < H / 16; b++) for (int o = 0; o < 4 * H; o += 2) for (int k = 0; k < 16; k++) for (int j = 0; j < 2; j++) P[(size_t)b * 4 * H * 16 + o * 16 + k * 2 + j] = h(w[(o + j) * H + b * 16 + k]);
    std::fill(dh.begin(), dh.end(), 0.f); std::fill(dc.begin(), dc.end(), 0.f); std::fill(dv.begin(), dv.end(), 0);
    for (int64_t s = T - 1; s >= 0; s--) {
      int64_t t = d ? T - 1 - s : s, before = d ? t + 1 : t - 1;
      for (int64_t n = 0; n < N; n++) {
        const float* gp = gs.data_ptr<float>() + ((d * T + t) * 4 + n) * 4 * H; const float* cp = cs.data_ptr<float>() + ((d * T + t) * 4 + n) * H;
        const float* pp = s ? cs.data_ptr<float>() + ((d * T + before) * 4 + n) * H : nullptr;
        const bf* g = (bf*)dy.data_ptr() + (t * N + n) * 2 * H + d * H; bf* xo = (bf*)dx.data_ptr() + (t * N + n) * 8 * H + d * 4 * H; bf* vo = dv.data() + n * 4 * H;
        __m512 one = _mm512_set1_ps(1.f);
        for (int k = 0; k < H; k += 16) {
          __m512 i = _mm512_loadu_ps(gp + k), fo = _mm512_loadu_ps(gp + H + k), u = _mm512_loadu_ps(gp + 2 * H + k), o = _mm512_loadu_ps(gp + 3 * H + k);
          __m512 e = _mm512_add_ps(ld(g + k), _mm512_loadu_ps(dh.data() + n * H + k)), tc = vtanh(_mm512_loadu_ps(cp + k));
          __m512 cprev = pp ? _mm512_loadu_ps(pp + k) : _mm512_setzero_ps();
          __m512 dcc = _mm512_fmadd_ps(_mm512_mul_ps(e, o), _mm512_fnmadd_ps(tc, tc, one), _mm512_loadu_ps(dc.data() + n * H + k));
          __m512 di = _mm512_mul_ps(_mm512_mul_ps(dcc, u), _mm512_mul_ps(i, _mm512_sub_ps(one, i))), df = _mm512_mul_ps(_mm512_mul_ps(dcc, cprev), _mm512_mul_ps(fo, _mm512_sub_ps(one, fo)));
          __m512 du = _mm512_mul_ps(_mm512_mul_ps(dcc, i), _mm512_fnmadd_ps(u, u, one)), dout = _mm512_mul_ps(_mm512_mul_ps(e, tc), _mm512_mul_ps(o, _mm512_sub_ps(one, o)));
          _mm512_storeu_ps(dc.data() + n * H + k, _mm512_mul_ps(dcc, fo));
          st(xo + k, di); st(vo + k, di); st(xo + H + k, df); st(vo + H + k, df); st(xo + 2 * H + k, du); st(vo + 2 * H + k, du); st(xo + 3 * H + k, dout); st(vo + 3 * H + k, dout);
        }
      }
      gemv<4 * H, H>(P.data(), dv.data(), dh.data());
    }
  }
  return dx;
}

// First layer: images (N, 1, R, W) float32, w (64, 9) float32 -> y (N, 64, R/2, W/2) bf16 channels last, the place of each maximum, moments
const int C = 64;
static at::Tensor padded(at::Tensor x) { return at::constant_pad_nd(x, {1, 1, 1, 1}).contiguous(); }
std::vector<at::Tensor> first_fwd(at::Tensor x, at::Tensor wt, at::Tensor bias, at::Tensor gamma, at::Tensor beta, at::Tensor rm, at::Tensor rv, double momentum, double eps) {
  int64_t N = x.size(0), R = x.size(2), W = x.size(3), PW = W + 2, PR = R + 2; TORCH_CHECK(R % 2 == 0 && W % 2 == 0 && wt.size(0) == C);
  auto xp = padded(x); const float* X = xp.data_ptr<float>();
  auto mo = at::zeros({10, 9}, at::kDouble); double* M = mo.data_ptr<double>();  // rows 0..8: sums of products, row 9: sums
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
  int64_t R2 = R / 2, W2 = W / 2; auto y = at::empty({N, C, R2, W2}, x.options().dtype(at::kBFloat16).memory_format(at::MemoryFormat::ChannelsLast)); auto idx = at::empty({N, R2, W2, C}, at::kByte);
  bf* Y = (bf*)y.data_ptr(); uint8_t* D = idx.data_ptr<uint8_t>();
  for (int64_t r = 0; r < N * R2; r++) { const float* base = X + ((r / R2) * PR + 2 * (r % R2)) * PW;
    for (int64_t k = 0; k < W2; k++) { const float* p = base + 2 * k; bf* yo = Y + (r * W2 + k) * C; uint8_t* dO = D + (r * W2 + k) * C;
      for (int b = 0; b < C; b += 16) {
        __m512 a[4]; for (auto& v : a) v = _mm512_loadu_ps(B.data() + b);
        for (int i = 0; i < 3; i++) for (int j = 0; j < 3; j++) { __m512 q = _mm512_loadu_ps(A.data() + (i * 3 + j) * C + b);
          for (int z = 0; z < 4; z++) a[z] = _mm512_fmadd_ps(q, _mm512_set1_ps(p[(i + z / 2) * PW + j + z % 2]), a[z]); }
        __m512 best = a[0]; __m512i pos = _mm512_setzero_si512();
        for (int z = 1; z < 4; z++) { __mmask16 gt = _mm512_cmp_ps_mask(a[z], best, _CMP_GT_OQ); best = _mm512_mask_mov_ps(best, gt, a[z]); pos = _mm512_mask_set1_epi32(pos, gt, z); }
        __mmask16 off = _mm512_cmp_ps_mask(best, _mm512_setzero_ps(), _CMP_LE_OQ); pos = _mm512_mask_set1_epi32(pos, off, 9);
        st(yo + b, _mm512_max_ps(best, _mm512_setzero_ps())); _mm_storeu_si128((__m128i*)(dO + b), _mm512_cvtepi32_epi8(pos));
      } } }
  return {y, idx, inv, mo, xp};
}
std::vector<at::Tensor> first_bwd(at::Tensor g, at::Tensor idx, at::Tensor inv, at::Tensor mo, at::Tensor xp, at::Tensor wt, at::Tensor gamma) {
  g = g.contiguous(at::MemoryFormat::ChannelsLast); TORCH_CHECK(g.scalar_type() == at::kBFloat16);
  int64_t N = g.size(0), R2 = g.size(2), W2 = g.size(3), PW = xp.size(3), PR = xp.size(2); const float* X = xp.data_ptr<float>(); const bf* G = (bf*)g.data_ptr(); const uint8_t* D = idx.data_ptr<uint8_t>();
  std::vector<double> S(10 * C, 0.0);
  for (int64_t r = 0; r < N * R2; r++) { const float* base = X + ((r / R2) * PR + 2 * (r % R2)) * PW;
    for (int b = 0; b < C; b += 16) {
      __m512 s[10]; for (auto& v : s) v = _mm512_setzero_ps();
      for (int64_t k = 0; k < W2; k++) { const float* p = base + 2 * k;
        __m512 win = _mm512_castps128_ps512(_mm_loadu_ps(p)); win = _mm512_insertf32x4(win, _mm_loadu_ps(p + PW), 1); win = _mm512_insertf32x4(win, _mm_loadu_ps(p + 2 * PW), 2); win = _mm512_insertf32x4(win, _mm_loadu_ps(p + 3 * PW), 3);
        __m512i z = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(D + (r * W2 + k) * C + b)));
        __mmask16 on = _mm512_cmplt_epi32_mask(z, _mm512_set1_epi32(4)); __m512 gv = _mm512_maskz_mov_ps(on, ld(G + (r * W2 + k) * C + b));
        __m512i o = _mm512_add_epi32(_mm512_and_si512(z, _mm512_set1_epi32(1)), _mm512_slli_epi32(_mm512_srli_epi32(z, 1), 2));
        for (int i = 0; i < 3; i++) for (int j = 0; j < 3; j++) s[i * 3 + j] = _mm512_fmadd_ps(gv, _mm512_permutexvar_ps(_mm512_add_epi32(o, _mm512_set1_epi32(i * 4 + j)), win), s[i * 3 + j]);
        s[9] = _mm512_add_ps(s[9], gv); }
      for (int a = 0; a < 10; a++) { float q[16]; _mm512_storeu_ps(q, s[a]); for (int c = 0; c < 16; c++) S[a * C + b + c] += q[c]; }
    } }
  double n = double(N) * R2 * W2 * 4; const double* M = mo.data_ptr<double>(); auto wc = wt.contiguous(); const float* w = wc.data_ptr<float>();
  auto dw = at::empty({C, 9}, at::kFloat), dg = at::empty({C}, at::kFloat), db = at::empty({C}, at::kFloat);
  for (int c = 0; c < C; c++) { double I = inv.data_ptr<float>()[c], wm = 0, ws = 0; for (int a = 0; a < 9; a++) { wm += w[c * 9 + a] * M[81 + a] / n; ws += w[c * 9 + a] * S[a * C + c]; }
    double s0 = S[9 * C + c], gg = I * (ws - wm * s0), e = gamma.data_ptr<float>()[c] * I; dg.data_ptr<float>()[c] = gg; db.data_ptr<float>()[c] = s0;
    for (int a = 0; a < 9; a++) { double xp_ = 0; for (int b = 0; b < 9; b++) xp_ += w[c * 9 + b] * M[b * 9 + a]; xp_ = I * (xp_ - wm * M[81 + a]);
      dw.data_ptr<float>()[c * 9 + a] = e * (S[a * C + c] - s0 / n * M[81 + a] - gg / n * xp_); } }
  return {dw, dg, db};
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("lstm_fwd", &lstm_fwd); m.def("lstm_bwd", &lstm_bwd); m.def("first_fwd", &first_fwd); m.def("first_bwd", &first_bwd); }
