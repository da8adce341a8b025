"""Any image of a line comes out as dark ink on white paper, 128 high; anything else is refused with a reason."""

import os
import runpy
import struct
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from hwrlib import images
from hwrlib.images import ImageError, load_page, load_pages, prepare, prepare_pixels, resolution, undo
from hwrlib.tests.conftest import encoded


def drawn(height=64, width=640, paper=230, ink=30):
    """Uprights with a short arm, a "writing" whose ink has a known place: more at the left, none on the right tenth."""
    line = np.full((height, width), paper, np.uint8)
    for k, x in enumerate(range(width // 20, width * 9 // 10, width // 32)):
        line[height // 4 : height * 3 // 4, x : x + max(2, width // 160)] = ink
        line[height // 2 : height // 2 + 3, x : x + (k % 3 + 1) * width // 160] = ink
    return line


REFERENCE = prepare_pixels(drawn())
KINDS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")


def same_writing(prepared, reference=REFERENCE, share=0.03):
    """Whether the ink is where it should be, but for the edges of the strokes."""
    pixels = undo(prepared) if isinstance(prepared, torch.Tensor) else prepared
    return pixels.shape == reference.shape and np.mean((pixels < 128) != (reference < 128)) < share


def refused(image, reason, load=prepare, **options):
    with pytest.raises(ImageError, match=reason):
        load(image, **options)


def test_every_mode_gives_the_same_line():
    line = prepare(drawn())
    assert (line.shape, line.dtype, line.min(), line.max()) == ((1, 128, 1280), torch.float32, -1, 1)
    grey = Image.fromarray(drawn())
    middle = Image.new("L", grey.size, 128)
    assert same_writing(prepare(Image.merge("LAB", (grey, middle, middle))))
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"):
        image = grey.convert("RGB") if mode in ("PA", "YCbCr", "HSV") else grey
        assert same_writing(prepare(image.convert(mode, dither=Image.Dither.NONE))), mode
    sixteen = Image.fromarray(drawn().astype(np.uint16) * 257)
    for source in (sixteen, encoded(sixteen, "PNG"), encoded(sixteen, "TIFF")):
        assert same_writing(prepare(source))
    unsigned = (drawn().astype(np.uint32) * 16_843_009).view(np.int32)
    assert np.array_equal(load_page(encoded(Image.fromarray(unsigned), "TIFF")), drawn())


def test_every_kind_of_file_and_of_array(tmp_path):
    for kind in KINDS:
        data, path = encoded(drawn(), kind), tmp_path / "line"
        path.write_bytes(data)
        for source in (data, bytearray(data), path, str(path)):
            assert same_writing(prepare(source)), kind
    line = drawn()
    arrays = [line, line[:, :, None], np.stack([line] * 3, axis=2), np.dstack([line, np.full_like(line, 255)])]
    arrays += [np.dstack([line] * 3 + [np.full_like(line, 255)]), np.stack([line / 255] * 3, axis=2), line > 128]
    arrays += [line.astype(np.int64), line.astype(np.uint16) * 257, line.astype(np.float32), line / 255]
    arrays += [np.asfortranarray(line), line[::-1][::-1], line / 250]  # the last as a resampling that overshoots
    for array in arrays:
        before = array.copy()
        assert same_writing(prepare(array)), (array.dtype, array.shape)
        assert np.array_equal(array, before)
    assert load_page(line) is line


def test_exif_rotation_is_applied_and_broken_exif_ignored():
    turn, upright, image = Image.Transpose, drawn(), Image.fromarray(drawn())
    stored = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM]  # as a camera keeps 1 to 8
    stored += [turn.TRANSPOSE, turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270]
    for orientation, way in enumerate(stored, start=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        kept = image if way is None else image.transpose(way)
        for kind in ("PNG", "TIFF", "WEBP"):
            lossless = {"lossless": True} if kind == "WEBP" else {}
            assert np.array_equal(load_page(encoded(kept, kind, exif=exif, **lossless)), upright)
    for kind, count, value in ((2, 4, 0x41414141), (3, 2, 0x10001), (5, 1, 2**31), (12, 1, 9), (7, 2**31, 1)):
        tag = struct.pack("<IHHHIII", 8, 1, 0x0112, kind, count, value, 0)
        for data in (b"Exif\0\0II*\0" + tag, b"Exif\0\0junk"):
            with warnings.catch_warnings(action="ignore"):
                assert same_writing(prepare(encoded(image, "JPEG", exif=data, quality=95)))


def test_what_is_transparent_is_paper_and_white_ink_on_it_is_black():
    alpha = (drawn() < 128).astype(np.uint8) * 255
    for level in (0, 255):  # a naive conversion gives all ink, or none
        rgba = Image.fromarray(np.dstack([np.full((*alpha.shape, 3), level, np.uint8), alpha]))
        assert same_writing(prepare(rgba)) and same_writing(prepare(rgba.convert("LA")))
        assert np.array_equal(load_page(rgba), 255 - alpha)
    palette = Image.fromarray((alpha == 0).astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0] * 2)
    assert same_writing(prepare(encoded(palette, transparency=1)))
    sheet = np.dstack([drawn()] * 3 + [np.full((64, 640), 255, np.uint8)])
    sheet[:, 600:, 3] = 0  # a light sheet that was cut out stays light
    assert load_page(sheet)[:, :600].tolist() == drawn()[:, :600].tolist()


def test_a_fax_gets_square_pixels():
    whole = np.kron(drawn(), np.ones((2, 2), np.uint8))
    for kind, dots in (("TIFF", (204, 98)), ("PNG", (204, 98)), ("TIFF", (98, 204))):
        squashed = whole[::2] if dots[0] > dots[1] else whole[:, ::2]
        data = encoded(np.ascontiguousarray(squashed), kind, dpi=dots)
        assert load_page(data).shape == pytest.approx(whole.shape, rel=0.05)
        assert resolution(data) == pytest.approx(dots, rel=0.01)
        assert prepare_pixels(data).shape == pytest.approx(REFERENCE.shape, rel=0.05)
    for dots in ((300, 300), (204, 196), (1, 300), (0, 0), (3, 30_000)):  # alike enough, or none that can be
        assert load_page(encoded(drawn(), "TIFF", dpi=dots)).shape == drawn().shape
    assert resolution(b"no image") is None


def test_heif_is_read_where_its_package_is_installed(monkeypatch):
    registered = []
    package = types.SimpleNamespace(register_heif_opener=lambda: registered.append(True))
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    assert runpy.run_path(images.__file__)["IMAGE_KINDS"][-1] == "HEIF" and registered


def test_uneven_light_vanishes_weak_contrast_is_stretched_and_blank_paper_stays_blank():
    for share in (0.3, 0.5, 0.6, 0.8):
        for dark in (0.35, 0.5, 0.7):
            photo = drawn().astype(np.float32)
            photo[:, : int(share * photo.shape[1])] *= dark
            assert same_writing(prepare(photo), share=0.05) and same_writing(prepare(255 - photo), share=0.05)
    pixels = prepare_pixels(drawn() * np.linspace(1, 0.3, 640)[None] * np.linspace(1, 0.8, 64)[:, None])
    assert same_writing(pixels, share=0.05) and np.mean(pixels[REFERENCE == 255] > 240) > 0.97
    assert same_writing(prepare(255 - drawn())) and same_writing(prepare(drawn(paper=200, ink=150)))
    noise = np.random.default_rng(0).normal(220, 2, (64, 640))
    for blank in (noise, np.full((64, 640), 255), np.zeros((64, 640), np.uint8), np.full((64, 640), 128, np.uint8)):
        assert (prepare_pixels(blank) == 255).all()


def test_height_is_128_and_the_proportions_are_kept():
    for height, width in ((20, 300), (64, 300), (128, 300), (377, 2260), (1, 50), (1, 1), (3, 3)):
        noise = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
        assert prepare(noise).shape == (1, 128, round(width * 128 / height))
        assert prepare(noise, width_divisor=2.0).shape == (1, 128, max(8, round(width * 128 / height / 2)))


def test_no_thin_stroke_vanishes_where_a_line_is_made_higher_and_narrower():
    for height in (56, 72, 100, 120):
        page = np.full((height, 1100), 255, np.uint8)
        page[:, 5::11] = 0  # 100 strokes, one pixel wide
        ink = prepare_pixels(page, width_divisor=2.5)[64] < 160
        assert np.count_nonzero(np.diff(ink.astype(int), prepend=0) == 1) == 100


def test_what_is_no_line_is_refused_with_the_reason_and_its_name(tmp_path):
    bad = [(b"", "empty"), (b"no image at all", "no image"), (None, "NoneType"), ([[1, 2], [3, 4]], "list")]
    bad += [(torch.ones(1, 9, 20), "Tensor is"), (np.zeros(10), "ndarray is"), (np.zeros((4, 10, 5)), "no image")]
    bad += [(np.zeros((0, 10)), "10 x 0"), (np.zeros((10, 0, 3)), "0 x 10"), (Image.new("L", (9, 0)), "9 x 0")]
    bad += [(np.full((9, 20), np.nan), "nan"), (np.where(np.eye(20) > 0, np.inf, 1), "inf"), (np.eye(9) - 1, "-1 to")]
    bad += [(np.full((10, 20), 1e12), r"1e\+12"), (np.full((10, 20), "a"), "no image")]
    bad += [(np.zeros((10, 1001), np.uint8), "100 times"), (Image.new("L", (5000, 20)), "100 times")]
    bad += [(np.zeros((300, 200), np.uint8), "taller than wide"), (Image.new("RGB", (2480, 3508)), "page")]
    for image, reason in bad:
        refused(image, reason)
    for name, data in (("empty.png", b""), ("letter.png", b"Dear Sir")):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, rf"{name}: this is no image that can be read")
    for image in (b"x", np.zeros((9, 5)), Image.new("L", (5, 9)), np.zeros((9, 0))):
        refused(image, r"^row 3", prepare_pixels, name="row 3")
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        prepare(tmp_path / "none.png")


def test_a_program_named_as_a_picture_is_never_run_and_no_other_decoder_sees_a_file(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments: ran.append(arguments))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 200 40\n%%EndComments\n{} loop\n%%EOF\n"
    path = tmp_path / "a.png"
    path.write_bytes(program)
    opened = Image.open(path, formats=["EPS"])  # the caller's own doing; to load it would run it
    for source in (path, program, opened):
        refused(source, r"(a\.png|bytes).*PostScript")
    assert not ran
    for kind in ("PPM", "ICO", "TGA", "JPEG2000", "PCX", "SGI"):
        data = encoded(Image.fromarray(drawn()).convert("RGB"), kind)
        refused(data, r"no image that can be read.*PDF, PostScript, SVG, HEIC")


def test_what_is_no_regular_file_or_has_too_many_bytes_or_pixels_is_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(500_000_001)  # takes no room on the disk
    for name, reason in (("", "a folder, a pipe"), ("fifo", "a pipe"), ("device", "device"), ("large", "500 MB")):
        for load in (prepare, load_page, lambda image: next(load_pages(image))):
            refused(tmp_path / name, rf"{tmp_path / name}.*{reason}", load)
    for source in (np.zeros((10, 40_000), np.uint8), encoded(Image.new("L", (40_000, 10)))):
        refused(source, r"40000 x 10 pixels, which is too large")
    refused(encoded(Image.new("1", (10_001, 10_000)), "TIFF", compression="group4"), "10001 x 10000")
    tiles = encoded(Image.new("L", (64, 16)), "TIFF", tiffinfo={65_000: 40_000, 65_001: 40_000})
    for own, tag in ((65_000, 322), (65_001, 323)):  # which Pillow would not write
        tiles = tiles.replace(struct.pack("<H", own), struct.pack("<H", tag))
    refused(tiles, "a tile of the bytes is 40000 x 40000 pixels, which is too large")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(encoded(drawn()), r"DecompressionBombError.*far too large")


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL says what is damaged; the error does as well
def test_a_truncated_file_is_refused_wherever_it_was_cut():
    for kind in KINDS:
        data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 80), np.uint8)), kind)
        for kept in np.linspace(1, len(data) * 0.9, 25).astype(int):
            refused(data[:kept], "the bytes")


def three_pages(**options):
    shades = [Image.new("L", (60, 40), level) for level in (10, 20, 30)]
    return encoded(shades[0], "TIFF", save_all=True, append_images=shades[1:], **options)


def test_every_page_of_a_tiff_is_read_a_broken_one_named_and_further_frames_are_none(tmp_path, monkeypatch):
    path = tmp_path / "pages.tif"
    for compression in (None, "tiff_lzw", "jpeg"):
        path.write_bytes(three_pages(compression=compression))
        with Image.open(path) as opened:
            for source in (path, path.read_bytes(), opened):
                pages = list(load_pages(source))
                assert [(p.shape, p.dtype) for p in pages] == [((40, 60), np.uint8)] * 3
                assert [round(p.mean()) for p in pages] == [10, 20, 30]
    refused(path, r"pages\.tif has several pages.*load_pages")
    data = bytearray(three_pages())
    data[data.rindex(struct.pack("<HHI", 256, 4, 1))] ^= 1  # no width any more
    pages = load_pages(bytes(data))
    assert [round(next(pages).mean()) for _ in range(2)] == [10, 20]
    refused(pages, "the bytes, page 3", next)
    small = Image.new("L", (6, 4), 10)  # a smaller copy of the page
    small.encoderinfo = {"tiffinfo": {254: 1}}
    data = encoded(Image.new("L", (60, 40), 10), "TIFF", save_all=True, append_images=[small])
    assert [page.shape for page in load_pages(data)] == [load_page(data).shape] == [(40, 60)]
    monkeypatch.setattr(images, "MOST_PAGES", 2)
    refused(load_pages(three_pages()), "more than 2 pages", list)
    frames = [Image.new("L", (60, 40), level).convert("RGB") for level in (0, 255)]
    for kind in ("GIF", "WEBP", "PNG", "MPO"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert [round(page.mean()) for page in load_pages(data)] == [round(load_page(data).mean())] == [0]


def test_whatever_a_decoder_raises_is_an_image_error_that_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(drawn()))
    for error in (struct.error("a"), TypeError("b"), RuntimeError("c"), MemoryError(), KeyError(5)):
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_, error=error: (_ for _ in ()).throw(error))
        refused(path, rf"a\.png.*\({type(error).__name__}\)")
