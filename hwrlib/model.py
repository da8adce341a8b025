"""The network: convolutions see strokes, a BiLSTM reads them in both directions, CTC needs no alignment (chapter 3)."""

import contextlib
import copy
import functools
import json
import re
import warnings
from pathlib import Path

import pandas as pd
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hwrlib.alphabet import IAM, Alphabet
from hwrlib.ctc import frames
from hwrlib.weights import explained, fill, one_line, read_config
from hwrlib.winograd import CHANNELS, WinogradConv2d

FILES = ["config.json", "model.safetensors"]


def _convolution(inputs: int, outputs: int, kernel: int = 3, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class CRNN(
    nn.Module,
    PyTorchModelHubMixin,
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
        calibration: for each decoder's name the [offset, slope] of its confidence; see ``Recognizer``.

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
        calibration = {} if calibration is None else calibration
        if not _are_numbers([width_divisor], 1, 8):
            raise ValueError(f"width_divisor is {width_divisor!r}; give a number from 1 to 8")
        pairs = calibration.values() if isinstance(calibration, dict) else [calibration]
        if not all(isinstance(p, list | tuple) and len(p) == 2 and _are_numbers(p, -100, 100) for p in pairs):
            raise ValueError(f"calibration is {calibration!r}; give each decoder an [offset, slope] from -100 to 100")
        self.alphabet, self.width_divisor, self.calibration = alphabet, width_divisor, calibration
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
            options: huggingface_hub's own: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Raises:
            FileNotFoundError: no such folder, and nothing to be had from the Hub under that name.
            WeightsError: a file that is missing, damaged or of another network.
        """
        folder = Path(source)
        if not folder.is_dir():
            if folder.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
                raise FileNotFoundError(f"{source}: no folder of weights, and no OWNER/NAME on the Hugging Face Hub")
            try:
                folder = Path(snapshot_download(str(source), allow_patterns=FILES, **options))
            except OSError as error:  # no such name, no access or no network
                raise FileNotFoundError(
                    f"{source}: no folder, and not to be had from the Hub: {one_line(error)}"
                ) from error
        config, weights = (folder / name for name in FILES)
        with explained(config):
            settings = read_config(config)
            model = cls(Alphabet(settings["alphabet"]), settings["width_divisor"], settings.get("calibration"))
        with explained(weights):
            return fill(model, load_file(weights))

    def _save_pretrained(self, save_directory: Path) -> None:
        """Save what the network is now; the mixin would write what it was made with."""
        super()._save_pretrained(save_directory)
        settings = {
            "alphabet": self.alphabet.characters,
            "width_divisor": self.width_divisor,
            "calibration": self.calibration,
        }
        (save_directory / "config.json").write_text(json.dumps(settings, indent=2) + "\n")

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
        """The sequence (N, T, 256) that the convolutions hand to the BiLSTM; arguments and errors as in ``forward``."""
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


def fused(model: CRNN, winograd: bool = False) -> CRNN:
    """A copy for reading: each convolution does the work of its batch norm as well, which spares a pass over the maps.

    Chapter 3: notebooks/03_build_the_crnn.ipynb.

    Arguments:
        model: a trained network; what it learns later has no effect on the copy.
        winograd: whether to compute the large convolutions in tiles, which is faster in float32 on a CPU.
    """
    copied = copy.deepcopy(model).eval()
    for k, layer in enumerate(copied.cnn):
        if isinstance(layer, nn.BatchNorm2d):
            copied.cnn[k - 1], copied.cnn[k] = fuse_conv_bn_eval(copied.cnn[k - 1], layer), nn.Identity()
    if winograd:
        tile(copied, fixed=True)
    return copied.requires_grad_(False)


def tile(model: CRNN, fixed: bool = False) -> None:
    """Let a network compute its large convolutions in tiles, which is faster in float32 on a CPU.

    Chapter 3: notebooks/03_build_the_crnn.ipynb.

    Arguments:
        model: the network, whose weights stay its own.
        fixed: see :class:`hwrlib.winograd.WinogradConv2d`.
    """
    for k, layer in enumerate(model.cnn):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.in_channels >= CHANNELS:
            model.cnn[k] = WinogradConv2d(layer, fixed)


class AuxiliaryHead(nn.Module):
    """The network with a second CTC head after the convolutions, which then learn without waiting for the LSTM.

    It vanishes when the network reads. Retsinas et al., "Best practices for a handwritten text recognition system"
    (2022). Chapter 4: notebooks/04_train_on_colab.ipynb.

    Arguments:
        model: the network.
    """

    def __init__(self, model: CRNN):
        super().__init__()
        self.model = model
        self.head = nn.Conv1d(256, model.alphabet.classes, 3, padding=1)

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

    def note(name, module, inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        weights = sum(p.numel() for p in module.parameters() if p.ndim > 1)
        positions = output[0, 0].numel() if output.ndim == 4 else output.shape[1]
        rows[name] = (tuple(output.shape[1:]), sum(p.numel() for p in module.parameters()), weights * positions)

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(functools.partial(note, name)) for name, module in leaves]
    training = model.training
    with torch.no_grad():
        model.eval()(torch.ones(1, 1, 128, width, device=next(model.parameters()).device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["output", "parameters", "multiply_adds"])
    table["share"] = table.multiply_adds / table.multiply_adds.sum()
    return table


def _are_numbers(values, lowest: float, highest: float) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) and lowest <= v <= highest for v in values)


def export_onnx(model: CRNN, path: str | Path) -> None:
    """Write the network as an ONNX file that reads one line of any width.

    Its input ``image`` is (1, 1, 128, W) from -1 (ink) to +1 (paper), as :func:`hwrlib.prepare` makes it; its output
    ``log_probs`` is (1, T, classes). Chapter 9: notebooks/09_read_an_archive.ipynb.

    Arguments:
        model: the network.
        path: of the file.
    """
    line, options = torch.ones(1, 1, 128, 512), {"input_names": ["image"], "output_names": ["log_probs"]}
    with warnings.catch_warnings():  # of an exporter that is old but quick, and keeps the LSTM whole
        warnings.simplefilter("ignore")
        axes = {"image": {3: "width"}, "log_probs": {1: "frames"}}
        torch.onnx.export(_OneLine(model).eval(), (line,), str(path), dynamo=False, dynamic_axes=axes, **options)


class _OneLine(nn.Module):
    """The network for one line, of which all columns are its own: no padding to be masked, no lengths to be kept."""

    def __init__(self, model: CRNN):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        sequence = self.model.map2seq(self.model.cnn(image).permute(0, 3, 1, 2).flatten(2))
        return self.model.fc(self.model.rnn(sequence)[0]).log_softmax(-1)
