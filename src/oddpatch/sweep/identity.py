"""What a job is called, and when a finished one need not run again: config, code and data are what they were."""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

import oddpatch
from oddpatch.hydra_entry.overrides import ALL

#: Settings that say how a sweep goes on, not what a job computes.
NOT_THE_JOBS = ("hydra", "resume")


class Identity(NamedTuple):
    """What decides a job's result."""

    config: str
    code: str
    data: str | None  # None: there is nothing to compare, so the job is never taken for finished

    def change_from(self, other: "Identity") -> str | None:
        """Why a job of identity `other` cannot stand for this one; None if it can."""
        for name, ours, theirs in zip(self._fields, self, other, strict=True):
            if ours is None:
                return f"its {name} cannot be compared"
            if ours != theirs:
                return f"the {name} has changed"
        return None


def identify(cfg: DictConfig) -> Identity:
    """The identity of the job that runs with `cfg`."""
    return Identity(config_hash(cfg), code_hash(), _data_of(cfg))


def _data_of(cfg: DictConfig) -> str | None:
    """A hash of the category's files and of what else the data's settings name, such as a split or a mask."""
    data: Any = OmegaConf.to_container(cfg.data, resolve=True)
    if data.get("root") is None or data.get("category") is None:
        return None
    root, asked = Path(data["root"]), data["category"]
    # Of `all` that is no folder of this name, the root holds all there is.
    names = [""] if asked == ALL and not (root / ALL).is_dir() else asked if isinstance(asked, list) else [asked]
    found = [data_fingerprint(root / str(name)) for name in names]
    category = found[0] if len(found) == 1 else None if None in found else "\n".join(map(str, found))
    named = [Path(text) for key, text in _texts(data) if key not in ("root", "category", "_target_")]
    others = [data_fingerprint(path) for path in named if path.exists()]
    return category and hashlib.sha256("\n".join([category, *map(str, others)]).encode()).hexdigest()


def _texts(settings: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from _texts(value, str(name))
    elif isinstance(settings, str):
        yield key, settings


def config_hash(cfg: DictConfig) -> str:
    """A hash of every setting of a job; interpolations count as they are written."""
    settings: Any = OmegaConf.to_container(cfg, resolve=False)
    settings = {key: value for key, value in settings.items() if key not in NOT_THE_JOBS}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


@cache
def code_hash() -> str:
    """A hash of the package's source. It sees uncommitted changes, and none of other packages."""
    package = Path(oddpatch.__file__).parent
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(f"\0{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return found.hexdigest()


def data_fingerprint(path: Path) -> str | None:
    """A hash of names, sizes and times of change of a file, or of all below a folder; None if there is none."""
    if not path.exists():
        return None
    files = _files(path) if path.is_dir() else [(path, path.stat())]
    rows = sorted(f"{file.relative_to(path).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}" for file, stat in files)
    return hashlib.sha256(os.fsencode("\n".join(rows))).hexdigest()


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    from oddpatch.data.walk import walk  # loads torch

    for path in walk(folder, all_files=True).files:
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path, path.stat()
