"""Everything that is wrong with a dataset at once: what loading would refuse, and what it would not notice."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from oddpatch.data.decoding import is_image_name, read_mask
from oddpatch.data.layout import GOOD, MASK_SUFFIX, categories, scan
from oddpatch.data.tools.fingerprints import Fingerprint, fingerprints, near_pairs, oddness, robust_z
from oddpatch.data.tools.writing import MANIFEST, Output, Progress, drafting, png, write_all, write_json
from oddpatch.errors import DataError

#: Robust z-scores above which a training image is worth a look. Good images of MVTec bottle stay below 2.7.
SUSPECT_Z, BRIGHTNESS_Z = 4.0, 6.0
_FEWEST = 20  # training images for which scores of that kind mean something


class Finding(NamedTuple):
    """One thing to look at."""

    kind: str
    path: str
    detail: str


@dataclass
class CheckReport:
    """What was found in one category."""

    category: Path
    counts: dict[str, int] = field(default_factory=dict)  # by split/type
    findings: list[Finding] = field(default_factory=list)
    dropped: set[Path] = field(default_factory=set)  # files that a mended copy leaves out
    rewritten: set[Path] = field(default_factory=set)  # masks that a mended copy writes anew


def find_categories(root: Path, category: str | None) -> list[Path]:
    """Folders to check: the category, all categories of `root`, or `root` if it is a category itself.

    Raises:
        DataError: there is none.
    """
    if category:
        if not (root / category).is_dir():
            raise DataError(f"{root / category}: no such category; there are {', '.join(categories(root)) or 'none'}")
        return [root / category]
    if (root / "train").is_dir() or (root / "test").is_dir():
        return [root if root.name else root.resolve()]
    found = [root / name for name in categories(root)]
    if not found:
        raise DataError(f"{root}: holds no category, that is no folder with train/{GOOD} in it")
    return found


def check(category: Path, workers: int | None = None, progress: Progress | None = None) -> CheckReport:
    """Look at every image and mask of a category.

    * what `layout.scan` refuses or warns about; images and masks that cannot be read
    * sizes and colour modes that differ from the majority; training images far from the rest (`SUSPECT_Z`) or far
      brighter or darker (`BRIGHTNESS_Z`)
    * masks without image and images without mask, masks of another size, empty, or with values between
    * the same picture in train and test, byte for byte or nearly; the same pixels twice in one split
    """
    report = CheckReport(category)
    images = [*_images(category / "train"), *_images(category / "test")]
    masks = _images(category / "ground_truth")
    prints = dict(zip(images, fingerprints(images, workers, progress), strict=True))
    report.counts = dict(sorted(Counter(p.parent.relative_to(category).as_posix() for p in images + masks).items()))
    _check_layout(report)
    _check_images(report, prints)
    _check_masks(report, prints, masks)
    _check_duplicates(report, prints)
    _check_train(report, {p: f for p, f in prints.items() if p.parent == category / "train" / GOOD and not f.error})
    return report


def mend(report: CheckReport, target: Path, *, force: bool = False) -> None:
    """Copy a category without what can be left out safely: unreadable files, masks without image, training images
    that are in test too, further copies of the same pixels. Masks that are not of 0 and 255 are written so, as
    loading reads them. The rest is left as it is.
    """
    base = report.category
    files = [p for p in sorted(base.rglob("*")) if p.is_file() and p not in report.dropped and p.name != MANIFEST]
    with drafting(target, force) as draft:
        outputs = [Output(draft / p.relative_to(base), p) for p in files if p not in report.rewritten]
        for path in sorted(report.rewritten - report.dropped):
            name = draft / path.relative_to(base).with_suffix(".png")
            outputs.append(Output(name, content=_rewriting(path)))
        write_all(outputs)
        left_out = sorted(p.relative_to(base).as_posix() for p in report.dropped)
        rewritten = sorted(p.relative_to(base).as_posix() for p in report.rewritten)
        write_json(draft / MANIFEST, {"tool": "check", "left_out": left_out, "rewritten": rewritten})


def _rewriting(path: Path) -> Callable[[], bytes]:
    return lambda: png(read_mask(path).numpy() > 0)


def _images(folder: Path) -> list[Path]:
    return sorted(
        Path(parent) / name
        for parent, folders, names in os.walk(folder)
        for name in names
        if is_image_name(name) and not any(part.startswith(".") for part in Path(parent).relative_to(folder).parts)
    )


def _check_layout(report: CheckReport) -> None:
    try:
        warnings = scan(report.category.parent, report.category.name).warnings
    except DataError as error:
        report.findings.append(Finding("layout", "", str(error)))
        return
    report.findings += [Finding("layout", "", warning) for warning in warnings]


def _note(report: CheckReport, kind: str, path: Path, detail: str) -> None:
    report.findings.append(Finding(kind, path.relative_to(report.category).as_posix(), detail))


def _check_images(report: CheckReport, prints: dict[Path, Fingerprint]) -> None:
    readable = {path: item for path, item in prints.items() if not item.error}
    for path in prints.keys() - readable.keys():
        _note(report, "unreadable", path, prints[path].error.removeprefix(f"{path}: "))
        report.dropped.add(path)
    if not readable:
        return
    size = Counter(item.size for item in readable.values()).most_common(1)[0][0]
    mode = Counter(item.mode for item in readable.values()).most_common(1)[0][0]
    for path, item in readable.items():
        if item.size != size:
            _note(report, "size", path, f"{item.size[1]}x{item.size[0]}, most are {size[1]}x{size[0]}")
        # A grey picture among colour ones is what a broken camera gives; a colour one among grey ones as well.
        if item.mode != mode:
            _note(report, "mode", path, f"{item.mode}, most are {mode}")


def _check_masks(report: CheckReport, prints: dict[Path, Fingerprint], masks: Sequence[Path]) -> None:
    by_type: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in prints:
        if (report.category / "test") in path.parents and path.parent.name != GOOD:
            by_type[path.parent.name][path.stem] = path
    paired: set[Path] = set()
    for path in masks:
        if path.parent.name == GOOD:
            continue
        stems = by_type.get(path.parent.name, {})
        image = stems.get(path.stem.removesuffix(MASK_SUFFIX)) or stems.get(path.stem)
        if image is None:
            _note(report, "mask", path, f"no image test/{path.parent.name}/{path.stem.removesuffix(MASK_SUFFIX)}.*")
            report.dropped.add(path)
            continue
        paired.add(image)
        _check_mask(report, path, prints[image])
        if image in report.dropped:
            report.dropped.add(path)
    if paired:
        for image in sorted(p for stems in by_type.values() for p in stems.values() if p not in paired):
            _note(report, "mask", image, "no mask: left out of the pixel metrics")


def _check_mask(report: CheckReport, path: Path, image: Fingerprint) -> None:
    from PIL import Image

    try:
        mask = read_mask(path)  # (H, W)
        with Image.open(path) as picture:
            values = np.unique(np.asarray(picture.convert("L") if picture.mode != "P" else picture))
    except (DataError, OSError) as error:
        _note(report, "unreadable", path, str(error).removeprefix(f"{path}: "))
        report.dropped.add(path)
        return
    if not image.error and tuple(mask.shape) != image.size:
        _note(report, "mask", path, f"{mask.shape[1]}x{mask.shape[0]}, its image {image.size[1]}x{image.size[0]}")
    if not mask.any():
        _note(report, "mask", path, "empty: an anomalous image without a defect pixel")
    if len(values) > 2:
        _note(report, "mask", path, f"{len(values)} values, not 2: every one above 0 counts as defect")
        report.rewritten.add(path)


def _check_duplicates(report: CheckReport, prints: dict[Path, Fingerprint]) -> None:
    train = report.category / "train"
    groups: dict[str, list[Path]] = defaultdict(list)
    for path, item in prints.items():
        if not item.error:
            groups[item.pixels].append(path)
    for group in groups.values():
        for path in group[1:]:
            leak = train in group[0].parents and train not in path.parents
            keep, drop = (path, group[0]) if leak else (group[0], path)
            _note(report, "leak" if leak else "duplicate", drop, f"same pixels as {_name(report, keep)}")
            # Of a test image in two types one label must be wrong, and which is not for a tool to say.
            if keep.parent == drop.parent or leak:
                report.dropped.add(drop)
    inside = [path for path in prints if train in path.parents and not prints[path].error]
    outside = [path for path in prints if train not in path.parents and not prints[path].error]
    for i, j, bits in near_pairs([prints[p] for p in inside], [prints[p] for p in outside]):
        if prints[inside[i]].pixels != prints[outside[j]].pixels:
            _note(
                report, "leak", inside[i], f"nearly the same as {_name(report, outside[j])} ({bits} of 256 bits differ)"
            )
            report.dropped.add(inside[i])


def _name(report: CheckReport, path: Path) -> str:
    return path.relative_to(report.category).as_posix()


def _check_train(report: CheckReport, prints: dict[Path, Fingerprint]) -> None:
    if len(prints) < _FEWEST:
        return
    paths, items = list(prints), list(prints.values())
    brightness = robust_z(np.array([item.mean for item in items]))
    odd = oddness(np.stack([item.thumbnail for item in items if item.thumbnail is not None]))
    for path, item, bright, score in zip(paths, items, brightness, odd, strict=True):
        if abs(bright) > BRIGHTNESS_Z:
            _note(report, "brightness", path, f"mean {255 * item.mean:.0f} of 255, robust z {bright:+.1f}")
        if score > SUSPECT_Z:
            _note(report, "suspect", path, f"unlike the other training images, robust z {score:.1f}: a defect?")
