"""The good image that the others are moved onto, where it is left open (`data.align=auto`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oddpatch.data.alignment import Alignment, Registration, from_image
from oddpatch.data.decoding import read_image
from oddpatch.errors import ConfigError, DataError

#: Images that are registered to each other, spread evenly over the training images.
NUM_PROBES = 8
#: Share of the others that must register to the reference.
ENOUGH = 0.75
#: Images whose corners lie this share of the longer side apart, or less, are aligned already: half a pixel of 256.
ALIGNED = 0.002


@dataclass(frozen=True)
class Reference:
    """What was found among the probes."""

    path: Path | None  # the image; None: images are not aligned, and `reason` says why
    reason: str = ""
    alignment: Alignment | None = None
    registered: int = 0  # of the other probes, onto the image
    probes: int = 0
    quality: float = 0.0  # median over those that register
    shift: float = 0.0  # median, in pixels of the reference

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "reference": None if self.path is None else str(self.path),
            "reason": self.reason or None,
            "registered": self.registered,
            "probes": self.probes,
            "quality": round(self.quality, 4),
            "shift": round(self.shift, 2),
        }


def choose_reference(paths: Sequence[Path], full_scale: int | None = None, max_pixels: int | None = None) -> Reference:
    """The image that lies in the middle of the others, or why images are better left as they are.

    `NUM_PROBES` of them are registered to each other. The reference is the one onto which most of the others register,
    and of those the one with the least mean shift: so the least of each image comes to lie outside it.
    An image that cannot be read is passed over: whoever loads it says why.

    Args:
        paths: good images, in an order that does not depend on the file system.
        full_scale: see `oddpatch.data.decoding.read_image`.
        max_pixels: likewise.
    """
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(NUM_PROBES, len(paths))).round().astype(int))
    probes: list[tuple[Path, Alignment]] = []
    for path in (paths[i] for i in chosen):
        try:
            probes.append((path, from_image(read_image(path, full_scale, max_pixels))))
        except (DataError, ConfigError):  # unreadable, or of one colour throughout
            continue
    if len(probes) < 2:
        return Reference(None, "fewer than two training images can be compared", probes=len(probes))
    found = [[target.measure_reference(source) for _, source in probes if source is not target] for _, target in probes]
    counts = [sum(r.quality >= target.min_quality for r in row) for (_, target), row in zip(probes, found, strict=True)]
    shifts = [
        [_shift(r, target) for r in row if r.quality >= target.min_quality]
        for (_, target), row in zip(probes, found, strict=True)
    ]
    best = min(range(len(probes)), key=lambda i: (-counts[i], float(np.mean(shifts[i])) if shifts[i] else 0.0))
    path, alignment = probes[best]
    others = len(probes) - 1
    kept = [r.quality for r in found[best] if r.quality >= alignment.min_quality]
    quality = float(np.median(kept)) if kept else 0.0
    shift = float(np.median(shifts[best])) if kept else 0.0
    measured: dict[str, Any] = {"registered": counts[best], "probes": others, "quality": quality, "shift": shift}
    if counts[best] < ENOUGH * others:
        reason = f"{counts[best]} of {others} training images register to the most typical one"
        return Reference(None, reason, **measured)
    if shift <= ALIGNED * max(alignment.size):
        return Reference(None, f"training images lie within {shift:.1f} pixels of each other already", **measured)
    return Reference(path, "", alignment, **measured)


def _shift(registration: Registration, target: Alignment) -> float:
    """Mean distance in pixels by which the corners of the reference's frame move."""
    height, width = target.size
    corners = np.array([[x, y, 1.0] for x in (0, width - 1) for y in (0, height - 1)]).T  # (3, 4)
    moved = registration.matrix @ corners
    return float(np.linalg.norm((moved / moved[2] - corners)[:2], axis=0).mean())
