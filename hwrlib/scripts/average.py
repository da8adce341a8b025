"""Average the weights of several trainings that began from the same ones: they read better than each (chapter 4)."""

import argparse
from pathlib import Path

import torch

from hwrlib.model import CRNN


def average(models: list[CRNN]) -> CRNN:
    """The mean of the weights and statistics of networks alike: model soups (Wortsman et al., 2022)."""
    if len({(model.alphabet, model.width_divisor) for model in models}) > 1:
        raise ValueError("these networks differ in alphabet or width divisor: they cannot be averaged")
    mean = CRNN(models[0].alphabet, models[0].width_divisor, models[0].calibration)
    states = [model.state_dict() for model in models]
    for name, tensor in mean.state_dict().items():
        tensor.copy_(torch.stack([state[name].double() for state in states]).mean(0))
    return mean.eval()


def main(arguments: list[str] | None = None) -> None:
    """Average, and save with most matrices in float16."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.average", description=__doc__)
    parser.add_argument("output", type=Path, help="folder to write, such as hwrlib/weights")
    parser.add_argument("weights", nargs="+", help="folders of weights, or names on the Hub")
    options = parser.parse_args(arguments)
    mean = average([CRNN.from_pretrained(source) for source in options.weights])
    for name, parameter in mean.named_parameters():
        if parameter.ndim > 1 and name != "cnn.0.weight":  # on the first convolution hangs the text: it stays exact
            parameter.data = parameter.data.half()
    mean.save_pretrained(options.output)


if __name__ == "__main__":
    main()
