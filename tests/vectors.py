"""Arrays that were made by running the code that methods were released with."""

from pathlib import Path

import numpy as np
import pytest
import torch

VECTORS = Path(__file__).parents[2] / "shared" / "method_vectors"


def vector(name):
    path = VECTORS / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return np.load(path)


def vector_maps(kind, layers=(0, 1, 2, 3)):
    """Feature maps (n, C, h, w) of the layers of "train" or "test"."""
    stored = vector("features")[kind].astype(np.float32)  # (L, n, H, W, C)
    return [torch.from_numpy(stored[layer].transpose(0, 3, 1, 2).copy()) for layer in layers]


def class_tokens(kind, layer=3):
    """Class tokens (n, C, 1, 1) of one layer."""
    return torch.from_numpy(vector("features")[f"{kind}_cls"].astype(np.float32))[layer][..., None, None]


def fitted(detector, maps, batch=3):
    for index in torch.arange(len(maps[0])).split(batch):
        detector.update([m[index] for m in maps], index)
    detector.fit()
    return detector
