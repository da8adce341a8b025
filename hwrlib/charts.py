"""One look for every chart, and one way to save and show it (all chapters)."""

import base64
import io
import os
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "runs" / "charts"  # ignored by git: a run changes no committed chart


def style() -> None:
    """Set the theme of every chapter: white grid, colours that colour-blind readers can tell apart."""
    sns.set_theme(
        style="whitegrid", palette="colorblind", rc={"figure.figsize": (8, 4), "figure.constrained_layout.use": True}
    )


def show(fig: Figure, name: str, alt: str) -> None:
    """Save a figure as a file and display it with a text for those who cannot see it.

    Arguments:
        fig: the figure; it is closed afterwards.
        name: file name without ending, such as ``"06_analyse_the_errors/confusions"``, in the folder that the
            environment variable ``HWR_CHARTS`` names, else in runs/charts.
        alt: one sentence that says what the chart shows.
    """
    path = Path(os.environ.get("HWR_CHARTS", FOLDER)) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150, metadata={"Software": None})
    drawn, shown = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, dpi=110, metadata={"Software": None})
    light = Image.open(drawn).convert("RGB").quantize(128, Image.Quantize.FASTOCTREE)  # a third of the bytes
    light.save(shown, "PNG", optimize=True)
    plt.close(fig)
    png = base64.b64encode(shown.getvalue()).decode()
    display({"image/png": png, "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)
