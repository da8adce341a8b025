"""Training on a CPU with AMX: the LSTM and the first convolution in C++ of their own, the rest of the convolutions as in fused.py."""
import torch, torch.nn.functional as F
from torch.utils.cpp_extension import load
import fused
ext = load("fast", ["/work/train/fast.cpp"], extra_cflags=["-O3", "-march=native", "-ffast-math", "-mprefer-vector-width=512"])
class Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, xp, wf, wb):
        y, gates, cells = ext.lstm_fwd(xp, wf, wb)
        ctx.save_for_backward(y, gates, cells, wf, wb)
        return y
    @staticmethod
    def backward(ctx, dy):
        y, gates, cells, wf, wb = ctx.saved_tensors
        T, N, H = y.shape[0], y.shape[1], wf.shape[1]
        dx = ext.lstm_bwd(dy, gates, cells, wf, wb)
        df, db = dx[1:, :, :4 * H].reshape(-1, 4 * H), dx[:-1, :, 4 * H:].reshape(-1, 4 * H)
        gf = torch.mm(df.t(), y[:-1, :, :H].reshape(-1, H)).float()
        gb = torch.mm(db.t(), y[1:, :, H:].reshape(-1, H)).float()
        return dx, gf, gb
def lstm(rnn, x):
    """(N, T, C) -> (N, T, 2H), as nn.LSTM in training."""
    x = x.transpose(0, 1).contiguous()
    for layer in range(rnn.num_layers):
        w, b = [], []
        for end in ("", "_reverse"):
            w.append(getattr(rnn, f"weight_ih_l{layer}{end}"))
            b.append(getattr(rnn, f"bias_ih_l{layer}{end}") + getattr(rnn, f"bias_hh_l{layer}{end}"))
        x = Recurrence.apply(F.linear(x, torch.cat(w), torch.cat(b)), getattr(rnn, f"weight_hh_l{layer}"), getattr(rnn, f"weight_hh_l{layer}_reverse"))
        if layer + 1 < rnn.num_layers:
            x = F.dropout(x, rnn.dropout, True)
    return x.transpose(0, 1)
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
def features(self, images):
    conv, bn = self.cnn[0], self.cnn[1]
    bn.num_batches_tracked.add_(1)
    x = First.apply(images.float(), conv.weight, conv.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.momentum, bn.eps)
    return self.map2seq(fused.fast(list(self.cnn)[4:], x).permute(0, 3, 1, 2).flatten(2))
def patch(CRNN):
    plain, plain_classify = CRNN.features, CRNN.classify
    CRNN.features = lambda self, images, widths: features(self, images) if self.training else plain(self, images, widths)
    def classify(self, sequence, widths):
        return self.fc(lstm(self.rnn, sequence)).float().log_softmax(-1) if self.training else plain_classify(self, sequence, widths)
    CRNN.classify = classify
