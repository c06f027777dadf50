"""What puts the cache around a run: its datasets look features up, and what computes features looks at what they found.

Nothing else knows of it: a batch whose features were found has no pixels, as has any whose features are known.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor

from oddpatch.cache.features import Cached, Entry, FeatureCache, stack
from oddpatch.cache.fingerprint import fingerprint
from oddpatch.data.alignment import Registration
from oddpatch.data.datamodule import PARTS, MVTecDataModule
from oddpatch.data.dataset import DatasetWrapper, Item, MVTecDataset
from oddpatch.data.light import Light
from oddpatch.data.transforms import Placement
from oddpatch.errors import ConfigError
from oddpatch.learning.scoring import AnomalyModule, RunningTrainer
from oddpatch.types import Batch


class CachedItem(NamedTuple):
    """An item without pixels and its features, or a decoded one and where its features are to be kept."""

    item: Item
    found: Cached | None = None
    entry: Entry | None = None  # None too if the file has changed while it was read


class CachedBatch(NamedTuple):
    """A `Batch` with the features [(B, C_l, h_l, w_l)] that were found, or with where to keep them."""

    image: Tensor
    mask: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]
    path: list[str]
    features: list[Tensor] | None
    entries: list[Entry] | None


class CachedDataset(DatasetWrapper):
    """A dataset whose images are decoded only where the cache does not have the features of a whole batch."""

    def __init__(self, dataset: MVTecDataset, cache: FeatureCache) -> None:
        super().__init__(dataset)
        self.cache = cache

    def __getitems__(self, indices: Sequence[int]) -> list[CachedItem | None]:
        """The items of a batch: with their features if the cache has those of all, else with their images."""
        found: list[Cached] = []
        for index in indices:
            if (cached := self._find(index)) is None:
                # The backbone will have to run anyway, on the batch as it would be without a cache.
                return [self.dataset.attempt(index, self._decode) for index in indices]
            found.append(cached)
        known = dict(zip(indices, found, strict=True))
        return [self.dataset.attempt(index, lambda i: self._without_pixels(i, known[i])) for index in indices]

    def collate(self, items: Sequence[CachedItem | None]) -> CachedBatch:
        """Stack items, leaving out those that were skipped."""
        kept = [item for item in items if item is not None]
        found = [item.found for item in kept if item.found is not None]
        entries = [item.entry for item in kept if item.entry is not None]
        complete = bool(kept) and len(entries) == len(kept)
        batch = self.dataset.collate([item.item for item in kept])
        return CachedBatch(*batch, features=stack(found) if found else None, entries=entries if complete else None)

    def _find(self, index: int) -> Cached | None:
        try:
            return self.cache.load(self._key(index))
        except OSError:  # decoding says what is wrong with the file
            return None

    def _key(self, index: int) -> str:
        return self.cache.key(Path(self.dataset.samples[index].path).read_bytes())

    def _decode(self, index: int) -> CachedItem:
        path = self.dataset.samples[index].path
        key = self._key(index) if path.is_file() else None
        item, placement = self.dataset.decode(index)
        unchanged = key is not None and path.is_file() and key == self._key(index)
        return CachedItem(item, entry=Entry(key, _facts(placement)) if key and unchanged else None)

    def _without_pixels(self, index: int, found: Cached) -> CachedItem:
        height, width, brightness, sharpness, *registered = found.facts
        registration = None
        if registered:
            registration = Registration(np.array(registered[:9]).reshape(3, 3), registered[9])
        placement = Placement((int(height), int(width)), Light(brightness, sharpness), registration)
        return CachedItem(self.dataset.without_pixels(index, placement), found)


def _facts(placement: Placement) -> tuple[float, ...]:
    (height, width), light, registration = placement
    known = (float(height), float(width), *light)
    return known if registration is None else (*known, *registration.matrix.ravel().tolist(), registration.quality)


class CachedFeatures:
    """Feature maps of a batch: what the cache had, or what `compute` gives, which is then kept."""

    def __init__(self, compute: Callable[[Batch], list[Tensor]], cache: FeatureCache) -> None:
        self.compute, self.cache = compute, cache

    def __call__(self, batch: Batch | CachedBatch) -> list[Tensor]:
        """[(B, C_l, h_l, w_l)]."""
        assert isinstance(batch, CachedBatch), "of a loader of CachedDataset"
        if batch.features is not None:
            self.cache.found += len(batch.index)
            return batch.features
        features = self.compute(Batch(batch.image, batch.mask, batch.label, batch.index, batch.path))
        if batch.entries:
            self.cache.store(batch.entries, features)
        return features


def put_around(cache: FeatureCache, data: MVTecDataModule, module: AnomalyModule, trainer: L.Trainer) -> None:
    """Have a run look for features in `cache`, and keep there what it computes."""
    if data.wrap:
        raise ConfigError("the features of altered training images are not worth keeping: set cache=null")
    model = module.model
    if any(parameter.requires_grad for parameter in model.backbone.parameters()):
        raise ConfigError("the backbone learns too, so that its features change: set cache=null")
    cache.fingerprint = fingerprint(model, module.config["backbone"], trainer.strategy.root_device)
    cache.shapes = model.feature_shapes()
    data.wrap = dict.fromkeys(PARTS, lambda dataset: CachedDataset(dataset, cache))
    module.compute_features = CachedFeatures(module.compute_features, cache)
    # After the test, which is the last to look.
    report = LambdaCallback(teardown=lambda trainer, module, stage: cache.report() if stage == "test" else None)
    cast(RunningTrainer, trainer).callbacks.append(report)
