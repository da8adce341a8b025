"""Readings as HTML: characters shaded by confidence over their line, a page with its lines boxed (chapter 7)."""

import base64
import html
import io

import numpy as np
from PIL import Image

from hwrlib.ctc import Character, Reading

SURE, DOUBTFUL = 0.9, 0.6  # characters below are underlined: dotted, then wavy
WIDEST = 1000  # pixels of a page as shown: light enough for a notebook

STYLE = """<style>
.hwr-view { line-height: 1.5; max-width: 1000px }
.hwr-view svg { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid #8888 }
.hwr-view .hwr-text { font-size: 26px; white-space: pre-wrap; margin: 8px 0; overflow-wrap: anywhere }
.hwr-view .hwr-dotted { text-decoration: underline dotted 2px }
.hwr-view .hwr-wavy { text-decoration: underline wavy 2px }
.hwr-view .hwr-small { font-size: 13px; opacity: 0.8 }
.hwr-view .hwr-box { fill: #0072b2; fill-opacity: 0.06; stroke: #0072b2 }
.hwr-view .hwr-tip { visibility: hidden }
.hwr-view g:hover > .hwr-tip, .hwr-view g:focus > .hwr-tip { visibility: visible }
.hwr-view g:hover > .hwr-box, .hwr-view g:focus > .hwr-box { fill-opacity: 0.25 }
.hwr-view table { border-collapse: collapse; color: inherit }
.hwr-view :is(th, td) { padding: 0 12px 0 0; text-align: left; white-space: pre-wrap }
.hwr-view .hwr-error { border-left: 4px solid #d55e00; padding: 4px 12px }
</style>"""


def line_html(pixels: np.ndarray, reading: Reading) -> str:
    """A line as the network sees it, what was read, and what else it might say.

    Each character is shaded by its doubt, underlined where that is large, and says its confidence under the pointer.
    Chapter 7: notebooks/07_read_your_handwriting.ipynb.

    Arguments:
        pixels: uint8 (128, W), the prepared line: :func:`hwrlib.images.prepare_pixels` with the model's width_divisor.
        reading: of that line, by a :class:`hwrlib.Recognizer`, which leaves no character in the paper that it adds.
    """
    height, width = pixels.shape
    image = f'<image width="{width}" height="{height}" href="{_data_uri(pixels, "PNG", optimize=True)}" />'
    picture = (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="The line as the network sees it">{image}{"".join(map(_mark, reading.characters))}</svg>'
    )
    if not reading.text:
        return _view(picture + '<p class="hwr-text">(nothing was read)</p>')
    text = "".join(_character(c) for c in reading.characters)
    read = f'<p class="hwr-text" role="img" aria-label="{html.escape(reading.text)}">{text}</p>'
    note = (
        f'<p class="hwr-small">Confidence of the line: {reading.confidence:.0%}. Orange and underlined is less sure: '
        f"dotted under {SURE:.0%}, wavy under {DOUBTFUL:.0%}. Point at a character for its own.</p>"
    )
    texts = ((reading.text, reading.log_probability), *reading.alternatives)
    rows = "".join(f"<tr><td>{html.escape(text)}</td><td>{score:.1f}</td></tr>" for text, score in texts)
    head = "<tr><th>The best texts, in their order</th><th>log-probability, of the image alone</th></tr>"
    others = f'<table class="hwr-small">{head}{rows}</table>' if reading.alternatives else ""
    return _view(picture + read + note + others)


def page_html(page: np.ndarray, readings: list[Reading]) -> str:
    """A page with its lines boxed; the text of the line under the pointer, or with the focus, stands above it.

    Chapter 7: notebooks/07_read_your_handwriting.ipynb.

    Arguments:
        page: uint8 (H, W), grey, as :func:`hwrlib.image_files.load_page` gives it.
        readings: of its lines, each with its ``box``.
    """
    height, width = page.shape
    letters = max(16, width // 45)  # of the text shown, in pixels of the page
    boxes = "".join(_box(reading, letters) for reading in readings)
    small = Image.fromarray(page)
    small.thumbnail((WIDEST, 4 * WIDEST))
    image = f'<image width="{width}" height="{height}" href="{_data_uri(small, "JPEG", quality=60)}" />'
    shown = min(width, WIDEST)
    room = 2 * letters  # over the first line
    picture = (
        f'<svg viewBox="0 {-room} {width} {height + room}" width="{shown}" height="{(height + room) * shown // width}" '
        f'role="group" aria-label="The page, its lines boxed">{image}{boxes}</svg>'
    )
    text = html.escape("\n".join(reading.text for reading in readings))
    return _view(f"{picture}<details><summary>The text, {len(readings)} lines</summary><pre>{text}</pre></details>")


def error_html(message: str) -> str:
    """A message that something could not be done, for all eyes and for screen readers."""
    return _view(f'<p class="hwr-error" role="alert"><b>This did not work.</b> {html.escape(message)}</p>')


def download_html(data: bytes, name: str) -> str:
    """A link that saves bytes as a file; they travel inside the link, so no server has to hold them."""
    uri = f"data:application/zip;base64,{base64.b64encode(data).decode()}"
    return f'<a download="{html.escape(name)}" href="{uri}">Save {html.escape(name)} ({len(data) / 1000:,.0f} kB)</a>'


def _view(content: str) -> str:
    return f'{STYLE}<div class="hwr-view">{content}</div>'


def _mark(character: Character) -> str:
    """The columns of a character, shaded, over the picture of its line."""
    begin, end = character.columns
    return (
        f'<rect x="{begin}" width="{end - begin}" height="100%" fill="{_shade(character)}" '
        f'stroke="#0072b2" stroke-opacity="0.5"><title>{_says(character)}</title></rect>'
    )


def _character(character: Character) -> str:
    kind = "" if character.confidence >= SURE else "hwr-dotted" if character.confidence >= DOUBTFUL else "hwr-wavy"
    look = f'class="{kind}" style="background: {_shade(character)}" title="{_says(character)}"'
    return f"<span {look}>{html.escape(character.text)}</span>"


def _says(character: Character) -> str:
    name = "space" if character.text == " " else character.text
    return html.escape(f"{name}  {character.confidence:.0%} sure")


def _shade(character: Character) -> str:
    return f"rgba(213, 94, 0, {0.6 * (1 - character.confidence):.2f})"


def _box(reading: Reading, letters: int) -> str:
    x, y, width, height = reading.box
    text = html.escape(reading.text or "(nothing was read)")
    longest = max(1, len(reading.text)) * letters * 0.55
    place = f'x="{x}" y="{y - 1.5 * letters:.0f}" width="{longest + letters:.0f}" height="{1.5 * letters:.0f}"'
    return (
        f'<g tabindex="0" role="img" aria-label="{text}"><title>{text}</title>'
        f'<rect class="hwr-box" x="{x}" y="{y}" width="{width}" height="{height}" />'
        f'<g class="hwr-tip"><rect {place} fill="#fff" stroke="#0072b2" /><text x="{x + letters / 2:.0f}" '
        f'y="{y - 0.45 * letters:.0f}" font-size="{letters}" fill="#111" textLength="{longest:.0f}" '
        f'lengthAdjust="spacingAndGlyphs">{text}</text></g></g>'
    )


def _data_uri(pixels: np.ndarray | Image.Image, kind: str, **options) -> str:
    data = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
