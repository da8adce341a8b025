"""The reference's published checkpoint, read without unpickling what strangers put into it (chapter 3)."""

import io
import pickletools
import re
import zipfile
from pathlib import Path

import torch

from hwrlib.alphabet import Alphabet, AlphabetError
from hwrlib.model import CRNN
from hwrlib.weights import explained, fill

LARGEST_CHECKPOINT = 400_000_000  # bytes unpacked: the reference's has 110 million, its optimiser's state included
RECORDS = r"byteorder|data\.pkl|data/\d+|version"  # of a checkpoint, those that torch.load needs
GLOBALS = r"__main__ CharacterMapper|collections OrderedDict|torch (Float|Long)Storage|torch\._utils _rebuild_tensor_v2"


class CharacterMapper:
    """Stands in for the class of that name which the reference pickled into its checkpoint."""


def load_reference_checkpoint(path: str | Path) -> CRNN:
    """The reference's published ``best_model.pth`` as a CRNN, without unpickling anything but its character mapper.

    Chapter 3: notebooks/03_build_the_crnn.ipynb.

    Arguments:
        path: the file; its ``model_state_dict`` and ``char_mapper`` (``char2idx``) are used.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: over 400 MB unpacked, anything else in it than tensors, plain values and that one class, or no
            checkpoint of this network.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    with explained(path), torch.serialization.safe_globals([(CharacterMapper, "__main__.CharacterMapper")]):
        checkpoint = torch.load(_repacked(path), map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict) or not {"model_state_dict", "char_mapper"} <= checkpoint.keys():
            raise ValueError("no model_state_dict or no char_mapper in it")
        labels = checkpoint["char_mapper"].char2idx
        characters = [c for c in sorted(labels, key=labels.get) if labels[c] > 0]
        if [labels[c] for c in characters] != list(range(1, len(characters) + 1)):
            raise AlphabetError(f"its labels do not run from 1 to {len(characters)}")
        return fill(CRNN(Alphabet("".join(characters))), checkpoint["model_state_dict"])


def _repacked(path: Path) -> io.BytesIO:
    """A checkpoint in a zip of our own: torch reads what was checked here, and nothing else.

    The file itself can look different to Python's zip reader and to torch's. What is stored, not compressed, cannot
    grow beyond the file. And even torch's careful unpickler makes a bytearray of any length, so names are checked.
    """
    with zipfile.ZipFile(path) as source:
        records = source.infolist()
        unpacked = sum(record.file_size for record in records)
        if unpacked > LARGEST_CHECKPOINT or any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError(f"{unpacked:,} bytes unpacked, or compressed, which torch.save does not do")
        contents = {record.filename.partition("/")[2]: source.read(record) for record in records}
    for opcode, argument, _ in pickletools.genops(contents.get("data.pkl", b"")):
        if "GLOBAL" in opcode.name and not re.fullmatch(GLOBALS, str(argument)):
            raise ValueError(f"{argument} in it, which a checkpoint does not need")
    with zipfile.ZipFile(repacked := io.BytesIO(), "w") as target:
        for name in contents:
            if re.fullmatch(RECORDS, name):
                target.writestr(f"checkpoint/{name}", contents[name])
    repacked.seek(0)
    return repacked
