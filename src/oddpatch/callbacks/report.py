"""`report.html` at the end of a test."""

import json
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import OmegaConf

from oddpatch.callbacks.loggers import Pictured
from oddpatch.callbacks.pictures import Pictures
from oddpatch.data.inspected import describe_share
from oddpatch.figures.canvas import ALARM
from oddpatch.figures.drawing import KINDS
from oddpatch.results.examples import Example
from oddpatch.figures.explanation import NORMAL, close_up
from oddpatch.files import replacing
from oddpatch.report.html import Shown, render_report
from oddpatch.results.summary import by_type


class HtmlReport(L.Callback):
    """Writes `report.html` from what `Results` and `Pictures` have written before it, where nothing was tested too.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write the report."""
        if not trainer.is_global_zero:
            return
        metrics = json.loads((self.folder / "metrics.json").read_text())
        pictured = next((c.pictured for c in trainer.callbacks if isinstance(c, Pictures)), None)  # type: ignore[attr-defined]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        with pl_module.timed("report"):
            page = render_report(
                metrics,
                gallery=self._gallery(pl_module, data, pictured),
                look=pictured.look if pictured else None,
                figures=[path for path in pictured.figures if path.stem != "overview"] if pictured else [],
                types=by_type(pl_module),
                folder=self.folder,
                inspected=describe_share(data.preprocess, data.inspected) if data.inspected else "",
                no_threshold=pl_module.model.calibration.absent,
                config=OmegaConf.to_yaml(OmegaConf.create(pl_module.config)),
            )
            with replacing(self.folder / "report.html") as file:
                file.write(page)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Without test images no test hook runs: the report is written here."""
        if stage == "test" and not trainer.datamodule.test_samples:  # type: ignore[attr-defined]
            self.on_test_end(trainer, pl_module)

    def _gallery(self, module: Any, data: Any, pictured: Pictured | None) -> dict[str, list[Shown]]:
        if pictured is None:
            return {}
        # A scale of its own for each kind of error would hide that a miss is worse than a near miss: worst first.
        return {
            # A good image of the threshold was fitted to: its own patches are the nearest.
            KINDS[kind][1]: [
                Shown(example, kind, None if kind == "calibration" else nearest_patch(module, data, example))
                for example in examples
            ]
            for kind, examples in pictured.chosen.items()
        }


def nearest_patch(module: Any, data: Any, example: Example) -> tuple[Any, Any, str, float] | None:
    """An image's most anomalous patch and the normal patch nearest to it, where the detector keeps normal patches."""
    from oddpatch.inference.explain import find_matches
    from oddpatch.models.patchcore import PatchCore

    detector = module.model.detector
    names = module.train_images
    if names is None:
        names = [str(sample.path) for sample in data.train_samples]
    if not isinstance(detector, PatchCore) or not names:
        return None
    preprocess = module.model.preprocess
    image = preprocess.load(example.path)  # (3, H, W)
    match = max(find_matches(module.model, detector, image.to(module.device), names), key=lambda m: m.distance)
    if not Path(match.train_image).is_file():  # tested again where the training images are not at hand
        return None
    normal = preprocess.to_image(preprocess.load(match.train_image))  # (3, H, W)
    picture = (normal * 255).round().byte().permute(1, 2, 0).numpy()
    patches = close_up(example.image, match.patch, ALARM), close_up(picture, match.normal, NORMAL)
    return *patches, match.train_image, match.distance
