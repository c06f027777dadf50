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
    """

    training_status = "accumulating images of which nothing is known"

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
