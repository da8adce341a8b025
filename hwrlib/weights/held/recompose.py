"""IAM lines put together anew: runs of words, cut at wide gaps, from lines of the same hand (StackMix, Shonenkov et al., 2021, joins single words)."""
import sys
import numpy as np, pandas as pd
sys.path.insert(0, "/work/train/clone")
from hwrlib.alphabet import IAM
from hwrlib.batches import PreparedLine, cut_words
from hwrlib.ctc import frames, required_frames

def middle(pixels):
    """Row of the ink's centre of mass."""
    ink = 255.0 - pixels; weight = ink.sum(1)
    return float((weight * np.arange(len(weight))).sum() / max(weight.sum(), 1))

class Hands:
    def __init__(self, lines):
        table = pd.read_parquet("/work/shared/iam-line/data/train.parquet", columns=["text", "writer", "scan"])
        self.cut, self.of = {}, {}  # hand of each line's pixels; words of the lines of each hand
        for line, (text, writer, scan) in zip(lines, table.itertuples(index=False), strict=True):
            assert " ".join(line.text.split()) == " ".join(text.split())
            who = f"{writer} {scan}"
            if len(words := cut_words(line, IAM)) > 2:
                self.of.setdefault(who, []).append(words)
            self.cut[id(line.pixels)] = who
        print(sum(map(len, self.of.values())), "lines cut, of", len(self.of), "hands; known", len(self.cut), flush=True)

    def anew(self, line, rng):
        """A line about as wide, of runs of two to five words; none where its hand has under three lines that can be cut."""
        some = self.of.get(self.cut.get(id(line.pixels)), [])
        if len(some) < 3: return None
        pieces, texts, level = [], [], None
        for _ in range(12):
            width = sum(p.shape[1] for p in pieces)
            if width >= 0.8 * line.pixels.shape[1]: break
            words = some[rng.integers(len(some))]
            n = int(rng.integers(2, 6)); k = int(rng.integers(max(1, len(words) - n + 1)))
            run = words[k : k + n]
            pixels = np.concatenate([w.pixels for w in run], 1)
            if pieces and width + pixels.shape[1] > 1.2 * line.pixels.shape[1]: continue
            if pieces:  # at least a space between two runs, of which one may have stood at the edge
                blank = sum(int(np.argmax(side)) for side in ((pieces[-1] < 128).any(0)[::-1], (pixels < 128).any(0)))
                pieces.append(np.full((len(pixels), max(0, int(rng.uniform(12, 40)) - blank)), 255, np.uint8))
            level = level or middle(pixels)
            shift = int(np.clip(round(level - middle(pixels)), -12, 12))
            if shift: 
                moved = np.full_like(pixels, 255)
                if shift > 0: moved[shift:] = pixels[:-shift]
                else: moved[:shift] = pixels[-shift:]
                pixels = moved
            pieces.append(pixels); texts += [w.text for w in run]
        pixels, text = np.concatenate(pieces, 1), " ".join(texts)
        labels = IAM.encode(text)
        return PreparedLine(pixels, text, labels) if frames(pixels.shape[1]) >= required_frames(labels) + 2 else None
