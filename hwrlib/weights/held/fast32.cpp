// A training step in float32 on a plain CPU (AVX2): 3x3 convolutions in tiles (Winograd F(4, 3)), batch norm, pooling and ReLU in one pass, maps channels last.
#include <torch/extension.h>
#include <vector>
#include <cmath>
typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4)));
static inline v8 ld(const float* p) { return *(const v8*)p; }
static inline void st(float* p, v8 v) { *(v8*)p = v; }
static inline v8 all(float a) { return v8{a, a, a, a, a, a, a, a}; }
const int PAD = 16;  // floats between the tiles' rows, so that they do not meet in one set of the cache

// x (N, H, W, C) -> (tiles, 36 C + PAD), the overlapping squares of 6 x 6 transformed
at::Tensor squares6(at::Tensor x) {
  TORCH_CHECK(x.is_contiguous() && x.size(1) % 4 == 0 && x.size(2) % 4 == 0 && x.size(3) % 8 == 0);
  int64_t N = x.size(0), H = x.size(1), W = x.size(2), C = x.size(3), R = 36 * C + PAD, P = N * H * W / 16;
  auto out = at::empty({P, R}, x.options()); const float* X = x.data_ptr<float>(); float* O = out.data_ptr<float>();
  std::vector<float> zeros(C, 0.f);
  for (int64_t n = 0; n < N; n++) for (int64_t r = 0; r < H; r += 4) for (int64_t w = 0; w < W; w += 4, O += R) {
    const float* p[36];
    for (int i = 0; i < 6; i++) for (int j = 0; j < 6; j++) { int64_t y = r + i - 1, z = w + j - 1; p[i * 6 + j] = (y < 0 || y >= H || z < 0 || z >= W) ? zeros.data() : X + ((n * H + y) * W + z) * C; }
    for (int64_t c = 0; c < C; c += 8) {
      v8 t[36];
      for (int j = 0; j < 6; j++) {
        v8 a = ld(p[j] + c), b = ld(p[6 + j] + c), d = ld(p[12 + j] + c), e = ld(p[18 + j] + c), f = ld(p[24 + j] + c), g = ld(p[30 + j] + c);
        v8 u = f - 4 * d, v = e - 4 * b, s = f - d, q = 2 * (e - b);
        t[j] = 4 * a - 5 * d + f; t[6 + j] = u + v; t[12 + j] = u - v; t[18 + j] = s + q; t[24 + j] = s - q; t[30 + j] = 4 * b - 5 * e + g;
      }
      for (int i = 0; i < 6; i++) {
        v8 *m = t + 6 * i; float* o = O + 6 * i * C + c;
        v8 u = m[4] - 4 * m[2], v = m[3] - 4 * m[1], s = m[4] - m[2], q = 2 * (m[3] - m[1]);
        st(o, 4 * m[0] - 5 * m[2] + m[4]); st(o + C, u + v); st(o + 2 * C, u - v); st(o + 3 * C, s + q); st(o + 4 * C, s - q); st(o + 5 * C, 4 * m[1] - 5 * m[3] + m[5]);
      }
    }
  }
  return out;
}
// gradient (N, H, W, K) -> (tiles, 36 K + PAD): squares of 4 x 4 by the transposed output transform, for the weights' gradient
at::Tensor squares4(at::Tensor x) {
  int64_t N = x.size(0), H = x.size(1), W = x.size(2), C = x.size(3), R = 36 * C + PAD, P = N * H * W / 16;
  auto out = at::empty({P, R}, x.options()); const float* X = x.data_ptr<float>(); float* O = out.data_ptr<float>();
  for (int64_t n = 0; n < N; n++) for (int64_t r = 0; r < H; r += 4) for (int64_t w = 0; w < W; w += 4, O += R) {
    const float* p = X + ((n * H + r) * W + w) * C;
    for (int64_t c = 0; c < C; c += 8) {
      v8 t[24];
      for (int j = 0; j < 4; j++) {
        v8 a = ld(p + j * C + c), b = ld(p + (W + j) * C + c), d = ld(p + (2 * W + j) * C + c), e = ld(p + (3 * W + j) * C + c);
        v8 u = a + d, v = b + e, s = a + 4 * d, q = 2 * b + 8 * e;
        t[j] = a; t[4 + j] = u + v; t[8 + j] = u - v; t[12 + j] = s + q; t[16 + j] = s - q; t[20 + j] = e;
      }
      for (int i = 0; i < 6; i++) {
        v8 a = t[4 * i], b = t[4 * i + 1], d = t[4 * i + 2], e = t[4 * i + 3]; float* o = O + 6 * i * C + c;
        v8 u = a + d, v = b + e, s = a + 4 * d, q = 2 * b + 8 * e;
        st(o, a); st(o + C, u + v); st(o + 2 * C, u - v); st(o + 3 * C, s + q); st(o + 4 * C, s - q); st(o + 5 * C, e);
      }
    }
  }
  return out;
}
// products (tiles, 36 K + PAD) -> maps (N, H, W, K), and each channel's sum and sum of squares
std::vector<at::Tensor> maps(at::Tensor products, int64_t N, int64_t H, int64_t W, int64_t K, bool moments) {
  int64_t R = products.size(1); auto out = at::empty({N, H, W, K}, products.options()), mo = at::zeros({2, K}, at::kDouble);
  const float* M = products.data_ptr<float>(); float* Y = out.data_ptr<float>(); double* D = mo.data_ptr<double>(); std::vector<float> S(K), Q(K);
  for (int64_t n = 0; n < N; n++) for (int64_t r = 0; r < H; r += 4) {
    std::fill(S.begin(), S.end(), 0.f); std::fill(Q.begin(), Q.end(), 0.f);
    for (int64_t w = 0; w < W; w += 4, M += R) {
      float* y = Y + ((n * H + r) * W + w) * K;
      for (int64_t c = 0; c < K; c += 8) {
        v8 t[24];
        for (int j = 0; j < 6; j++) {
          v8 a = ld(M + j * K + c), b = ld(M + (6 + j) * K + c), d = ld(M + (12 + j) * K + c), e = ld(M + (18 + j) * K + c), f = ld(M + (24 + j) * K + c), g = ld(M + (30 + j) * K + c);
          v8 u = b + d, v = b - d, s = e + f, q = e - f;
          t[j] = a + u + s; t[6 + j] = v + 2 * q; t[12 + j] = u + 4 * s; t[18 + j] = v + 8 * q + g;
        }
        v8 sum = all(0), square = all(0);
        for (int i = 0; i < 4; i++) {
          v8* m = t + 6 * i; float* o = y + i * W * K + c;
          v8 u = m[1] + m[2], v = m[1] - m[2], s = m[3] + m[4], q = m[3] - m[4];
          v8 z0 = m[0] + u + s, z1 = v + 2 * q, z2 = u + 4 * s, z3 = v + 8 * q + m[5];
          st(o, z0); st(o + K, z1); st(o + 2 * K, z2); st(o + 3 * K, z3);
          sum += z0 + z1 + z2 + z3; square += z0 * z0 + z1 * z1 + z2 * z2 + z3 * z3;
        }
        if (moments) { st(S.data() + c, ld(S.data() + c) + sum); st(Q.data() + c, ld(Q.data() + c) + square); }
      }
    }
    if (moments) for (int64_t c = 0; c < K; c++) { D[c] += S[c]; D[K + c] += Q[c]; }
  }
  return {out, mo};
}
at::Tensor moments(at::Tensor x) {
  int64_t C = x.size(3), rows = x.size(0) * x.size(1), W = x.size(2); auto mo = at::zeros({2, C}, at::kDouble); double* D = mo.data_ptr<double>(); const float* X = x.data_ptr<float>(); std::vector<float> S(C), Q(C);
  for (int64_t r = 0; r < rows; r++) { std::fill(S.begin(), S.end(), 0.f); std::fill(Q.begin(), Q.end(), 0.f);
    for (int64_t w = 0; w < W; w++) for (int64_t c = 0; c < C; c += 8) { v8 v = ld(X + (r * W + w) * C + c); st(&S[c], ld(&S[c]) + v); st(&Q[c], ld(&Q[c]) + v * v); }
    for (int64_t c = 0; c < C; c++) { D[c] += S[c]; D[C + c] += Q[c]; } }
  return mo;
}
// batch norm (statistics from the sums), pooling kh x kw, ReLU; bias is the convolution's, which only the running mean sees
std::vector<at::Tensor> norm(at::Tensor x, at::Tensor mo, at::Tensor bias, at::Tensor w, at::Tensor b, at::Tensor rm, at::Tensor rv, int64_t kh, int64_t kw, double momentum, double eps) {
  int64_t N = x.size(0), H = x.size(1), W = x.size(2), C = x.size(3), h2 = H / kh, w2 = W / kw, K = kh * kw; TORCH_CHECK(H % kh == 0 && W % kw == 0 && x.is_contiguous());
  auto mean = at::empty({C}, at::kFloat), inv = at::empty({C}, at::kFloat); std::vector<float> A(C), B(C); const double* D = mo.data_ptr<double>(); double n = double(N) * H * W;
  float *M = mean.data_ptr<float>(), *I = inv.data_ptr<float>(), *RM = rm.data_ptr<float>(), *RV = rv.data_ptr<float>();
  for (int64_t c = 0; c < C; c++) { double m = D[c] / n, v = std::max(0.0, D[C + c] / n - m * m); M[c] = m; I[c] = 1 / std::sqrt(v + eps); A[c] = w.data_ptr<float>()[c] * I[c]; B[c] = b.data_ptr<float>()[c] - M[c] * A[c];
    RM[c] += momentum * (m + bias.data_ptr<float>()[c] - RM[c]); RV[c] += momentum * (v * n / (n - 1) - RV[c]); }
  auto y = at::empty({N, h2, w2, C}, x.options()), idx = at::empty({N, h2, w2, C}, at::kByte); const float* X = x.data_ptr<float>(); float* Y = y.data_ptr<float>(); uint8_t* P = idx.data_ptr<uint8_t>();
  for (int64_t r = 0; r < N * h2; r++) for (int64_t k = 0; k < w2; k++, Y += C, P += C) {
    const float* p[4]; for (int64_t i = 0; i < kh; i++) for (int64_t j = 0; j < kw; j++) p[i * kw + j] = X + ((r * kh + i) * W + k * kw + j) * C;
    for (int64_t c = 0; c < C; c += 8) {
      v8 a = ld(&A[c]), o = ld(&B[c]), best = a * ld(p[0] + c) + o; i8 pos = {};
      for (int32_t i = 1; i < K; i++) { v8 v = a * ld(p[i] + c) + o; i8 gt = v > best; pos = gt ? i8{i, i, i, i, i, i, i, i} : pos; best = gt ? v : best; }
      i8 on = best > all(0); pos = on ? pos : i8{9, 9, 9, 9, 9, 9, 9, 9}; st(Y + c, on ? best : all(0));
      for (int q = 0; q < 8; q++) P[c + q] = (uint8_t)pos[q];
    }
  }
  return {y, mean, inv, idx};
}
// gradient of norm's output -> gradients of x, of the scale, of the shift
std::vector<at::Tensor> norm_back(at::Tensor g, at::Tensor x, at::Tensor w, at::Tensor mean, at::Tensor inv, at::Tensor idx, int64_t kh, int64_t kw) {
  g = g.contiguous(); int64_t N = x.size(0), H = x.size(1), W = x.size(2), C = x.size(3), h2 = H / kh, w2 = W / kw, K = kh * kw;
  auto out = at::empty_like(x), sg = at::empty({C}, at::kFloat), sx = at::empty({C}, at::kFloat); const float *X = x.data_ptr<float>(), *M = mean.data_ptr<float>(), *I = inv.data_ptr<float>();
  std::vector<float> S(C), Q(C), E(C), E2(C), E3(C); std::vector<double> SD(C), QD(C);
  auto pos8 = [](const uint8_t* d) { return i8{d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]}; };
  for (int64_t r = 0; r < N * h2; r++) { std::fill(S.begin(), S.end(), 0.f); std::fill(Q.begin(), Q.end(), 0.f);
    for (int64_t k = 0; k < w2; k++) { const float* G = g.data_ptr<float>() + (r * w2 + k) * C; const uint8_t* P = idx.data_ptr<uint8_t>() + (r * w2 + k) * C;
      const float* p[4]; for (int64_t i = 0; i < kh; i++) for (int64_t j = 0; j < kw; j++) p[i * kw + j] = X + ((r * kh + i) * W + k * kw + j) * C;
      for (int64_t c = 0; c < C; c += 8) { i8 d = pos8(P + c); v8 gv = d < 9 ? ld(G + c) : all(0), xv = ld(p[0] + c);
        for (int32_t i = 1; i < K; i++) xv = d == i ? ld(p[i] + c) : xv;
        st(&S[c], ld(&S[c]) + gv); st(&Q[c], ld(&Q[c]) + gv * (xv - ld(M + c))); } }
    for (int64_t c = 0; c < C; c++) { SD[c] += S[c]; QD[c] += Q[c]; } }
  double n = double(N) * H * W;
  for (int64_t c = 0; c < C; c++) { float s = SD[c], q = QD[c] * I[c]; sg.data_ptr<float>()[c] = s; sx.data_ptr<float>()[c] = q; E[c] = w.data_ptr<float>()[c] * I[c]; E2[c] = E[c] * I[c] * (q / n); E3[c] = E[c] * s / n - E2[c] * M[c]; }
  for (int64_t r = 0; r < N * h2; r++) for (int64_t k = 0; k < w2; k++) { const float* G = g.data_ptr<float>() + (r * w2 + k) * C; const uint8_t* P = idx.data_ptr<uint8_t>() + (r * w2 + k) * C;
    int64_t o[4]; for (int64_t i = 0; i < kh; i++) for (int64_t j = 0; j < kw; j++) o[i * kw + j] = ((r * kh + i) * W + k * kw + j) * C;
    for (int64_t c = 0; c < C; c += 8) { i8 d = pos8(P + c); v8 gv = ld(&E[c]) * ld(G + c), e2 = ld(&E2[c]), e3 = ld(&E3[c]);
      for (int32_t i = 0; i < K; i++) st(out.data_ptr<float>() + o[i] + c, (d == i ? gv : all(0)) - e2 * ld(X + o[i] + c) - e3); } }
  return {out, sx, sg};
}
// First layer: images (N, R, W) float32, w (64, 9) -> y (N, R/2, W/2, 64), the place of each maximum, moments
const int C1 = 64;
std::vector<at::Tensor> first(at::Tensor x, at::Tensor wt, at::Tensor bias, at::Tensor gamma, at::Tensor beta, at::Tensor rm, at::Tensor rv, double momentum, double eps) {
  int64_t N = x.size(0), R = x.size(1), W = x.size(2), PW = W + 2, PR = R + 2; auto xp = at::constant_pad_nd(x, {1, 1, 1, 1}).contiguous(); const float* X = xp.data_ptr<float>();
  auto mo = at::zeros({10, 9}, at::kDouble); double* M = mo.data_ptr<double>();  // rows 0..8: sums of products, row 9: sums
  for (int64_t r = 0; r < N * R; r++) { const float* base = X + ((r / R) * PR + r % R) * PW;
    for (int a = 0; a < 9; a++) { const float* pa = base + (a / 3) * PW + a % 3; float s = 0; for (int64_t k = 0; k < W; k++) s += pa[k]; M[81 + a] += s;
      for (int b = a; b < 9; b++) { const float* pb = base + (b / 3) * PW + b % 3; float q = 0; for (int64_t k = 0; k < W; k++) q += pa[k] * pb[k]; M[a * 9 + b] += q; } } }
  for (int a = 0; a < 9; a++) for (int b = 0; b < a; b++) M[a * 9 + b] = M[b * 9 + a];
  double n = double(N) * R * W; auto inv = at::empty({C1}, at::kFloat); float* I = inv.data_ptr<float>(); const float* w = wt.data_ptr<float>(); std::vector<float> A(9 * C1), B(C1);
  for (int c = 0; c < C1; c++) { double m = 0, q = 0; for (int a = 0; a < 9; a++) { m += w[c * 9 + a] * M[81 + a] / n; for (int b = 0; b < 9; b++) q += (double)w[c * 9 + a] * w[c * 9 + b] * M[a * 9 + b] / n; }
    double v = std::max(0.0, q - m * m); I[c] = 1 / std::sqrt(v + eps); float s = gamma.data_ptr<float>()[c] * I[c]; for (int a = 0; a < 9; a++) A[a * C1 + c] = w[c * 9 + a] * s; B[c] = beta.data_ptr<float>()[c] - s * m;
    rm.data_ptr<float>()[c] += momentum * (m + bias.data_ptr<float>()[c] - rm.data_ptr<float>()[c]); rv.data_ptr<float>()[c] += momentum * (v * n / (n - 1) - rv.data_ptr<float>()[c]); }
  int64_t R2 = R / 2, W2 = W / 2; auto y = at::empty({N, R2, W2, C1}, x.options()), idx = at::empty({N, R2, W2, C1}, at::kByte); float* Y = y.data_ptr<float>(); uint8_t* D = idx.data_ptr<uint8_t>();
  for (int64_t r = 0; r < N * R2; r++) { const float* base = X + ((r / R2) * PR + 2 * (r % R2)) * PW;
    for (int64_t k = 0; k < W2; k++, Y += C1, D += C1) { const float* p = base + 2 * k;
      for (int c = 0; c < C1; c += 8) { v8 a[4]; for (auto& v : a) v = ld(&B[c]);
        for (int i = 0; i < 3; i++) for (int j = 0; j < 3; j++) { v8 q = ld(&A[(i * 3 + j) * C1 + c]); for (int z = 0; z < 4; z++) a[z] += q * all(p[(i + z / 2) * PW + j + z % 2]); }
        v8 best = a[0]; i8 pos = {}; for (int32_t z = 1; z < 4; z++) { i8 gt = a[z] > best; pos = gt ? i8{z, z, z, z, z, z, z, z} : pos; best = gt ? a[z] : best; }
        i8 on = best > all(0); pos = on ? pos : i8{9, 9, 9, 9, 9, 9, 9, 9}; st(Y + c, on ? best : all(0)); for (int q = 0; q < 8; q++) D[c + q] = (uint8_t)pos[q]; } } }
  return {y, idx, inv, mo, xp};
}
std::vector<at::Tensor> first_back(at::Tensor g, at::Tensor idx, at::Tensor inv, at::Tensor mo, at::Tensor xp, at::Tensor wt, at::Tensor gamma) {
  g = g.contiguous(); int64_t N = g.size(0), R2 = g.size(1), W2 = g.size(2), PW = xp.size(2), PR = xp.size(1); const float *X = xp.data_ptr<float>(), *G = g.data_ptr<float>(); const uint8_t* D = idx.data_ptr<uint8_t>(); std::vector<double> S(10 * C1, 0.0);
  for (int64_t r = 0; r < N * R2; r++) { const float* base = X + ((r / R2) * PR + 2 * (r % R2)) * PW;
    for (int c = 0; c < C1; c += 8) { v8 s[10]; for (auto& v : s) v = all(0);
      for (int64_t k = 0; k < W2; k++) { const float* p = base + 2 * k; const uint8_t* d = D + (r * W2 + k) * C1 + c; i8 z = {d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]}; v8 gv = ld(G + (r * W2 + k) * C1 + c); gv = z < 4 ? gv : all(0);
        for (int32_t q = 0; q < 4; q++) { v8 gq = z == q ? gv : all(0); for (int i = 0; i < 3; i++) for (int j = 0; j < 3; j++) s[i * 3 + j] += gq * all(p[(i + q / 2) * PW + j + q % 2]); }
        s[9] += gv; }
      for (int a = 0; a < 10; a++) for (int q = 0; q < 8; q++) S[a * C1 + c + q] += s[a][q]; } }
  double n = double(N) * R2 * W2 * 4; const double* M = mo.data_ptr<double>(); const float* w = wt.data_ptr<float>(); auto dw = at::empty({C1, 9}, at::kFloat), dg = at::empty({C1}, at::kFloat), db = at::empty({C1}, at::kFloat);
  for (int c = 0; c < C1; c++) { double I = inv.data_ptr<float>()[c], wm = 0, ws = 0; for (int a = 0; a < 9; a++) { wm += w[c * 9 + a] * M[81 + a] / n; ws += w[c * 9 + a] * S[a * C1 + c]; }
    double s0 = S[9 * C1 + c], gg = I * (ws - wm * s0), e = gamma.data_ptr<float>()[c] * I; dg.data_ptr<float>()[c] = gg; db.data_ptr<float>()[c] = s0;
    for (int a = 0; a < 9; a++) { double t = 0; for (int b = 0; b < 9; b++) t += w[c * 9 + b] * M[b * 9 + a]; t = I * (t - wm * M[81 + a]); dw.data_ptr<float>()[c * 9 + a] = e * (S[a * C1 + c] - s0 / n * M[81 + a] - gg / n * t); } }
  return {dw, dg, db};
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("squares6", &squares6); m.def("squares4", &squares4); m.def("maps", &maps); m.def("moments", &moments); m.def("norm", &norm); m.def("norm_back", &norm_back); m.def("first", &first); m.def("first_back", &first_back); }
