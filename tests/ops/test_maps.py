"""Anomaly maps against torch's interpolation and scipy's Gaussian filter."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from oddpatch.errors import ConfigError
from oddpatch.ops.maps import anomaly_map


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("sigma", "grid", "size"), [(4.0, (14, 14), (56, 56)), (0, (7, 5), (33, 20)), (9.0, (4, 6), (20, 50))]
)
def test_equals_interpolate_then_scipy_gaussian(interpolation, sigma, grid, size):
    scores = torch.rand(3, *grid, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(scores[:, None].double(), size=size, mode=interpolation, align_corners=False)
    expected = np.stack([gaussian_filter(m[0].numpy(), sigma) if sigma else m[0].numpy() for m in resized])
    result = anomaly_map(scores, size, sigma, interpolation)
    assert result.shape == (3, 1, *size)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result[:, 0].numpy(), expected, atol=1e-6)


def test_unknown_interpolation_lists_the_choices():
    with pytest.raises(ConfigError, match="interpolation='cubic': choose one of bilinear"):
        anomaly_map(torch.zeros(1, 2, 2), (4, 4), 1.0, "cubic")


def test_a_negative_smoothing_is_refused():
    with pytest.raises(ConfigError, match=r"smoothing=-1\.0: the standard deviation must be 0 \(none\) or more"):
        anomaly_map(torch.zeros(1, 4, 4), (8, 8), -1.0)
