"""Pictures of which normal patches, in which training images, the patches of an image were compared with."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oddpatch.figures.canvas import ALARM, FAINT, Sheet
from oddpatch.files import replacing
from oddpatch.results.examples import Box, Match

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

Picture = NDArray[np.uint8]  # (H, W, 3)
NORMAL = "#1f8f3a"
MISSING = "not on this machine"
PANEL, TALLEST, CLOSE_UP, NARROWEST, MARGIN, TITLE = 2.6, 4.0, 2.6, 1.7, 0.2, 0.5  # inches
#: Pixels of an enlarged patch with its surroundings, and how many times as wide as the patch these are.
SIDE, CONTEXT = 320, 6
CAPTION_PIXELS = 16
FRAME_MILLISECONDS = 120


#: The preprocessed training image of a path, or None where it is not on this machine.
Pictures = Callable[[str], Picture | None]


def draw_explanation(image: Picture, name: str, matches: Sequence[Match], pictures: Pictures) -> Sheet:
    """A row for each patch: where it is, itself and the nearest normal patch enlarged, and where that one is."""
    width = min(PANEL, TALLEST * image.shape[1] / image.shape[0])
    height = width * image.shape[0] / image.shape[1]
    step = max(height, CLOSE_UP) + TITLE
    columns = [MARGIN]
    for wide in (width, CLOSE_UP, CLOSE_UP, width):
        columns.append(columns[-1] + max(wide, NARROWEST) + MARGIN)
    sheet = Sheet(columns[-1], len(matches) * step + MARGIN)
    for number, match in enumerate(matches, start=1):
        top = (number - 1) * step
        picture = pictures(match.train_image)
        places = [
            (left, top + TITLE, wide) for left, wide in zip(columns, (width, *[CLOSE_UP] * 2, width), strict=False)
        ]
        titles = (
            (f"{number}  distance {match.distance:.4g}", PurePath(name).name),
            ("anomalous patch", "enlarged"),
            ("nearest normal patch", "enlarged" if picture is not None else MISSING),
            ("where that is", PurePath(match.train_image).name),
        )
        for (left, _, wide), (title, subtitle) in zip(places, titles, strict=True):
            room = max(wide, NARROWEST)
            sheet.write(left, top + 0.2, title, 9, room, weight="bold")
            sheet.write(left, top + 0.38, subtitle, 7.5, room, color=FAINT)
        _show(sheet, places[0], image, match.patch, ALARM)
        sheet.picture(*places[1], CLOSE_UP, close_up(image, match.patch, ALARM))
        if picture is not None:
            sheet.picture(*places[2], CLOSE_UP, close_up(picture, match.normal, NORMAL))
        _show(sheet, places[3], _grey(image) if picture is None else picture, match.normal, NORMAL)
    return sheet


def close_up(image: Picture, box: Box, color: str, side: int = SIDE) -> Picture:
    """The surroundings of a patch (side, side, 3), `CONTEXT` times as wide as itself, with a frame around the patch.

    Alone, a patch is too small to be recognised.
    """
    from PIL import Image, ImageDraw

    height, width = image.shape[:2]
    reach = min(CONTEXT * max(box.width, box.height), height, width)
    left = min(max(box.left + box.width / 2 - reach / 2, 0), width - reach)
    top = min(max(box.top + box.height / 2 - reach / 2, 0), height - reach)
    enlarged = Image.fromarray(image).resize(
        (side, side), Image.Resampling.BICUBIC, box=(left, top, left + reach, top + reach)
    )
    scale, draw = side / reach, ImageDraw.Draw(enlarged)
    corners = [(box.left - left) * scale, (box.top - top) * scale]
    corners += [corners[0] + box.width * scale - 1, corners[1] + box.height * scale - 1]
    for widen, line in ((2, "white"), (0, color)):
        frame = [corners[0] - widen, corners[1] - widen, corners[2] + widen, corners[3] + widen]
        draw.rectangle(frame, outline=line, width=max(side // 80, 1) + (widen > 0))
    return np.asarray(enlarged)


def _show(sheet: Sheet, place: tuple[float, float, float], image: Picture, box: Box, color: str) -> None:
    left, top, width = place
    axes = sheet.panel(left, top, width, width * image.shape[0] / image.shape[1])
    axes.imshow(image)
    _outline(axes, box, color)


def _outline(axes: "Axes", box: Box, color: str) -> None:
    """A frame around a patch, and a ring that is found at a glance where the patch is small."""
    from matplotlib.patches import Circle, Rectangle

    # The pixel (0, 0) of a picture reaches from -0.5 to 0.5.
    corner = (box.left - 0.5, box.top - 0.5)
    middle = (corner[0] + box.width / 2, corner[1] + box.height / 2)
    for edge, thick in (("white", 2.6), (color, 1.4)):
        axes.add_patch(Rectangle(corner, box.width, box.height, fill=False, edgecolor=edge, linewidth=thick))
        axes.add_patch(Circle(middle, 1.6 * max(box.width, box.height), fill=False, edgecolor=edge, linewidth=thick))


def _grey(image: Picture) -> Picture:
    return np.full_like(image, 210)


def write_animation(path: Path, image: Picture, matches: Sequence[Match], pictures: Pictures) -> None:
    """Write a GIF with one frame a patch: the image with the patch, the training image with the nearest normal one."""
    from PIL import Image

    # One palette and no dithering: what stays the same between frames then takes no room in the file.
    first = next(_frames(image, matches[:1], pictures))
    for row, color in enumerate((ALARM, NORMAL)):  # of a few pixels alone they would not be in it
        first.paste(color, (0, row * CAPTION_PIXELS // 2, first.width, (row + 1) * CAPTION_PIXELS // 2))
    first = first.quantize(128)
    frames = (frame.quantize(palette=first, dither=Image.Dither.NONE) for frame in _frames(image, matches, pictures))
    first = next(frames)
    with replacing(path, "wb") as file:
        first.save(file, "GIF", save_all=True, append_images=frames, duration=FRAME_MILLISECONDS, loop=0)


def _frames(image: Picture, matches: Sequence[Match], pictures: Pictures) -> Iterator["Image"]:
    """The image and the training image, and between them the two patches enlarged, one above the other."""
    from PIL import Image, ImageDraw

    height, width = image.shape[:2]
    half = height // 2
    for number, match in enumerate(matches, start=1):
        picture = pictures(match.train_image)
        pair = [image, _grey(image) if picture is None else picture]
        frame = Image.new("RGB", (2 * width + half, height + CAPTION_PIXELS), "white")
        draw = ImageDraw.Draw(frame)
        for side, (shown, box, color) in enumerate(zip(pair, match[:2], (ALARM, NORMAL), strict=True)):
            start = side * (width + half)
            frame.paste(Image.fromarray(shown), (start, 0))
            left, top = start + box.left, box.top
            draw.rectangle((left, top, left + box.width - 1, top + box.height - 1), outline=color, width=2)
            frame.paste(Image.fromarray(close_up(shown, box, color, half)), (width, side * half))
        name = PurePath(match.train_image).name if picture is not None else MISSING
        draw.text((3, height + 2), f"{number}/{len(matches)}   distance {match.distance:.4g}", fill="black")
        draw.text((width + half + 3, height + 2), name.encode("ascii", "replace").decode(), fill="black")
        yield frame
