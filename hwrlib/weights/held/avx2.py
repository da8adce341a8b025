"""Training on a CPU with AVX2 and nothing more: maps in float32, convolutions in tiles, their products in whole numbers (avx2.cpp)."""
from pathlib import Path
import torch, torch.nn.functional as F
from torch.utils.cpp_extension import load
from hwrlib.winograd import KERNEL
FLAGS = ["-O3", "-march=native", "-ffast-math"]
here = Path(__file__).parent
ext = load("avx2", [str(here / "avx2.cpp")], extra_cflags=FLAGS)
source = (here / "fused.cpp").read_text().replace("typedef uint16_t bf;", "typedef float bf;").replace("kBFloat16", "kFloat")
lines = [l for l in source.splitlines() if not l.startswith("static inline")]
lines.insert(3, "static inline float f(bf v) { return v; }\nstatic inline bf h(float v) { return v; }")
if not (made := here / "fused32.cpp").exists() or made.read_text() != "\n".join(lines): made.write_text("\n".join(lines))
norm = load("fused32", [str(made)], extra_cflags=FLAGS)
LAST = torch.channels_last
class NormPoolRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, b, rm, rv, kh, kw, momentum, eps):
        y, mean, inv, idx = norm.fwd(x, w, b, rm, rv, kh, kw, momentum, eps)
        ctx.save_for_backward(x, w, mean, inv, idx); ctx.k = kh, kw
        return y
    @staticmethod
    def backward(ctx, g):
        x, w, mean, inv, idx = ctx.saved_tensors
        gx, gw, gb = norm.bwd(g, x, w, mean, inv, idx, *ctx.k)
        return gx, gw, gb, None, None, None, None, None, None
class First(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, bias, gamma, beta, rm, rv, momentum, eps):
        y, idx, inv, moments, xp = ext.first_fwd(x, w.reshape(64, 9), bias, gamma, beta, rm, rv, momentum, eps)
        ctx.save_for_backward(idx, inv, moments, xp, w, gamma)
        return y
    @staticmethod
    def backward(ctx, g):
        idx, inv, moments, xp, w, gamma = ctx.saved_tensors
        dw, dg, db = ext.first_bwd(g, idx, inv, moments, xp, w.reshape(64, 9), gamma)
        return None, dw.reshape(w.shape), torch.zeros_like(gamma), dg, db, None, None, None, None
def kernels(weight):
    outputs, inputs = weight.shape[:2]
    return (KERNEL @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, inputs, outputs)
class Tiled(torch.autograd.Function):
    """3x3 convolution without bias of maps (N, C, H, W), channels last; its norm takes the bias away."""
    @staticmethod
    def forward(ctx, x, weight):
        N, C, H, W = x.shape
        tiles = ext.squares6(x)
        ctx.save_for_backward(tiles, weight)
        return ext.maps(ext.product(tiles, kernels(weight)), N, H, W)
    @staticmethod
    def backward(ctx, g):
        tiles, weight = ctx.saved_tensors
        N, K, H, W = g.shape
        g = g.contiguous(memory_format=LAST)
        gx = ext.maps(ext.product(ext.squares6(g), kernels(weight.flip(2, 3).transpose(0, 1))), N, H, W)
        products = ext.outer(tiles, ext.squares4(g))
        return gx, (KERNEL.T @ products.view(36, -1)).view(3, 3, products.shape[1], K).permute(3, 2, 0, 1)
class Last(torch.autograd.Function):
    """2x2 convolution without padding and bias of maps (N, C, H, W), channels last."""
    @staticmethod
    def forward(ctx, x, weight):
        N, C, H, W = x.shape
        K, x = weight.shape[0], x.permute(0, 2, 3, 1)
        columns = torch.cat([x[:, i:H - 1 + i, j:W - 1 + j] for i in (0, 1) for j in (0, 1)], -1).view(1, -1, 4 * C).contiguous()
        w = weight.permute(2, 3, 1, 0).reshape(1, 4 * C, K).contiguous()
        ctx.save_for_backward(columns, w); ctx.shape = N, C, H, W
        return ext.product(columns, w).view(N, H - 1, W - 1, K).permute(0, 3, 1, 2)
    @staticmethod
    def backward(ctx, g):
        columns, w = ctx.saved_tensors
        N, C, H, W = ctx.shape
        K = w.shape[2]
        g = g.permute(0, 2, 3, 1).contiguous().view(1, -1, K)
        gw = ext.outer(columns, g).view(2, 2, C, K).permute(3, 2, 0, 1)
        parts = ext.product(g, w.transpose(1, 2).contiguous()).view(N, H - 1, W - 1, 4, C)
        gx = torch.zeros(N, H, W, C)
        for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]): gx[:, i:H - 1 + i, j:W - 1 + j] += parts[:, :, :, k]
        return gx.permute(0, 3, 1, 2), gw
def layers(layers, x):
    i = 0
    while i < len(layers):
        conv, bn = layers[i], layers[i + 1]; i += 3
        kh = kw = 1
        if i < len(layers) and isinstance(layers[i], torch.nn.MaxPool2d): (kh, kw), i = layers[i].kernel_size, i + 1
        quick = conv.kernel_size == (2, 2) or x.shape[3] % 4 == 0
        if quick: x = (Last if conv.kernel_size == (2, 2) else Tiled).apply(x.contiguous(memory_format=LAST), conv.weight)
        else: x = conv(x).contiguous(memory_format=LAST)
        bn.num_batches_tracked.add_(1)
        x = NormPoolRelu.apply(x, bn.weight, bn.bias, bn.running_mean, bn.running_var, kh, kw, bn.momentum, bn.eps)
        if quick: bn.running_mean.add_(conv.bias.detach(), alpha=bn.momentum)
    return x
def features(self, images):
    conv, bn = self.cnn[0], self.cnn[1]
    bn.num_batches_tracked.add_(1)
    x = First.apply(images.float(), conv.weight, conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.momentum, bn.eps)
    return self.map2seq(layers(list(self.cnn)[4:], x).permute(0, 3, 1, 2).flatten(2))
class Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, xp, wf, wb):
        y, gates, cells = ext.lstm_fwd(xp, wf, wb)
        ctx.save_for_backward(y, gates, cells, wf, wb)
        return y
    @staticmethod
    def backward(ctx, dy):
        y, gates, cells, wf, wb = ctx.saved_tensors
        H = wf.shape[1]
        dx = ext.lstm_bwd(dy, gates, cells, wf, wb)
        df, db = dx[1:, :, :4 * H].reshape(-1, 4 * H), dx[:-1, :, 4 * H:].reshape(-1, 4 * H)
        return dx, df.t() @ y[:-1, :, :H].reshape(-1, H), db.t() @ y[1:, :, H:].reshape(-1, H)
def lstm(rnn, x):
    """(N, T, C) -> (N, T, 2H), as nn.LSTM in training."""
    x = x.transpose(0, 1).contiguous()
    for layer in range(rnn.num_layers):
        w, b = [], []
        for end in ("", "_reverse"):
            w.append(getattr(rnn, f"weight_ih_l{layer}{end}"))
            b.append(getattr(rnn, f"bias_ih_l{layer}{end}") + getattr(rnn, f"bias_hh_l{layer}{end}"))
        x = Recurrence.apply(F.linear(x, torch.cat(w), torch.cat(b)), getattr(rnn, f"weight_hh_l{layer}"), getattr(rnn, f"weight_hh_l{layer}_reverse"))
        if layer + 1 < rnn.num_layers: x = F.dropout(x, rnn.dropout, True)
    return x.transpose(0, 1)
def patch(CRNN):
    plain, plain_classify = CRNN.features, CRNN.classify
    CRNN.features = lambda self, images, widths: features(self, images) if self.training else plain(self, images, widths)
    CRNN.classify = lambda self, sequence, widths: self.fc(lstm(self.rnn, sequence)).float().log_softmax(-1) if self.training else plain_classify(self, sequence, widths)
