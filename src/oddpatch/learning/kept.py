"""Features of the images of one epoch, kept for the rest of the run: what is scored after the fit needs no backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from oddpatch.data.dataset import DatasetWrapper, Item, MVTecDataset
from oddpatch.ops.gallery import Spool


class KeptFeatures:
    """Feature maps by the index of their image, in files without a name: nothing is left of them after the run."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._spools: list[Spool] = []
        self._channels_last: list[bool] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, index: int) -> bool:
        return index in self._rows

    def keep(self, index: Tensor, features: Sequence[Tensor]) -> None:
        """Keep the features [(B, C_l, h_l, w_l)] of the images `index` (B,).

        Raises:
            ResourceError: the disk is full.
        """
        if not self._spools:
            self._spools = [Spool(tuple(feature.shape[1:]), feature.dtype) for feature in features]
            self._channels_last = [f.is_contiguous(memory_format=torch.channels_last) for f in features]
        for spool, feature in zip(self._spools, features, strict=True):
            spool.append(feature)
        self._rows.update({image: len(self._rows) + row for row, image in enumerate(index.tolist())})

    def load(self, index: Tensor) -> list[Tensor]:
        """Features [(B, C_l, h_l, w_l)] of images `index` (B,) on its device, laid out as the backbone's."""
        rows = [self._rows[image] for image in index.tolist()]
        features = []
        # The layout decides in which order sums are rounded.
        for spool, last in zip(self._spools, self._channels_last, strict=True):
            layout = torch.channels_last if last else torch.contiguous_format
            features.append(spool.read(rows).contiguous(memory_format=layout).to(index.device))
        return features

    def close(self) -> None:
        """Give the disk space back."""
        for spool in self._spools:
            spool.close()


class KeptImages(DatasetWrapper):
    """Images whose features are kept, without their pixels; those without any were skipped when they were made."""

    decodes = False

    def __init__(self, dataset: MVTecDataset, kept: KeptFeatures) -> None:
        super().__init__(dataset)
        self.kept = kept

    def __getitems__(self, indices: Sequence[int]) -> list[Item | None]:
        """The items of a batch; nothing is measured on the masks of good images, which are empty."""
        return [self.dataset.without_pixels(index, None) if index in self.kept else None for index in indices]
