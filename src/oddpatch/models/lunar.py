"""LUNAR: a small network learns what distances to good patches are anomalous (Goodge et al., arXiv 2112.05355)."""

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oddpatch.errors import ConfigError, DataError
from oddpatch.metrics.ranking import auroc
from oddpatch.models.base import FeatureShape, ProgressFn, no_progress
from oddpatch.models.memory_bank import MemoryBankDetector
from oddpatch.models.selectors import Selector
from oddpatch.ops.neighbours import SEARCH_BYTES, NearestIndex, plain_nearest
from oddpatch.settings import require_at_least, require_one_of

#: Share of the patches that are not trained on, by which the best of the training steps is chosen.
VALIDATION = 0.1
#: Negatives near a good patch: standard deviation of the noise, and the share of the dimensions that it enters.
NOISE, NOISY = 0.1, 0.3
HIDDEN = 256
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
#: Rows that the network is given at once.
CHUNK = 16384


class WeightNetwork(nn.Module):
    """Scores (n,) of distances (n, k): their mean, weighted by what a network makes of them, then batch-normalised."""

    def __init__(self, k: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(k, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.LayerNorm(hidden), nn.Linear(hidden, k),
        )  # fmt: skip
        self.final_norm = nn.BatchNorm1d(1)

    def rate(self, distances: Tensor) -> Tensor:
        """Values (n,) of distances (n, k), each by itself."""
        return (self.network(distances).softmax(dim=1) * distances).sum(dim=1)

    def finish(self, values: Tensor) -> Tensor:
        """Scores (n,) of all values (n,) together."""
        return self.final_norm(values[:, None])[:, 0]


class ScoreNetwork(nn.Module):
    """Scores (n,) in 0..1 of distances (n, k)."""

    def __init__(self, k: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(k, hidden), nn.Tanh(),
            nn.Linear(hidden, hidden), nn.Tanh(),
            nn.Linear(hidden, hidden), nn.Tanh(),
            nn.Linear(hidden, 1), nn.Sigmoid(),
        )  # fmt: skip

    def rate(self, distances: Tensor) -> Tensor:
        """Values (n,) of distances (n, k), each by itself."""
        return self.network(distances)[:, 0]

    def finish(self, values: Tensor) -> Tensor:
        """The same."""
        return values


Network = WeightNetwork | ScoreNetwork
NETWORKS: dict[str, type[Network]] = {"weight": WeightNetwork, "score": ScoreNetwork}


class LUNAR(MemoryBankDetector):
    """A network scores the distances of a patch to its nearest good ones; it learns from generated negatives.

    Args:
        channels, strides, coreset_size, selector: see `MemoryBankDetector`.
        k: how many nearest distances the network is given.
        network: "weight" gives their weighted mean, normalised to any sign and scale; "score" a score in 0..1.
        steps: training steps, each on all patches of the memory bank.
        patch_size, top, smoothing, seed, finest_stride: see `MemoryBankDetector`.

    Examples:
        >>> import torch
        >>> from oddpatch.models.lunar import LUNAR
        >>> good = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))  # a feature map of 8 images
        >>> detector = LUNAR(channels=[4], strides=[8], steps=20)
        >>> detector.update([good], torch.arange(8))
        >>> detector.fit()
        >>> odd = good[:1].clone()
        >>> odd[..., 3, 2] += 9
        >>> score, anomaly_map = detector([odd], (48, 48))
        >>> [position // 8 for position in divmod(int(anomaly_map.argmax()), 48)]  # the patch with the highest pixel
        [3, 2]
    """

    fitted_buffers = ("memory_bank", "minimum", "span")
    # memory_bank (M, D) holds what was trained on, scaled.
    minimum: Tensor  # (D,) of the patches that were trained on
    span: Tensor  # (D,) their range

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        coreset_size: int | None = 2000,
        selector: str | Selector = "random",
        k: int = 5,
        network: str = "weight",
        steps: int = 200,
        patch_size: int = 3,
        top: float | None = None,
        smoothing: float = 4.0,
        seed: int = 0,
        finest_stride: int = 8,
    ) -> None:
        super().__init__(channels, strides, coreset_size, selector, patch_size, top, smoothing, seed, finest_stride)
        require_one_of(NETWORKS, network=network)
        require_at_least(1, k=k, steps=steps)
        self.k, self.steps = k, steps
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = NETWORKS[network](k).requires_grad_(False)
        self.register_buffer("minimum", torch.empty(0))
        self.register_buffer("span", torch.empty(0))
        self._index: tuple[Tensor, NearestIndex] | None = None
        self.eval()

    def train(self, mode: bool = True) -> "LUNAR":
        """Stay in eval mode: a copy of the network is what `fit` trains."""
        return super().train(False)

    def fit(self, progress: ProgressFn = no_progress) -> None:
        """Train the network on the distances of good patches and of negatives.

        Raises:
            DataError: there is no image.
            ConfigError: fewer patches are kept than it takes.
        """
        generator = torch.Generator().manual_seed(self.seed)  # on the CPU: what is drawn is the same for any device
        # A caller may have turned gradients off, and tensors of inference mode cannot take part in them.
        with torch.inference_mode(False), torch.no_grad():
            bank = self.take_bank(generator, progress).float()
            order = torch.randperm(len(bank), generator=generator).to(bank.device)
            held = self._num_validation(len(bank))
            validation, trained = bank[order[:held]], bank[order[held:]]
            del bank
            self.minimum, self.span = ranges(trained)
            self.memory_bank, validation = self.scale(trained), self.scale(validation)
            negatives, false = (draw_negatives(points, generator) for points in (self.memory_bank, validation))
            # Of its own neighbours a patch is the nearest.
            good = self.index.search(self.memory_bank, self.k + 1)[0][:, 1:]
            distances = torch.cat([good, self.index.search(negatives, self.k)[0]])
            checked = self.index.search(torch.cat([validation, false]), self.k)[0]
        with torch.inference_mode(False):
            best = train_network(self.network, distances, checked, self.steps, progress)
        self.network.load_state_dict(best)
        self.finish()

    def _num_validation(self, bank: int) -> int:
        held = math.ceil(VALIDATION * bank)
        if bank - held < self.k + 1:
            raise ConfigError(
                f"k={self.k} nearest of {bank - held} patches that LUNAR would be trained on: lower model.k, raise "
                "model.coreset_size, or add images"
            )
        return held

    def scale(self, patches: Tensor) -> Tensor:
        """Patches (..., D) with the range of each dimension brought to 0..1."""
        return (patches - self.minimum) / self.span

    @property
    def index(self) -> NearestIndex:
        """The memory bank made ready to be searched; made once, and again when another one was fitted or loaded."""
        if self._index is None or self._index[0] is not self.memory_bank:
            self._index = (self.memory_bank, NearestIndex(self.memory_bank))
        return self._index[1]

    def score_patches(self, patches: Tensor) -> Tensor:
        """Scores (B, P)."""
        queries = self.scale(patches.flatten(0, 1))
        if torch.compiler.is_exporting():
            distances, _ = plain_nearest(queries, self.memory_bank, self.k)
            return self.network.finish(self.network.rate(distances)).view(patches.shape[:2])
        distances, _ = self.index.search(queries, self.k)  # (B*P, k)
        values = torch.cat([self.network.rate(part) for part in distances.split(CHUNK)])
        return self.network.finish(values).view(patches.shape[:2])

    def required_memory(self, shapes: Sequence[FeatureShape], num_images: int) -> tuple[int, str]:
        """See `MemoryBankDetector`; the bank must hold enough patches."""
        total = num_images * len(self.probe(shapes).rows)
        self._num_validation(self.bank_size(total))
        return super().required_memory(shapes, num_images)

    def fit_memory(self, bank: int) -> int:
        """The patches and as many negatives, the search among them, and what the network computes of some at a time."""
        search = 1.2 * min(SEARCH_BYTES, 4 * bank * bank)
        activations = 4 * min(CHUNK, 2 * bank) * 5.3 * HIDDEN  # as measured
        return int(4 * bank * self.dim + max(4 * 4 * bank * self.dim + search, activations))


def ranges(points: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and range (D,) of points (n, D); where all are alike the range is 1."""
    minimum = points.amin(0)
    span = points.amax(0) - minimum
    return minimum, span.where(span > 0, 1)


def draw_negatives(points: Tensor, generator: torch.Generator) -> Tensor:
    """As many negatives as there are points (n, D): each uniform over their range, or a point with noise in places.

    Both kinds are equally likely. The range is one for all dimensions.
    """
    count, dim = points.shape
    low, high = points.min(), points.max()
    uniform = low + (high - low) * torch.rand(count, dim, generator=generator).to(points.device)
    chosen = points[torch.randint(count, (count,), generator=generator).to(points.device)]
    noisy = (torch.rand(count, dim, generator=generator) < NOISY).to(points.device)
    noise = NOISE * torch.randn(count, dim, generator=generator).to(points.device)
    near = (torch.rand(count, 1, generator=generator) < 0.5).to(points.device)
    return torch.where(near, chosen + noisy * noise, uniform)


def train_network(
    start: Network, distances: Tensor, validation: Tensor, steps: int, progress: ProgressFn = no_progress
) -> dict[str, Tensor]:
    """The best state of a network that was trained to give 0 for good patches and 1 for negatives.

    All distances make one step of Adam on the sum of squared errors. Before each step the AUROC of the validation
    distances is measured; the state with the highest is kept, of equals the last.

    Args:
        start: stays as it is; a copy is trained.
        distances: (2n, k), of good patches, then of as many negatives.
        validation: (2m, k), the same of others.
        steps: how many.
        progress: told after each step.

    Raises:
        DataError: the loss is not finite.
    """
    network = deepcopy(start).requires_grad_(True)
    wanted, labels = (torch.arange(len(d), device=d.device) >= len(d) // 2 for d in (distances, validation))
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    highest, best = -math.inf, network.state_dict()
    with torch.enable_grad():
        for step in range(steps):
            with torch.no_grad():
                scores = network.eval().finish(network.rate(validation))
            found = auroc(scores.cpu().numpy(), labels.cpu().numpy())
            if found >= highest:
                highest, best = found, {name: tensor.clone() for name, tensor in network.state_dict().items()}
            network.train()
            optimizer.zero_grad()
            parts = distances.split(CHUNK)
            # The activations of one part at a time are held, and computed again when its gradients are.
            values = [checkpoint(network.rate, part, use_reentrant=False) if parts[1:] else network.rate(part)
                      for part in parts]  # fmt: skip
            loss = (network.finish(torch.cat(values)) - wanted.float()).square().sum()
            if not loss.isfinite():
                raise DataError(f"LUNAR: the loss is {loss.item()} at step {step}: check the backbone's precision")
            loss.backward()
            optimizer.step()
            progress(step + 1, steps, "LUNAR")
    return best
