"""What settings leave to the training images: the sensor's full scale, the reference, the size that is inspected."""

from collections.abc import Sequence
from typing import NamedTuple

from oddpatch.data.headers import find_full_scale
from oddpatch.data.inspected import ENOUGH, Inspected, describe_share, inspected_share, read_sizes
from oddpatch.data.layout import Sample
from oddpatch.data.reference import Reference, choose_reference
from oddpatch.data.transforms import Preprocess


class Settled(NamedTuple):
    """What was found in the images."""

    inspected: Inspected | None  # how much of their area is inspected; None where none can be prepared
    reference: Reference | None  # None where it was given, or none is wanted
    said: list[str]
    warnings: list[str]


def settle(
    preprocess: Preprocess,
    train: Sequence[Sample],
    others: Sequence[Sample],
    *,
    full_scale: bool,
    reference: bool,
    multiple: int,
) -> Settled:
    """Settle in `preprocess` what its settings leave open, and measure how much of the images is inspected.

    Args:
        preprocess: changed in place.
        train: images to train on.
        others: images to test and validate on.
        full_scale: whether to find that of the sensor.
        reference: whether to choose the image that the others are moved onto, a good one.
        multiple: see `Preprocess.adapt`.
    """
    said, warnings, trained = [], [], [sample.path for sample in train]
    if full_scale:
        highest = find_full_scale(trained, preprocess.max_pixels)
        if highest:
            said.append(f"full scale of the sensor: {highest}, from the training images")
        preprocess.full_scale = highest or 255  # that of a deeper image is not known: one beyond is refused, not dark
    found = None
    if reference:
        good = [sample.path for sample in train if not sample.label]
        found = choose_reference(good, preprocess.full_scale, preprocess.max_pixels)
        preprocess.alignment = found.alignment
        if found.path is None:
            warnings.append(f"data.align=auto: images are not aligned, because {found.reason}")
        else:
            said.append(
                f"data.align=auto: images are moved onto {found.path}; {found.registered} of {found.probes} register "
                f"to it, quality {found.quality:.2f}, by {found.shift:.1f} pixels"
            )
    sizes = read_sizes(trained)
    preprocess.adapt(sizes, multiple)
    inspected = inspected_share(preprocess, sizes + read_sizes(sample.path for sample in others))
    if inspected is not None:
        (warnings if inspected.framed < ENOUGH else said).append(describe_share(preprocess, inspected))
        aligned = preprocess.alignment
        if aligned and preprocess.roi is None and preprocess.geometry(aligned.size).share == 1:
            warnings.append(
                "images are aligned and inspected up to the edge of the reference, so that strips which alignment "
                "moves in from outside a picture count in its score: set data.crop below data.resize, or data.roi"
            )
    return Settled(inspected, found, said, warnings)
