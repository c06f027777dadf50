"""Everything that is wrong with a dataset at once: what loading would refuse, and what it would not notice."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.data.decoding import is_image_name
from oddpatch.data.geometry import Size
from oddpatch.data.headers import find_full_scale
from oddpatch.data.inspected import inspected_share
from oddpatch.data.layout import GOOD, categories, describe_left_out, is_good, left_out_beside, scan
from oddpatch.data.masks import marks_background, read_mask
from oddpatch.data.pairing import MASK_SUFFIX
from oddpatch.data.transforms import Preprocess
from oddpatch.data.walk import LeftOut, summary, walk
from oddpatch.datatools.fingerprints import Fingerprint, fingerprint, near_pairs, oddness, robust_z, spacing
from oddpatch.datatools.shifts import Shift, shifts
from oddpatch.datatools.writing import MANIFEST, Output, join_masks, make_dataset
from oddpatch.errors import DataError
from oddpatch.pool import Progress, run_many

#: Robust z-scores above which a training image is worth a look. Good images of MVTec bottle stay below 2.7.
SUSPECT_Z, BRIGHTNESS_Z = 4.0, 6.0
_WORTH_A_WORKER = 100  # images
_FEWEST = 20  # training images for which scores of that kind mean something
#: Images nearer than both are nearly the same: a share of their contrast, and of the median distance of a training
#: image to the nearest other. One photograph moved by a pixel and saved as JPEG is at 0.4 of the latter at most.
NEAR, NEAR_SPACING = 0.1, 0.5
ALIKE = 0.015  # median distance below which training images differ by no more than noise
#: AUROC from which a simple measure tells test/good from train/good, and defects from test/good.
SHIFTED, SEPARABLE = 0.9, 0.95
LARGEST_SHARE = 0.1  # of the images of a split that a mended copy leaves out unless it is forced to


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
    dropped: set[Path] = field(default_factory=set)  # files that a repaired copy leaves out
    rewritten: set[Path] = field(default_factory=set)  # masks that a repaired copy rewrites
    inspected: str = ""  # how much of the images is seen by the ways they are usually prepared

    def name(self, path: Path) -> str:
        """A path below the category."""
        return path.relative_to(self.category).as_posix()

    def note(self, kind: str, path: Path, detail: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, self.name(path), detail))

    def drop(self, kind: str, path: Path, detail: str) -> None:
        """Add a finding about a file that a repaired copy leaves out."""
        self.note(kind, path, detail.removeprefix(f"{path}: "))
        self.dropped.add(path)

    def is_train_good(self, path: Path) -> bool:
        """Whether a file is in `train/good`, or another spelling of it."""
        return path.parent.parent == self.category / "train" and is_good(path.parent.name)


def _inspected(sizes: list[Size]) -> str:
    """How much of images of these sizes is inspected: whole, as is the default, and with the crop of the papers."""
    crop = Preprocess(256, 224, mean=[0.0] * 3, std=[1.0] * 3)
    share = inspected_share(crop, sizes)
    if share is None:
        return ""
    least = f", of one image {share.min:.1%}" if share.mean - share.min >= 5e-4 else ""
    return f"data=custom inspects all of each image, data=mvtec {share.mean:.1%} of the area (crop 224 of 256){least}"


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
    * masks without image and images without mask, masks of another size, empty, with values between, or inverted
    * the same picture in train and test, byte for byte or nearly; the same pixels twice in one split
    * brightness, focus, colour or size that tell test/good from train/good (`SHIFTED`), or the defects from test/good
      (`SEPARABLE`)

    Raises:
        DataError: there is no image to look at.
    """
    report = CheckReport(category)
    walks = {name: walk(category / name) for name in ("train", "test", "ground_truth")}
    not_walked = [item for found in walks.values() for item in found.left_out]
    left_out = _check_layout(report, left_out_beside(category) + not_walked)
    unused = {item.path for item in left_out}
    train, test, masks = ([path for path in found.files if path not in unused] for found in walks.values())
    images = train + test
    if not images:
        lines = [f"{category}: no image below train or test, so nothing was checked", *summary(left_out)]
        raise DataError("; ".join(lines))
    scales = {"train": find_full_scale(train), "test": find_full_scale(test)}
    full_scale = max(filter(None, scales.values()), default=None)
    found = run_many(partial(fingerprint, full_scale=full_scale), images, _WORTH_A_WORKER, workers, progress)
    prints = dict(zip(images, found, strict=True))
    report.counts = dict(sorted(Counter(p.parent.relative_to(category).as_posix() for p in images + masks).items()))
    if full_scale != scales["train"]:
        detail = f"values up to {full_scale}, the training images up to {scales['train'] or 255}"
        report.note("depth", category / "test", f"{detail}: set data.full_scale={full_scale}")
    readable = {path: item for path, item in prints.items() if not item.error}
    for path in (path for path in prints if path not in readable):
        report.drop("unreadable", path, prints[path].error)
    _check_images(report, readable)
    _check_masks(report, prints, masks)
    _check_duplicates(report, readable)
    report.inspected = _inspected([item.size for item in readable.values()])
    _check_train(report, {path: item for path, item in readable.items() if report.is_train_good(path)})
    _check_shifts(report, readable)
    return report


def check_share(report: CheckReport) -> None:
    """See that a mended copy would not lose much of the category.

    Raises:
        DataError: more than `LARGEST_SHARE` of the images of train, of test or of the masks would be left out.
    """
    for split in ("train", "test", "ground_truth"):
        total = sum(count for name, count in report.counts.items() if PurePath(name).parts[0] == split)
        dropped = sum(report.category / split in path.parents for path in report.dropped)
        if dropped > LARGEST_SHARE * total:
            raise DataError(
                f"{report.category / split}: a mended copy would lack {dropped} of {total} images, more than "
                f"{LARGEST_SHARE:.0%}: look at the findings (--verbose), then --force if they are right"
            )


def mend(report: CheckReport, target: Path, *, force: bool = False) -> None:
    """Copy a category without what can be left out safely: unreadable files, masks without image, training images
    that are in test too, further copies of the same pixels. Masks that are not of 0 and 255 are written so, as
    loading reads them. The rest is left as it is; links become copies.

    Args:
        force: replace an earlier copy, and leave out more than `check_share` allows.

    Raises:
        DataError: as `check_share` without `force`; no training image would be left; as `drafting`.
    """
    if not force:
        check_share(report)
    base = report.category
    files = [p for p in walk(base, all_files=True).files if p not in report.dropped and p.name != MANIFEST]
    if not any(is_image_name(path.name) and report.is_train_good(path) for path in files):
        raise DataError(f"{base / 'train' / GOOD}: no image would be left: put images of good parts there")
    outputs = [Output(path.relative_to(base), path) for path in files if path not in report.rewritten]
    outputs += [
        Output(path.relative_to(base).with_suffix(".png"), content=partial(join_masks, [path]))
        for path in sorted(report.rewritten - report.dropped)
    ]
    left_out, rewritten = (sorted(map(report.name, paths)) for paths in (report.dropped, report.rewritten))
    make_dataset(target, outputs, {"tool": "check", "left_out": left_out, "rewritten": rewritten}, force=force)


def _check_layout(report: CheckReport, left_out: Sequence[LeftOut]) -> Sequence[LeftOut]:
    """Note what loading says, and return what it leaves out: where it refuses the whole, what was left out before."""
    try:
        found = scan(report.category.parent, report.category.name)
        left_out = found.left_out
        listed = describe_left_out(left_out, report.category)
        warnings = [line for line in found.warnings if line not in listed]
    except DataError as error:
        warnings = [str(error)]
    report.findings += [Finding("layout", "", warning) for warning in warnings]
    for item in left_out:
        report.note("left-out", item.path, item.reason)
    return left_out


def _check_images(report: CheckReport, prints: dict[Path, Fingerprint]) -> None:
    # A grey picture among colour ones is what a broken camera gives; a colour one among grey ones as well.
    looks = {path: (f"{item.size[1]}x{item.size[0]}", item.mode) for path, item in prints.items()}
    usual = [Counter(values).most_common(1)[0][0] for values in zip(*looks.values(), strict=True)]
    for path, look in looks.items():
        for kind, own, most in zip(("size", "mode"), look, usual, strict=True):
            if own != most:
                report.note(kind, path, f"{own}, most are {most}")


def _check_masks(report: CheckReport, prints: dict[Path, Fingerprint], masks: Sequence[Path]) -> None:
    by_type: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in prints:
        if (report.category / "test") in path.parents and not is_good(path.parent.name):
            by_type[path.parent.name][path.stem] = path
    paired: set[Path] = set()
    for path in masks:
        if is_good(path.parent.name):
            continue
        stems = by_type.get(path.parent.name, {})
        image = stems.get(path.stem.removesuffix(MASK_SUFFIX)) or stems.get(path.stem)
        if image is None:
            stem = path.stem.removesuffix(MASK_SUFFIX)
            report.drop("mask-without-image", path, f"no image test/{path.parent.name}/{stem}.*")
            continue
        paired.add(image)
        _check_mask(report, path, prints[image])
        if image in report.dropped:
            report.dropped.add(path)
    if paired:
        for image in sorted(p for stems in by_type.values() for p in stems.values() if p not in paired):
            report.note("image-without-mask", image, "no mask: left out of the pixel metrics")


def _check_mask(report: CheckReport, path: Path, image: Fingerprint) -> None:
    from PIL import Image

    try:
        mask = read_mask(path)  # (H, W)
        with Image.open(path) as picture:
            values = np.unique(np.asarray(picture.convert("L") if picture.mode != "P" else picture))
    except (DataError, OSError) as error:
        report.drop("unreadable", path, str(error))
        return
    if not image.error and tuple(mask.shape) != image.size:
        report.note("mask-size", path, f"{mask.shape[1]}x{mask.shape[0]}, its image {image.size[1]}x{image.size[0]}")
    if not mask.any():
        report.note("mask-empty", path, "empty: an anomalous image without a defect pixel")
    inverted = marks_background(mask)
    if inverted:
        share = float(mask.float().mean())
        report.note("mask-background", path, f"marks {share:.0%} of the image as defect: inverted or not black?")
    if len(values) > 2:
        report.note("mask-values", path, f"{len(values)} values, not 2: every one above 0 counts as defect")
        if not inverted:  # what is defect there is not for a tool to say
            report.rewritten.add(path)


def _check_duplicates(report: CheckReport, prints: dict[Path, Fingerprint]) -> None:
    train = report.category / "train"

    def by_split(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
        parts: tuple[list[Path], list[Path]] = ([], [])
        for path in paths:
            parts[train not in path.parents].append(path)
        return parts

    groups: dict[str, list[Path]] = defaultdict(list)
    for path, item in prints.items():
        groups[item.pixels].append(path)
    for group in groups.values():
        inside, outside = by_split(group)
        first, *others = outside or inside
        for path in inside if outside else ():
            report.drop("leak", path, f"same pixels as {report.name(first)}")
        for path in others:
            # Of a test image in two types one label must be wrong, and which is not for a tool to say.
            note = report.drop if path.parent == first.parent else report.note
            note("duplicate", path, f"same pixels as {report.name(first)}")
    inside, outside = by_split(path for path in prints if path not in report.dropped)
    trained, tested = _thumbnails(prints[p] for p in inside), _thumbnails(prints[p] for p in outside)
    apart = spacing(trained)
    if apart < ALIKE and outside:
        detail = f"most images differ from another by {apart:.1%} of their contrast or less: frames of a video or"
        report.note(
            "alike", train / GOOD, f"{detail} pictures of one part do not test a model on parts it has not seen"
        )
    for i, j, distance in near_pairs(trained, tested, min(NEAR, NEAR_SPACING * apart)):
        if inside[i] not in report.dropped:
            detail = f"nearly {report.name(outside[j])} ({distance:.1%} of the contrast differs)"
            report.drop("leak", inside[i], detail)


def _thumbnails(items: Iterable[Fingerprint]) -> NDArray[np.float32]:
    return np.array([item.thumbnail for item in items], np.float32)


def _check_train(report: CheckReport, prints: dict[Path, Fingerprint]) -> None:
    if len(prints) < _FEWEST:
        return
    paths, items = list(prints), list(prints.values())
    brightness = robust_z(np.array([item.mean for item in items]))
    anomalous = oddness(_thumbnails(items))
    for path, item, bright, score in zip(paths, items, brightness, anomalous, strict=True):
        if abs(bright) > BRIGHTNESS_Z:
            report.note("brightness", path, f"mean {255 * item.mean:.0f} of 255, {_z(bright)}")
        if score > SUSPECT_Z:
            report.note("suspect", path, f"unlike the other training images, {_z(score)}: a defect?")


def _z(value: float) -> str:
    return f"robust z {value:+.1f}" if abs(value) < 100 else f"robust z beyond {'-' if value < 0 else '+'}100"


def _check_shifts(report: CheckReport, prints: dict[Path, Fingerprint]) -> None:
    groups: dict[str, list[Fingerprint]] = defaultdict(list)
    for path, item in prints.items():
        split = path.relative_to(report.category).parts[0]
        groups[f"{split}/{GOOD}" if is_good(path.parent.name) else split].append(item)
    train, good, defects = groups[f"train/{GOOD}"], groups[f"test/{GOOD}"], groups["test"]
    for shift in shifts(train, good, SHIFTED):
        text = "test/good is not taken like train/good, and false alarms are counted on it"
        report.note("shift", report.category / "test" / GOOD, _told_apart(shift, "train/good", "test/good", text))
    for shift in shifts(good, defects, SEPARABLE):
        text = "the test may measure how pictures were taken, not what is on them"
        report.note("shortcut", report.category / "test", _told_apart(shift, "test/good", "defects", text))


def _told_apart(shift: Shift, first: str, second: str, text: str) -> str:
    (a, b), unit = shift.medians, shift.unit
    told = f"{shift.measure} alone tells {second} from {first} with AUROC {shift.auroc:.3f}"
    return f"{told} (median {b:.4g} against {a:.4g} {unit}): {text}"
