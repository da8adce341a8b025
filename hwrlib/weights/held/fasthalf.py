"""Training on a CPU with AVX-512 float16 and no AMX: fast16.py, its products in float16 (fasthalf.cpp), the last convolution as one product, too."""
import sys, torch
from torch.utils.cpp_extension import load
import fast, fused, fast16
from fast16 import KERNEL, kernels
ext = load("fasthalf", ["/work/train/fasthalf.cpp"], extra_cflags=["-O3", "-march=native", "-ffast-math", "-mprefer-vector-width=512"])
class Tiled(torch.autograd.Function):
    """3x3 convolution without bias of maps (N, C, H, W) in bfloat16, channels last; its norm takes the bias away."""
    @staticmethod
    def forward(ctx, x, weight):
        N, C, H, W = x.shape
        tiles = fast16.ext.squares6(x)
        ctx.save_for_backward(tiles, weight)
        return fast16.ext.maps(ext.product(tiles, kernels(weight).contiguous()), N, H, W)
    @staticmethod
    def backward(ctx, g):
        tiles, weight = ctx.saved_tensors
        N, K, H, W = g.shape
        g = g.contiguous(memory_format=torch.channels_last)
        turned = kernels(weight.flip(2, 3).transpose(0, 1)).contiguous()
        gx = fast16.ext.maps(ext.product(fast16.ext.squares6(g), turned), N, H, W)
        products = ext.outer(tiles, fast16.ext.squares4(g))
        return gx, (KERNEL.T @ products.view(36, -1)).view(3, 3, products.shape[1], K).permute(3, 2, 0, 1)
class Last(torch.autograd.Function):
    """2x2 convolution without padding and bias of maps (N, C, H, W) in bfloat16, channels last."""
    @staticmethod
    def forward(ctx, x, weight):
        N, C, H, W = x.shape
        K, x = weight.shape[0], x.permute(0, 2, 3, 1)
        columns = torch.cat([x[:, i:H - 1 + i, j:W - 1 + j] for i in (0, 1) for j in (0, 1)], -1).view(1, -1, 4 * C).contiguous()
        w = weight.permute(2, 3, 1, 0).reshape(1, 4 * C, K).bfloat16().contiguous()
        ctx.save_for_backward(columns, w)
        ctx.shape = N, C, H, W
        return ext.product(columns, w).view(N, H - 1, W - 1, K).permute(0, 3, 1, 2)
    @staticmethod
    def backward(ctx, g):
        columns, w = ctx.saved_tensors
        N, C, H, W = ctx.shape
        K = w.shape[2]
        g = g.permute(0, 2, 3, 1).contiguous().view(1, -1, K)
        gw = ext.outer(columns, g).view(2, 2, C, K).permute(3, 2, 0, 1)
        parts = ext.product(g, w.transpose(1, 2).contiguous()).view(N, H - 1, W - 1, 4, C)
        gx = torch.zeros(N, H, W, C, dtype=torch.bfloat16)
        for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            gx[:, i:H - 1 + i, j:W - 1 + j] += parts[:, :, :, k]
        return gx.permute(0, 3, 1, 2), gw
def layers(layers, x):
    i = 0
    while i < len(layers):
        conv, bn = layers[i], layers[i + 1]; i += 3
        kh = kw = 1
        if i < len(layers) and isinstance(layers[i], torch.nn.MaxPool2d): (kh, kw), i = layers[i].kernel_size, i + 1
        quick = conv.kernel_size == (2, 2) or x.shape[3] % 4 == 0
        if quick: x = (Last if conv.kernel_size == (2, 2) else Tiled).apply(x.contiguous(memory_format=torch.channels_last), conv.weight)
        else: x = conv(x).contiguous(memory_format=torch.channels_last)
        bn.num_batches_tracked.add_(1)
        x = fused.NormPoolRelu.apply(x, bn.weight, bn.bias, bn.running_mean, bn.running_var, kh, kw, bn.momentum, bn.eps)
        if quick: bn.running_mean.add_(conv.bias.detach(), alpha=bn.momentum)
    return x
def patch(CRNN):
    fast.patch(CRNN)
    fused.fast = layers
