"""A sheet of SVG: text, rectangles and lines; no fonts, scripts or files from outside, same calls, same bytes."""

from __future__ import annotations

from xml.sax.saxutils import escape

INK, SOFT, RULE, PAPER, BAND = "#181c24", "#5c6470", "#d8dce2", "#ffffff", "#f4f6f8"


class Sheet:
    """Collects shapes; positions are points from the upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self._shapes = [f'<rect width="{width:g}" height="{height:g}" fill="{PAPER}"/>']

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 11,
        colour: str = INK,
        anchor: str = "start",
        strong: bool = False,
        halo: str = "",
    ) -> None:
        """Write one line on the base line ``y``; ``anchor`` is start, middle or end; ``halo``: a colour around it."""
        weight = ' font-weight="600"' if strong else ""
        weight += f' stroke="{halo}" stroke-width="3" paint-order="stroke"' if halo else ""
        self._shapes.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"{weight}>'
            f"{escape(text)}</text>"
        )

    def box(self, x: float, y: float, width: float, height: float, fill: str, opacity: float = 1.0) -> None:
        """Fill a rectangle; one without an area is left out."""
        if width > 0 and height > 0:
            faint = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
            self._shapes.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"{faint}/>'
            )

    def line(
        self, x0: float, y0: float, x1: float, y1: float, colour: str = RULE, width: float = 1.0, dashes: str = ""
    ) -> None:
        """Draw a line."""
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self._shapes.append(
            f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" '
            f'stroke-width="{width:g}"{dashed}/>'
        )

    def arrow(self, x: float, start: float, end: float, colour: str = INK) -> None:
        """Draw a vertical arrow from ``start`` to ``end``; a very short one is a line without a head."""
        self.line(x, start, x, end, colour, 1.4)
        if abs(end - start) >= 7:
            back = 5 if end < start else -5
            self._shapes.append(
                f'<path d="M{x - 3:.1f} {end + back:.1f}L{x:.1f} {end:.1f}L{x + 3:.1f} {end + back:.1f}" fill="none" '
                f'stroke="{colour}" stroke-width="1.4"/>'
            )
        for y in (start, end) if abs(end - start) < 7 else (start,):
            self.line(x - 3, y, x + 3, y, colour, 1.4)

    def svg(self, title: str) -> str:
        """Return the document."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:g}" height="{self.height:g}" '
                f'viewBox="0 0 {self.width:g} {self.height:g}" font-family="Helvetica, Arial, sans-serif" role="img">',
                f"<title>{escape(title)}</title>",
                *self._shapes,
                "</svg>\n",
            ]
        )
