"""Features of the images of one epoch, kept for the rest of the run: what is scored after the fit needs no backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from oddpatch.cache.features import Cached
from oddpatch.ops.gallery import Spool


class KeptFeatures:
    """Feature maps by the index of their image, in files without a name: nothing is left of them after the run."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._spools: list[Spool] = []
        self._channels_last: list[bool] = []
        self._mapped: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self._rows)

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
        self._mapped = None

    def load(self, index: int) -> Cached | None:
        """What is kept of an image; None if nothing is."""
        if index not in self._rows:
            return None
        if self._mapped is None:
            self._mapped = [spool.rows() for spool in self._spools]
        return Cached([rows[self._rows[index]] for rows in self._mapped], self._channels_last, ())

    def close(self) -> None:
        """Give the disk space back."""
        self._mapped = None
        for spool in self._spools:
            spool.close()
