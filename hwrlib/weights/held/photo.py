"""IAM lines and pen strokes as photographed: ruled or squared paper, shadows, tilt, blur, JPEG, thick pens; cut out as pages are (ours, local)."""
import pickle, sys, cv2, numpy as np, torch
torch.set_num_threads(1); cv2.setNumThreads(1)
sys.path.insert(0, sys.argv[1])
from hwrlib.alphabet import IAM
from hwrlib.data import load_lines
from hwrlib.images import load_page, turn_dark_on_light, flatten_light, stretch, prepare_pixels
from hwrlib import images
def resize(grey, height, width_divisor, name):
    """As hwrlib has it now: the one of this clone lost thin strokes of lines of 52 to 127 px."""
    rows, columns = grey.shape
    width, grey = max(8, round(columns * 128 / rows / width_divisor)), grey.astype(np.float32)
    for size, shrinks in (((width, rows), width < columns), ((width, 128), rows > 128)):
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return grey.clip(0, 255)
images.resize = resize
from hwrlib.page.baselines import Baseline
from hwrlib.page.ink import level_ink
from hwrlib.page.lines import cut_lines
from hwrlib.scripts.lines import measure

def photo(grey, rng):
    line = measure(grey)
    if line is None: return None
    size = line.x_height
    ink = (255 - grey.astype(np.float32)) / 255
    if rng.random() < .25:
        k = max(2, int(size * rng.uniform(.08, .22))); ink = cv2.dilate(ink, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (k, k)))
    m = int(size * rng.uniform(.8, 3)); side = int(size * rng.uniform(.5, 6))
    ink = np.pad(ink, ((m, m), (side, side)))
    H, W = ink.shape
    marks = np.zeros_like(ink); kind = rng.choice(["none", "ruled", "squared"], p=[.35, .25, .4])
    shade, thick = rng.uniform(.08, .6), max(1, int(round(size * rng.uniform(.04, .12))))
    if kind != "none":
        pitch = size * (rng.uniform(1.0, 2.2) if kind == "squared" else rng.uniform(2.2, 4))
        y0 = (line.baseline + m + size * rng.normal(.1, .2)) % pitch if rng.random() < .6 else rng.uniform(0, pitch)
        for y in np.arange(y0, H, pitch): cv2.line(marks, (0, int(y)), (W, int(y + rng.normal(0, .5))), shade, thick, cv2.LINE_AA)
        if kind == "squared":
            for x in np.arange(rng.uniform(0, pitch), W, pitch): cv2.line(marks, (int(x), 0), (int(x), H), shade, thick, cv2.LINE_AA)
    depth = rng.uniform(.45, .95)
    page = (1 - np.maximum(ink * depth, marks * depth)) * rng.uniform(150, 250)
    if rng.random() < .5:
        yy, xx = np.mgrid[-1:1:H * 1j, -1:1:W * 1j].astype(np.float32)
        page *= 1 - np.clip(rng.normal(0, .15) * xx + rng.normal(0, .1) * yy, -.3, .5)
    if rng.random() < .3:
        a, b, c = rng.uniform(-.5, .5), rng.uniform(0, W), rng.uniform(.4, .85)
        mask = ((np.arange(W)[None] + a * np.arange(H)[:, None]) > b).astype(np.float32)
        mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(1, size)); page *= 1 - (1 - c) * mask
    angle = rng.normal(0, 1.5) if rng.random() < .5 else 0
    M = cv2.getRotationMatrix2D((W / 2, H / 2), angle, s := min(1, rng.uniform(16, 45) / size))
    c, sn = abs(M[0, 0]), abs(M[0, 1]); nw, nh = int(W * c + H * sn), int(H * c + W * sn)
    M[:, 2] += (nw - W) / 2, (nh - H) / 2
    page = cv2.GaussianBlur(page, (0, 0), .45 / s) if s < .8 else page
    page = cv2.warpAffine(page, M, (nw, nh), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if rng.random() < .5: page = cv2.GaussianBlur(page, (0, 0), rng.uniform(.3, 1.3))
    page += rng.normal(0, rng.uniform(.5, 7), page.shape)
    page = page.clip(0, 255).astype(np.uint8)
    if rng.random() < .5: page = cv2.imdecode(cv2.imencode(".jpg", page, [1, int(rng.uniform(30, 90))])[1], 0)
    cols = np.flatnonzero((ink > .5).any(0)); xs = np.linspace(cols[0], cols[-1], n24 := max(24, int((cols[-1]-cols[0]) / size * 2)))
    pts = M @ np.stack([xs, np.full(n24, line.baseline + m), np.ones(n24)])
    return page, Baseline(pts[0], pts[1], size * s, 1.0)

out, rng = [], np.random.default_rng(5)
rows = load_lines("train", "/work/shared/iam-line/data"); order = rng.permutation(len(rows))
n, want = 0, int(sys.argv[2])
for k in order.tolist():
    row = rows[k]; text = " ".join(IAM.drop(row["text"]).split())
    g = load_page(row["image"]); g = stretch(flatten_light(turn_dark_on_light(g.astype(np.float32))))
    got = photo(g, rng)
    if not got: continue
    lines = cut_lines(level_ink(got[0], [got[1]]))
    if len(lines) != 1: continue
    try: p = prepare_pixels(lines[0].image, width_divisor=2.5)
    except ValueError: continue
    lab = IAM.encode(text)
    if p.shape[1] // 4 - 1 < len(lab) * 1.5: continue
    out.append((p, text))
    if len(out) >= want: break
pickle.dump(out, open("/work/train/data/photo.pkl", "wb")); print("photo", len(out))
