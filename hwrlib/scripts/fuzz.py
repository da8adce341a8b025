"""Read thousands of damaged image files: ``python -m hwrlib.scripts.fuzz --count 4500 --seed 0``.

Each is read, or refused with an ImageError. Anything else fails: another exception, a signal, more than 10 s of
work or 1 GB beside the network. Each file has a process of its own, so that no crash hides the next; a seed makes the
same files again.
"""

import argparse
import collections
import io
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
import torch
from PIL import Image, ImageFilter

from hwrlib import SAMPLE
from hwrlib.image_files import ImageError, load_pages
from hwrlib.recognizer import Recognizer

SECONDS = 10
MOST_BYTES = 1_000_000_000  # beside what the process held before: the network, the libraries
READ, REFUSED, FAILED = "read", "refused", "failed"


def drawing(height: int, width: int) -> np.ndarray:
    """A word on paper: uint8 (height, width)."""
    page = np.full((height, width), 230, np.uint8)
    return cv2.putText(page, "to be", (4, height * 3 // 4), cv2.FONT_HERSHEY_SIMPLEX, height / 50, 40, 2)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """The bytes of the image's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def whole_files() -> dict[str, bytes]:
    """Good files of all kinds that are read, by name; tiny, so that reading takes a moment."""
    line, page = Image.fromarray(drawing(24, 130)), Image.fromarray(drawing(60, 100))
    colours, grey16 = line.convert("RGB"), Image.fromarray(drawing(24, 130).astype(np.uint16) * 257)
    clear = Image.merge("LA", (line, line.point(lambda level: 255 - level)))
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010E: "a word", 0x011A: 72.0, 0x8769: {0x9000: b"0232", 0xA002: 130}})
    files = {
        "line.png": encoded(line, "PNG"),
        "palette.png": encoded(colours.quantize(16), "PNG", transparency=0),
        "clear.png": encoded(clear, "PNG", exif=exif),
        "grey16.png": encoded(grey16, "PNG"),
        "photo.jpg": encoded(page.rotate(90, expand=True).convert("RGB"), "JPEG", exif=exif),
        "print.jpg": encoded(line.convert("CMYK"), "JPEG", progressive=True),
        "pair.jpg": encoded(colours, "MPO", save_all=True, append_images=[colours], exif=exif),
        "line.webp": encoded(colours, "WEBP", exif=exif),
        "clear.webp": encoded(clear.convert("RGBA"), "WEBP", lossless=True),
        "moving.webp": encoded(line, "WEBP", save_all=True, append_images=[line.filter(ImageFilter.BLUR)]),
        "plain.tif": encoded(line, "TIFF", tiffinfo={0x010E: "a word", 0x0112: 3}),
        "grey16.tif": encoded(grey16, "TIFF", compression="tiff_lzw"),
        "fax.tif": encoded(line.convert("1"), "TIFF", compression="group4"),
        "float.tif": encoded(line.convert("F"), "TIFF", compression="tiff_adobe_deflate"),
        "photo.tif": encoded(colours, "TIFF", compression="jpeg"),
        "pages.tif": encoded(line, "TIFF", save_all=True, append_images=[colours, page], compression="tiff_deflate"),
        "line.gif": encoded(line, "GIF"),
        "moving.gif": encoded(line, "GIF", save_all=True, append_images=[page], transparency=0),
        "line.bmp": encoded(colours, "BMP"),
        "line1.bmp": encoded(line.convert("1"), "BMP"),
    }
    for k, image in enumerate(pd.read_parquet(SAMPLE / "validation.parquet", columns=["image"]).image[:3]):
        with Image.open(io.BytesIO(image["bytes"]), formats=["WEBP"]) as sample:
            files[f"sample{k}.webp"] = encoded(sample.crop((0, 0, 4 * sample.height, sample.height)), "WEBP")
    return files


def damaged(files: dict[str, bytes], rng: np.random.Generator) -> tuple[str, bytes]:
    """One of the files with one to three damages, and its name, whose ending may belong to another."""
    names = sorted(files)
    name, other = (names[k] for k in rng.integers(len(names), size=2))
    data = bytearray(files[name])
    for _ in range(rng.integers(1, 4)):
        DAMAGES[rng.integers(len(DAMAGES))](data, files[other], rng)
    if name.endswith(".png") and rng.random() < 0.8:
        mend_checksums(data)
    return (Path(name).stem + Path(other).suffix if rng.random() < 0.2 else name), bytes(data)


def cut_off(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """Lose the end."""
    del data[rng.integers(len(data) + 1) :]


def flip_bytes(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """Change one to eight bytes anywhere."""
    for _ in range(rng.integers(1, 9) if data else 0):
        data[rng.integers(len(data))] = rng.integers(256)


def splice(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """Put a piece of another file in, over what is there or between."""
    start, place = rng.integers(len(other)), rng.integers(len(data) + 1)
    piece = other[start : start + rng.integers(1, 200)]
    data[place : place + len(piece) * rng.integers(2)] = piece


def change_header(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """Put a number that means trouble (none, very many, negative) among the first bytes: sizes, counts, offsets."""
    change_field(data, 0, min(len(data), 120), rng)


def change_tags(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """The same among the tags of TIFF or EXIF, or anywhere where there are none."""
    starts = [at for mark in (b"II*\0", b"MM\0*") if (at := data.find(mark)) >= 0]
    if not starts or len(data) < starts[0] + 8:
        return change_field(data, 0, len(data), rng)
    order = "little" if data[starts[0]] == ord("I") else "big"
    tags = starts[0] + int.from_bytes(data[starts[0] + 4 : starts[0] + 8], order)
    return change_field(data, tags, min(tags + 200, len(data)), rng)


def change_field(data: bytearray, start: int, stop: int, rng: np.random.Generator) -> None:
    """Overwrite one, two or four bytes between the two places."""
    if start < stop:
        size, place = 2 ** rng.integers(3), rng.integers(start, stop)
        troubles = (0, 1, 2, 5, 7, 11, 12, 16, 0x7F, 255, 0x7FFF, 10_000, 40_000, 65_535, 2**24, 2**31 - 1, 2**32 - 1)
        value = troubles[rng.integers(len(troubles))] % 256**size
        data[place : place + size] = int(value).to_bytes(size, ("little", "big")[rng.integers(2)])


DAMAGES = (cut_off, flip_bytes, splice, change_header, change_header, change_tags, change_tags)


def mend_checksums(data: bytearray) -> None:
    """Make the checksums of a PNG right again, so that the damage behind them is met."""
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        if end + 4 > len(data):
            return
        place = end + 4


def read(recognizer: Recognizer, path: Path) -> str:
    """What becomes of a file: READ or REFUSED."""
    try:
        for page in load_pages(path):
            try:
                recognizer.read_page(page)
            except ImageError:  # of an array, which has no name: the command line adds the file's
                return REFUSED
    except ImageError as error:
        if path.name not in str(error):
            raise AssertionError(f"the error does not name the file: {error}") from error
        return REFUSED
    return READ


def read_apart(recognizer: Recognizer, path: Path) -> tuple[str, str]:
    """The same in a process of its own: READ, REFUSED or FAILED, and why it failed."""
    held = psutil.Process().memory_info().rss  # a child's peak begins with what its parent holds
    process = os.fork()
    if not process:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # ends the process, whatever it is doing
        signal.alarm(6 * SECONDS)  # also one that waits; on a busy machine work takes longer than its seconds
        try:
            os._exit((READ, REFUSED).index(read(recognizer, path)))
        except BaseException:  # noqa: BLE001 (this process ends here, and its parent is told)
            traceback.print_exc()
            os._exit(2)
    _, status, usage = os.wait4(process, 0)
    if os.WIFSIGNALED(status):
        return FAILED, signal.Signals(os.WTERMSIG(status)).name
    taken = 1024 * usage.ru_maxrss - held
    if taken > MOST_BYTES:
        return FAILED, f"{taken / 1e9:.1f} GB"
    return ((READ, ""), (REFUSED, ""), (FAILED, "exception, above"))[os.WEXITSTATUS(status)]


def fuzz(count: int, seed: int, folder: Path) -> collections.Counter:
    """Damage and read so many files in the folder; those that fail stay there."""
    recognizer, files = Recognizer.from_pretrained(precision="no"), whole_files()
    recognizer.model.width_divisor = 8.0  # fast: what is read does not matter here
    for name, data in files.items():
        (folder / name).write_bytes(data)
        if read(recognizer, folder / name) != READ:
            raise AssertionError(f"{name} is not even read whole")
        (folder / name).unlink()
    counts = collections.Counter()
    for k in range(count):
        name, data = damaged(files, np.random.default_rng((seed, k)))
        path = folder / f"{seed}-{k}-{name}"
        path.write_bytes(data)
        result, why = read_apart(recognizer, path)
        counts[result] += 1
        if result == FAILED:
            print(f"seed {seed}, file {k}: {why}: {path}", flush=True)
        else:
            path.unlink()
    return counts


def main() -> int:
    """Count what was read, refused and failed; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads cannot be forked
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")  # PIL's, on damage
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    counts = fuzz(options.count, options.seed, folder)
    if not counts[FAILED]:
        folder.rmdir()
    print(f"{counts.total()} files: {', '.join(f'{counts[name]} {name}' for name in (READ, REFUSED, FAILED))}")
    return int(counts[FAILED] > 0)


if __name__ == "__main__":
    sys.exit(main())
