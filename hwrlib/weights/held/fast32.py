"""Training in float32 on a plain CPU: fast32.cpp for the convolutions, batch norm, pooling and ReLU."""
import torch, torch.nn.functional as F, sys
from torch.utils.cpp_extension import load
sys.path.insert(0, "/work/train/clone")
from hwrlib.winograd import KERNEL
ext = load("fast32", ["/work/train/fast32.cpp"], extra_cflags=["-O3", "-march=native", "-ffast-math"])
PAD = 16
def kernels(weight):
    outputs, inputs = weight.shape[:2]
    return (KERNEL @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, inputs, outputs)
def slices(tiles, channels):
    return [tiles[:, b * channels:(b + 1) * channels] for b in range(36)]
def multiply(tiles, kernels, inputs, outputs):
    products = torch.empty(len(tiles), 36 * outputs + PAD)
    for a, k, out in zip(slices(tiles, inputs), kernels, slices(products, outputs)):
        torch.mm(a, k, out=out)
    return products
class Tiled(torch.autograd.Function):
    """3x3 convolution, batch norm, pooling, ReLU of maps (N, H, W, C)."""
    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta, rm, rv, kh, kw, momentum, eps):
        outputs, inputs = weight.shape[:2]
        tiles = ext.squares6(x)
        y, moments = ext.maps(multiply(tiles, kernels(weight), inputs, outputs), *x.shape[:3], outputs, True)
        z, mean, inv, idx = ext.norm(y, moments, bias, gamma, beta, rm, rv, kh, kw, momentum, eps)
        ctx.save_for_backward(tiles, y, weight, gamma, mean, inv, idx); ctx.k = kh, kw
        return z
    @staticmethod
    def backward(ctx, g):
        tiles, y, weight, gamma, mean, inv, idx = ctx.saved_tensors
        outputs, inputs = weight.shape[:2]
        gy, dg, db = ext.norm_back(g, y, gamma, mean, inv, idx, *ctx.k)
        turned = kernels(weight.flip(2, 3).transpose(0, 1))
        gx, _ = ext.maps(multiply(ext.squares6(gy), turned, outputs, inputs), *gy.shape[:3], inputs, False)
        q = ext.squares4(gy)
        products = torch.empty(36, inputs, outputs)
        for a, b, out in zip(slices(tiles, inputs), slices(q, outputs), products):
            torch.mm(a.t(), b, out=out)
        gw = (KERNEL.T @ products.view(36, -1)).view(3, 3, inputs, outputs).permute(3, 2, 0, 1)
        return gx, gw, torch.zeros_like(gamma), dg, db, None, None, None, None, None, None
class Last(torch.autograd.Function):
    """2x2 convolution without padding, batch norm, ReLU of maps (N, H, W, C)."""
    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta, rm, rv, momentum, eps):
        N, H, W, C = x.shape
        K = weight.shape[0]
        cols = torch.cat([x[:, i:H - 1 + i, j:W - 1 + j] for i in (0, 1) for j in (0, 1)], -1).view(-1, 4 * C)
        w = weight.permute(2, 3, 1, 0).reshape(4 * C, K)
        y = (cols @ w).view(N, H - 1, W - 1, K)
        z, mean, inv, idx = ext.norm(y, ext.moments(y), bias, gamma, beta, rm, rv, 1, 1, momentum, eps)
        ctx.save_for_backward(cols, w, y, gamma, mean, inv, idx)
        return z
    @staticmethod
    def backward(ctx, g):
        cols, w, y, gamma, mean, inv, idx = ctx.saved_tensors
        N, H, W, K = y.shape
        C = w.shape[0] // 4
        gy, dg, db = ext.norm_back(g, y, gamma, mean, inv, idx, 1, 1)
        gy = gy.view(-1, K)
        gw = (cols.t() @ gy).view(2, 2, C, K).permute(3, 2, 0, 1)
        gc = (gy @ w.t()).view(N, H, W, 4, C)
        gx = torch.zeros(N, H + 1, W + 1, C)
        for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            gx[:, i:H + i, j:W + j] += gc[:, :, :, k]
        return gx, gw, torch.zeros_like(gamma), dg, db, None, None, None, None
class First(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, bias, gamma, beta, rm, rv, momentum, eps):
        y, idx, inv, moments, xp = ext.first(x, w.reshape(64, 9), bias, gamma, beta, rm, rv, momentum, eps)
        ctx.save_for_backward(idx, inv, moments, xp, w, gamma)
        return y
    @staticmethod
    def backward(ctx, g):
        idx, inv, moments, xp, w, gamma = ctx.saved_tensors
        dw, dg, db = ext.first_back(g, idx, inv, moments, xp, w.reshape(64, 9), gamma)
        return None, dw.reshape(w.shape), torch.zeros_like(gamma), dg, db, None, None, None, None
def features(self, images):
    layers, x, i = list(self.cnn), images[:, 0].contiguous(), 0
    while i < len(layers):
        conv, bn = layers[i], layers[i + 1]; i += 3
        kh = kw = 1
        if i < len(layers) and isinstance(layers[i], torch.nn.MaxPool2d): (kh, kw), i = layers[i].kernel_size, i + 1
        bn.num_batches_tracked.add_(1)
        rest = (conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var)
        if conv.in_channels == 1: x = First.apply(x, conv.weight, *rest, bn.momentum, bn.eps)
        elif conv.kernel_size == (2, 2): x = Last.apply(x, conv.weight, *rest, bn.momentum, bn.eps)
        else: x = Tiled.apply(x, conv.weight, *rest, kh, kw, bn.momentum, bn.eps)
    return self.map2seq(x.permute(0, 2, 3, 1).flatten(2))
def patch(CRNN):
    plain = CRNN.features
    CRNN.features = lambda self, images, widths: features(self, images) if self.training else plain(self, images, widths)
