import sys, time, pickle, copy, torch
sys.path[:0] = ["/work/train/clone", "/work/train"]
torch.set_num_threads(1)
from hwrlib.model import CRNN, AuxiliaryHead, tile
from hwrlib.memory import keep_freed
from hwrlib.ctc import frames
import fast32
keep_freed()
base = CRNN.from_pretrained("/work/train/runs/new").train()
torch.manual_seed(0)
from hwrlib.images import scale
import numpy as np
lines = [l for l in pickle.load(open("/work/train/data/iam_validation.pkl", "rb")) if 700 < l[0].shape[1] < 800][:16]
from hwrlib.alphabet import IAM
x = torch.full((16, 1, 128, 832), 255, dtype=torch.uint8)
for k, (p, t) in enumerate(lines): x[k, 0, :, :p.shape[1]] = torch.from_numpy(p)
x = scale(x); widths = torch.full((4,), 832)
labels = [torch.tensor(IAM.encode(t.strip())) for _, t in lines]
ctc = torch.nn.CTCLoss(zero_infinity=True)
def step(model, k):
    torch.manual_seed(k)
    out = model(x[4*k:4*k+4], widths)
    lab = labels[4*k:4*k+4]
    return ctc(out.transpose(0, 1), torch.cat(lab), frames(widths), torch.tensor([len(l) for l in lab]))
plain = copy.deepcopy(base); tiled = copy.deepcopy(base); tile(tiled)
own = copy.deepcopy(base); own.__class__ = type("Own", (CRNN,), {}); fast32.patch(own.__class__)
if "grad" in sys.argv:
    for m in (plain, own): m.zero_grad(); l = step(m, 0); l.backward(); print(l.item())
    for (n, a), b in zip(plain.named_parameters(), own.parameters()):
        cos = torch.nn.functional.cosine_similarity(a.grad.flatten(), b.grad.flatten(), 0).item() if a.grad.norm() > 0 else 0
        if cos < 0.99999: print(n, f"{cos:.6f} {a.grad.norm():.2e} {b.grad.norm():.2e}")
    for (n, a), b in zip(plain.named_buffers(), own.buffers()):
        if not torch.allclose(a, b, atol=1e-4, rtol=1e-3): print(n, (a - b).abs().max())
def time_it(m, name):
    step(m, 0).backward(); t = time.time()
    for k in range(4): m.zero_grad(); step(m, k).backward()
    print(name, 16 / (time.time() - t), "lines/s", flush=True)
time_it(own, "own")
if "all" in sys.argv:
    time_it(tiled, "tiled"); time_it(plain, "plain")
if "prof" in sys.argv:
    from torch.profiler import profile, ProfilerActivity
    with profile(activities=[ProfilerActivity.CPU]) as p: step(own, 0).backward()
    print(p.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))
