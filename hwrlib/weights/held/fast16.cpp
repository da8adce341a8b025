// 3x3 convolutions of maps in bfloat16, channels last, in tiles (Winograd F(4, 3)) for a CPU with AVX-512 bfloat16 and no AMX. The 36 products of a tile lie apart: (36, tiles, channels).
#include <torch/extension.h>
#include <immintrin.h>
#include <vector>
typedef uint16_t bf;
typedef __m512 v;
typedef float v16 __attribute__((vector_size(64), aligned(4)));
static inline v16 ld(const bf* p) { return (v16)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16)); }
static inline void st(bf* p, v16 a) { __m256bh b = _mm512_cvtneps_pbh((__m512)a); _mm256_storeu_si256((__m256i*)p, (__m256i)b); }

// x (N, H, W, C) -> (36, tiles, C), the overlapping squares of 6 x 6 transformed
at::Tensor squares6(at::Tensor x) {
  int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), P = N * H * W / 16;
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 && x.is_contiguous(at::MemoryFormat::ChannelsLast) && H % 4 == 0 && W % 4 == 0 && C % 16 == 0);
  auto out = at::empty({36, P, C}, x.options().memory_format(at::MemoryFormat::Contiguous)); const bf* X = (const bf*)x.data_ptr(); bf* O = (bf*)out.data_ptr(); int64_t S = P * C;
  std::vector<bf> zeros(C, 0);
  for (int64_t n = 0; n < N; n++) for (int64_t r = 0; r < H; r += 4) for (int64_t w = 0; w < W; w += 4, O += C) {
    const bf* p[36];
    for (int i = 0; i < 6; i++) for (int j = 0; j < 6; j++) { int64_t y = r + i - 1, z = w + j - 1; p[i * 6 + j] = (y < 0 || y >= H || z < 0 || z >= W) ? zeros.data() : X + ((n * H + y) * W + z) * C; }
    for (int64_t c = 0; c < C; c += 16) {
      v16 t[36];
      for (int j = 0; j < 6; j++) {
        v16 a = ld(p[j] + c), b = ld(p[6 + j] + c), d = ld(p[12 + j] + c), e = ld(p[18 + j] + c), f = ld(p[24 + j] + c), g = ld(p[30 + j] + c);
        v16 u = f - 4 * d, q = e - 4 * b, s = f - d, z = 2 * (e - b);
        t[j] = 4 * a - 5 * d + f; t[6 + j] = u + q; t[12 + j] = u - q; t[18 + j] = s + z; t[24 + j] = s - z; t[30 + j] = 4 * b - 5 * e + g;
      }
      for (int i = 0; i < 6; i++) {
        v16* m = t + 6 * i; bf* o = O + 6 * i * S + c;
        v16 u = m[4] - 4 * m[2], q = m[3] - 4 * m[1], s = m[4] - m[2], z = 2 * (m[3] - m[1]);
        st(o, 4 * m[0] - 5 * m[2] + m[4]); st(o + S, u + q); st(o + 2 * S, u - q); st(o + 3 * S, s + z); st(o + 4 * S, s - z); st(o + 5 * S, 4 * m[1] - 5 * m[3] + m[5]);
      }
    }
  }
  return out;
}
// gradient (N, H, W, K) -> (36, tiles, K): squares of 4 x 4 by the transposed output transform, for the weights' gradient
at::Tensor squares4(at::Tensor x) {
  int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), P = N * H * W / 16;
  auto out = at::empty({36, P, C}, x.options().memory_format(at::MemoryFormat::Contiguous)); const bf* X = (const bf*)x.data_ptr(); bf* O = (bf*)out.data_ptr(); int64_t S = P * C;
  for (int64_t n = 0; n < N; n++) for (int64_t r = 0; r < H; r += 4) for (int64_t w = 0; w < W; w += 4, O += C) {
    const bf* p = X + ((n * H + r) * W + w) * C;
    for (int64_t c = 0; c < C; c += 16) {
      v16 t[24];
      for (int j = 0; j < 4; j++) {
        v16 a = ld(p + j * C + c), b = ld(p + (W + j) * C + c), d = ld(p + (2 * W + j) * C + c), e = ld(p + (3 * W + j) * C + c);
        v16 u = a + d, q = b + e, s = a + 4 * d, z = 2 * b + 8 * e;
        t[j] = a; t[4 + j] = u + q; t[8 + j] = u - q; t[12 + j] = s + z; t[16 + j] = s - z; t[20 + j] = e;
      }
      for (int i = 0; i < 6; i++) {
        v16 a = t[4 * i], b = t[4 * i + 1], d = t[4 * i + 2], e = t[4 * i + 3]; bf* o = O + 6 * i * S + c;
        v16 u = a + d, q = b + e, s = a + 4 * d, z = 2 * b + 8 * e;
        st(o, a); st(o + S, u + q); st(o + 2 * S, u - q); st(o + 3 * S, s + z); st(o + 4 * S, s - z); st(o + 5 * S, e);
      }
    }
  }
  return out;
}
// products (36, tiles, K) -> maps (N, K, H, W), channels last
at::Tensor maps(at::Tensor products, int64_t N, int64_t H, int64_t W) {
  int64_t K = products.size(2), S = products.size(1) * K;
  auto out = at::empty({N, K, H, W}, products.options().memory_format(at::MemoryFormat::ChannelsLast)); const bf* M = (const bf*)products.data_ptr(); bf* Y = (bf*)out.data_ptr();
  for (int64_t n = 0; n < N; n++) for (int64_t r = 0; r < H; r += 4) for (int64_t w = 0; w < W; w += 4, M += K) {
    bf* y = Y + ((n * H + r) * W + w) * K;
    for (int64_t c = 0; c < K; c += 16) {
      v16 t[24];
      for (int j = 0; j < 6; j++) {
        const bf* m = M + j * S + c;
        v16 a = ld(m), b = ld(m + 6 * S), d = ld(m + 12 * S), e = ld(m + 18 * S), f = ld(m + 24 * S), g = ld(m + 30 * S);
        v16 u = b + d, q = b - d, s = e + f, z = e - f;
        t[j] = a + u + s; t[6 + j] = q + 2 * z; t[12 + j] = u + 4 * s; t[18 + j] = q + 8 * z + g;
      }
      for (int i = 0; i < 4; i++) {
        v16* m = t + 6 * i; bf* o = y + i * W * K + c;
        v16 u = m[1] + m[2], q = m[1] - m[2], s = m[3] + m[4], z = m[3] - m[4];
        st(o, m[0] + u + s); st(o + K, q + 2 * z); st(o + 2 * K, u + 4 * s); st(o + 3 * K, q + 8 * z + m[5]);
      }
    }
  }
  return out;
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("squares6", &squares6); m.def("squares4", &squares4); m.def("maps", &maps); }
