"""Pictures of a test: the worst mistakes, typical images, and the curves behind the metrics."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from oddpatch.callbacks.loggers import Pictured, log_pictures
from oddpatch.data.layout import GOOD
from oddpatch.errors import ConfigError
from oddpatch.figures.canvas import Sheet
from oddpatch.figures.curves import draw_curves
from oddpatch.figures.drawing import Look, draw_example, draw_overview
from oddpatch.results.examples import Candidates, Example
from oddpatch.figures.histogram import draw_scores
from oddpatch.metrics.ranking import Ranking, rank
from oddpatch.metrics.thresholds import stands_out
from oddpatch.types import Batch, Prediction

#: Bytes of a picture's name, so that the longest stem still makes a file name.
MAX_NAME = 160
#: Files that an earlier test into the same folder may have left; no others are ever removed.
_OWN_FILES = re.compile(
    r"(miss|false_alarm|typical|calibration)_\d+_.*\.png|(overview|roc|precision_recall|pro|scores)\.png"
)
#: The good images that the threshold was set on, in the histogram.
CALIBRATION = "good, for the threshold"
_NO_IMAGE = np.empty((0, 0, 3), dtype=np.uint8)


class Pictures(L.Callback):
    """Writes `figures/`: a picture of each chosen image, `overview.png` of all, and `roc.png` and its like.

    While the test runs, a bounded number of images is kept (see `oddpatch.results.examples`), and of all others two
    numbers each, for the scale; likewise while good images are scored for the threshold. On several devices rank zero
    brings together what each has kept, so that the choice is the same as on one. Loggers that take images get them too.

    Args:
        folder: the run's folder; the pictures go into `figures` in it.
        worst: how many anomalous images of the lowest scores, and as many good ones of the highest; of those that the
            threshold was set on as many, and twice as many where nothing was tested.
        typical: how many images near the median score of their type.

    Raises:
        ConfigError: a number is negative.
    """

    def __init__(self, folder: str, worst: int = 4, typical: int = 4) -> None:
        for name, value in {"worst": worst, "typical": typical}.items():
            if value < 0:
                raise ConfigError(f"callbacks.pictures.{name}={value} must be 0 or more")
        self.folder = Path(folder) / "figures"
        self.worst, self.typical = worst, typical
        #: Read by the module: whether the test must make anomaly maps for this.
        self.needs_maps = worst + typical > 0
        #: What the last test drew, on rank zero.
        self.pictured: Pictured | None = None
        self._candidates = Candidates(worst, typical)
        self._levels: list[Tensor] = []
        # The same of the good images that the threshold is set on.
        self._calibration = Candidates(2 * worst, 0)
        self._calibration_levels: list[Tensor] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Forget the images of an earlier calibration."""
        self._calibration, self._calibration_levels = Candidates(2 * self.worst, 0), []

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Prediction | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep those of a batch of good images that may be shown in the end."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if outputs is not None and data.validation_parts[dataloader_idx] == "calibration":
            with pl_module.timed("figures"):
                _keep(self._calibration, self._calibration_levels, outputs, batch, data.train_samples, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Forget the images of an earlier test."""
        self._candidates, self._levels = Candidates(self.worst, self.typical), []

    def on_test_batch_end(  # type: ignore[override]
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Prediction | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep those of a batch that may be shown in the end."""
        if outputs is None:  # every file of the batch was skipped
            return
        samples = trainer.datamodule.test_samples  # type: ignore[attr-defined]
        with pl_module.timed("figures"):
            _keep(self._candidates, self._levels, outputs, batch, samples, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write the pictures, and hand them to the loggers."""
        with pl_module.timed("figures"):
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            levels = self._gather(self._levels if data.test_samples else self._calibration_levels)
            if trainer.is_global_zero and (pl_module.scored or pl_module.model.calibration.calibrated):
                title = f"{data.category}, {type(pl_module.model.detector).__name__}"
                self.pictured = self._write(pl_module, levels, title, data)
                log_pictures(trainer.loggers, self.pictured)
            self.on_test_start(trainer, pl_module)  # let go of the images
            self.on_validation_start(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Without test images no test hook runs: the good images of the threshold are drawn here."""
        if stage == "test" and not trainer.datamodule.test_samples:  # type: ignore[attr-defined]
            self.on_test_end(trainer, pl_module)

    def _gather(self, levels_here: list[Tensor]) -> Tensor:
        """Bring to rank zero what the others have kept; gives the levels (N, 3) of all images."""
        levels = torch.cat(levels_here) if levels_here else torch.empty(0, 3)
        if not (dist.is_available() and dist.is_initialized()):
            return levels
        held: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object((self._candidates, self._calibration, levels), held)
        if held is None:
            return levels
        self._candidates, self._calibration = Candidates(self.worst, self.typical), Candidates(2 * self.worst, 0)
        self._candidates.merge(candidates for candidates, _, _ in held)
        self._calibration.merge(candidates for _, candidates, _ in held)
        return torch.cat([levels for _, _, levels in held])

    def _write(self, module: Any, levels: Tensor, title: str, data: Any) -> Pictured:
        """Draw and save everything."""
        scores: dict[str, list[float]] = {}
        for image in module.scored:
            scores.setdefault(image.defect_type, []).append(image.score)
        chosen = {
            kind: [_decoded(it, data.test_image, module) for it in examples]
            for kind, examples in self._candidates.choose(scores).items()
        }
        if self.worst and (good := self._choose_good(module, data)):
            chosen["calibration"] = good
        look = choose_look(levels, module)
        self._remove_old()
        curves = draw_curves(
            _image_ranking(module), module.pixel_metrics.computed, module.pixel_metrics.fpr_limits, look.warning
        )
        if module.model.calibration.calibrated:
            scores[CALIBRATION] = module.model.calibration.image_scores.tolist()
        if scores:
            curves["scores"] = draw_scores(scores, image_thresholds(module), (GOOD, CALIBRATION), look.warning)
        figures = [self._save(name, sheet) for name, sheet in curves.items()]
        if chosen:
            figures.append(self._save("overview", draw_overview(chosen, look, title)))
        pictures = []
        for kind, examples in chosen.items():
            for place, example in enumerate(examples, start=1):
                name = f"{kind}_{place}_{example.defect_type}_{example.stem}".encode()[:MAX_NAME]
                pictures.append(self._save(name.decode(errors="ignore"), draw_example(example, look, kind, place)))
        return Pictured(chosen, look, pictures, figures)

    def _choose_good(self, module: Any, data: Any) -> list[Example]:
        """Of the good images that the threshold was set on those of the highest scores, and those that set it."""
        calibration = module.model.calibration
        kept = self._calibration.false_alarms.examples()  # highest score first
        if not kept or not calibration.calibrated:
            return []
        shown = kept[: self.worst] if data.test_samples else kept
        among = {example.index for example in shown}
        set_by = set(calibration.set_by)
        shown += [example for example in kept if example.index in set_by - among]
        scores = dict(zip(calibration.image_index.tolist(), calibration.image_scores.tolist(), strict=True))
        for index in sorted(set_by - {example.index for example in kept}):  # of those no map is at hand
            path = str(data.train_samples[index].path)
            mask = np.zeros(data.preprocess.image_size, dtype=np.uint8)
            shown.append(Example(_NO_IMAGE, mask, None, scores[index], 0, GOOD, index, path))
        anomalous = kept[0].index if stands_out(calibration.image_scores.cpu()) else None
        return [
            replace(_decoded(it, data.train_image, module), note=_note(it.index in set_by, it.index == anomalous))
            for it in shown
        ]

    def _save(self, name: str, sheet: Sheet) -> Path:
        path = self.folder / f"{name}.png"
        sheet.save(path)
        return path

    def _remove_old(self) -> None:
        """Pictures of an earlier test in this folder would pass for this one's."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if _OWN_FILES.fullmatch(path.name):
                    path.unlink()


def _keep(
    candidates: Candidates, levels: list[Tensor], outputs: Prediction, batch: Batch, samples: Any, module: Any
) -> None:
    """Keep what may be shown of a batch, and the levels of its maps."""
    maps = outputs.anomaly_map
    if maps is not None:
        levels.append(_levels(maps, batch.label))
    rows = zip(outputs.score.tolist(), batch.label.tolist(), batch.index.tolist(), strict=True)
    for position, (score, label, index) in enumerate(rows):
        defect_type = samples[index].defect_type
        if candidates.pools(score, label, defect_type, index):
            # Where features were known already, the images were not decoded: only those shown will be.
            given = batch.image[position] if batch.image.numel() else None
            example = Example(
                image=_NO_IMAGE if given is None else _pixels(given, module),
                mask=_copy(batch.mask[position, 0]),
                anomaly_map=None if maps is None else _copy(maps[position, 0].float()),
                score=score,
                label=label,
                defect_type=defect_type,
                index=index,
                path=batch.path[position],
            )
            candidates.add(example)


def _decoded(example: Example, image: Callable[[int], Tensor], module: Any) -> Example:
    return example if example.image.size else replace(example, image=_pixels(image(example.index), module))


def _note(sets_threshold: bool, stands_out: bool) -> str:
    notes = {"sets the threshold": sets_threshold, "looks unlike the rest: is it good?": stands_out}
    return "; ".join(note for note, applies in notes.items() if applies)


def choose_look(levels: Tensor, module: Any) -> Look:
    """What all pictures of a test share.

    The heat begins at what is usual on a good image, and is strongest at what half of the anomalous images reach.

    Args:
        levels: (N, 3) of all test images, or of the good ones of the threshold where nothing was tested: label, median
            and highest value of the map.
        module: the `AnomalyModule`, after its test.
    """
    good, anomalous = levels[levels[:, 0] == 0], levels[levels[:, 0] == 1]
    low, high = 0.0, 1.0
    if len(levels):
        low = float((good if len(good) else levels)[:, 1].median())
        # Without defects to compare with, the highest good pixel is put half way up: it should not look like one.
        high = float(anomalous[:, 2].median()) if len(anomalous) else low + 2 * (float(good[:, 2].max()) - low)
    threshold, name = None, ""
    calibration = module.model.calibration
    image_threshold, image_name = module.results.get("image_f1_max_threshold"), "F1-max, oracle"
    if calibration.calibrated:
        # An image is anomalous above the conformal threshold, and in pictures from a threshold on.
        image_threshold, image_name = math.nextafter(calibration.image.value, math.inf), "set on good images"
    if (pixel := calibration.pixel) is not None:
        threshold, name = pixel.value, "the pixel threshold set on good images"
    elif "pixel_f1_max_threshold" in module.results:
        threshold, name = module.results["pixel_f1_max_threshold"], "the pixel F1-max threshold (oracle)"
    elif len(good) and len(anomalous):
        threshold, name = float(good[:, 2].max()), "the highest pixel of the good images (oracle)"
    random = module.model.backbone.weights_origin == "random"
    return Look(
        low=low,
        high=max(high, low + 1e-6 * max(abs(low), 1.0)),
        threshold=threshold,
        threshold_name=name,
        image_threshold=image_threshold,
        image_threshold_name=image_name,
        warning="random weights: not a result" if random else "",
    )


def image_thresholds(module: Any) -> dict[str, float]:
    """Image thresholds worth marking, by name; the oracle where there is no other."""
    found = {f"{name} threshold": value for name, value in module.model.calibration.thresholds().items()}
    if not found and "image_f1_max_threshold" in module.results:
        found["F1-max threshold (oracle)"] = module.results["image_f1_max_threshold"]
    return found


def _image_ranking(module: Any) -> Ranking | None:
    scores, labels, _ = module.image_metrics.rows
    return rank(scores, labels) if 0 < labels.sum() < len(labels) else None


def _pixels(prepared: Tensor, module: Any) -> NDArray[np.uint8]:
    """(H, W, 3) of a prepared image (3, H, W)."""
    image = module.model.preprocess.to_image(prepared)  # (3, H, W) in [0, 1]
    pixels: NDArray[np.uint8] = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def _copy(tensor: Tensor) -> NDArray[Any]:
    """An array of its own: a view would keep the whole batch."""
    return tensor.to("cpu", copy=True).numpy()


def _levels(maps: Tensor, label: Tensor) -> Tensor:
    """(B, 3): of each map (B, 1, H, W) its image's label, its median and its highest value."""
    flat = maps.flatten(1).float()  # (B, H * W)
    return torch.stack([label.float(), flat.median(dim=1).values, flat.amax(dim=1)], dim=1).cpu()
