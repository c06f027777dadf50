"""A sheet to draw on, measured in inches from its upper left corner.

Matplotlib's objects alone: no pyplot, no backend, no global setting is touched. Matplotlib is imported when something
is drawn, as it takes long to load.
"""

import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oddpatch.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

DPI = 100
MAX_BYTES = 400_000
FONT = "DejaVu Sans"  # comes with Matplotlib, so that pictures look the same everywhere
INK, FAINT, ALARM = "#1a1a1a", "#666666", "#c4161c"


class Sheet:
    """One figure; every position and size is in inches, every font size in points."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self.figure)

    def panel(self, left: float, top: float, width: float, height: float) -> "Axes":
        """Axes without ticks."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box, xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(linewidth=0.6, color="#b0b0b0")
        return axes

    def rate_axes(self, left: float, top: float, side: float, across: str, upward: str) -> "Axes":
        """Axes of two rates, each from 0 to 1."""
        axes = self.panel(left, top, side, side)
        ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
        labels = [f"{tick:g}" for tick in ticks]
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.set_xticks(ticks, labels, size=8, family=FONT)
        axes.set_yticks(ticks, labels, size=8, family=FONT)
        axes.set_xlabel(across, size=9, family=FONT, color=INK)
        axes.set_ylabel(upward, size=9, family=FONT, color=INK)
        axes.grid(True, color="#e4e4e4", linewidth=0.6, linestyle="-")
        axes.set_axisbelow(True)
        return axes

    def stroke(self, left: float, top: float, width: float, **style: Any) -> None:
        """A line as a legend shows it, `top` being its middle."""
        axes = self.panel(left, top - 0.05, width, 0.1)
        axes.plot([0, 1], [0, 0], **style)
        axes.set_axis_off()

    def warn(self, left: float, top: float, text: str) -> None:
        """Write what must not be overlooked; nothing where the text is empty."""
        self.write(left, top, text, size=9, color=ALARM, weight="bold")

    def picture(self, left: float, top: float, width: float, height: float, *layers: NDArray[Any]) -> None:
        """Show arrays (H, W, 3) or (H, W, 4) one over another in a frame; far quicker than axes."""
        from matplotlib.image import BboxImage
        from matplotlib.patches import Rectangle
        from matplotlib.transforms import Bbox, TransformedBbox

        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        within = self.figure.transFigure
        for layer in layers:
            image = BboxImage(TransformedBbox(Bbox.from_bounds(*box), within))
            image.set_data(layer)
            self.figure.add_artist(image)
        self.figure.add_artist(
            Rectangle(box[:2], *box[2:], fill=False, linewidth=0.6, edgecolor="#b0b0b0", transform=within)
        )

    def write(
        self, left: float, top: float, text: str, size: float = 8, room: float | None = None, **style: Any
    ) -> None:
        """Write one line, `top` being its middle; what does not fit into `room` inches is left out at its end."""
        room = (left if style.get("ha") == "right" else self.width - left) if room is None else room
        text = drawable(text)
        artist = self.figure.text(
            left / self.width,
            1 - top / self.height,
            text,
            **{"size": size, "family": FONT, "color": INK, "va": "center", "parse_math": False, **style},
        )
        renderer = self._canvas.get_renderer()
        while len(text) > 1 and (wide := artist.get_window_extent(renderer).width) > room * DPI:
            text = text[: max(min(int(len(text) * room * DPI / wide), len(text) - 1), 1)]
            artist.set_text(text[:-1] + "…")

    def save(self, path: Path) -> None:
        """Write `png`, whole or not at all."""
        write_whole(path, self.png())

    def png(self) -> bytes:
        """A PNG; one that would be too large for a report gets 256 colours, or fewer."""
        from PIL import Image

        self._canvas.draw()
        pixels = Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB")
        png = _encode(pixels, 4)  # half of the time of the usual 6, and 1.4 % more bytes
        for colors in (256, 64):
            if len(png) <= MAX_BYTES:
                break
            palette = pixels.quantize(colors, Image.Quantize.FASTOCTREE)
            png = _encode(pixels.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG), 6)
        return png


def _encode(pixels: "Image", level: int) -> bytes:
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def drawable(text: str) -> str:
    """The text with a question mark for each character that the font lacks (Matplotlib would warn, and draw a box)."""
    known = _characters()
    return "".join(char if ord(char) in known else "?" for char in text)


@cache
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())
