"""How sure is a reading? Confidences of whole lines, calibrated, and how far to trust them (chapter 5)."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd


@functools.cache
def calibration():
    """The (offset, slope) of each decoder's confidence, as `calibrate` fitted them on the validation lines."""
    return json.loads((Path(__file__).parent / "weights" / "calibration.json").read_text())


def line_confidence(log_probability, length, decoder):
    """Expected share of right characters, 0 to 1, from the log-probability of a line's best path.

    log_probability: natural log; it is taken per character of the `length` read. decoder: whose calibration counts:
    greedy, beam, or language (a beam with a language model or word list).
    """
    offset, slope = calibration()[decoder]
    return float(1 / (1 + np.exp(-offset - slope * log_odds(math.exp(log_probability / max(length, 1))))))


def log_odds(share):
    """Logit of a share, or of each of an array, kept finite at 0 and 1."""
    share = np.clip(share, 1e-6, 1 - 1e-6)
    return np.log(share / (1 - share))


def calibrate(confidences, shares, offset=0.0, slope=1.0):
    """Fit offset and slope so that confidences match the shares of characters read right, by Newton's method.

    confidences, shares: (N,), 0 to 1, of validation lines; a share is 1 - CER, at least 0. offset, slope: those that
    made the confidences. Returns the new two, for weights/calibration.json. Platt scaling: Platt, 1999.
    Chapter 5 teaches it: notebooks/05_decode_with_ctc.ipynb

    >>> calibrate([0.9, 0.8, 0.6], [0.9, 0.8, 0.6])  # right already
    [0.0, 1.0]
    """
    inputs = np.stack([np.ones(len(confidences)), log_odds(np.asarray(confidences))], axis=1)
    fit = np.array([0.0, 1.0])
    for _ in range(30):
        expected = 1 / (1 + np.exp(-inputs @ fit))
        curvature = inputs.T * (expected * (1 - expected)) @ inputs + 1e-6 * np.eye(2)
        fit += np.linalg.solve(curvature, inputs.T @ (shares - expected))
    return [round(float(fit[0] + fit[1] * offset), 4), round(float(fit[1] * slope), 4)]


def reliability(confidences, shares, bins=10):
    """Compare confidences with what came true: a table by bins of equally many lines, and expected calibration error.

    confidences, shares: as for `calibrate`. Returns a DataFrame (confidence, share, lines) and the mean distance of the
    two, weighted by lines, 0 to 1 (Guo et al., 2017; here shares of right characters, where they count right answers).

    >>> reliability([0.9, 0.9, 0.5, 0.5], [1.0, 1.0, 0.5, 0.5], bins=2)[1].__round__(3)
    0.05
    """
    table = pd.DataFrame({"confidence": confidences, "share": shares}).sort_values("confidence", ignore_index=True)
    groups = table.groupby(table.index * bins // len(table))
    table = groups.mean().assign(lines=groups.size())
    return table, float((table.lines * (table.confidence - table.share).abs()).sum() / table.lines.sum())
