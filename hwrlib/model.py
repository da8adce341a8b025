"""The network: convolutions see strokes, a BiLSTM reads them in both directions, CTC needs no alignment (chapter 3)."""

import contextlib
import io
import itertools
import os
from pathlib import Path

import pandas as pd
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hwrlib.alphabet import IAM, Alphabet, AlphabetError


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
    Chapter 3 teaches it: notebooks/03_build_the_crnn.ipynb.

    Arguments:
        alphabet: the characters it writes; one output class more for the blank.
        squeeze: what its lines were divided by in width, for ``prepare``.

    >>> from hwrlib.alphabet import REFERENCE
    >>> sum(p.numel() for p in CRNN(REFERENCE).parameters()), sum(p.numel() for p in CRNN(IAM).parameters())
    (9139147, 9141712)
    """

    def __init__(self, alphabet: Alphabet = IAM, squeeze: float = 1.0):
        super().__init__()
        self.alphabet = alphabet
        self.squeeze = squeeze
        self.cnn = nn.Sequential(
            *_convolution(1, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 128),
            nn.MaxPool2d(2),
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
    def from_pretrained(cls, source, **options) -> "CRNN":
        """The network saved in a folder, or under a name on the Hugging Face Hub (options: huggingface_hub's own)."""
        if os.sep in str(source) and not Path(source).is_dir() and str(source).count("/") != 1:
            raise FileNotFoundError(f"{source}: no such folder of weights, and no name on the Hugging Face Hub")
        with contextlib.redirect_stdout(io.StringIO()):  # huggingface_hub prints; stdout is for what was read
            return super().from_pretrained(str(source), **options)

    def forward(self, images: torch.Tensor, widths: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probabilities of the classes at every time step.

        Arguments:
            images: (N, 1, 128, W) from -1 (ink) to +1 (paper); what lies beyond a line's width has no effect.
            widths: (N,) pixels on the CPU, each line's own width; all W where left out.

        Returns:
            float32 (N, T, classes) with T = W // 4 - 1; line n has ``output_lengths(widths)[n]`` of them.

        Raises:
            ValueError: an image of another height, or too narrow for one time step.
        """
        if widths is None:
            widths = torch.full((len(images),), images.shape[-1])
        return self.classify(self.features(images, widths), widths)

    def features(self, images: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        """The sequence (N, T, 256) that the convolutions hand to the BiLSTM."""
        if images.ndim != 4 or images.shape[1:3] != (1, 128):
            raise ValueError(f"the network takes images (N, 1, 128, W), not {tuple(images.shape)}: use hwrlib.prepare")
        if (narrowest := int(widths.min())) < 8:
            raise ValueError(f"an image {narrowest} px wide has no time step: the network needs at least 8 px")
        x = images
        for k, layer in enumerate(self.cnn):
            if isinstance(layer, nn.Conv2d):
                x = _blank(x, widths)
            with self._exact(k < 3):
                x = layer(x)
            if isinstance(layer, nn.MaxPool2d) and layer.stride == 2:
                widths = widths // 2
        return self.map2seq(x.permute(0, 3, 1, 2).flatten(2))

    def _exact(self, chosen: bool = True):
        """In reading, keep a layer in float32 whatever the rest takes.

        The first convolution and the LSTM make four fifths of bfloat16's error in a thirtieth of the multiply-adds.
        """
        if self.training or not chosen:
            return contextlib.nullcontext()
        return torch.autocast(self.fc.weight.device.type, enabled=False)

    def classify(self, sequence: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (N, T, classes) of a sequence from :meth:`features`; lines end at their own last step."""
        steps = self.output_lengths(widths).cpu()
        total = sequence.shape[1]
        with self._exact():
            x = sequence if self.training else sequence.float()
            if int(steps.min()) == total:
                x, _ = self.rnn(x)
            else:
                packed, _ = self.rnn(pack_padded_sequence(x, steps, batch_first=True, enforce_sorted=False))
                x, _ = pad_packed_sequence(packed, batch_first=True, total_length=total)
            return self.fc(x).float().log_softmax(-1)

    @staticmethod
    def output_lengths(widths: torch.Tensor) -> torch.Tensor:
        """Time steps of images of these widths in pixels: width // 4 - 1.

        Two poolings of (2, 2) divide the width by 4; the last convolution, 2 wide and without padding, takes one.
        """
        return widths // 4 - 1


def required_steps(labels: list[int]) -> int:
    """Fewest time steps in which CTC can write these labels.

    >>> required_steps([1, 2, 2, 3])
    5
    """
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))


def check_fits(width: int, transcript: str, alphabet: Alphabet) -> None:
    """Raise a ValueError where an image has too few time steps for CTC to write its transcript.

    CTC needs a time step for each character, and a blank between equal neighbours.

    >>> check_fits(20, "hello", IAM)
    Traceback (most recent call last):
    ValueError: 20 px give 4 time steps, but CTC needs 6 for 'hello': the image must be at least 28 px wide, \
or the transcript is not its own
    """
    needed, steps = required_steps(alphabet.encode(transcript)), width // 4 - 1
    if steps < needed:
        raise ValueError(
            f"{width} px give {steps} time steps, but CTC needs {needed} for {transcript!r}: "
            f"the image must be at least {4 * (needed + 1)} px wide, or the transcript is not its own"
        )


def _blank(x: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Zero what lies beyond each line: a convolution then sees what it would see at the end of a line alone."""
    narrowest = int(widths.min())
    if narrowest == x.shape[-1]:
        return x
    beyond = (torch.arange(narrowest, x.shape[-1]) >= widths[:, None]).to(x.device)
    return torch.cat([x[..., :narrowest], x[..., narrowest:].masked_fill(beyond[:, None, None], 0)], dim=-1)


def layer_table(model: CRNN, width: int = 1700) -> pd.DataFrame:
    """Per layer: name, output shape, parameters and multiply-adds for one line.

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


class CharacterMapper:
    """Stands in for the class of that name which the reference pickled into its checkpoint."""


def load_reference_checkpoint(path) -> CRNN:
    """The reference's published ``best_model.pth`` as a CRNN, without unpickling anything but its character mapper.

    Arguments:
        path: the file; its ``model_state_dict`` and ``char_mapper`` (``chars``, ``char2idx``) are used.

    Raises:
        pickle.UnpicklingError: the file holds anything else than tensors, plain values and that one class.
        ValueError, RuntimeError: it is no checkpoint of this network.
    """
    with torch.serialization.safe_globals([(CharacterMapper, "__main__.CharacterMapper")]):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    missing = {"model_state_dict", "char_mapper"} - set(checkpoint)
    if missing:
        raise ValueError(f"{path}: no {sorted(missing)} in it, so it is no checkpoint of the reference")
    labels = checkpoint["char_mapper"].char2idx
    characters = [c for c in sorted(labels, key=labels.get) if labels[c] > 0]
    if [labels[c] for c in characters] != list(range(1, len(characters) + 1)):
        raise AlphabetError(f"{path}: its labels do not run from 1 to {len(characters)}")
    model = CRNN(Alphabet("".join(characters)))
    model.load_state_dict(checkpoint["model_state_dict"])
    return model.eval()
