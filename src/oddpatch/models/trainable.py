"""What a method is that learns by gradients, from good and defective images."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from oddpatch.errors import ConfigError
from oddpatch.models.base import Detector, FeatureShape, ProgressFn, no_progress
from oddpatch.types import Batch

if TYPE_CHECKING:
    from oddpatch.backbones.base import Backbone

#: Compares what a network gives with what it should have given, such as `torch.nn.BCEWithLogitsLoss()`.
Criterion = Callable[[Tensor, Tensor], Tensor]


class TrainableDetector(Detector):
    """A detector with parameters, which `oddpatch.learning.supervised` optimises; `forward` scores as any other does.

    Its YAML chooses that kind of learning, see docs/supervised.md.
    """

    #: An image with a score above it is called anomalous by the network itself; None if its scores do not say.
    decides_at: ClassVar[float | None] = None

    @abstractmethod
    def loss(self, features: list[Tensor], batch: Batch, criterion: Criterion) -> Tensor:
        """The loss of a batch: the mean over its images, so that it does not depend on how these are batched.

        Args:
            features: [(B, C_l, h_l, w_l)], finest first.
            batch: its labels (B,) and masks (B, 1, H, W), in which IGNORE pixels are not known.
            criterion: `learning.loss` of the config.
        """

    def adapt_backbone(self, backbone: "Backbone") -> None:
        """Say which of the backbone learns too; called whenever training (re)starts. By default it stays frozen.

        A method that trains some of it has those parameters require gradients here. BatchNorm stays in eval mode
        unless its layers are put into training mode here, too.
        """

    def update(self, features: list[Tensor], index: Tensor) -> None:
        """Not for a method that learns by gradients, unless it is to know good images first.

        One that has accumulators is shown the good training images, as they are, before it is optimised: by `update`,
        and then `fit`.

        Raises:
            ConfigError: always, here.
        """
        raise ConfigError(f"{type(self).__name__} learns by gradients: set learning=supervised")

    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Mark the parameters as learned: there is nothing else to fit."""
        self.finish()

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """Nothing beyond a batch."""
        return 0, "lower data.batch_size"

    def restrict(self, mask: Tensor) -> None:
        """A region must be handled by the method.

        Raises:
            ConfigError: unless a method says how.
        """
        raise ConfigError(f"{type(self).__name__} knows no region of interest: set data.roi=null")
