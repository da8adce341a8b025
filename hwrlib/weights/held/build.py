"""Training lines of the held run: IAM, pen strokes, Hooker, single words, capitals, numbers. Pickled for train.py (ours, local)."""
import functools, json, pickle, sys, tempfile
from pathlib import Path
import cv2, numpy as np, torch
torch.set_num_threads(1); cv2.setNumThreads(1)
import io
from PIL import Image, ImageDraw, ImageFont
sys.path.insert(0, "/work/train/clone")
from hwrlib.alphabet import IAM
from hwrlib.batches import PreparedLine, prepare_lines, cut_words
from hwrlib.data import load_lines, load_strokes
from hwrlib.images import prepare_pixels
from hwrlib.scripts import samples
from concurrent.futures import ProcessPoolExecutor

DIV = 2.5
OUT = Path("/work/train/data")
def save(name, lines):
    lines = [(l.pixels, l.text) for l in lines]
    pickle.dump(lines, open(OUT / f"{name}.pkl", "wb")); print(name, len(lines), flush=True)

def iam():
    save("iam", prepare_lines(load_lines("train", "/work/shared/iam-line/data"), IAM, DIV))
    save("iam_validation", prepare_lines(load_lines("validation", "/work/shared/iam-line/data"), IAM, DIV))
def strokes():
    save("strokes", prepare_lines(load_strokes("/work/shared/iam-ondb/data/train.parquet", IAM, 5), IAM, DIV))
def hooker():
    for split in ("train", "validation"):
        rows = load_lines(split, "/work/shared/hooker/data"); out, bad = [], 0
        for r in range(len(rows)):
            row = rows[r]; text = " ".join(IAM.drop(row["text"]).split())
            try:
                p = prepare_pixels(row["image"], width_divisor=DIV)
                n = p.shape[1] // 4 - 1
                lab = IAM.encode(text)
                need = len(lab) + 4 + sum(a == b for a, b in zip(lab, lab[1:]))
                if not text or n < need or n > 25 * len(lab) + 30: raise ValueError
            except ValueError: bad += 1; continue
            out.append(PreparedLine(p, text, lab))
        print("hooker", split, "left out", bad); save(f"hooker_{split}", out)

MED = "amoxi cillin metro pril lisino statin ator va pan toprazole ibu profen para cetamol aceta mol oxy codone hydro chlor thia zide war farin met formin insu lin keta mine sertra line flu oxe tine aspi rin nap roxen zole dex pred nisone".split()
def caps_text(rng, words):
    k = rng.integers(10)
    w = lambda: str(rng.choice(words))
    med = lambda: "".join(rng.choice(MED, int(rng.integers(2, 4)))).capitalize()
    name = lambda: samples.surname(rng)
    t = [lambda: w().upper(), lambda: " ".join(w().upper() for _ in range(rng.integers(2, 5))), lambda: name().upper(),
         lambda: f"{name()} {name()}".upper(), lambda: med(), lambda: f"{med()} {rng.integers(1, 100) * 5} mg", lambda: w(),
         lambda: w().capitalize(), lambda: f"{name()} {name()}", lambda: "".join(chr(65 + rng.integers(26)) for _ in range(rng.integers(1, 4))) if rng.random() < .5 else w()[:3]][k]()
    return t
def beyond(rng, words, sents):
    k = rng.integers(6)
    n = lambda: samples.number(rng)
    if k == 0: return samples.number_line(rng, words)
    if k == 1: return f"{rng.choice(samples.MONTHS.split())} {rng.integers(1,32)}, {rng.integers(1800,2030)}"
    if k == 2: return f"- {rng.choice(words)} {n()}" if rng.random() < .5 else f"{rng.integers(1,20)}. {rng.choice(words).capitalize()} {rng.choice(words)}"
    if k == 3: return f"{rng.integers(1,32)}/{rng.integers(1,13)}/{rng.integers(1900,2030)} {rng.choice(words)}"
    if k == 4: return f"{rng.choice(['What','Where','Why','How','Who','When'])} {' '.join(rng.choice(words, int(rng.integers(2,6))))}?"
    a = " ".join(rng.choice(words, int(rng.integers(2,5)))); b = " ".join(rng.choice(words, int(rng.integers(1,4))))
    return rng.choice([f"{a}, {b}.", f"{a.capitalize()}! {b}", f"{a} ({b})", f'"{a}," {b}', f"{a}; {b}:"])

def draw_tracked(text, font, writer, rng):
    EM = samples.EM; track = EM * float(rng.uniform(0.08, 0.45))
    canvas = Image.new("L", (int(font.getlength(text) * 1.6 + track * len(text)) + 8 * EM, 4 * EM), 0)
    pen, drift = 2.0 * EM, 0.0
    for c in text:
        drift = 0.6 * drift + float(rng.normal(0, 0.02)) * EM
        f = font.font_variant(size=EM * float(rng.normal(1, 0.05)))
        ImageDraw.Draw(canvas).text((pen, samples.BASELINE + drift), c, font=f, fill=255, anchor="ls")
        pen += f.getlength(c) + track * float(rng.uniform(.5, 1.3))
    return np.asarray(canvas, np.float32) / 255

def fonts_lines(args):
    seed, count, kind, fonts, words = args
    rng = np.random.default_rng((77, seed)); out = []
    plain = samples.draw
    names = list(fonts)
    while len(out) < count:
        text = caps_text(rng, words) if kind == "caps" else beyond(rng, words, None)
        text = " ".join(text.split())
        name = str(rng.choice(names))
        if not set(text) <= fonts[name][1] or not set(text) <= set(IAM.characters) or not text: continue
        samples.draw = draw_tracked if (kind == "caps" and rng.random() < .5) else plain
        try:
            ink, _ = samples.write(text, fonts[name][0], samples.new_writer(rng), rng)
            buf = samples.encode(samples.scan(ink, rng))
            p = prepare_pixels(buf, width_divisor=DIV)
            lab = IAM.encode(text)
            if p.shape[1] // 4 - 1 < len(lab) + 4: continue
        except (ValueError, IndexError): continue
        out.append(PreparedLine(p, text, lab))
    return out

def tight(p, rng):
    """A word cut out alone: its own height fills the line, as a crop of one word does."""
    rows = np.flatnonzero((p < 128).any(1)); cols = np.flatnonzero((p < 128).any(0))
    if len(rows) < 12 or len(cols) < 4: return None
    m = rng.uniform(0.03, 0.25) * (rows[-1] - rows[0] + 1)
    t, b = int(max(0, rows[0] - m)), int(min(128, rows[-1] + m + 1))
    cut = p[t:b, cols[0]:cols[-1] + 1]; s = 128 / cut.shape[0]
    return cv2.resize(cut, (max(8, round(cut.shape[1] * s)), 128), interpolation=cv2.INTER_LINEAR)
def words():
    out = []
    for name, most in (("iam", 3000), ("strokes", 2000)):
        lines = [PreparedLine(p, t, IAM.encode(t)) for p, t in pickle.load(open(OUT / f"{name}.pkl", "rb"))]
        rng = np.random.default_rng(9); order = rng.permutation(len(lines)); n = 0
        for k in order:
            got = cut_words(lines[k], IAM)
            if len(got) < 2: continue
            for w in rng.permutation(len(got))[:2]:
                w = got[w]; q = tight(w.pixels, rng) if rng.random() < .8 else w.pixels
                if q is None: continue
                if q.shape[1] // 4 - 1 < len(w.labels) + 4 or q.shape[1] > 900: continue
                out.append(PreparedLine(q, w.text, w.labels)); n += 1
            if n > most: break
    save("words", out)

if __name__ == "__main__":
    which = sys.argv[1]
    if which.startswith("fonts"):
        sents = samples.read_sentences()
        ws = sorted({w.strip(".,;:!?'\"()") for t in sents["train"] for w in t.split()}); ws = [w for w in ws if w.isalpha() and w.islower() and w.isascii()]
        folder = tempfile.mkdtemp(); fonts = samples.fetch_fonts(Path(folder)); fonts = {n: fonts[n] for n in samples.FONTS["train"].split()}
        if which != "fonts_beyond": save("caps", fonts_lines((1, 2600, "caps", fonts, ws)))
        if which != "fonts_caps": save("beyond", fonts_lines((2, 2200, "beyond", fonts, ws)))
    else: globals()[which]()
