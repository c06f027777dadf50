"""From patch scores to an anomaly map of the image's size: resizing and Gaussian smoothing.

Both are linear and act on rows and columns alone, so each axis is one small matrix and the map is
`A_h @ scores @ A_w^T`: exact at the borders, fast, and plain matrix products for every exporter.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oddpatch.errors import ConfigError
from oddpatch.settings import require_one_of

INTERPOLATIONS = ("bilinear", "bilinear_corners", "bicubic", "nearest")


def anomaly_map(
    scores: Tensor,
    image_size: tuple[int, int],
    sigma: float = 4.0,
    interpolation: str = "bilinear",
    radius: int | None = None,
) -> Tensor:
    """Resize patch scores to the image and smooth them.

    Args:
        scores: (B, h, w) patch scores.
        image_size: (H, W) of the image.
        sigma: standard deviation of the Gaussian in image pixels, as `scipy.ndimage.gaussian_filter` (radius of four
            sigma, mirrored borders); 0 for none.
        interpolation: "bilinear", "bicubic" or "nearest", without antialiasing, half-pixel centres; or
            "bilinear_corners", the centres of the corners on each other.
        radius: where the Gaussian is cut off, in pixels, as OpenCV and torchvision do it: the pixel on the border is
            not mirrored itself. None for four sigma.

    Returns:
        (B, 1, H, W).
    """
    how = (float(sigma), interpolation, radius, scores.dtype, scores.device)
    rows = axis_matrix_on(scores.shape[-2], image_size[0], *how)  # (H, h)
    columns = axis_matrix_on(scores.shape[-1], image_size[1], *how)  # (W, w)
    return (rows @ scores @ columns.mT).unsqueeze(1)


def mean_of_highest(values: Tensor, share: float) -> Tensor:
    """Mean (B,) of the highest share, rounded to the nearest number and at least one, of values (B, n)."""
    return values.topk(max(1, round(share * values.shape[1])), dim=1).values.mean(dim=1)


@lru_cache(maxsize=32)
def axis_matrix_on(
    size_in: int,
    size_out: int,
    sigma: float,
    interpolation: str,
    radius: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The same where the scores are: brought there in each batch, it would have the CPU wait for the GPU."""
    with torch.inference_mode(False):  # whoever trains with it later may need it for a gradient
        return axis_matrix(size_in, size_out, sigma, interpolation, radius).to(device, dtype)


def axis_matrix(size_in: int, size_out: int, sigma: float, interpolation: str, radius: int | None) -> Tensor:
    """The (size_out, size_in) matrix that resizes and then smooths along one axis."""
    require_one_of(INTERPOLATIONS, interpolation=interpolation)
    if sigma < 0:
        raise ConfigError(f"smoothing={sigma}: the standard deviation must be 0 (none) or more")
    unit = torch.eye(size_in, dtype=torch.float64).view(1, size_in, size_in, 1)  # channel i is the i-th unit vector
    mode, _, corners = interpolation.partition("_")
    options = {} if mode == "nearest" else {"align_corners": bool(corners)}
    resized = F.interpolate(unit, size=(size_out, 1), mode=mode, **options)  # (1, size_in, size_out, 1)
    matrix = resized[0, :, :, 0].T.numpy()  # (size_out, size_in)
    if sigma > 0:
        from scipy.ndimage import gaussian_filter1d

        mode = "reflect" if radius is None else "mirror"  # SciPy's names for mirroring the border itself, or not
        matrix = gaussian_filter1d(matrix, sigma, axis=0, mode=mode, truncate=4.0, radius=radius)
    return torch.from_numpy(np.ascontiguousarray(matrix))
