"""Any image of a line comes out as dark ink on white paper, 128 high; anything else is refused with a reason."""

import contextlib
import io
import os
import struct
import sys
import types
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from hwrlib import image_files
from hwrlib.image_files import ImageError, load_grey, load_page, load_pages, open_image
from hwrlib.images import prepare, prepare_pixels, undo


def drawn(height=64, width=640, paper=230, ink=30):
    """Uprights with a short arm, a "writing" whose ink has a known place: more at the left, none on the right tenth."""
    line = np.full((height, width), paper, np.uint8)
    for k, x in enumerate(range(width // 20, width * 9 // 10, width // 32)):
        line[height // 4 : height * 3 // 4, x : x + max(2, width // 160)] = ink
        line[height // 2 : height // 2 + 3, x : x + (k % 3 + 1) * width // 160] = ink
    return line


REFERENCE = prepare_pixels(drawn())


def same_writing(prepared, reference=REFERENCE, share=0.03):
    """Whether the ink is where it should be, but for the edges of the strokes."""
    pixels = undo(prepared) if isinstance(prepared, torch.Tensor) else prepared
    return pixels.shape == reference.shape and np.mean((pixels < 128) != (reference < 128)) < share


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_the_result_is_a_float_tensor_with_paper_at_one():
    line = prepare(drawn())
    assert line.shape == (1, 128, 1280)
    assert line.dtype == torch.float32
    assert line.min() == -1
    assert line.max() == 1
    assert line.median() == 1
    assert 0.05 < (line < 0).float().mean() < 0.3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_every_mode_gives_the_same_line(mode):
    image = Image.fromarray(drawn())
    if mode in ("PA", "YCbCr", "HSV"):
        image = image.convert("RGB")
    assert same_writing(prepare(image.convert(mode, dither=Image.Dither.NONE)))


@pytest.mark.parametrize("mode", ["LAB", "La"])
def test_an_exotic_mode_is_read_or_refused_by_name(mode):
    try:
        prepare(Image.new(mode, (200, 40)))
    except ImageError as error:
        assert mode in str(error)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits(kind):
    image = Image.fromarray(drawn().astype(np.uint16) * 257)
    assert image.mode == "I;16"
    assert same_writing(prepare(image))
    assert same_writing(prepare(encoded(image, kind)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_every_usual_file_from_path_and_from_bytes(tmp_path, kind):
    data = encoded(Image.fromarray(drawn()), kind)
    path = tmp_path / "line"
    path.write_bytes(data)
    for source in (data, bytearray(data), path, str(path)):
        assert same_writing(prepare(source))


@pytest.mark.parametrize(
    "array",
    [
        drawn(),
        drawn()[:, :, None],
        np.stack([drawn()] * 3, axis=2),
        np.dstack([drawn(), np.full_like(drawn(), 255)]),
        np.dstack([drawn()] * 3 + [np.full_like(drawn(), 255)]),
        drawn().astype(np.int64),
        drawn().astype(np.uint16) * 257,
        drawn().astype(np.float32),
        drawn().astype(np.float64) / 255,
        np.stack([drawn() / 255] * 3, axis=2),
        drawn() > 128,
        np.asfortranarray(drawn()),
        drawn()[::-1][::-1],
    ],
    ids=lambda a: f"{a.dtype}-{'x'.join(map(str, a.shape))}",
)
def test_every_kind_of_array(array):
    before = array.copy()
    assert same_writing(prepare(array))
    assert np.array_equal(array, before)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = Image.fromarray(drawn())
    turned = {  # how a camera stores it so that the orientation brings it back
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turned[orientation]) if orientation in turned else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert same_writing(prepare(encoded(stored, "JPEG", exif=exif, quality=95)))


def test_alpha_is_laid_over_white_paper():
    ink = (255 - drawn()).astype(np.float32)
    alpha = (ink > 128).astype(np.uint8) * 255
    black = np.zeros((*alpha.shape, 3), np.uint8)  # what is transparent is black: a naive conversion gives all ink
    rgba = Image.fromarray(np.dstack([black, alpha]))
    assert same_writing(prepare(rgba))
    assert same_writing(prepare(rgba.convert("LA")))
    palette = Image.fromarray((alpha == 0).astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0] * 2)
    assert same_writing(prepare(encoded(palette, transparency=1)))


def test_white_on_black_is_turned_round():
    assert same_writing(prepare(255 - drawn()))
    assert same_writing(prepare(255 - drawn(paper=255, ink=0)), prepare_pixels(drawn(paper=255, ink=0)))


@pytest.mark.parametrize("negative", [False, True], ids=["dark on light", "light on dark"])
@pytest.mark.parametrize("dark", [0.35, 0.5, 0.7])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.6, 0.8])
def test_a_shadow_over_part_of_the_line_vanishes(share, dark, negative):
    photo = drawn().astype(np.float32)
    photo[:, : int(share * photo.shape[1])] *= dark
    assert same_writing(prepare(255 - photo if negative else photo), share=0.05)


def test_light_that_falls_off_vanishes():
    photo = drawn() * np.linspace(1, 0.3, 640)[None] * np.linspace(1, 0.8, 64)[:, None]
    pixels = prepare_pixels(photo)
    assert same_writing(pixels, share=0.05)
    assert np.mean(pixels[REFERENCE == 255] > 240) > 0.97


def test_weak_contrast_is_stretched_and_blank_paper_stays_blank():
    assert same_writing(prepare(drawn(paper=200, ink=150)))
    noise = np.random.default_rng(0).normal(220, 2, (64, 640))
    for blank in (noise, np.full((64, 640), 255), np.zeros((64, 640), np.uint8), np.full((64, 640), 128, np.uint8)):
        assert (prepare_pixels(blank) == 255).all()


@pytest.mark.parametrize(("height", "width"), [(20, 300), (64, 300), (128, 300), (377, 2260), (1, 50), (1, 1), (3, 3)])
def test_height_is_128_and_the_proportions_are_kept(height, width):
    noise = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    assert prepare(noise).shape == (1, 128, round(width * 128 / height))
    assert prepare(noise, height=64).shape == (1, 64, round(width * 64 / height))
    assert prepare(noise, width_divisor=2.0).shape == (1, 128, max(8, round(width * 128 / height / 2)))


def test_preparing_twice_changes_little():
    assert same_writing(prepare(REFERENCE), share=0.01)


def test_undo_gives_back_the_pixels():
    line = prepare(drawn())
    assert np.array_equal(undo(line), REFERENCE)
    assert np.array_equal(undo(line[0]), REFERENCE)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "empty"),
        (b"no image at all", "no image"),
        (np.zeros((0, 10)), "no pixels"),
        (np.zeros((10, 0, 3)), "no pixels"),
        (Image.new("L", (10, 0)), "no pixels"),
        (np.zeros(10), "shape"),
        (np.zeros((4, 10, 5)), "shape"),
        (np.zeros((2, 2, 10, 3)), "shape"),
        (np.full((10, 20), np.nan), "not finite"),
        (np.where(np.arange(200).reshape(10, 20) == 3, np.inf, 1), "not finite"),
        (np.full((10, 20), -1), "-1 to"),
        (np.full((10, 20), 70_000), "70000"),
        (np.full((10, 20), "a"), "holds"),
        (np.full((10, 20), 1j), "holds"),
        (np.zeros((10, 1001), np.uint8), "100 times"),
        (Image.new("L", (5000, 20)), "100 times"),
        (np.zeros((300, 200), np.uint8), "taller than wide"),
        (Image.new("RGB", (2480, 3508)), "page"),
        (None, "NoneType"),
        (torch.ones(1, 128, 200), "Tensor"),
        ([[1, 2], [3, 4]], "list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_line_is_refused_with_the_reason(image, reason):
    with pytest.raises(ImageError, match=reason):
        prepare(image)


def test_the_file_is_named_and_a_missing_one_is_a_missing_one(tmp_path):
    for name, data, reason in (("empty.png", b"", "empty"), ("letter.png", b"Dear Sir", "no image")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=rf"{name}.*{reason}"):
            prepare(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        prepare(tmp_path / "none.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL says what is damaged; the error does as well
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_truncated_file_is_refused_wherever_it_was_cut(kind):
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 80), np.uint8)), kind)
    for kept in np.linspace(1, len(data) * 0.9, 25).astype(int):
        with pytest.raises(ImageError):
            prepare(data[:kept])


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL says what is damaged; the error does as well
def test_a_damaged_file_is_read_or_refused_but_never_fails_otherwise():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"):
        whole = np.frombuffer(encoded(Image.fromarray(drawn(16, 80)), kind), np.uint8)
        for _ in range(30):
            data = whole.copy()
            data[rng.integers(0, min(len(data), 300), 3)] = rng.integers(0, 256, 3)
            with contextlib.suppress(ImageError):
                assert prepare(data.tobytes()).shape[1] == 128


def test_far_too_many_pixels_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="too many pixels"):
        prepare(encoded(Image.fromarray(drawn())))


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"%PDF-1.7\n%abc", "PDF: save the page as PNG"),
        (b"\x00\x00\x00\x24ftypheic\x00\x00\x00\x00mif1", "HEIC.*Most Compatible"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00", "HEIC"),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1miaf", "AVIF"),
        (b"\xc5\xd0\xd3\xc6\x20\x00\x00\x00", "EPS"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<!DOCTYPE svg>\n<SVG width='3'>", "SVG"),
        (b"<html><body>no drawing</body></html>", "no image"),
        (b"<" * 5000, "no image"),
    ],
)
def test_what_people_send_instead_of_an_image_is_called_by_its_name(start, reason):
    with pytest.raises(ImageError, match=reason):
        prepare(start)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_page_is_the_same_grey_in_bytes(mode):
    image = (
        Image.fromarray(drawn().astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(drawn()).convert(mode)
    )
    page = load_page(image)
    assert page.dtype == np.uint8
    assert np.abs(page - load_grey(image)).max() <= 0.5


def test_a_colour_jpeg_is_decoded_to_the_same_grey():
    colours = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    data = encoded(Image.fromarray(cv2.GaussianBlur(colours, (0, 0), 3)), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert np.abs(load_grey(data) - np.asarray(image.convert("L"), np.float32)).max() <= 3


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 200 40\n%%EndComments\n{} loop\n%%EOF\n"


def test_a_program_named_as_a_picture_is_refused_and_never_run(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments: ran.append(arguments))
    path = tmp_path / "a.png"
    path.write_bytes(EPS)
    opened = Image.open(path, formats=["EPS"])  # the caller's own doing; to load it would run it
    for source in (path, EPS, opened):
        with pytest.raises(ImageError, match=r"EPS.*export it as PNG"):
            prepare(source)
    with pytest.raises(ImageError, match=r"a\.png.*EPS"):
        open_image(EPS, "a.png")
    assert not ran


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "JPEG2000", "PCX", "SGI"])
def test_no_other_decoder_sees_a_file(kind):
    data = encoded(Image.fromarray(drawn()).convert("RGB"), kind)
    with pytest.raises(ImageError, match="no image that can be read"):
        prepare(data)


def test_heif_is_read_where_its_package_is_installed(monkeypatch):
    registered = []
    package = types.ModuleType("pillow_heif")
    package.register_heif_opener = lambda: registered.append(True)
    find = image_files.importlib.util.find_spec
    image_files._formats.cache_clear()
    monkeypatch.setattr(image_files.importlib.util, "find_spec", lambda name: name == "pillow_heif" or find(name))
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    assert "HEIF" in image_files._formats() and registered
    image_files._formats.cache_clear()


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    for load in (prepare, load_page, lambda image: next(load_pages(image))):
        with pytest.raises(ImageError, match=r"a\.png is a folder, a pipe or a device"):
            load(path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.png"
    with open(path, "wb") as file:
        file.truncate(500_000_001)  # takes no room on the disk
    with pytest.raises(ImageError, match=r"a\.png has 500 MB"):
        load_page(path)


@pytest.mark.parametrize("load", [prepare, load_page])
def test_sides_that_opencv_does_not_take_are_refused_with_the_size(load):
    for source in (np.zeros((10, 40_000), np.uint8), encoded(Image.new("L", (40_000, 10)))):
        with pytest.raises(ImageError, match="40000 x 10"):
            load(source)


def tiff(*tags, pixels=bytes(64 * 16)):
    """A grey TIFF of 64 x 16 px with these tags (number, type, count, value) beside or instead of the usual."""
    usual = {256: (3, 1, 64), 257: (3, 1, 16), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8)}
    entries = {**usual, 277: (3, 1, 1), 278: (3, 1, 16), 279: (4, 1, len(pixels)), **{t[0]: t[1:] for t in tags}}
    ifd = b"".join(struct.pack("<HHII", number, *entries[number]) for number in sorted(entries))
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(entries)) + ifd + bytes(4)


def test_the_tiff_of_these_tests_is_whole():
    assert load_page(tiff()).shape == (16, 64)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "tag",
    [
        (259, 3, 1, 4711),  # no such compression
        (258, 2, 1, 65),  # bits a sample: a text
        (256, 2, 1, 65),  # the width: a text
        (256, 5, 1, 4),  # a fraction with the denominator 0
        (257, 12, 1, 4),
        (273, 2, 4, 0x41414141),  # where the pixels are
        (278, 3, 1, 0),
        (317, 3, 1, 99),
    ],
    ids=lambda tag: "-".join(map(str, tag)),
)
def test_a_tiff_with_a_broken_tag_is_read_or_refused_by_name(tmp_path, tag):
    path = tmp_path / "broken.tif"
    path.write_bytes(tiff(tag))
    try:
        assert load_page(path).shape == (16, 64)
    except ImageError as error:
        assert "broken.tif" in str(error)


def test_a_small_picture_in_a_huge_tile_is_refused_before_it_is_decoded():
    side = 40_000
    data = zlib.compress(bytes(1000))
    tags = (259, 3, 1, 8), (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 8), (325, 4, 1, len(data))
    with pytest.raises(ImageError, match=r"a tile of the bytes.*40000 x 40000"):
        load_page(tiff(*tags, pixels=data))


def exif(kind, count, value):
    """EXIF data whose orientation is of this TIFF type."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, kind, count, value, 0)


@pytest.mark.parametrize(
    "data",
    [
        exif(2, 4, 0x41414141),
        exif(3, 2, 0x10001),
        exif(5, 1, 2**31),
        exif(12, 1, 9),
        exif(7, 2**31, 1),
        b"Exif\0\0junk",
    ],
    ids=["text", "two numbers", "fraction", "double", "far too many", "junk"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_data_spoil_no_good_picture(data):
    assert same_writing(prepare(encoded(Image.fromarray(drawn()), "JPEG", exif=data, quality=95)))


def test_exif_data_that_cannot_be_read_are_said(monkeypatch):
    def fail(*_):
        raise struct.error("unpack requires a buffer")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.warns(UserWarning, match="the bytes: the EXIF data are broken"):
        assert same_writing(prepare(encoded(Image.fromarray(drawn()), "BMP")))


@pytest.mark.parametrize("error", [struct.error("a"), TypeError("b"), RuntimeError("c"), MemoryError(), KeyError(5)])
def test_whatever_a_decoder_raises_is_an_image_error_that_names_the_file(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(drawn())))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    for load in (prepare, load_page, lambda path: open_image(path.read_bytes(), "a.png")):
        with pytest.raises(ImageError, match=rf"a\.png cannot be decoded \({type(error).__name__}"):
            load(path)


def three_pages(**options):
    shades = [Image.new("L", (60, 40), level) for level in (10, 20, 30)]
    return encoded(shades[0], "TIFF", save_all=True, append_images=shades[1:], **options)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_every_page_of_a_tiff_is_read(tmp_path, compression):
    path = tmp_path / "pages.tif"
    path.write_bytes(three_pages(compression=compression))
    with Image.open(path) as opened:
        for source in (path, path.read_bytes(), opened):
            pages = list(load_pages(source))
            assert [page.shape for page in pages] == [(40, 60)] * 3
            assert [round(page.mean()) for page in pages] == [10, 20, 30]
            assert all(page.dtype == np.uint8 for page in pages)


def test_no_page_is_dropped_silently(tmp_path):
    path = tmp_path / "pages.tif"
    path.write_bytes(three_pages())
    for load in (prepare, load_page, lambda path: open_image(path.read_bytes(), path.name)):
        with pytest.raises(ImageError, match=r"pages\.tif has 3 pages.*load_pages"):
            load(path)


def test_a_broken_page_is_named_and_those_before_it_are_read():
    data = bytearray(three_pages())
    last = data.rindex(struct.pack("<HHI", 256, 4, 1))
    data[last] ^= 1  # no width any more
    pages = load_pages(bytes(data))
    assert [round(next(pages).mean()) for _ in range(2)] == [10, 20]
    with pytest.raises(ImageError, match="the bytes, page 3"):
        next(pages)


def test_a_smaller_copy_in_a_tiff_is_no_page():
    small = Image.new("L", (6, 4), 10)
    small.encoderinfo = {"tiffinfo": {254: 1}}
    data = encoded(Image.new("L", (60, 40), 10), "TIFF", save_all=True, append_images=[small])
    assert [page.shape for page in load_pages(data)] == [(40, 60)]
    assert load_page(data).shape == (40, 60)


def test_pages_without_end_are_refused(monkeypatch):
    monkeypatch.setattr(image_files, "MOST_PAGES", 2)
    with pytest.raises(ImageError, match="more than 2 pages"):
        list(load_pages(three_pages()))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("L", (60, 40), level).convert("RGB") for level in (0, 255)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert [round(page.mean()) for page in load_pages(data)] == [0]
    assert round(load_page(data).mean()) == 0


def test_pages_of_anything_else_are_one():
    array = drawn()
    for source in (array, Image.fromarray(array), encoded(Image.fromarray(array))):
        assert [np.array_equal(page, array) for page in load_pages(source)] == [True]


def test_open_image_gives_the_picture_loaded_and_upright():
    colours = np.random.default_rng(0).integers(0, 256, (8, 20, 3), np.uint8)
    turn = Image.Exif()
    turn[0x0112] = 6
    image = open_image(encoded(Image.fromarray(colours), exif=turn), "row 3")
    assert np.array_equal(np.asarray(image), np.rot90(colours, -1))
    assert load_page(image).shape == (20, 8)  # not turned twice
    with pytest.raises(ImageError, match=r"row 3.*empty"):
        open_image(b"", "row 3")
