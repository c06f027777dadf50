"""Collect good images from a folder tree, with their structure and time stamps, so that an interrupted run goes on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from oddpatch.data.beside import iter_masks_beside
from oddpatch.data.walk import LeftOut, summary, walk
from oddpatch.datatools.writing import Progress, place, unique_key, write_manifest
from oddpatch.errors import ConfigError, DataError
from oddpatch.files import parse_json, sha256
from oddpatch.settings import require_at_least
from oddpatch.wording import counted

_COLUMNS = ("path", "source", "sha256", "bytes", "repeat_of")


@dataclass
class ExtractReport:
    """What was, or with `dry_run` would be, copied."""

    entries: list[dict[str, str | int]] = field(default_factory=list)  # as in the manifest
    copied: int = 0
    there: int = 0  # already, with the same content
    repeats: int = 0  # of another file's content
    left_out: list[LeftOut] = field(default_factory=list)  # files that are no images by their names, and the like
    manifest: Path | None = None


def extract_good(
    source: Path,
    target: Path,
    *,
    suffix: str = "",
    patterns: Sequence[str] = (),
    limit: int | None = None,
    split: float | None = None,
    seed: int = 0,
    unique: bool = False,
    manifest: Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ExtractReport:
    """Copy the images below `source` to the same places below `target` (`shutil.copy2`).

    Run again after an interruption, it leaves what is there with the same content and copies the rest.

    Args:
        suffix: put behind each stem, as in `a_solo_16.png`.
        patterns: globs on the file name or the path below `source`; any of them is enough.
        limit: take the first so many, by path.
        split: share that goes to `target/train/good`; the rest goes to `target/test/good`. Drawn with `seed`.
        unique: leave out files with the content of another; otherwise they are only marked in the manifest.
        manifest: where the hashes go; `.csv` or JSON. Default `target/extracted.json`.

    Raises:
        ConfigError: a setting cannot work.
        DataError: no image, two files of one name, or another file is in the way (replaced with `force`).
    """
    manifest = manifest or target / "extracted.json"
    _check_settings(suffix, limit, split)
    found, left_out = find(source, target, patterns)
    names = found[:limit]
    targets = plan_names(names, suffix, split, seed)
    report = ExtractReport(manifest=manifest, left_out=left_out)
    first: dict[str, str] = {}
    pending: list[tuple[Path, Path]] = []
    for done, name in enumerate(names, start=1):
        path, goal = source / name, target / targets[name]
        digest = sha256(path)
        original = first.setdefault(digest, name.as_posix())
        repeat = "" if original == name.as_posix() else original
        report.repeats += bool(repeat)
        if not (repeat and unique):
            values = (targets[name].as_posix(), name.as_posix(), digest, path.stat().st_size, repeat)
            report.entries.append(dict(zip(_COLUMNS, values, strict=True)))
            if goal.is_file() and sha256(goal) == digest:
                report.there += 1
            elif goal.exists() and not force:
                raise DataError(
                    f"{goal}: exists and differs from {path}: choose another place, or --force to replace it"
                )
            else:
                pending.append((path, goal))
        if progress is not None:
            progress(done, 2 * len(names))
    report.copied = len(pending)
    if not dry_run:
        _check_manifest(manifest, force)
        for done, (path, goal) in enumerate(pending, start=1):
            place(path, goal)
            if progress is not None:
                progress(len(names) + done, len(names) + len(pending))
        write_manifest(manifest, report.entries, tool="extract-good")
    return report


def find(source: Path, target: Path, patterns: Sequence[str]) -> tuple[list[Path], list[LeftOut]]:
    """Images below `source` that match, sorted, as relative paths, and what is no image; `target` is not looked into.

    Raises:
        DataError: there are none, or there is a mask among them.
    """
    if not source.is_dir():
        raise DataError(f"{source}: no such folder")
    inside = target.resolve() if source.resolve() in target.resolve().parents else None
    files, left_out = walk(source)
    if inside:
        files = [path for path in files if inside not in path.resolve().parents]
        left_out = [item for item in left_out if inside not in item.path.resolve().parents]
    kept = [
        path
        for path in files
        if not patterns
        or any(fnmatch(text, p) for p in patterns for text in (path.name, path.relative_to(source).as_posix()))
    ]
    if not kept:
        but = f" ({'; '.join(summary(left_out))})" if left_out else ""
        raise DataError(f"{source}: none of {counted(len(files), 'image')} matches {', '.join(patterns) or '*'}{but}")
    for mask, image in iter_masks_beside(kept):
        raise DataError(
            f"{mask} looks like the mask of {image.name} beside it and would be taken for a good part: give "
            "a --pattern that leaves masks out, or use `oddpatch data convert beside`"
        )
    names = [path.relative_to(source) for path in kept]
    return sorted(names, key=lambda name: name.as_posix()), left_out


def plan_names(names: Sequence[Path], suffix: str = "", split: float | None = None, seed: int = 0) -> dict[Path, Path]:
    """Where each file goes; different files go to different places, on every file system.

    Raises:
        DataError: two names differ only in letter case or in how a letter is composed.
    """
    chosen = set(names)
    if split is not None:
        order = np.random.default_rng(seed).permutation(len(names))[: round(split * len(names))]
        chosen = {names[i] for i in order}
    targets: dict[Path, Path] = {}
    for name in names:
        renamed = name.with_name(f"{name.stem}{suffix}{name.suffix}")
        targets[name] = renamed if split is None else Path("train" if name in chosen else "test", "good") / renamed
    # Compared over both parts, so that no split makes or hides a collision.
    counts = Counter(unique_key(name) for name in names)
    for key, count in counts.items():
        if count > 1:
            one, two = [name for name in names if unique_key(name) == key][:2]
            raise DataError(f"{one} and {two} are one file on some systems: rename one")
    return targets


def _check_settings(suffix: str, limit: int | None, split: float | None) -> None:
    if any(c in suffix for c in '/\\\0:*?"<>|'):
        raise ConfigError(f"suffix={suffix!r} cannot be part of a file name: leave separators out")
    require_at_least(1, limit=limit)
    if split is not None and not 0 < split < 1:
        raise ConfigError(f"split={split}: choose a share between 0 and 1, such as 0.8")


def _check_manifest(path: Path, force: bool) -> None:
    """A manifest of an earlier run may be replaced, any other file not."""
    if force or not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        ours = text.startswith(",".join(_COLUMNS)) or parse_json(text)["tool"] == "extract-good"
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise DataError(f"{path}: exists and is no manifest: choose another name, or --force to replace it")
