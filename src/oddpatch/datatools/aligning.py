"""A copy of a category with every image moved onto a reference, masks with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from oddpatch.data.alignment import Alignment, Registration
from oddpatch.data.dataset import read_mask_of
from oddpatch.data.decoding import read_image
from oddpatch.data.layout import Sample, scan
from oddpatch.data.pairing import MASK_SUFFIX
from oddpatch.datatools.writing import Output, Progress, check_targets, make_dataset, png
from oddpatch.errors import DataError
from oddpatch.pool import run_many
from oddpatch.wording import counted

_WORTH_A_WORKER = 20  # images; registering one costs some tenths of a second


@dataclass(frozen=True)
class Placed:
    """One image and where it lies on the reference."""

    sample: Sample
    split: str
    registration: Registration
    size: tuple[int, int]  # (height, width) of the image

    @property
    def shift(self) -> float:
        """By how many pixels the middle of the image moves."""
        middle = np.array([(self.size[1] - 1) / 2, (self.size[0] - 1) / 2, 1.0])
        moved = self.registration.matrix @ middle
        return float(np.linalg.norm((moved / moved[2] - middle)[:2]))

    @property
    def turn(self) -> float:
        """By how many degrees the image turns."""
        return float(np.degrees(np.arctan2(self.registration.matrix[1, 0], self.registration.matrix[0, 0])))


def place_images(
    category: Path, alignment: Alignment, workers: int | None = None, progress: Progress | None = None
) -> list[Placed]:
    """Where every image of a category lies on the reference, whatever the quality.

    Raises:
        DataError: the category or an image cannot be read.
    """
    found = scan(category.parent, category.name)
    samples = [("train", sample) for sample in found.train] + [("test", sample) for sample in found.test]
    return run_many(partial(_place, alignment), samples, _WORTH_A_WORKER, workers, progress)


def _place(alignment: Alignment, item: tuple[str, Sample]) -> Placed:
    split, sample = item
    image = read_image(sample.path)  # (3, H, W)
    try:
        return Placed(sample, split, alignment.measure(image), (image.shape[1], image.shape[2]))
    except DataError as error:
        raise DataError(f"{sample.path}: {error}") from None


def require_quality(placed: Sequence[Placed], min_quality: float) -> None:
    """See that every image registers.

    Raises:
        DataError: one does not; it names the worst.
    """
    bad = sorted((p for p in placed if p.registration.quality < min_quality), key=lambda p: p.registration.quality)
    if bad:
        raise DataError(
            f"{bad[0].sample.path}: registers with quality {bad[0].registration.quality:.2f}, below {min_quality:g} "
            f"({len(bad)} of {counted(len(placed), 'image')}): leave them out with --skip, choose another "
            "--reference or --method, or lower --min-quality"
        )


def write_aligned(
    placed: Sequence[Placed], alignment: Alignment, category: Path, target: Path, reference: Path, *,
    force: bool = False, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Write the images moved onto the reference, as PNG of 8 or 16 bits like the originals, and their masks.

    Raises:
        DataError: two images of one name, `target` is not empty, or a mask has another size than its image.
    """
    outputs, files = [], []
    for item in placed:
        kind, stem = item.sample.defect_type, item.sample.path.stem
        path = Path(item.split, kind, f"{stem}.png")
        outputs.append(Output(path, item.sample.path, partial(_image, alignment, item)))
        if item.sample.mask_path:
            mask = Path("ground_truth", kind, f"{stem}{MASK_SUFFIX}.png")
            outputs.append(Output(mask, item.sample.mask_path, partial(_mask, alignment, item)))
        source = item.sample.path.relative_to(category).as_posix()
        found = {"quality": item.registration.quality, "matrix": item.registration.matrix.tolist()}
        files.append({"path": path.as_posix(), "source": source, **found})
    check_targets(outputs, force=True)
    settings = {"reference": str(reference), "method": alignment.method, "min_quality": alignment.min_quality}
    make_dataset(target, outputs, {"tool": "align", **settings, "files": files}, force=force, progress=progress)


def _image(alignment: Alignment, item: Placed) -> bytes:
    image = read_image(item.sample.path)  # (3, H, W)
    moved = torch.from_numpy(alignment.warp(image, item.registration))
    return _encode(moved, grey=_is_grey(image), deep=_is_deep(image))


def _mask(alignment: Alignment, item: Placed) -> bytes:
    mask = read_mask_of(item.sample, item.size)  # (H, W)
    assert mask is not None
    return png(alignment.warp_mask(mask, item.registration) > 0)


def _is_grey(image: Tensor) -> bool:
    return bool((image[0] == image[1]).all() and (image[0] == image[2]).all())


def _is_deep(image: Tensor) -> bool:
    """Whether values lie between those of 8 bits."""
    return bool(((image * 255).round() / 255 - image).abs().max() > 1e-6)


def _encode(image: Tensor, grey: bool, deep: bool) -> bytes:
    import cv2

    scale, kind = (65535, np.uint16) if deep else (255, np.uint8)
    array = (image.double() * scale).round().clamp(0, scale).permute(1, 2, 0).numpy().astype(kind)  # (H, W, 3)
    return bytes(cv2.imencode(".png", np.ascontiguousarray(array[..., 0] if grey else array[..., ::-1]))[1])
