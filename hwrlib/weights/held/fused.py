import torch
from torch.utils.cpp_extension import load
ext = load("fused", ["/work/train/fused.cpp"], extra_cflags=["-O3", "-march=native", "-ffast-math", "-mprefer-vector-width=512"])
class NormPoolRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, b, rm, rv, kh, kw, momentum, eps):
        y, mean, inv, idx = ext.fwd(x, w, b, rm, rv, kh, kw, momentum, eps)
        ctx.save_for_backward(x, w, mean, inv, idx); ctx.k = kh, kw
        return y
    @staticmethod
    def backward(ctx, g):
        x, w, mean, inv, idx = ctx.saved_tensors
        gx, gw, gb = ext.bwd(g, x, w, mean, inv, idx, *ctx.k)
        return gx, gw, gb, None, None, None, None, None, None
def fast(layers, x):
    i = 0
    while i < len(layers):
        conv, bn = layers[i], layers[i + 1]; i += 3
        kh = kw = 1
        if i < len(layers) and isinstance(layers[i], torch.nn.MaxPool2d): (kh, kw), i = layers[i].kernel_size, i + 1
        x = conv(x).contiguous(memory_format=torch.channels_last)
        bn.num_batches_tracked.add_(1)
        x = NormPoolRelu.apply(x, bn.weight, bn.bias, bn.running_mean, bn.running_var, kh, kw, bn.momentum, bn.eps)
    return x
def patch(CRNN):
    plain = CRNN.features
    def features(self, images, widths):
        if not self.training: return plain(self, images, widths)
        return self.map2seq(fast(list(self.cnn), images).permute(0, 3, 1, 2).flatten(2))
    CRNN.features = features
