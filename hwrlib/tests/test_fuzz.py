"""Damaged image files: each is read or refused with a reason; none crashes, hangs or fills the memory."""

import itertools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hwrlib.image_files import ImageError
from hwrlib.scripts import fuzz

FILES = {"line.png": fuzz.encoded(Image.fromarray(fuzz.drawing(24, 130)), "PNG"), "other.gif": b"GIF89a and more"}


def test_300_damaged_files_are_read_or_refused():
    command = [sys.executable, "-m", "hwrlib.scripts.fuzz", "--count", "300", "--seed", "0"]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stdout + run.stderr
    assert "300 files" in run.stdout and "0 failed" in run.stdout


def test_a_seed_makes_the_same_files_again():
    def make(seed):
        return [fuzz.damaged(FILES, np.random.default_rng((seed, k))) for k in range(20)]

    assert make(1) == make(1)
    assert make(1) != make(2)


@pytest.mark.parametrize("damage", fuzz.DAMAGES)
def test_every_damage_takes_files_that_are_nearly_gone(damage):
    for size in range(20):
        for k in range(10):
            damage(bytearray(FILES["line.png"][:size]), FILES["other.gif"], np.random.default_rng(k))


def test_checksums_are_mended():
    data = bytearray(FILES["line.png"])
    data[29] ^= 255  # that of the header
    fuzz.mend_checksums(data)
    assert bytes(data) == FILES["line.png"]


class Reader:
    """Does what a test says instead of reading."""

    def __init__(self, read_page):
        self.read_page = read_page


def refuse(page):
    raise ImageError("no line in line.png")


def fail(page):
    raise KeyError("page")


@pytest.mark.parametrize(
    ("does", "result"),
    [
        (lambda page: [], (fuzz.READ, "")),
        (refuse, (fuzz.REFUSED, "")),
        (fail, (fuzz.FAILED, "exception, above")),
        (lambda page: os.kill(os.getpid(), signal.SIGKILL), (fuzz.FAILED, "SIGKILL")),
        (lambda page: signal.pause(), (fuzz.FAILED, "SIGALRM")),
        (lambda page: max(itertools.count()), (fuzz.FAILED, "SIG")),
        (lambda page: np.ones(200_000_000), (fuzz.FAILED, "GB")),
    ],
    ids=["read", "refused", "exception", "signal", "waiting", "endless", "memory"],
)
def test_what_becomes_of_a_file_is_told(tmp_path, monkeypatch, does, result):
    never_ends = result[1] in ("SIGALRM", "SIG")
    monkeypatch.setattr(fuzz, "SECONDS", 1 if never_ends else 30)  # what ends has time, on a busy core too
    path = tmp_path / "line.png"
    path.write_bytes(FILES["line.png"])
    outcome = fuzz.read_apart(Reader(does), path)
    assert outcome[0] == result[0] and result[1] in outcome[1]
