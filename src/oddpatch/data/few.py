"""A few images of a dataset, to see in seconds whether everything runs."""

from typing import Any

from oddpatch.data.datamodule import MVTecDataModule
from oddpatch.data.layout import Layout, Sample
from oddpatch.errors import ConfigError


class FewImages(MVTecDataModule):
    """As `MVTecDataModule`, with the images evenly thinned out.

    Args:
        train_images: good images to train on, at most; at least 1.
        test_images: of each defect type, and good ones to test on, at most; at least 1.
        settings: of `MVTecDataModule`.

    Raises:
        ConfigError: a setting cannot work.

    Examples:
        >>> from oddpatch.data.few import FewImages
        >>> settings = {"root": "data", "category": "tile", "mean": [0.5] * 3, "std": [0.2] * 3, "num_workers": 0}
        >>> data = FewImages(4, 2, resize=48, **settings)
        >>> data.setup()
        >>> len(data.train_samples), len(data.test_samples)  # 2 good ones and 2 of each of two defect types
        (4, 6)
    """

    def __init__(self, train_images: int, test_images: int, **settings: Any) -> None:
        super().__init__(**settings)
        if min(train_images, test_images) < 1:
            raise ConfigError(f"train_images={train_images} and test_images={test_images} must be at least 1")
        self.train_images, self.test_images = train_images, test_images

    def _scan(self) -> Layout:
        found = super()._scan()
        test, validation = (few([*samples], self.test_images) for samples in (found.test, found.validation))
        return found._replace(train=few(found.train, self.train_images), test=test, validation=validation)


def few(samples: list[Sample], count: int) -> list[Sample]:
    """At most `count` of each type, evenly spread over their order, which is kept."""
    by_type: dict[str, list[int]] = {}
    for position, sample in enumerate(samples):
        by_type.setdefault(sample.defect_type, []).append(position)
    kept = {positions[i * len(positions) // count] for positions in by_type.values() for i in range(count)}
    return [samples[position] for position in sorted(kept)]
