"""Learning without any image that is known to be good: a method is fitted to the test images, without their labels."""

import logging

from oddpatch.data.datamodule import MVTecDataModule
from oddpatch.errors import ConfigError
from oddpatch.learning.one_epoch import OneEpoch
from oddpatch.wording import counted

log = logging.getLogger(__name__)


class ZeroShot(OneEpoch):
    """As `OneEpoch`, with the test images in place of the good ones; labels and masks are for measuring only.

    For methods that need most images to be good, not all, such as `oddpatch.models.musc.MuSc`.

    Examples:
        >>> from lightning import Trainer
        >>> from oddpatch.backbones.timm import TimmBackbone
        >>> from oddpatch.data.datamodule import MVTecDataModule
        >>> from oddpatch.learning.zero_shot import ZeroShot
        >>> from oddpatch.metrics import ImageMetrics
        >>> from oddpatch.models.anomaly_model import AnomalyModel
        >>> from oddpatch.models.musc import MuSc
        >>> data = MVTecDataModule("data", "tile", mean=[0.5] * 3, std=[0.2] * 3, resize=48, num_workers=0)
        >>> backbone = TimmBackbone("resnet18", layers=[1], weights="random")
        >>> detector = MuSc(backbone.info.channels, backbone.info.strides, finest_stride=4)
        >>> model = AnomalyModel(data.preprocess, backbone, detector)
        >>> module = ZeroShot(model, {"image": ImageMetrics()})
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = Trainer(max_epochs=1, enable_checkpointing=False, **quiet)
        >>> trainer.fit(module, data)
        >>> trainer.test(module, data, verbose=False)[0]["image_auroc"] > 0.5
        True
    """

    training_status = "accumulating images of which nothing is known"
    tells_products = False

    def divide(self, data: MVTecDataModule) -> None:
        """Fit to the test images.

        Raises:
            ConfigError: a threshold is to be set, for which no image is known to be good.
        """
        if self.model.calibration.method != "none":
            raise ConfigError(
                f"calibration={self.model.calibration.method} sets a threshold on good images, and learning=zero_shot "
                "knows of none: set calibration=none"
            )
        self.model.calibration.absent = "zero-shot: no image was known to be good"
        if data.images is None:
            data.fit_to_test_images()
            log.warning("zero-shot: fitted to the %s, which judge each other", counted(len(data.fitted), "test image"))
