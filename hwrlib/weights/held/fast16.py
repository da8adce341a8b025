"""Training on a CPU with AVX-512 bfloat16 and no AMX: fast.py, and its 3x3 convolutions in tiles (Winograd F(4, 3)) of fast16.cpp."""
import sys, torch
from torch.utils.cpp_extension import load
import fast, fused
from hwrlib.winograd import KERNEL
ext = load("fast16", ["/work/train/fast16.cpp"], extra_cflags=["-O3", "-march=native", "-ffast-math", "-mprefer-vector-width=512"])
def kernels(weight):
    outputs, inputs = weight.shape[:2]
    return (KERNEL @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, inputs, outputs).bfloat16()
class Tiled(torch.autograd.Function):
    """3x3 convolution without bias of maps (N, C, H, W) in bfloat16, channels last; its norm takes the bias away."""
    @staticmethod
    def forward(ctx, x, weight):
        N, C, H, W = x.shape
        tiles = ext.squares6(x)
        ctx.save_for_backward(tiles, weight)
        return ext.maps(torch.bmm(tiles, kernels(weight)), N, H, W)
    @staticmethod
    def backward(ctx, g):
        tiles, weight = ctx.saved_tensors
        N, K, H, W = g.shape
        g = g.contiguous(memory_format=torch.channels_last)
        turned = kernels(weight.flip(2, 3).transpose(0, 1))
        gx = ext.maps(torch.bmm(ext.squares6(g), turned), N, H, W)
        products = torch.bmm(tiles.transpose(1, 2), ext.squares4(g)).float()
        C = products.shape[1]
        return gx, (KERNEL.T @ products.view(36, -1)).view(3, 3, C, K).permute(3, 2, 0, 1)
def layers(layers, x):
    i = 0
    while i < len(layers):
        conv, bn = layers[i], layers[i + 1]; i += 3
        kh = kw = 1
        if i < len(layers) and isinstance(layers[i], torch.nn.MaxPool2d): (kh, kw), i = layers[i].kernel_size, i + 1
        tiled = conv.kernel_size == (3, 3) and x.shape[3] % 4 == 0
        if tiled: x = Tiled.apply(x, conv.weight)
        else: x = conv(x).contiguous(memory_format=torch.channels_last)
        bn.num_batches_tracked.add_(1)
        x = fused.NormPoolRelu.apply(x, bn.weight, bn.bias, bn.running_mean, bn.running_var, kh, kw, bn.momentum, bn.eps)
        if tiled: bn.running_mean.add_(conv.bias.detach(), alpha=bn.momentum)
    return x
def patch(CRNN):
    fast.patch(CRNN)
    fused.fast = layers
