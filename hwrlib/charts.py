"""One look for every chart, and one way to save and show it (all chapters)."""

import base64
import io
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "runs" / "charts"  # ignored by git: a run changes no committed chart


def style() -> None:
    """Set the theme of every chapter: white grid, colours that colour-blind readers can tell apart."""
    look = {"figure.figsize": (8, 4), "figure.constrained_layout.use": True}
    sns.set_theme(style="whitegrid", palette="colorblind", rc=look)


def show(fig: Figure, name: str, alt: str) -> None:
    """Save a figure in the folder of ``HWR_CHARTS``, show it with a text for those who cannot see it, and close it."""
    path = Path(os.environ.get("HWR_CHARTS", FOLDER)) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150, metadata={"Software": None})
    drawn, shown = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, dpi=100, metadata={"Software": None})
    plt.close(fig)
    picture = Image.open(drawn).convert("RGB")
    for colours in (64, 128, 256):  # as few as keep (nearly) each pixel within 5 of 255: light, and without bands
        light = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        if np.quantile(np.abs(np.asarray(light.convert("RGB"), int) - np.asarray(picture, int)), 0.999) <= 5:
            break
    light.save(shown, "PNG", optimize=True)
    png = base64.b64encode(shown.getvalue()).decode()
    display({"image/png": png, "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)
