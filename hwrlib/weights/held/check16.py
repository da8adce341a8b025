import sys, time, pickle, copy, torch
sys.path[:0] = ["/work/train/clone", "/work/train"]
torch.set_num_threads(1)
from hwrlib.model import CRNN
from hwrlib.memory import keep_freed
from hwrlib.ctc import frames
import fast, fused; fused_fast = fused.fast; fast16 = __import__("fasthalf" if "half" in sys.argv else "fast16")
keep_freed()
base = CRNN.from_pretrained("/work/train/runs/new").train()
torch.manual_seed(0)
from hwrlib.images import scale
lines = [l for l in pickle.load(open("/work/train/data/iam_validation.pkl", "rb")) if 700 < l[0].shape[1] < 800][:16]
from hwrlib.alphabet import IAM
x = torch.full((16, 1, 128, 832), 255, dtype=torch.uint8)
for k, (p, t) in enumerate(lines): x[k, 0, :, :p.shape[1]] = torch.from_numpy(p)
x = scale(x); widths = torch.full((4,), 832)
labels = [torch.tensor(IAM.encode(t.strip())) for _, t in lines]
ctc = torch.nn.CTCLoss(zero_infinity=True)
def step(model, k):
    torch.manual_seed(k)
    with torch.autocast("cpu", torch.bfloat16): out = model(x[4*k:4*k+4], widths)
    lab = labels[4*k:4*k+4]
    return ctc(out.transpose(0, 1).float(), torch.cat(lab), frames(widths), torch.tensor([len(l) for l in lab]))
own = copy.deepcopy(base); own.__class__ = type("Own", (CRNN,), {}); fast.patch(own.__class__)
def time_it(m, name):
    step(m, 0).backward(); t = time.process_time()
    for k in range(4): m.zero_grad(); step(m, k).backward()
    print(name, 16 / (time.process_time() - t), "lines/s", flush=True)
if "grad" not in sys.argv: time_it(own, "fast")

if "grad" in sys.argv:
    plain = copy.deepcopy(base); tiled = copy.deepcopy(base); tiled.__class__ = type("T", (CRNN,), {}); fast16.patch(tiled.__class__)
    full = copy.deepcopy(base)
    keep = fused_fast; import fused; new = fused.fast; fused.fast = keep; l = step(own, 0); l.backward(); print(l.item()); fused.fast = new; l = step(tiled, 0); l.backward(); print(l.item())
    torch.manual_seed(0); out = full(x[:4], widths); lab = labels[:4]; l = ctc(out.transpose(0, 1), torch.cat(lab), frames(widths), torch.tensor([len(k) for k in lab])); l.backward(); print("fp32", l.item())
    for (n, a), b, d in zip(full.named_parameters(), own.parameters(), tiled.parameters()):
        if d.grad is None: print(n, "none"); continue
        cos = lambda p: torch.nn.functional.cosine_similarity(a.grad.flatten(), p.grad.flatten(), 0).item()
        print(n, f"direct {cos(b):.5f} tiles {cos(d):.5f} {a.grad.norm():.2e} {d.grad.norm():.2e}")
    for (n, a), b, d in zip(full.named_buffers(), own.buffers(), tiled.buffers()):
        if "mean" in n or "var" in n: print(n, ((a - b).norm() / a.norm()).item(), ((a - d).norm() / a.norm()).item())
else:
    tiled = copy.deepcopy(base); tiled.__class__ = type("T", (CRNN,), {}); fast16.patch(tiled.__class__); time_it(tiled, fast16.__name__); own = tiled
if "prof" in sys.argv:
    from torch.profiler import profile, ProfilerActivity
    with profile(activities=[ProfilerActivity.CPU]) as p: step(own, 0).backward()
    print(p.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))
