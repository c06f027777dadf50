"""Pictures of which normal patches, in which training images, the patches of an image were compared with."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.files import replacing
from oddpatch.report.canvas import ALARM, FAINT, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

Picture = NDArray[np.uint8]  # (H, W, 3)
NORMAL = "#1f8f3a"
MISSING = "not on this machine"
PANEL, MARGIN, TITLE = 2.6, 0.2, 0.5  # inches
COLUMNS = 3
CAPTION_PIXELS = 16
FRAME_MILLISECONDS = 120


class Box(NamedTuple):
    """A rectangle in pixels of the preprocessed image."""

    left: float
    top: float
    width: float
    height: float


class Match(NamedTuple):
    """A patch of the image, and the nearest normal patch."""

    patch: Box
    normal: Box
    train_image: str  # path as the checkpoint knows it
    distance: float


#: The preprocessed training image of a path, or None where it is not on this machine.
Pictures = Callable[[str], Picture | None]


def draw_explanation(image: Picture, name: str, matches: Sequence[Match], pictures: Pictures) -> Sheet:
    """The image with its patches boxed and numbered, and beside it the training image of each one's nearest."""
    columns = min(len(matches), COLUMNS)
    rows = -(-len(matches) // COLUMNS)
    height = PANEL * image.shape[0] / image.shape[1]
    step = height + TITLE
    sheet = Sheet((columns + 1) * (PANEL + MARGIN) + MARGIN, rows * step + MARGIN)
    axes = _titled(sheet, (0, 0), height, PurePath(name).name, "the image, its oddest patches")
    axes.imshow(image)
    for number, match in enumerate(matches, start=1):
        _outline(axes, match.patch, ALARM, str(number))
        place = ((number - 1) % COLUMNS + 1, (number - 1) // COLUMNS)
        axes_normal = _titled(
            sheet, place, height, f"{number}  distance {match.distance:.4g}", PurePath(match.train_image).name
        )
        picture = pictures(match.train_image)
        axes_normal.imshow(_grey(image) if picture is None else picture)
        _outline(axes_normal, match.normal, NORMAL, str(number))
        if picture is None:
            axes_normal.text(0.5, 0.5, MISSING, ha="center", va="center", transform=axes_normal.transAxes, size=8)
    return sheet


def _titled(sheet: Sheet, place: tuple[int, int], height: float, title: str, subtitle: str) -> "Axes":
    left, top = MARGIN + place[0] * (PANEL + MARGIN), place[1] * (height + TITLE)
    sheet.write(left, top + 0.17, title, 9, PANEL, weight="bold")
    sheet.write(left, top + 0.36, subtitle, 7.5, PANEL, color=FAINT)
    return sheet.panel(left, top + TITLE, PANEL, height)


def _outline(axes: "Axes", box: Box, color: str, label: str) -> None:
    from matplotlib.patches import Rectangle

    # The pixel (0, 0) of a picture reaches from -0.5 to 0.5.
    corner = (box.left - 0.5, box.top - 0.5)
    axes.add_patch(Rectangle(corner, box.width, box.height, fill=False, edgecolor="white", linewidth=2.4))
    axes.add_patch(Rectangle(corner, box.width, box.height, fill=False, edgecolor=color, linewidth=1.4))
    style: dict[str, Any] = {"size": 7, "color": "white", "bbox": {"facecolor": color, "edgecolor": "none", "pad": 1.0}}
    # Beside the box, on the side where there is room.
    right = box.left + box.width / 2 < axes.get_xlim()[1] / 2
    x = box.left + box.width + 1 if right else box.left - 1
    axes.text(x, box.top, label, ha="left" if right else "right", va="top", **style)


def _grey(image: Picture) -> Picture:
    return np.full_like(image, 210)


def write_animation(path: Path, image: Picture, matches: Sequence[Match], pictures: Pictures) -> None:
    """Write a GIF with one frame a patch: the image with the patch, the training image with the nearest normal one."""
    from PIL import Image

    # One palette and no dithering: what stays the same between frames then takes no room in the file.
    first = next(_frames(image, matches[:1], pictures)).quantize(128)
    frames = (frame.quantize(palette=first, dither=Image.Dither.NONE) for frame in _frames(image, matches, pictures))
    first = next(frames)
    with replacing(path, "wb") as file:
        first.save(file, "GIF", save_all=True, append_images=frames, duration=FRAME_MILLISECONDS, loop=0)


def _frames(image: Picture, matches: Sequence[Match], pictures: Pictures) -> Iterator["Image"]:
    from PIL import Image, ImageDraw

    height, width = image.shape[:2]
    for number, match in enumerate(matches, start=1):
        picture = pictures(match.train_image)
        pair = [image, _grey(image) if picture is None else picture]
        frame = Image.new("RGB", (2 * width, height + CAPTION_PIXELS), "white")
        draw = ImageDraw.Draw(frame)
        for side, (shown, box, color) in enumerate(zip(pair, match[:2], (ALARM, NORMAL), strict=True)):
            frame.paste(Image.fromarray(shown), (side * width, 0))
            left, top = side * width + box.left, box.top
            draw.rectangle((left, top, left + box.width - 1, top + box.height - 1), outline=color, width=2)
        name = PurePath(match.train_image).name if picture is not None else MISSING
        draw.text((3, height + 2), f"{number}/{len(matches)}   distance {match.distance:.4g}", fill="black")
        draw.text((width + 3, height + 2), name.encode("ascii", "replace").decode(), fill="black")
        yield frame
