"""The network: convolutions see strokes, a BiLSTM reads them in both directions, CTC needs no alignment (chapter 3)."""

import contextlib
import copy
import hashlib
import importlib.util
import json
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hwrlib.alphabet import IAM, Alphabet
from hwrlib.cpu import tile
from hwrlib.ctc import frames

TAGS = ["handwriting-recognition", "image-to-text", "ctc"]  # of the model card that push_to_hub writes


def _convolution(inputs: int, outputs: int, kernel: int = 3, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class CRNN(nn.Module, PyTorchModelHubMixin, license="other", license_name="iam-non-commercial-research", tags=TAGS):
    """Convolutional recurrent network for lines, 9.1 million weights, read by CTC (Shi et al., 2015; Puigcerver, 2017).

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` are the Hugging Face Hub's.

    Arguments:
        alphabet: the characters it writes; one output class more for the blank.
        width_divisor: 1 to 8, what the width of its lines is divided by, for ``prepare``.
        calibration: for each decoder's name the [offset, slope], -100 to 100, of its confidence; see ``Recognizer``.
    """

    def __init__(self, alphabet: Alphabet = IAM, width_divisor: float = 1.0, calibration: dict | None = None):
        super().__init__()
        self.alphabet, self.width_divisor, self.calibration = alphabet, width_divisor, calibration or {}
        if not 1 <= width_divisor <= 8:
            raise ValueError(f"width_divisor is {width_divisor!r}; give a number from 1 to 8")
        if not all(abs(offset) <= 100 and abs(slope) <= 100 for offset, slope in self.calibration.values()):
            raise ValueError(f"calibration is {calibration!r}; give each decoder an [offset, slope] from -100 to 100")
        layers, inputs = [], 1
        for outputs, pooling in ((64, (2, 2)), (128, (2, 2)), (256, None), (256, (2, 1)), (512, None), (512, (2, 1))):
            layers += _convolution(inputs, outputs) + ([nn.MaxPool2d(pooling)] if pooling else [])
            inputs = outputs
        self.cnn = nn.Sequential(*layers, *_convolution(512, 512, kernel=2, padding=0))
        self.map2seq = nn.Linear(512 * 7, 256)
        self.rnn = nn.LSTM(256, 256, num_layers=2, dropout=0.3, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(512, alphabet.classes)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options) -> "CRNN":
        """The network saved in a folder, or under a name on the Hub; ``options`` are the Hub's, such as ``revision``.

        A ValueError names a file that is missing, damaged or of another network.
        """
        with _checked(_file(source, "config.json", **options), largest=200_000) as file:
            about = json.loads(file.read_text(encoding="utf-8"))
            model = cls(Alphabet(about["alphabet"]), about["width_divisor"], about.get("calibration"))
        with _checked(_file(source, "model.safetensors", **options)) as file:
            return _filled(model, load_file(file))

    def _save_pretrained(self, save_directory: Path) -> None:
        """Save what the network is now; the mixin would write what it was made with, and no LSTM that is on a GPU."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, save_directory / "model.safetensors")
        about = {"width_divisor": self.width_divisor, "calibration": self.calibration}
        about = {"alphabet": self.alphabet.characters} | about
        (save_directory / "config.json").write_text(json.dumps(about, indent=2) + "\n")

    def forward(self, images: torch.Tensor, widths: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probabilities (N, T, classes) in T = ``frames(W)`` frames, of which line n has ``frames(widths[n])``.

        Arguments:
            images: (N, 1, 128, W) from -1 (ink) to +1 (paper); what lies beyond a line's width has no effect.
            widths: (N,) pixels, each line's own width; all W where left out.
        """
        widths = torch.full((len(images),), images.shape[-1]) if widths is None else widths
        return self.classify(self.features(images, widths), widths)

    def features(self, images: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        """The sequence (N, T, 256) that the convolutions hand to the BiLSTM; arguments as in ``forward``."""
        if images.ndim != 4 or images.shape[1:3] != (1, 128):
            raise ValueError(f"the network takes images (N, 1, 128, W), not {tuple(images.shape)}: use hwrlib.prepare")
        widths = widths.cpu()  # DistributedDataParallel brings them to its GPU
        if (narrowest := int(widths.min())) < 8:
            raise ValueError(f"an image {narrowest} px wide has no frame: the network needs at least 8 px")
        with self._float32():
            x = self.cnn[:3](mask_padding(images, widths))
        for layer in self.cnn[3:]:
            if isinstance(layer, nn.Conv2d):
                x = mask_padding(x, widths)
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                widths = widths // layer.stride[1]
        return self.map2seq(x.permute(0, 3, 1, 2).flatten(2))

    def classify(self, sequence: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (N, T, classes) of a sequence from ``features``, each line read to its own last frame."""
        lengths, total = frames(widths).cpu(), sequence.shape[1]
        with self._float32():
            x = sequence if self.training else sequence.float()
            if int(lengths.min()) == total:
                x, _ = self.rnn(x)
            else:
                packed, _ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
                x, _ = pad_packed_sequence(packed, batch_first=True, total_length=total)
            return self.fc(x).float().log_softmax(-1)

    def _float32(self) -> contextlib.AbstractContextManager:
        """Float32 in reading: the first convolution and the LSTM make 4/5 of bfloat16's error in 1/30 of the work."""
        return contextlib.nullcontext() if self.training else torch.autocast(self.fc.weight.device.type, enabled=False)


def mask_padding(x: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Zero what lies beyond each line's width in maps (N, C, H, W): a convolution then sees what it would see alone."""
    beyond = torch.arange(x.shape[-1]) >= widths[:, None]
    return x.masked_fill(beyond[:, None, None].to(x.device), 0) if beyond.any() else x


def fused(model: CRNN, winograd: bool = False) -> CRNN:
    """A copy for reading, ``winograd`` in tiles: each convolution does its batch norm's work, a pass over maps less."""
    copied = copy.deepcopy(model).eval()
    for k, layer in enumerate(copied.cnn):
        if isinstance(layer, nn.BatchNorm2d):
            copied.cnn[k - 1], copied.cnn[k] = fuse_conv_bn_eval(copied.cnn[k - 1], layer), nn.Identity()
    if winograd:
        tile(copied, fixed=True)
    return copied.requires_grad_(False)


class AuxiliaryHead(nn.Module):
    """A second CTC head in training: the convolutions learn without waiting for the LSTM (Retsinas et al., 2022)."""

    def __init__(self, model: CRNN):
        super().__init__()
        self.model = model
        self.head = nn.Conv1d(256, model.alphabet.classes, 3, padding=1)

    def forward(self, images: torch.Tensor, widths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (N, T, classes) of the network, and of the auxiliary head."""
        sequence = self.model.features(images, widths)
        auxiliary = self.head(sequence.transpose(1, 2)).transpose(1, 2).float().log_softmax(-1)
        return self.model.classify(sequence, widths), auxiliary


def export_onnx(model: CRNN, path: str | Path) -> None:
    """Write the network as an ONNX file for one line of any width.

    Its input ``image`` is (1, 1, 128, W), as :func:`hwrlib.prepare` makes it, its output ``log_probs`` (1, T, classes).
    """
    if importlib.util.find_spec("onnx") is None:
        raise RuntimeError("the export needs the package onnx: pip install onnx")
    line, axes = torch.ones(1, 1, 128, 512), {"image": {3: "width"}, "log_probs": {1: "frames"}}
    options = {"dynamo": False, "input_names": ["image"], "output_names": ["log_probs"], "dynamic_axes": axes}
    with warnings.catch_warnings(action="ignore"):  # of an exporter that is old but quick, and keeps the LSTM whole
        torch.onnx.export(copy.deepcopy(model).cpu().eval(), (line,), str(path), **options)


def weights_version(source: str | Path) -> str:
    """Eight hexadecimal digits that tell the weights of a folder, or of a name on the Hub, from others."""
    return hashlib.sha256(_file(source, "model.safetensors").read_bytes()).hexdigest()[:8]


def load_reference_checkpoint(path: str | Path) -> CRNN:
    """The reference's published ``best_model.pth`` as a CRNN; a ValueError where a stranger's file is none."""
    mapper = [(SimpleNamespace, "__main__.CharacterMapper")]  # all that is made of it but tensors and plain values
    with _checked(Path(path)) as file, torch.serialization.safe_globals(mapper):
        refuse_bomb(file)
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        labels = checkpoint["char_mapper"].char2idx
        alphabet = Alphabet("".join(c for c in sorted(labels, key=labels.get) if labels[c]))
        return _filled(CRNN(alphabet), checkpoint["model_state_dict"])


def refuse_bomb(file: Path) -> None:
    """Refuse a file of ``torch.save`` that fills the memory, which ``weights_only`` would take."""
    with zipfile.ZipFile(file) as source:
        records = source.infolist()  # of a zip behind other data, torch may see others
        if records[0].header_offset or sum(record.file_size for record in records) > file.stat().st_size:
            raise ValueError("compressed, or behind other data, as torch.save does not write it")
        if any(b"bytearray" in source.read(r) for r in records if r.filename.lower().endswith("data.pkl")):
            raise ValueError("a bytearray in it, which a checkpoint does not need")


def _file(source: str | Path, name: str, **options) -> Path:
    """One of the files of weights in a folder, or under a name on the Hub, which is OWNER/NAME."""
    if Path(source).is_dir() or str(source).count("/") != 1:
        return Path(source) / name
    try:
        return Path(hf_hub_download(str(source), name, **options))
    except (OSError, ValueError) as error:  # no such name, no access, no network, or no name at all
        raise FileNotFoundError(f"{source}: no folder of weights, and not to be had from the Hub: {error}") from error


@contextlib.contextmanager
def _checked(file: Path, largest: int = 400_000_000) -> Iterator[Path]:
    """Turn whatever goes wrong while a file of weights is read into a ValueError of one line that names it."""
    try:
        if not file.is_file() or file.stat().st_size > largest:
            raise ValueError(f"no such file, or over {largest:,} bytes")
        with file.open("rb") as stream:
            if stream.read(40).startswith(b"version https://git-lfs"):
                raise ValueError("a Git LFS pointer; fetch the file itself, with `git lfs pull`")
        yield file
    except Exception as error:  # whatever a damaged or hostile file makes json, safetensors, zipfile and torch raise
        text = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        text = "more in it than tensors and plain values" if isinstance(error, pickle.UnpicklingError) else text
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]
        raise ValueError(f"{file}: no weights of this network: {text}") from error


def _filled(model: CRNN, tensors: dict[str, torch.Tensor]) -> CRNN:
    """The network with these tensors, ready to read; all must be there, no other, in their shapes, and finite."""
    model.load_state_dict(tensors)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite (NaN or inf)")
    return model.eval()
