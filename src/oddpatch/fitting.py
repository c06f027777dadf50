"""Fitting and testing from Python, by the code and the settings of `train.py` and `eval.py`."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor

from oddpatch import pipeline
from oddpatch.data.beside import iter_masks_beside
from oddpatch.data.decoding import stored_pixels
from oddpatch.data.layout import categories, is_category
from oddpatch.data.walk import Walk
from oddpatch.errors import ConfigError, DataError
from oddpatch.hydra_entry.calling import composed
from oddpatch.inference.scorer import ImageLike
from oddpatch.inference.sources import Files
from oddpatch.inference.torch_scorer import to_tensor
from oddpatch.learning.launcher import num_ranks
from oddpatch.results.test_result import TestResult

Images = str | Path | ImageLike | Sequence[str | Path] | Sequence[ImageLike]
#: Settings that follow from the arguments.
_GIVEN = {"data.root": "the images", "data.category": "the images", "paths.output_dir": "save"}


def fit(images: Images, settings: Mapping[str, Any], folder: Path) -> TestResult:
    """Fit, calibrate, save and test, as `train.py` does.

    Args:
        images: see `oddpatch.AnomalyDetector.fit`.
        settings: by their names in the config.
        folder: of the run; images in memory are kept in it.

    Raises:
        ConfigError, DataError, WeightsError, ResourceError: see `oddpatch.AnomalyDetector.fit`.
    """
    root, category, found = _find(images, folder)
    with composed("train", _with(settings, root, category), folder) as cfg, isolate_rng():
        _in_one_process(cfg)
        run = pipeline.build(cfg, found)
        run.fit()
        run.calibrate()
        run.save()
        run.test()
    return run.module.result


def evaluate(run: Path, category: str | Path, settings: Mapping[str, Any]) -> TestResult:
    """Test a finished run on the images of a category, as `eval.py` does; the files go into RUN/eval.

    Raises:
        ConfigError, DataError, ResourceError: see `oddpatch.AnomalyDetector.evaluate`.
    """
    path = Path(os.path.abspath(category))  # noqa: PTH100 - the name of a link is that of the category
    if not is_category(path):
        raise DataError(f"{category} is no category: give a folder with train/good and test in it")
    folder = run / "eval" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    given = {f"+{key}" if key.startswith("data.") else key: value for key, value in settings.items()}
    with composed("eval", _with(given, path.parent, path.name, "+") | {"run": run}, folder) as cfg, isolate_rng():
        _in_one_process(cfg)
        job = pipeline.rebuild(cfg)
        job.test()
    return job.module.result


def _with(settings: Mapping[str, Any], root: Path, category: str, plus: str = "") -> dict[str, Any]:
    for key, source in _GIVEN.items():
        if key in {name.lstrip("+") for name in settings}:
            raise ConfigError(f"{key} follows from {source}: leave it out")
    chosen = {} if plus or "data" in settings else {"data": "custom"}
    return {**chosen, **settings, f"{plus}data.root": root, f"{plus}data.category": category}


def _in_one_process(cfg: Any) -> None:
    if (size := num_ranks(cfg.trainer)) > 1:
        raise ConfigError(f"trainer.devices asks for {size} processes, and this is one: use train.py and eval.py")


def _find(images: Images, folder: Path) -> tuple[Path, str, Walk | None]:
    """Root and category, and the images where these are not those of a category."""
    if isinstance(images, str | Path):
        path = Path(os.path.abspath(images))  # noqa: PTH100 - the name of a link is that of the category
        if is_category(path):
            return path.parent, path.name, None
        if path.is_dir() and (known := categories(path)):
            raise DataError(f"{images} holds {len(known)} categories ({', '.join(known[:3])}): give the folder of one")
        images = [images]
    elif isinstance(images, Tensor | np.ndarray | Image.Image):
        images = [images]
    named = [str(image) for image in images if isinstance(image, str | Path)]
    if not named:
        return folder, "images", Walk(_write(images, folder / "images"), [])
    if len(named) < len(images):
        raise DataError(f"{len(named)} of {len(images)} images are paths: give paths or images in memory, not both")
    source = Files(named)
    if source.errors or not source.paths:
        raise DataError("; ".join(source.errors.values()))
    for mask, image in iter_masks_beside(source.paths):
        raise DataError(f"{mask} looks like the mask of {image.name} beside it: give images of good parts alone")
    files = sorted(path.resolve() for path in source.paths)
    common = Path(os.path.commonpath([file.parent for file in files]))
    return common.parent, common.name or "images", Walk(files, source.left_out)


def _write(images: Sequence[Any], folder: Path) -> list[Path]:
    """Each image in a file that is read as exactly this image."""
    if not images:
        raise DataError("there are no images: give some of good parts")
    folder.mkdir(parents=True)
    files = []
    for number, image in enumerate(images):
        try:
            to_tensor(image)
        except DataError as error:
            raise DataError(f"image {number} of those to fit to: {error}") from error
        array = stored_pixels(image)
        files.append(folder / f"{number:06}.tiff")
        tifffile.imwrite(files[-1], array, photometric="rgb" if array.ndim == 3 else "minisblack")
    return files
