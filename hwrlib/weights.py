"""Weights from a file, strictly: whatever is wrong with it becomes one line that names it (chapter 3)."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import hf_hub_download
from torch import nn

LARGEST_CONFIG = 200_000  # bytes: tens of thousands of characters


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file and says why."""


def one_line(error: Exception) -> str:
    """What an error says, in at most 300 printable characters."""
    text = "".join(c if c.isprintable() else " " for c in str(error) or type(error).__name__)
    return " ".join(text.split())[:300]


def version(source: str | Path) -> str:
    """Eight hexadecimal digits that tell the weights of a folder, or of a name on the Hub, from others."""
    file = Path(source) / "model.safetensors"
    file = file if file.exists() else Path(hf_hub_download(str(source), file.name))
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8]


@contextlib.contextmanager
def explained(file: Path) -> Iterator[None]:
    """Turn whatever goes wrong while weights are read from a file into a WeightsError of one line that names it."""
    try:
        if not file.is_file():
            raise ValueError("no such file")
        with file.open("rb") as stream:
            if stream.read(40).startswith(b"version https://git-lfs"):
                raise ValueError("a Git LFS pointer; fetch the file itself, with `git lfs pull`")
        yield
    except Exception as error:  # whatever a damaged or hostile file makes json, safetensors, zipfile and torch raise
        raise WeightsError(f"{file}: no weights of this network: {one_line(error)}") from error


def read_config(file: Path) -> dict:
    """The settings of a config.json: an alphabet, a width divisor, and what else is in it."""
    if file.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"over {LARGEST_CONFIG:,} bytes of settings")
    settings = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or not {"alphabet", "width_divisor"} <= settings.keys():
        raise ValueError("no alphabet or no width_divisor in it; save the weights again with save_pretrained")
    return settings


def fill(model: nn.Module, tensors: dict) -> nn.Module:
    """The network with these tensors, ready to read; all must be there, no other, in their shapes, and finite."""
    model.load_state_dict(tensors)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite (NaN or inf)")
    return model.eval()
