"""Damaged image files: each is read or refused with a reason; none crashes, hangs or fills the memory.

Thousands: ``python -m hwrlib.tests.test_fuzz 4500 0`` (how many, and the seed, which makes the same files again).
"""

import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageFilter

from hwrlib.images import ImageError, load_pages
from hwrlib.recognizer import Recognizer
from hwrlib.tests.conftest import encoded, strokes, untrained

resource = pytest.importorskip("resource", reason="memory and time cannot be limited here")
SECONDS = 10  # of work
MOST_BYTES = 1_000_000_000  # beside what the process held before: the network, the libraries
ENDS = ("read", "refused", "exception, above")  # a child's exit status
TROUBLES = (0, 1, 2, 5, 7, 11, 12, 16, 0x7F, 255, 0x7FFF, 10_000, 40_000, 65_535, 2**24, 2**31 - 1, 2**32 - 1)


def test_300_damaged_files_are_read_or_refused():
    command = [sys.executable, "-m", "hwrlib.tests.test_fuzz", "300", "0"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and "'refused'" in run.stdout, run.stdout + run.stderr


def whole_files():
    """Good files of all kinds that are read, by name; tiny, so that reading takes a moment."""
    line, page = Image.fromarray(strokes(130, 24)), Image.fromarray(strokes(100, 60))
    colours, grey16 = line.convert("RGB"), Image.fromarray(strokes(130, 24).astype(np.uint16) * 257)
    clear = Image.merge("LA", (line, line.point(lambda level: 255 - level)))
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010E: "a word", 0x011A: 72.0, 0x8769: {0x9000: b"0232", 0xA002: 130}})
    more = {"save_all": True, "append_images": [colours]}
    return {
        "line.png": encoded(line, "PNG"),
        "palette.png": encoded(colours.quantize(16), "PNG", transparency=0),
        "clear.png": encoded(clear, "PNG", exif=exif),
        "photo.jpg": encoded(page.rotate(90, expand=True).convert("RGB"), "JPEG", exif=exif),
        "print.jpg": encoded(line.convert("CMYK"), "JPEG", progressive=True),
        "pair.jpg": encoded(colours, "MPO", exif=exif, **more),
        "line.webp": encoded(colours, "WEBP", exif=exif),
        "moving.webp": encoded(line.filter(ImageFilter.BLUR), "WEBP", **more),
        "plain.tif": encoded(line, "TIFF", tiffinfo={0x010E: "a word", 0x0112: 3}),
        "grey16.tif": encoded(grey16, "TIFF", compression="tiff_lzw"),
        "fax.tif": encoded(line.convert("1"), "TIFF", compression="group4", dpi=(204, 98)),
        "float.tif": encoded(line.convert("F"), "TIFF", compression="tiff_adobe_deflate"),
        "pages.tif": encoded(page, "TIFF", compression="tiff_deflate", **more),
        "moving.gif": encoded(page, "GIF", transparency=0, **more),
        "line.bmp": encoded(line.convert("1"), "BMP"),
    }


def damaged(files, rng):
    """One of the files with one to three damages, and its name, whose ending may belong to another."""
    name, other = (sorted(files)[k] for k in rng.integers(len(files), size=2))
    data = bytearray(files[name])
    for _ in range(rng.integers(1, 4)):
        kind = rng.integers(7)
        if kind == 0:  # the end is lost
            del data[rng.integers(len(data) + 1) :]
        elif kind == 1:  # some bytes change
            for _ in range(rng.integers(1, 9) if data else 0):
                data[rng.integers(len(data))] = rng.integers(256)
        elif kind == 2:  # a piece of another file comes in, over what is there or between
            start, place = rng.integers(len(files[other])), rng.integers(len(data) + 1)
            piece = files[other][start : start + rng.integers(1, 200)]
            data[place : place + len(piece) * rng.integers(2)] = piece
        else:  # a size, count or offset that means trouble comes into the header or among the tags of TIFF or EXIF
            tags = max(data.find(b"II*\0"), data.find(b"MM\0*")) if kind > 4 else 0
            start = max(tags, 0) + (rng.integers(200) if tags > 0 else rng.integers(120))
            size = 2 ** int(rng.integers(3))
            value = TROUBLES[rng.integers(len(TROUBLES))] % 256**size
            data[start : start + size] = value.to_bytes(size, ("little", "big")[rng.integers(2)])
    place = 8
    while name.endswith(".png") and place + 12 <= len(data):  # checksums are mended, so that the damage is met
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return (Path(name).stem + Path(other).suffix if rng.random() < 0.2 else name), bytes(data)


def read_apart(recognizer, path):
    """Read a file in a process of its own, so that no crash hides the next: how it ended."""
    held = psutil.Process().memory_info().rss  # a child's peak begins with what its parent holds
    process = os.fork()
    if not process:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # ends the process, whatever it is doing
        signal.alarm(6 * SECONDS)  # also one that waits; on a busy machine work takes longer than its seconds
        try:
            for page in load_pages(path):
                recognizer.read_page(page)
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 (this process ends here, and its parent is told)
            if isinstance(error, ImageError) and (path.name in str(error) or "ndarray" in str(error)):
                os._exit(1)
            traceback.print_exc()  # also of an error that does not name the file
            os._exit(2)
    _, status, usage = os.wait4(process, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return "too much memory" if 1024 * usage.ru_maxrss - held > MOST_BYTES else ENDS[os.WEXITSTATUS(status)]


def main(count, seed):
    torch.set_num_threads(1)  # a process with threads cannot be forked
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")  # PIL's, on damage
    recognizer, files = Recognizer(untrained(width_divisor=8.0), "fp32"), whole_files()  # fast
    folder, ends = Path(tempfile.mkdtemp(prefix="fuzz-")), []
    made = [*files.items(), *(damaged(files, np.random.default_rng((seed, k))) for k in range(count))]
    for k, (name, data) in enumerate(made):
        path = folder / f"{seed}-{k}-{name}"
        path.write_bytes(data)
        ends.append(read_apart(recognizer, path))
        if ends[-1] not in ENDS[: 1 + (k >= len(files))]:  # whole files must be read
            sys.exit(f"{ends[-1]}: {path}")
        path.unlink()
    print({end: ends.count(end) for end in ENDS})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
