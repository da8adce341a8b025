import sys, pickle, torch, numpy as np, cv2, time
sys.path.insert(0, "/work/main"); torch.set_num_threads(1); cv2.setNumThreads(1)
from hwrlib.model import CRNN
from hwrlib.recognizer import Recognizer, MARGIN
rec = Recognizer(CRNN.from_pretrained(sys.argv[1]), "fp32", "greedy")
lines = pickle.load(open(sys.argv[2], "rb"))[::int(sys.argv[3])]
def warp(line, m):
    h, w = line.shape
    return cv2.warpAffine(line, np.float32(m), (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=255)
def shear(k): return lambda l: warp(l, [[1, k, -k * 64], [0, 1, 0]])
def tall(k): return lambda l: warp(l, [[1, 0, 0], [0, k, 64 * (1 - k)]])
def shift(dx, dy): return lambda l: warp(l, [[1, 0, dx], [0, 1, dy]])
def wide(k): return lambda l: cv2.resize(l, (round(l.shape[1] * k), 128), interpolation=cv2.INTER_CUBIC)
cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
VIEWS = {"plain": lambda l: l, "l06": shear(0.06), "r06": shear(-0.06), "l09": shear(0.09), "r09": shear(-0.09), "l18": shear(0.18), "left": shear(0.12), "right": shear(-0.12), "small": tall(0.9), "large": tall(1.08), "thin": lambda l: cv2.addWeighted(l, 0.5, cv2.dilate(l, cross), 0.5, 0), "thick": lambda l: cv2.addWeighted(l, 0.5, cv2.erode(l, cross), 0.5, 0), "half": shift(2, 0), "up": shift(0, -4), "w115": wide(1.15), "w130": wide(1.3), "w150": wide(1.5), "w175": wide(1.75), "w090": wide(0.9), "narrow": wide(0.93)}
for name in sys.argv[5:]:
    s = time.time()
    out = []
    for p, t in lines:
        lp, f = rec.log_probabilities([np.ascontiguousarray(VIEWS[name](p))]); out.append(np.asarray(lp[0][: f[0]], dtype=np.float32))
    pickle.dump(([t for _, t in lines], out), open(f"/work/plan/tta/{sys.argv[4]}_{name}.pkl", "wb")); print(name, time.time() - s, flush=True)
