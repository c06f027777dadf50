"""A few images of a dataset, to see in seconds whether everything runs."""

from typing import Any

from oddpatch.data.datamodule import MVTecDataModule
from oddpatch.data.layout import Layout, Sample
from oddpatch.errors import ConfigError


class FewImages(MVTecDataModule):
    """As `MVTecDataModule`, with at most `images` of each defect type and of the good ones, evenly spread.

    Args:
        images: at least 1.
        settings: of `MVTecDataModule`.

    Raises:
        ConfigError: a setting cannot work.
    """

    def __init__(self, images: int, **settings: Any) -> None:
        super().__init__(**settings)
        if images < 1:
            raise ConfigError(f"images={images} must be at least 1")
        self.images = images

    def _scan(self) -> Layout:
        train, test, warnings = super()._scan()
        return Layout(few(train, self.images), few(test, self.images), warnings)


def few(samples: list[Sample], count: int) -> list[Sample]:
    """At most `count` of each type, evenly spread over their order, which is kept."""
    by_type: dict[str, list[int]] = {}
    for position, sample in enumerate(samples):
        by_type.setdefault(sample.defect_type, []).append(position)
    kept = {positions[i * len(positions) // count] for positions in by_type.values() for i in range(count)}
    return [samples[position] for position in sorted(kept)]
