#include <torch/extension.h>
#include <vector>
typedef uint16_t bf;
static inline float f(bf v) { uint32_t u = (uint32_t)v << 16; float r; __builtin_memcpy(&r, &u, 4); return r; }
static inline bf h(float v) { uint32_t u; __builtin_memcpy(&u, &v, 4); u += 0x7FFF + ((u >> 16) & 1); return (bf)(u >> 16); }

std::vector<at::Tensor> fwd(at::Tensor x, at::Tensor w, at::Tensor b, at::Tensor rm, at::Tensor rv, int64_t kh, int64_t kw, double momentum, double eps) {
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 && x.is_contiguous(at::MemoryFormat::ChannelsLast));
  int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  TORCH_CHECK(H % kh == 0 && W % kw == 0);
  const bf* X = (const bf*)x.data_ptr();
  std::vector<double> S(C), Q(C); std::vector<float> s(C), q(C), A(C), B(C);
  for (int64_t r = 0; r < N * H; r++) {
    float* __restrict sp = s.data(); float* __restrict qp = q.data();
    for (int64_t c = 0; c < C; c++) sp[c] = qp[c] = 0;
    for (int64_t k = 0; k < W; k++) { const bf* __restrict p = X + (r * W + k) * C;
      for (int64_t c = 0; c < C; c++) { float v = f(p[c]); sp[c] += v; qp[c] += v * v; } }
    for (int64_t c = 0; c < C; c++) { S[c] += sp[c]; Q[c] += qp[c]; }
  }
  auto mean = at::empty({C}, at::kFloat), inv = at::empty({C}, at::kFloat);
  float *M = mean.data_ptr<float>(), *I = inv.data_ptr<float>(), *Wt = w.data_ptr<float>(), *Bi = b.data_ptr<float>(), *RM = rm.data_ptr<float>(), *RV = rv.data_ptr<float>();
  double n = double(N) * H * W;
  for (int64_t c = 0; c < C; c++) { double m = S[c] / n, v = std::max(0.0, Q[c] / n - m * m); M[c] = m; I[c] = 1 / std::sqrt(v + eps);
    RM[c] += momentum * (m - RM[c]); RV[c] += momentum * (v * n / (n - 1) - RV[c]); A[c] = Wt[c] * I[c]; B[c] = Bi[c] - M[c] * A[c]; }
  int64_t h2 = H / kh, w2 = W / kw, K = kh * kw;
  auto y = at::empty({N, C, h2, w2}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
  auto idx = at::empty({N, h2, w2, C}, at::kByte);
  std::vector<float> MB(C); std::vector<int32_t> QB(C); bf* Y = (bf*)y.data_ptr(); uint8_t* D = idx.data_ptr<uint8_t>();
  for (int64_t r = 0; r < N * h2; r++) for (int64_t k = 0; k < w2; k++) {
    bf* __restrict yp = Y + (r * w2 + k) * C; uint8_t* __restrict d = D + (r * w2 + k) * C; const float* __restrict a = A.data(); const float* __restrict bb = B.data();
    const bf* P[4]; for (int64_t i = 0; i < kh; i++) for (int64_t j = 0; j < kw; j++) P[i * kw + j] = X + ((r * kh + i) * W + k * kw + j) * C;
    float* __restrict mb = MB.data(); int32_t* __restrict qb = QB.data(); const bf* __restrict p = P[0];
    for (int64_t c = 0; c < C; c++) { mb[c] = a[c] * f(p[c]) + bb[c]; qb[c] = 0; }
    for (int32_t i = 1; i < K; i++) { const bf* __restrict pi = P[i]; for (int64_t c = 0; c < C; c++) { float v = a[c] * f(pi[c]) + bb[c]; qb[c] = v > mb[c] ? i : qb[c]; mb[c] = v > mb[c] ? v : mb[c]; } }
    for (int64_t c = 0; c < C; c++) { d[c] = (uint8_t)(mb[c] > 0.f ? qb[c] : 9); yp[c] = h(mb[c] > 0.f ? mb[c] : 0.f); }
  }
  return {y, mean, inv, idx};
}
template <int K> static void back(const bf* X, const bf* G, const uint8_t* D, bf* O, int64_t R, int64_t C, int64_t W, int64_t kh, int64_t kw, const float* M_, const float* I, const float* Wt, float* SG, float* SX, double n) {
  int64_t w2 = W / kw; std::vector<double> s(C), q(C); std::vector<float> a(C), bv(C), e(C), e2(C), e3(C), GB(C); std::vector<int32_t> DB(C); float* __restrict gb = GB.data(); int32_t* __restrict db = DB.data(); const float* __restrict M = M_;
  for (int64_t r = 0; r < R; r++) {
    float* __restrict sp = a.data(); float* __restrict qp = bv.data(); for (int64_t c = 0; c < C; c++) sp[c] = qp[c] = 0;
    for (int64_t k = 0; k < w2; k++) { const bf* __restrict g = G + (r * w2 + k) * C; const uint8_t* __restrict d = D + (r * w2 + k) * C;
      const bf* P[K]; for (int64_t i = 0; i < kh; i++) for (int64_t j = 0; j < kw; j++) P[i * kw + j] = X + ((r * kh + i) * W + k * kw + j) * C;
      for (int64_t c = 0; c < C; c++) { db[c] = d[c]; gb[c] = f(g[c]); }
      for (int64_t c = 0; c < C; c++) { gb[c] = db[c] < 9 ? gb[c] : 0.f; sp[c] += gb[c]; }
      for (int32_t i = 0; i < K; i++) { const bf* __restrict p = P[i]; for (int64_t c = 0; c < C; c++) { float t = gb[c] * (f(p[c]) - M[c]); qp[c] += db[c] == i ? t : 0.f; } } }
    for (int64_t c = 0; c < C; c++) { s[c] += sp[c]; q[c] += qp[c]; }
  }
  for (int64_t c = 0; c < C; c++) { SG[c] = s[c]; SX[c] = q[c] * I[c]; e[c] = Wt[c] * I[c]; float t = e[c] * I[c] * (SX[c] / n); e2[c] = t; e3[c] = e[c] * SG[c] / n - t * M[c]; }
  const float *__restrict E = e.data(), *__restrict E2 = e2.data(), *__restrict E3 = e3.data();
  for (int64_t r = 0; r < R; r++) for (int64_t k = 0; k < w2; k++) { const bf* __restrict g = G + (r * w2 + k) * C; const uint8_t* __restrict d = D + (r * w2 + k) * C;
    for (int64_t c = 0; c < C; c++) { db[c] = d[c]; gb[c] = E[c] * f(g[c]); }
    for (int64_t i = 0; i < kh; i++) for (int64_t j = 0; j < kw; j++) { int64_t o = ((r * kh + i) * W + k * kw + j) * C; const bf* __restrict p = X + o; bf* __restrict op = O + o; int32_t pos = i * kw + j;
      for (int64_t c = 0; c < C; c++) { float v = (db[c] == pos ? gb[c] : 0.f) - E2[c] * f(p[c]) - E3[c]; op[c] = h(v); } } }
}
std::vector<at::Tensor> bwd(at::Tensor g, at::Tensor x, at::Tensor w, at::Tensor mean, at::Tensor inv, at::Tensor idx, int64_t kh, int64_t kw) {
  g = g.contiguous(at::MemoryFormat::ChannelsLast); TORCH_CHECK(g.scalar_type() == at::kBFloat16);
  int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  auto o = at::empty_like(x, x.options(), at::MemoryFormat::ChannelsLast); auto sg = at::empty({C}, at::kFloat), sx = at::empty({C}, at::kFloat);
  auto run = [&](auto k) { back<decltype(k)::value>((const bf*)x.data_ptr(), (const bf*)g.data_ptr(), idx.data_ptr<uint8_t>(), (bf*)o.data_ptr(), N * (H / kh), C, W, kh, kw, mean.data_ptr<float>(), inv.data_ptr<float>(), w.data_ptr<float>(), sg.data_ptr<float>(), sx.data_ptr<float>(), double(N) * H * W); };
  if (kh * kw == 1) run(std::integral_constant<int, 1>()); else if (kh * kw == 2) run(std::integral_constant<int, 2>()); else run(std::integral_constant<int, 4>());
  return {o, sx, sg};
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("fwd", &fwd); m.def("bwd", &bwd); }
