"""How a category's images are distributed: size, brightness, colour, area of the defects."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.decoding import read_image, read_mask
from oddpatch.data.layout import scan
from oddpatch.data.tools.writing import Progress
from oddpatch.files import replacing


@dataclass(frozen=True)
class ImageStats:
    """Figures of one image."""

    group: str  # split/defect type
    size: tuple[int, int]  # height, width
    colour: tuple[float, float, float]  # mean of each channel, 0..1
    contrast: float  # standard deviation of the grey values, 0..1
    defect_area: float | None  # share of the image's pixels, if there is a mask

    @property
    def brightness(self) -> float:
        """Mean of all channels, 0..1."""
        return sum(self.colour) / 3


def collect(root: Path, category: str, progress: Progress | None = None) -> list[ImageStats]:
    """Read every image and mask of a category.

    Raises:
        DataError: what `layout.scan`, `read_image` and `read_mask` raise.
    """
    found = scan(root, category)
    samples = [("train", s) for s in found.train] + [("test", s) for s in found.test]
    stats = []
    for split, sample in samples:
        image = read_image(sample.path)  # (3, H, W)
        r, g, b = image.mean(dim=(1, 2)).tolist()
        area = float(read_mask(sample.mask_path).float().mean()) if sample.mask_path else None
        contrast = float(image.mean(dim=0).std(correction=0))
        size = (image.shape[1], image.shape[2])
        stats.append(ImageStats(f"{split}/{sample.defect_type}", size, (r, g, b), contrast, area))
        if progress is not None:
            progress(len(stats), len(samples))
    return stats


def table(stats: list[ImageStats]) -> list[dict[str, object]]:
    """One row for each split and defect type; brightness, contrast and colour out of 255, areas in % of the image."""
    rows: list[dict[str, object]] = []
    for group, members in _groups(stats).items():
        sizes = sorted({f"{s.size[1]}x{s.size[0]}" for s in members})
        brightness = np.array([255 * s.brightness for s in members])
        areas = np.array([100 * s.defect_area for s in members if s.defect_area is not None])
        rows.append(
            {
                "group": group,
                "images": len(members),
                "size": sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes",
                "brightness": f"{brightness.mean():.1f} ({brightness.min():.1f}..{brightness.max():.1f})",
                "contrast": f"{255 * np.mean([s.contrast for s in members]):.1f}",
                "rgb": " ".join(f"{v:.0f}" for v in 255 * np.mean([s.colour for s in members], axis=0)),
                "masks": len(areas),
                "defect %": f"{np.median(areas):.2f} ({areas.min():.2f}..{areas.max():.2f})" if len(areas) else "",
            }
        )
    return rows


def draw(stats: list[ImageStats], path: Path) -> None:
    """Write the distributions as a picture; the format is that of the file name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    sizes, brightness, colour, areas = figure.subplots(2, 2).flat
    for group, members in _groups(stats).items():
        sizes.scatter([s.size[1] for s in members], [s.size[0] for s in members], s=12, alpha=0.6, label=group)
        brightness.hist([255 * s.brightness for s in members], bins=30, histtype="step", label=group)
        shares = np.array([100 * s.defect_area for s in members if s.defect_area])
        if len(shares):
            areas.hist(shares, bins=_log_bins(stats), histtype="step", label=group)
    for channel, name in enumerate(("red", "green", "blue")):
        colour.hist([255 * s.colour[channel] for s in stats], bins=30, histtype="step", color=name, label=name)
    sizes.set(title="image size", xlabel="width", ylabel="height")
    brightness.set(title="mean brightness", xlabel="of 255", ylabel="images")
    colour.set(title="mean colour, all images", xlabel="of 255", ylabel="images")
    areas.set(title="defect area", xlabel="% of the image", ylabel="images", xscale="log")
    for axes in (sizes, brightness, colour, areas):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    with replacing(path, "wb") as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=110)


def _log_bins(stats: list[ImageStats]) -> NDArray[np.float64]:
    areas = [100 * s.defect_area for s in stats if s.defect_area]
    return np.geomspace(0.9 * min(areas), 1.1 * max(areas), 25)


def _groups(stats: list[ImageStats]) -> dict[str, list[ImageStats]]:
    groups: dict[str, list[ImageStats]] = defaultdict(list)
    for item in stats:
        groups[item.group].append(item)
    return dict(groups)
