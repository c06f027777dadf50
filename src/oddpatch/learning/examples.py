"""The images of a test, or of a calibration, that pictures may be made of: kept while batches stream by."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from oddpatch.data.layout import GOOD, Sample
from oddpatch.data.transforms import Preprocess
from oddpatch.metrics.thresholds import stands_out
from oddpatch.results.examples import Candidates, Example
from oddpatch.results.test_result import ScoredImage
from oddpatch.types import Batch, Prediction

_NO_IMAGE = np.empty((0, 0, 3), dtype=np.uint8)


class KeptExamples:
    """A bounded number of images (see `oddpatch.results.examples`), and of all others three numbers each.

    Args:
        worst: how many anomalous images of the lowest scores, and as many good ones of the highest.
        typical: how many images near the median score of their type.
    """

    def __init__(self, worst: int, typical: int) -> None:
        self.candidates = Candidates(worst, typical)
        #: Of each batch so far, see `gather`.
        self.levels: list[Tensor] = []

    def keep(self, outputs: Prediction, batch: Batch, samples: Sequence[Sample], preprocess: Preprocess) -> None:
        """Keep what may be shown of a batch, and the levels of its maps."""
        maps = outputs.anomaly_map
        if maps is not None:
            self.levels.append(_levels(maps, batch.label))
        rows = zip(outputs.score.tolist(), batch.label.tolist(), batch.index.tolist(), strict=True)
        for position, (score, label, index) in enumerate(rows):
            defect_type = samples[index].kind
            if self.candidates.pools(score, label, defect_type, index):
                # Where the features came from a cache, the images were not decoded: only those shown will be.
                decoded = batch.image.shape[-1] > 0
                example = Example(
                    image=pixels_of(batch.image[position], preprocess) if decoded else _NO_IMAGE,
                    mask=_copy(batch.mask[position, 0]),
                    anomaly_map=None if maps is None else _copy(maps[position, 0].float()),
                    score=score,
                    label=label,
                    defect_type=defect_type,
                    index=index,
                    path=batch.path[position],
                )
                self.candidates.add(example)

    def gather(self) -> NDArray[np.float32]:
        """Bring to rank zero what the others have kept, so that the choice is the same as on one device.

        Returns:
            The levels (N, 3) of all images: label, median and highest value of the map.
        """
        levels = torch.cat(self.levels) if self.levels else torch.empty(0, 3)
        if dist.is_available() and dist.is_initialized():
            held: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
            dist.gather_object((self.candidates, levels), held)
            if held is not None:
                self.candidates = Candidates(self.candidates.misses.size, self.candidates.typical)
                self.candidates.merge(candidates for candidates, _ in held)
                levels = torch.cat([levels for _, levels in held])
        return levels.numpy()

    def choose(self, rows: Sequence[ScoredImage]) -> dict[str, list[Example]]:
        """Those to show of the test images, by kind."""
        scores: dict[str, list[float]] = {}
        for row in rows:
            scores.setdefault(row.kind, []).append(row.score)
        return self.candidates.choose(scores)

    def choose_good(
        self, good: Sequence[ScoredImage], set_by: Sequence[int], count: int, size: tuple[int, int]
    ) -> list[Example]:
        """Of the good images that the threshold was set on those of the highest scores, and those that set it.

        Args:
            good: all of them.
            set_by: which of them set the threshold.
            count: how many of the highest scores.
            size: height and width of the images.
        """
        kept = self.candidates.false_alarms.examples()  # highest score first
        if not kept or not good:
            return []
        shown = kept[:count]
        among = {example.index for example in shown}
        shown += [example for example in kept if example.index in set(set_by) - among]
        of_index = {image.index: image for image in good}
        for index in sorted(set(set_by) - {example.index for example in kept}):  # of those no map is at hand
            image, mask = of_index[index], np.zeros(size, dtype=np.uint8)
            shown.append(Example(_NO_IMAGE, mask, None, image.score, 0, GOOD, index, image.path))
        anomalous = kept[0].index if stands_out([image.score for image in good]) else None
        return [replace(it, note=_note(it.index in set_by, it.index == anomalous)) for it in shown]


def _note(sets_threshold: bool, stands_out: bool) -> str:
    notes: Mapping[str, bool] = {
        "sets the threshold": sets_threshold,
        "looks unlike the rest: is it good?": stands_out,
    }
    return "; ".join(note for note, applies in notes.items() if applies)


def pixels_of(prepared: Tensor, preprocess: Preprocess) -> NDArray[np.uint8]:
    """(H, W, 3) of a prepared image (3, H, W)."""
    image = preprocess.to_image(prepared)  # (3, H, W) in [0, 1]
    pixels: NDArray[np.uint8] = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def _copy(tensor: Tensor) -> NDArray[Any]:
    """An array of its own: a view would keep the whole batch."""
    return tensor.to("cpu", copy=True).numpy()


def _levels(maps: Tensor, label: Tensor) -> Tensor:
    """(B, 3): of each map (B, 1, H, W) its image's label, its median and its highest value."""
    flat = maps.flatten(1).float()  # (B, H * W)
    return torch.stack([label.float(), flat.median(dim=1).values, flat.amax(dim=1)], dim=1).cpu()
