"""Speed and gradients of avx2.py beside PyTorch's float32: checkavx2.py [grad] [prof]."""
import sys, time, pickle, copy, torch
sys.path[:0] = ["/work/train/clone", "/work/train/held"]
torch.set_num_threads(1)
from hwrlib.model import CRNN
from hwrlib.memory import keep_freed
from hwrlib.ctc import frames
from hwrlib.images import scale
from hwrlib.alphabet import IAM
import avx2
keep_freed()
base = CRNN.from_pretrained("/work/train/runs/new").train()
lines = [l for l in pickle.load(open("/work/train/data/iam_validation.pkl", "rb")) if 700 < l[0].shape[1] < 800][:16]
x = torch.full((16, 1, 128, 832), 255, dtype=torch.uint8)
for k, (p, t) in enumerate(lines): x[k, 0, :, :p.shape[1]] = torch.from_numpy(p)
x = scale(x); widths = torch.full((4,), 832)
labels = [torch.tensor(IAM.encode(t.strip())) for _, t in lines]
ctc = torch.nn.CTCLoss(zero_infinity=True)
def step(model, k):
    torch.manual_seed(k)
    out = model(x[4*k:4*k+4], widths)
    lab = labels[4*k:4*k+4]
    return ctc(out.transpose(0, 1).float(), torch.cat(lab), frames(widths), torch.tensor([len(l) for l in lab]))
own = copy.deepcopy(base).to(memory_format=torch.channels_last); own.__class__ = type("Own", (CRNN,), {}); avx2.patch(own.__class__)
if "grad" in sys.argv:
    for m in (base, own): m.rnn.dropout = 0.0
    a, b = step(base, 0), step(own, 0); a.backward(); b.backward(); print(a.item(), b.item())
    for (n, p), (_, q) in zip(base.named_parameters(), own.named_parameters()):
      if q.grad is None: q.grad = torch.zeros_like(q)
      print(n, f"{torch.nn.functional.cosine_similarity(p.grad.flatten(), q.grad.flatten(), 0).item():.5f} {p.grad.norm():.2e} {q.grad.norm():.2e}")
    for (n, p), q in zip(base.named_buffers(), own.buffers()):
        if "mean" in n or "var" in n: print(n, ((p - q).norm() / p.norm()).item())
else:
    step(own, 0).backward(); t = time.process_time()
    for k in range(4): own.zero_grad(); step(own, k).backward()
    print("avx2", 16 / (time.process_time() - t), "lines/s", flush=True)
if "prof" in sys.argv:
    from torch.profiler import profile, ProfilerActivity
    with profile(activities=[ProfilerActivity.CPU]) as p: step(own, 0).backward()
    print(p.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))
