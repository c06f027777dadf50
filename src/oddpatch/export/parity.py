"""Whether an artifact gives the numbers of torch on real images: score, map and decision."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.errors import DataError, ParityError
from oddpatch.files import from_cell
from oddpatch.inference.artifact import DECISION, MAP, SCORE, ArtifactScorer
from oddpatch.inference.torch_scorer import TorchScorer
from oddpatch.results import PREDICTIONS
from oddpatch.wording import counted

Floats = NDArray[np.float64]
#: Relative difference that float32 may make.
TOLERANCE = 1e-4
#: Share of the highest of all images below which a score or a map is that of a copy: see `relative`.
COPY = 1e-3
#: Images that are compared at most, evenly spread over all there are, and how many the artifact is given at once.
MOST, BATCH = 256, 3


class Images(NamedTuple):
    """Real images of a run."""

    good: list[Path]  # held out of the fit
    tested: list[Path]

    @property
    def compared(self) -> list[Path]:
        """Those that an artifact is held to."""
        return spread([*self.good, *self.tested], MOST)


class Parity(NamedTuple):
    """How far an artifact is from torch."""

    images: int
    score: float  # largest relative difference
    map: float  # largest difference, relative to the highest value of the map; 0 without maps
    changed: list[Path]  # images that are judged otherwise
    worst: Path  # the image of the largest difference
    told: str  # its scores
    on_threshold: int  # images whose score is the threshold itself to float rounding: no decision to compare

    @property
    def agrees(self) -> bool:
        """Whether the differences are those of float rounding, and no decision changed."""
        return self.score <= TOLERANCE and self.map <= TOLERANCE and not self.changed

    def __str__(self) -> str:
        changed = counted(len(self.changed), "decision") if self.changed else "no decision"
        on = f"; {counted(self.on_threshold, 'image')} on the threshold itself" if self.on_threshold else ""
        return (
            f"on {counted(self.images, 'image')} scores differ by {self.score:.1e}, maps by {self.map:.1e} at most, "
            f"{changed} changed{on}"
        )


def real_images(run: Path, about: dict[str, Any], root: Path | None = None) -> Images:
    """The images of a run that are still there: good ones held out of the fit, and those of its test.

    Args:
        run: its folder, or its checkpoint.
        about: the checkpoint's description.
        root: folder of the categories, if it was moved.

    Raises:
        DataError: there is none.
    """
    folder = run if run.is_dir() else run.absolute().parent.parent
    known = Path(about["config"]["data"]["root"])
    tested: list[str] = []
    if (folder / PREDICTIONS).is_file():
        with (folder / PREDICTIONS).open(encoding="utf-8", newline="") as file:
            tested = [from_cell(row["path"]) for row in csv.DictReader(file) if row.get("path")]

    def find(names: Sequence[str]) -> list[Path]:
        return [path for name in names if (path := _locate(name, known, root)) is not None]

    images = Images(find(about["held_out"]), find(tested))
    if not images.compared:
        raise DataError(
            f"{run}: none of its {len(about['held_out']) + len(tested)} images is below {root or known}, and an "
            "artifact is compared with torch on real images: give the folder of the categories, --root FOLDER"
        )
    return images


def _locate(name: str, known: Path, root: Path | None) -> Path | None:
    """The file of a name: as it is, or below `root`, or seen from another folder than the one it was written in."""
    path, base = Path(name), root or known
    parts = path.relative_to(path.anchor).parts
    # Images that a run was calibrated with may lie anywhere; those that were moved do not count where they were.
    moved = root is not None and path.is_relative_to(known)
    as_it_is = [path] if path.is_relative_to(base) or (path.is_absolute() and not moved) else []
    tails = (base.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((file for file in (*as_it_is, *tails) if file.is_file()), None)


def compare(reference: TorchScorer, artifact: ArtifactScorer, paths: Sequence[Path], threshold: float | None) -> Parity:
    """Run both on files, each with its own decoding and preprocessing; torch one by one, the artifact in batches.

    Args:
        reference: the fitted model.
        artifact: what is to give the same.
        paths: of images.
        threshold: that the artifact decides by; None if it does not.

    Raises:
        ParityError: the artifact gives values that are not finite, which no difference would tell.
    """
    scores = reference.calibration
    product = scores.product_at(scores.target_fpr)
    on_threshold, changed, told = 0, [], []
    off, scale = np.zeros((2, len(paths), 2))  # of score and map of each image
    for place, path in enumerate(paths):
        if place % BATCH == 0:
            batch = artifact.run([artifact.prepare(one) for one in paths[place : place + BATCH]])
        found = {name: values[place % BATCH] for name, values in batch.items()}
        (judged,) = reference.score([reference.prepare(path)])
        expected, expected_map = judged.score, judged.anomaly_map
        if not all(np.isfinite(values).all() for values in found.values()):
            lower = artifact.metadata["precision"] != "float32"
            raise ParityError(
                f"{path}: nothing is written, as the artifact gives it a score or map that is NaN or infinite, and the "
                f"run a score of {expected:.6g}: choose {'--precision float32' if lower else 'another --format'}"
            )
        value = float(found[SCORE])
        told.append(f"score {value:.6g} instead of {expected:.6g}")
        off[place, 0], scale[place, 0] = abs(value - expected), abs(expected)
        if expected_map is not None:
            off[place, 1] = np.abs(found[MAP][0] - expected_map).max()
            scale[place, 1] = np.abs(expected_map).max()
        if threshold is not None:
            pairs = [(expected, threshold), *([] if product is None else [(judged.ratio, product.value)])]
            if any(abs(it - least) <= TOLERANCE * abs(least) for it, least in pairs):
                on_threshold += 1
            elif bool(found[DECISION]) != any(it > least for it, least in pairs):
                changed.append(path)
    share = relative(off, scale)
    worst = int(share.max(axis=1).argmax())
    score, difference = share.max(axis=0).tolist()
    return Parity(len(paths), score, difference, changed, paths[worst], told[worst], on_threshold)


def relative(off: Floats, scale: Floats) -> Floats:
    """Differences as shares of what they differ from, image by image: both (N, n).

    Those of a copy of an image that was fitted to, whose distances are 0 or nearly so, are shares of the highest of all
    images: where all patches are kept, the last digits of a float32 feature, or which of many patches that are nearly
    alike is the nearest, would else be many times the value itself.
    """
    highest = scale.max(axis=0)
    return off / np.maximum(np.where(scale < COPY * highest, highest, scale), 1e-30)


def spread(paths: Sequence[Path], most: int) -> list[Path]:
    """At most so many of them, evenly spread, each once."""
    unique = list(dict.fromkeys(paths))
    chosen = np.linspace(0, len(unique) - 1, min(most, len(unique))).round().astype(int)
    return [unique[place] for place in chosen]
