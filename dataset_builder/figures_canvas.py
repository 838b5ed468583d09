"""A canvas for charts and contact sheets: PIL at two pixels a point, with the font that PIL carries.

No plotting library, no system font, no clock: the same calls give the same bytes. The font has ASCII only, so other
letters are spelt out (``ascii_of``) and exponents are raised by hand: ``10^9 nm^3``.
"""

from __future__ import annotations

import io
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.schema import Organelle

Colour = tuple[int, int, int]

DENSITY = 2  # pixels a point
WIDTH = 820  # points; a card is about as wide
INK, SOFT, RULE, PAPER, BAND = (24, 28, 36), (92, 100, 112), (208, 213, 220), (255, 255, 255), (244, 246, 248)
# Okabe and Ito (2008): apart for every common kind of colour blindness
ORGANELLE_COLOUR = {
    Organelle.MITO: (213, 94, 0),
    Organelle.NUCLEUS: (0, 114, 178),
    Organelle.ER: (0, 158, 115),
    Organelle.ENDO: (204, 121, 167),
    Organelle.GOLGI: (230, 159, 0),
}
ORGANELLE_TITLE = {
    Organelle.MITO: "mitochondria",
    Organelle.NUCLEUS: "nucleus",
    Organelle.ER: "ER",
    Organelle.ENDO: "endosomes",
    Organelle.GOLGI: "Golgi",
}
FOLD_COLOUR = {  # (fold, domain) of rows
    ("train", "in"): (0, 114, 178),
    ("validation", "in"): (138, 200, 238),
    ("test", "in"): (240, 190, 70),
    ("test", "out"): (196, 70, 0),
}
FOLD_TITLE = {
    ("train", "in"): "train",
    ("validation", "in"): "validation",
    ("test", "in"): "test, specimen also trains (in)",
    ("test", "out"): "test, specimen held out (out)",
}


class Canvas:
    """A white sheet; positions and lengths are points from its upper left corner."""

    def __init__(self, width: float, height: float):
        from PIL import Image, ImageDraw

        self.picture = Image.new("RGB", (round(width * DENSITY), round(height * DENSITY)), PAPER)
        self._draw = ImageDraw.Draw(self.picture)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 11,
        colour: Colour = INK,
        anchor: str = "lm",
        strong: bool = False,
    ) -> None:
        """Write one line; ``anchor`` is horizontal ``l m r``, then vertical ``a m s`` (PIL)."""
        pieces = re.split(r"\^(-?\w+)", ascii_of(text))  # text, exponent, text, ...
        fonts = [_font(size * (0.72 if place % 2 else 1)) for place in range(len(pieces))]
        widths = [font.getlength(piece) for font, piece in zip(fonts, pieces, strict=True)]
        left = x * DENSITY - sum(widths) * {"l": 0, "m": 0.5, "r": 1}[anchor[0]]
        for place, (piece, font, width) in enumerate(zip(pieces, fonts, widths, strict=True)):
            if piece:
                raised = size * DENSITY * 0.34 if place % 2 else 0
                self._draw.text(
                    (left, y * DENSITY - raised), piece, colour, font, f"l{anchor[1]}", stroke_width=0.35 * strong
                )
            left += width

    def box(self, x: float, y: float, width: float, height: float, fill: Colour, line: Colour | None = None) -> None:
        """Fill a rectangle."""
        if width > 0 and height > 0:
            right, lower = (max(a, b - 1) for a, b in ((_px(x), _px(x + width)), (_px(y), _px(y + height))))
            self._draw.rectangle((_px(x), _px(y), right, lower), fill, line)

    def hatch(self, x: float, y: float, width: float, height: float, colour: Colour = RULE) -> None:
        """Hatch a rectangle: not annotated."""
        from PIL import Image

        rows, columns = np.indices((_px(height), _px(width)))
        lines = ((rows + columns) % 12 < 2)[..., np.newaxis]
        self.picture.paste(
            Image.fromarray(np.where(lines, np.array(colour), np.array(BAND)).astype(np.uint8)), (_px(x), _px(y))
        )

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: Colour = RULE, width: float = 0.5) -> None:
        """Draw a line."""
        self._draw.line((_px(x0), _px(y0), _px(x1), _px(y1)), colour, max(1, _px(width)))

    def paste(self, x: float, y: float, pixels: npt.NDArray[np.uint8]) -> None:
        """Put a gray, RGB or RGBA picture at its own pixels, ``DENSITY`` a point."""
        from PIL import Image

        picture = Image.fromarray(pixels)
        mask = picture.getchannel("A") if picture.mode == "RGBA" else None
        self.picture.paste(picture.convert("RGB"), (_px(x), _px(y)), mask)

    def scale_bar(self, right: float, y: float, width: float, label: str, colour: Colour = INK) -> None:
        """Draw a bar of a known length that ends at ``right``, its length written above it."""
        self.box(right - width, y, width, 2, colour)
        self.text(right, y - 8, label, 9, colour, "rm")

    def png(self) -> bytes:
        """Encode the sheet."""
        buffer = io.BytesIO()
        self.picture.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()

    def jpeg(self) -> bytes:
        """Encode a sheet of photographs."""
        buffer = io.BytesIO()
        self.picture.save(buffer, format="JPEG", quality=88, subsampling=0, optimize=True)
        return buffer.getvalue()


def _px(points: float) -> int:
    return round(points * DENSITY)


def _font(size: float) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size * DENSITY)


def text_width(text: str, size: float = 11) -> float:
    """Points that a line takes."""
    return float(_font(size).getlength(ascii_of(text))) / DENSITY


def shortened(text: str, width: float, size: float = 11) -> str:
    """Cut a line to a width; ``..`` says so."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "..", size) > width:
        text = text[:-1]
    return text.rstrip() + ".."


def ascii_of(text: str) -> str:
    """Spell a text with ASCII: accents are dropped, Greek letters named."""
    spelt = []
    for letter in unicodedata.normalize("NFKD", text.replace("µ", "u").replace("μ", "u")):
        if letter.isascii():
            spelt.append(letter)
        elif unicodedata.combining(letter):
            continue
        elif (name := unicodedata.name(letter, "")).startswith("GREEK"):
            spelt.append(name.split(" WITH ")[0].rpartition(" ")[2].lower())
        else:
            spelt.append({"–": "-", "—": "-", "−": "-", "×": "x", "ß": "ss", "ø": "o"}.get(letter, "?"))
    return "".join(spelt)


def round_ticks(top: float, count: int = 4) -> Sequence[float]:
    """Round numbers from 0 to about ``top``: steps of 1, 2 or 5 times a power of ten."""
    step = 10 ** math.floor(math.log10(max(top, 1) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if top / (step * factor) <= count)
    step = max(1, step)
    return [step * k for k in range(int(top // step) + 1)]


def length_text(nm: float) -> str:
    """Write a length in ASCII."""
    return f"{nm / 1000:.3g} um" if nm >= 999.5 else f"{nm:.3g} nm"


def size_text(size: float, power: int) -> str:
    """Write an area (``power`` 2) or a volume (3) in nm, or um where that reads better."""
    limit = 10 ** (3 * power - 2)
    return f"{size / 10 ** (3 * power):.3g} um^{power}" if size >= limit else f"{float(f'{size:.3g}'):,.0f} nm^{power}"
