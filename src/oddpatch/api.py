"""`oddpatch.AnomalyDetector`: fitted, tested, saved, shared and loaded in a line each."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from oddpatch.errors import ConfigError
from oddpatch.inference import detector
from oddpatch.locking import RUN
from oddpatch.temporary import drafting

if TYPE_CHECKING:
    from torch import device as Device

    from oddpatch.fitting import Images
    from oddpatch.results.test_result import TestResult

#: Begins the address of a run on the Hugging Face Hub.
HUB = "hf://"
_NO_FOLDER = "this detector has no run's folder: make it by AnomalyDetector.fit, or load a folder"


class AnomalyDetector(detector.AnomalyDetector):
    """A fitted model with its preprocessing and thresholds, as a function of an image.

    Args and errors of the constructor are those of `oddpatch.inference.detector.AnomalyDetector`.

    Examples:
        >>> from oddpatch import AnomalyDetector
        >>> detector = AnomalyDetector.fit("parts/good", model="patchcore")
        >>> detector.save("housing")
        >>> AnomalyDetector.load("housing")("part.png").is_anomalous
        True
    """

    _run: Path | None = None
    _result: "TestResult | None" = None
    _kept: "tempfile.TemporaryDirectory[str] | None" = None  # a run that was not saved

    @property
    def run(self) -> Path:
        """What it was loaded from: the folder of a run, a checkpoint or an artifact.

        Raises:
            ConfigError: it was made of a model.
        """
        if self._run is None:
            raise ConfigError(_NO_FOLDER)
        return self._run

    @property
    def result(self) -> "TestResult":
        """What the test of `fit` found.

        Raises:
            ConfigError: it was loaded.
        """
        if self._result is None:
            raise ConfigError("this detector was loaded, not tested: call its evaluate with the folder of a category")
        return self._result

    @classmethod
    def fit(cls, images: "Images", **settings: Any) -> Self:
        """Fit to images of good parts, set the thresholds and test: what `train.py` does, with the same numbers.

        Args:
            images: of good parts: a folder with all below it, a file, a pattern, a list of these, or images in memory
                (see `__call__`). The folder of a category, with `train/good` in it, is trained on and tested on as it
                is; otherwise there is nothing to test on.
            settings: of the config by their names there, groups such as `model` too; `data` is `custom` if not said.

        Raises:
            ConfigError: a setting does not exist or cannot work.
            DataError: there are no images, or one cannot be read.
            WeightsError: pretrained weights could not be found.
            ResourceError: memory or disk do not suffice.

        Examples:
            >>> detector = AnomalyDetector.fit("data/tile", model="padim", **{"data.resize": 64})
            >>> detector.result.metrics["image_auroc"] > 0.9
            True
        """
        from oddpatch import fitting  # which loads Lightning and Hydra

        kept = tempfile.TemporaryDirectory(prefix="oddpatch-run-")
        result = fitting.fit(images, settings, Path(kept.name))
        fitted = cls.load(kept.name)
        fitted._kept, fitted._result = kept, result
        return fitted

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        device: "str | Device" = "cpu",
        engine: str | None = None,
        trust: Sequence[str] = (),
        **settings: Any,
    ) -> Self:
        """The detector of a finished run, a checkpoint file, an exported artifact, or a run on the Hugging Face Hub.

        Args:
            run: the run's folder, a checkpoint, an artifact (.onnx, .xml), or hf://OWNER/NAME@REVISION (a branch, tag
                or commit; may be left out).
            device: see `oddpatch.inference.detector.AnomalyDetector.load`, as for the others.
            engine: see there.
            trust: see there.
            settings: see there.

        Raises:
            CheckpointError: there is none, it cannot be read, or its files are not those that were uploaded.
            ConfigError: see `oddpatch.inference.detector.AnomalyDetector`.
            ResourceError: the hub cannot be reached.

        Examples:
            >>> AnomalyDetector.load("housing", target_fpr=0.05)("part.png").is_anomalous
            True
        """
        kept, folder = None, Path(run)
        if isinstance(run, str) and run.startswith(HUB):
            from oddpatch import hub  # which loads torch

            kept = tempfile.TemporaryDirectory(prefix="oddpatch-run-")
            folder = Path(kept.name)
            hub.fetch(hub.parse_address(run), folder)
        loaded = super().load(folder, device=device, engine=engine, trust=trust, **settings)
        loaded._run, loaded._kept = folder, kept
        return loaded

    def evaluate(self, category: str | Path, **settings: Any) -> "TestResult":
        """Test the run on the images of a category, as `eval.py` does, at the thresholds of the run.

        The files that `eval.py` writes go into `eval` in the run's folder.

        Args:
            category: folder in MVTec layout, with `train/good` and `test` in it.
            settings: of `configs/eval.yaml`, and of the run's `data`, by their names.

        Raises:
            ConfigError: a setting does not exist or cannot work, or this is no detector of a run.
            DataError: it is no such folder, or an image cannot be read.
            ResourceError: memory or disk do not suffice.

        Examples:
            >>> AnomalyDetector.load("housing").evaluate("data/tile").metrics["image_auroc"] > 0.9
            True
        """
        from oddpatch import fitting

        return fitting.evaluate(self._run_folder(), category, settings)

    def save(self, folder: str | Path) -> None:
        """Write the run's folder as `train.py` leaves it, for `load` and all commands.

        Args:
            folder: a new one.

        Raises:
            ConfigError: it exists, or this is no detector of a run.
            ResourceError: it cannot be written; nothing is left of it.
        """
        run, target = self._run_folder(), Path(folder)
        if target.exists():
            raise ConfigError(f"{target} exists and is not overwritten: choose a new folder")
        with drafting(target) as draft:
            shutil.copytree(run, draft / "new", ignore=shutil.ignore_patterns(RUN), symlinks=True)
            (draft / "new").rename(target)

    def push_to_hub(self, repo: str, private: bool = False) -> str:
        """Upload the run to the Hugging Face Hub: tensors, their description and a model card, but no image.

        Args:
            repo: OWNER/NAME; made if there is none, else it gets a new commit.
            private: whether one that is made is for its owner alone.

        Returns:
            The address of the commit.

        Raises:
            ConfigError: `repo` is no such name, this is no detector of a run, or huggingface_hub is not installed.
            CheckpointError: the run cannot be read.
            ResourceError: the hub cannot be reached, or refuses.

        Examples:
            >>> AnomalyDetector.load("housing").push_to_hub("user/housing")  # doctest: +SKIP
        """
        from oddpatch import hub

        return hub.push(self._run_folder(), hub.parse_address(repo), private)

    def _run_folder(self) -> Path:
        if not self.run.is_dir():
            raise ConfigError(_NO_FOLDER)
        return self.run
