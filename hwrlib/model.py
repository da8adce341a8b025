"""The network: convolutions see strokes, a BiLSTM reads them in both directions, CTC needs no alignment (chapter 3)."""

import contextlib
import json
import os
import zipfile
from pathlib import Path

import pandas as pd
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hwrlib.alphabet import IAM, Alphabet, AlphabetError
from hwrlib.ctc import frames

WIDEST_DIVISOR = 8  # beyond it no letter of IAM has a frame of its own
LARGEST_CHECKPOINT = 400_000_000  # bytes unpacked: the reference's has 110 million, its optimiser's state included


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file and says why."""


def _calibration(given: dict[str, list[float]] | None) -> dict[str, list[float]]:
    for name, pair in (given or {}).items():
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(v, int | float) for v in pair):
            raise ValueError(f"calibration of {name} is {pair!r}; give an offset and a slope")
    return dict(given or {})


def _convolution(inputs: int, outputs: int, kernel: int = 3, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class CRNN(
    nn.Module,
    PyTorchModelHubMixin,
    coders={Alphabet: (lambda alphabet: alphabet.characters, Alphabet)},
    license="other",
    license_name="iam-non-commercial-research",
    tags=["handwriting-recognition", "image-to-text", "ctc"],
):
    """Convolutional recurrent network for lines of handwriting, read by CTC.

    Shi, Bai & Yao (2015) introduced it, Puigcerver (2017) showed it on handwriting. Save, load and share it with
    ``save_pretrained``, ``from_pretrained`` (a folder or a Hub name) and ``push_to_hub``: safetensors and config.json.
    Chapter 3: notebooks/03_build_the_crnn.ipynb.

    Arguments:
        alphabet: the characters it writes; one output class more for the blank.
        width_divisor: 1 to 8, what the width of its lines is divided by, for ``prepare``.
        calibration: for each decoder's name the (offset, slope) of its confidence; see ``Recognizer``.

    Raises:
        ValueError: a width divisor out of range, or a calibration that is none.

    >>> from hwrlib.alphabet import REFERENCE
    >>> sum(p.numel() for p in CRNN(REFERENCE).parameters()), sum(p.numel() for p in CRNN(IAM).parameters())
    (9139147, 9141712)
    """

    def __init__(
        self,
        alphabet: Alphabet = IAM,
        width_divisor: float = 1.0,
        calibration: dict[str, list[float]] | None = None,
    ):
        super().__init__()
        if isinstance(width_divisor, bool) or not isinstance(width_divisor, int | float):
            raise ValueError(f"width_divisor is {width_divisor!r}; give a number from 1 to {WIDEST_DIVISOR}")
        if not 1 <= width_divisor <= WIDEST_DIVISOR:
            raise ValueError(f"width_divisor is {width_divisor}; give 1 to {WIDEST_DIVISOR}")
        self.alphabet, self.width_divisor, self.calibration = alphabet, width_divisor, _calibration(calibration)
        self.cnn = nn.Sequential(
            *_convolution(1, 64),
            nn.MaxPool2d((2, 2)),
            *_convolution(64, 128),
            nn.MaxPool2d((2, 2)),
            *_convolution(128, 256),
            *_convolution(256, 256),
            nn.MaxPool2d((2, 1)),
            *_convolution(256, 512),
            *_convolution(512, 512),
            nn.MaxPool2d((2, 1)),
            *_convolution(512, 512, kernel=2, padding=0),
        )
        self.map2seq = nn.Linear(512 * 7, 256)
        self.rnn = nn.LSTM(256, 256, num_layers=2, dropout=0.3, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(512, alphabet.classes)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options) -> "CRNN":
        """The network saved in a folder, or under a name on the Hugging Face Hub, its weights checked.

        Arguments:
            source: the folder or name.
            options: huggingface_hub's own.

        Raises:
            FileNotFoundError: no such folder, and no name on the Hub.
            WeightsError: a file that is missing, damaged or of another network.
        """
        if not Path(source).is_dir():
            if os.sep in str(source) and str(source).count("/") != 1:
                raise FileNotFoundError(f"{source}: no such folder of weights, and no name on the Hugging Face Hub")
            names = ["config.json", "model.safetensors"]
            source = snapshot_download(str(source), allow_patterns=names, **options)
        return _load_folder(Path(source))

    def forward(self, images: torch.Tensor, widths: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probabilities of the classes in every frame.

        Arguments:
            images: (N, 1, 128, W) from -1 (ink) to +1 (paper); what lies beyond a line's width has no effect.
            widths: (N,) pixels on the CPU, each line's own width; all W where left out.

        Returns:
            float32 (N, T, classes) with T = ``frames(W)``; line n has ``frames(widths[n])`` of them.

        Raises:
            ValueError: an image of another height, or too narrow for one frame.
        """
        if widths is None:
            widths = torch.full((len(images),), images.shape[-1])
        return self.classify(self.features(images, widths), widths)

    def features(self, images: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        """The sequence (N, T, 256) that the convolutions hand to the BiLSTM."""
        if images.ndim != 4 or images.shape[1:3] != (1, 128):
            raise ValueError(f"the network takes images (N, 1, 128, W), not {tuple(images.shape)}: use hwrlib.prepare")
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
        """Log-probabilities (N, T, classes) of a sequence from :meth:`features`; lines end at their own last frame."""
        lengths, total = frames(widths).cpu(), sequence.shape[1]
        with self._float32():
            x = sequence if self.training else sequence.float()
            if int(lengths.min()) == total:
                x, _ = self.rnn(x)
            else:
                packed, _ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
                x, _ = pad_packed_sequence(packed, batch_first=True, total_length=total)
            return self.fc(x).float().log_softmax(-1)

    def _float32(self):
        """In reading, keep a layer in float32 whatever the rest takes.

        The first convolution and the LSTM make four fifths of bfloat16's error in a thirtieth of the multiply-adds.
        """
        if self.training:
            return contextlib.nullcontext()
        return torch.autocast(self.fc.weight.device.type, enabled=False)


def mask_padding(x: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Zero what lies beyond each line: a convolution then sees what it would see at the end of a line alone.

    Arguments:
        x: (N, C, H, W) images or feature maps.
        widths: (N,) columns that belong to each line.
    """
    narrowest = int(widths.min())
    if narrowest == x.shape[-1]:
        return x
    beyond = (torch.arange(narrowest, x.shape[-1]) >= widths[:, None]).to(x.device)
    return torch.cat([x[..., :narrowest], x[..., narrowest:].masked_fill(beyond[:, None, None], 0)], dim=-1)


class AuxiliaryHead(nn.Module):
    """The network with a second CTC head after the convolutions, which then learn without waiting for the LSTM.

    It vanishes when the network reads. Retsinas et al., "Best practices for a handwritten text recognition system"
    (2022). Chapter 4: notebooks/04_train_on_colab.ipynb.

    Arguments:
        model: the network.
        frozen: whether the convolutions stay as they are, the statistics of their batch norm included (chapter 8).
    """

    def __init__(self, model: CRNN, frozen: bool = False):
        super().__init__()
        self.model, self.frozen = model, frozen
        self.head = nn.Conv1d(256, model.alphabet.classes, 3, padding=1)
        model.cnn.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "AuxiliaryHead":
        """Go into training mode; frozen convolutions do not, or batch norm would still count what it sees."""
        super().train(mode)
        if self.frozen:
            self.model.cnn.eval()
        return self

    def forward(self, images: torch.Tensor, widths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (N, T, classes) of the network, and of the auxiliary head."""
        sequence = self.model.features(images, widths)
        auxiliary = self.head(sequence.transpose(1, 2)).transpose(1, 2).float().log_softmax(-1)
        return self.model.classify(sequence, widths), auxiliary


def layer_table(model: CRNN, width: int = 1700) -> pd.DataFrame:
    """Per layer: name, output shape, parameters and multiply-adds for one line.

    Chapter 3: notebooks/03_build_the_crnn.ipynb.

    Arguments:
        model: the network.
        width: pixels, the width of the line.

    >>> table = layer_table(CRNN(), width=800)
    >>> table.loc["cnn.0", "output"], int(table.parameters.sum())
    ((64, 128, 800), 9141712)
    """
    rows = {}

    def note(name):
        def hook(module, inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            parameters = sum(p.numel() for p in module.parameters())
            weights = sum(p.numel() for p in module.parameters() if p.ndim > 1)
            pointwise = isinstance(module, nn.BatchNorm2d | nn.ReLU | nn.MaxPool2d)
            positions = output[0, 0].numel() if output.ndim == 4 else output.shape[1]
            rows[name] = (tuple(output.shape[1:]), parameters, 0 if pointwise else weights * positions)

        return hook

    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    hooks = [module.register_forward_hook(note(name)) for name, module in leaves]
    training = model.training
    with torch.no_grad():
        model.eval()(torch.ones(1, 1, 128, width, device=next(model.parameters()).device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["output", "parameters", "multiply_adds"])
    table["share"] = table.multiply_adds / table.multiply_adds.sum()
    return table


def _load_folder(folder: Path) -> CRNN:
    """The network saved in a folder: all its tensors and no other, in the shapes that config.json asks for."""
    config, weights = folder / "config.json", folder / "model.safetensors"
    for file in (config, weights):
        if not file.is_file():
            raise WeightsError(f"{folder}: no {file.name} in it, so it holds no weights of this network")
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        model = CRNN(Alphabet(settings["alphabet"]), settings["width_divisor"], settings.get("calibration"))
    except KeyError as error:
        raise WeightsError(f"{config}: no {error} in it; save the weights again with save_pretrained") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{config}: {error}") from error
    try:
        model.load_state_dict(load_file(weights), strict=True)
    except SafetensorError as error:
        pointer = weights.read_bytes()[:40].startswith(b"version https://git-lfs")
        why = "a Git LFS pointer: fetch the file itself, with `git lfs pull`" if pointer else f"cut off or damaged ({error})"
        raise WeightsError(f"{weights}: this is {why}") from error
    except RuntimeError as error:  # missing, foreign or misshapen tensors, a line each
        raise WeightsError(f"{weights}: these are not the weights of this network: {_one_line(error)}") from error
    return model.eval()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:300] + " ..."


class CharacterMapper:
    """Stands in for the class of that name which the reference pickled into its checkpoint."""


def load_reference_checkpoint(path: str | Path) -> CRNN:
    """The reference's published ``best_model.pth`` as a CRNN, without unpickling anything but its character mapper.

    Chapter 3: notebooks/03_build_the_crnn.ipynb.

    Arguments:
        path: the file; its ``model_state_dict`` and ``char_mapper`` (``chars``, ``char2idx``) are used.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: over 400 MB unpacked, anything else in it than tensors, plain values and that one class, or no
            checkpoint of this network.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{path}: this is no checkpoint that torch.save wrote") from error
    if unpacked > LARGEST_CHECKPOINT:
        raise WeightsError(f"{path}: {unpacked:,} bytes unpacked; the reference's checkpoint has about 110 million")
    try:
        with torch.serialization.safe_globals([(CharacterMapper, "__main__.CharacterMapper")]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        labels, state = checkpoint["char_mapper"].char2idx, checkpoint["model_state_dict"]
        characters = [c for c in sorted(labels, key=labels.get) if labels[c] > 0]
        if [labels[c] for c in characters] != list(range(1, len(characters) + 1)):
            raise AlphabetError(f"its labels do not run from 1 to {len(characters)}")
        model = CRNN(Alphabet("".join(characters)))
        model.load_state_dict(state)
    except Exception as error:  # whatever a hostile file makes torch raise
        raise WeightsError(f"{path}: this is no checkpoint of the reference ({_one_line(error)})") from error
    return model.eval()
