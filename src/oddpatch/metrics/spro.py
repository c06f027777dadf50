"""Saturated per-region overlap (sPRO) of MVTec LOCO AD: a defect is found once enough of it is.

Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and Localization",
IJCV 2022. Where something is missing, it may be missing anywhere in a large region, of which a small part need be
marked. How much of it stands in the owner's `defects_config.json`, by the value of the pixels of the defect's mask.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from oddpatch.data.decoding import is_image_name
from oddpatch.data.masks import read_mask
from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError, DataError
from oddpatch.files import parse_json
from oddpatch.metrics.arrays import Floats, UndefinedMetricError, check_fpr_limits
from oddpatch.metrics.classes import MapMetrics
from oddpatch.metrics.pixel import area_under, rank_pixels
from oddpatch.types import IGNORE

CONFIG = "defects_config.json"


class Defect(NamedTuple):
    """One defect of an image: a region, connected or not."""

    mask: Tensor  # (H, W) uint8, 1 on the defect
    saturation: float  # share of its pixels that must be marked for it to be found entirely


def gains(anomaly_map: Floats, defects: Sequence[tuple[NDArray[np.bool_], float]]) -> NDArray[np.float64]:
    """By how much the sPRO of an image's defects, summed, rises at each pixel as the threshold falls.

    Of a defect of which k pixels saturate it, the k highest raise it by 1 / k each (if k is not whole, the last by the
    rest), its other pixels by nothing.

    Args:
        anomaly_map: (H, W).
        defects: (H, W) of the defect, and the share of its pixels that saturates it, in (0, 1].

    Returns:
        (H, W), which sums to the number of defects that have a pixel.
    """
    raised = np.zeros(anomaly_map.shape)
    for mask, saturation in defects:
        places = np.flatnonzero(mask)
        if places.size:
            order = np.argsort(anomaly_map.ravel()[places], kind="stable")[::-1]
            needed = saturation * places.size
            raised.ravel()[places[order]] += np.clip(needed - np.arange(places.size), 0, 1) / needed
    return raised


def au_spro(
    maps: Floats, normal: NDArray[np.bool_], raised: NDArray[np.float64], num_defects: int, fpr_limit: float = 0.05
) -> float:
    """Area under the sPRO curve up to `fpr_limit`, divided by it; exact.

    Args:
        maps: (N, H, W).
        normal: (N, H, W) pixels of no defect, of which the false-positive rate is.
        raised: (N, H, W) what `gains` gives.
        num_defects: in all images; those of which no pixel was inspected count as never found.
        fpr_limit: in (0, 1].

    Raises:
        ConfigError: the limit is outside (0, 1].
        UndefinedMetricError: there are no normal pixels or no defects.
    """
    counted = raised > 0
    if not num_defects or not counted.any():
        raise UndefinedMetricError("needs defects with a mask: no pixel of one was inspected")
    masks = np.where(counted, 1, np.where(normal, 0, IGNORE)).astype(np.uint8)
    ranking = rank_pixels(maps, masks).ranking
    places = np.searchsorted(ranking.thresholds, maps[counted])
    share = np.bincount(places, raised[counted] / num_defects, ranking.thresholds.size).astype(np.float64)  # (T,)
    return area_under(ranking, share, fpr_limit)


def read_defects(image: Path, source: Path) -> list[Defect]:
    """The defects of an anomalous image, from MVTec LOCO AD as its owner packs it.

    Args:
        image: CATEGORY/test/TYPE/NAME, wherever it lies.
        source: folder of the owner's categories, with CATEGORY/ground_truth/TYPE/STEM/* and their configuration.

    Raises:
        DataError: a file is missing or not as the owner writes it.
    """
    category, _, kind, name = image.parts[-4:]
    folder = source / category / "ground_truth" / kind / Path(name).stem
    files = sorted(p for p in folder.iterdir() if is_image_name(p.name)) if folder.is_dir() else []
    if not files:
        raise DataError(f"{folder}: holds no masks of {image}: set metrics.spro.source to the owner's folder")
    saturations = _saturations(source / category / CONFIG)
    defects = []
    for path in files:
        mask = read_mask(path)  # (H, W)
        values = np.setdiff1d(np.asarray(Image.open(path)), 0)
        if len(values) != 1 or int(values[0]) not in saturations:
            raise DataError(
                f"{path}: its pixels are {values.tolist()}, {CONFIG} knows {sorted(saturations)}: unpack it again"
            )
        threshold, relative = saturations[int(values[0])]
        area = int(mask.sum())
        defects.append(Defect(mask, min(threshold if relative else threshold / area, 1.0)))
    return defects


def _saturations(path: Path) -> dict[int, tuple[float, bool]]:
    """By the value of a mask's pixels: what saturates the defect, and whether that is a share of it or an area."""
    try:
        found = {
            int(one["pixel_value"]): (float(one["saturation_threshold"]), bool(one["relative_saturation"]))
            for one in parse_json(path.read_text(encoding="utf-8"))
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error!r}): unpack the dataset again") from error
    bad = next((value for value, (limit, _) in found.items() if not (limit > 0 and math.isfinite(limit))), None)
    if bad is not None:
        raise DataError(
            f"{path}: saturation_threshold {found[bad][0]} of {bad} must be above 0: unpack the dataset again"
        )
    return found


class SPRO(MapMetrics):
    """`au_spro@0.05` of MVTec LOCO AD.

    Defects lie on the maps as preprocessed; an area that saturates one shrinks with it.

    Args:
        source: the dataset as its owner packs it, for `defects_config.json` and a mask for each defect.
        fpr_limits: in (0, 1], a value for each.

    Raises:
        ConfigError: there is no such configuration, or a limit is outside (0, 1].

    Examples:
        >>> from oddpatch.metrics.spro import SPRO
        >>> SPRO("nowhere")
        Traceback (most recent call last):
        ...
        oddpatch.errors.ConfigError: metrics.spro.source=nowhere holds no CATEGORY/defects_config.json: ...
    """

    raised: list[Tensor] | Tensor
    defects: list[Tensor] | Tensor

    def __init__(self, source: str | Path, fpr_limits: Sequence[float] = (0.05,)) -> None:
        limits = tuple(dict.fromkeys(check_fpr_limits(fpr_limits)))
        super().__init__([f"au_spro@{limit:g}" for limit in limits], states=["raised", "defects"])
        self.source, self.fpr_limits = Path(source), limits
        if not any(self.source.glob(f"*/{CONFIG}")):
            raise ConfigError(
                f"metrics.spro.source={source} holds no CATEGORY/{CONFIG}: give MVTec LOCO AD as its owner packs it"
            )

    def update(  # type: ignore[override]
        self, anomaly_map: Tensor, mask: Tensor, label: Tensor, index: Tensor, path: list[str], preprocess: Preprocess
    ) -> None:
        """Add anomaly_map and mask, both (B, 1, H, W), label and index (B,), of the images at `path`.

        Raises:
            ConfigError: the images are aligned, which the masks of their defects are not.
            DataError: there are no defects of an anomalous image; otherwise as in `MapMetrics.update`.
        """
        if preprocess.alignment:
            raise ConfigError("metrics.spro cannot be had with data.align: set data.align=null")
        super().update(anomaly_map, mask, index)
        raised = torch.zeros(anomaly_map.shape, dtype=torch.float64)
        counts = torch.zeros(len(index), dtype=torch.int64)
        for i in label.nonzero().flatten().tolist():
            defects = read_defects(Path(path[i]), self.source)
            inspected = mask[i, 0].cpu().numpy() == 1
            laid = [(preprocess.mask(one.mask)[0].numpy() == 1, one.saturation) for one in defects]
            scores = anomaly_map[i, 0].detach().float().cpu().numpy()
            raised[i, 0] = torch.from_numpy(gains(scores, [(region & inspected, share) for region, share in laid]))
            counts[i] = len(defects)
        self._store(raised=raised, defects=counts)

    def _values(self) -> tuple[float, ...]:
        maps, masks, raised = (self._in_order(name)[:, 0].numpy() for name in ("maps", "masks", "raised"))
        count = int(self._in_order("defects").sum())
        return tuple(au_spro(maps, masks == 0, raised, count, limit) for limit in self.fpr_limits)
