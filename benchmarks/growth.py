"""Rows of how time and memory grow as one size doubles four times, against the order that is stated for it.

    python benchmarks/run.py --only growth

Orders: fitting is linear in images and its memory as well where all patches are held, constant where they are bounded;
PaDiM's is cubic in the channels for the fit and quadratic for memory and scoring; a search is linear in the bank;
preparing an image is linear in its pixels. Features are synthetic, so that only what is named is measured.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image

import scaling
from common import ROOT, Options, Row, adopt_orphans, descendants_cpu, run, slope, timed
from oddpatch.data.transforms import Preprocess
from oddpatch.models.padim import PaDiM
from oddpatch.ops.maps import anomaly_map
from oddpatch.ops.neighbours import NearestIndex


def doubled(first: int, options: Options) -> list[int]:
    """A size, doubled four times; once where it is quick."""
    return [first * 2**power for power in range(2 if options.quick else 5)]


def least(call: Callable[[], object], rounds: int) -> float:
    """CPU seconds of the fastest of the rounds, after one that is not counted."""
    call()
    return min(timed(call).cpu for _ in range(rounds))


def rows(options: Options) -> Iterator[Row]:
    """All sizes."""
    torch.set_num_threads(1)
    yield from _images(options)
    yield from _channels(options)
    yield _bank(options)
    yield from _pixels(options)
    yield _categories(options)


def _images(options: Options) -> Iterator[Row]:
    for name, order in (("PaDiM", 0), ("PatchCore, bounded", 0), ("PatchCore, all held", 1), ("Gaussian-AD", 1)):
        # 1,000 reach the bound six times: what is held before the first costs nothing yet.
        counts = doubled(1000 if "bounded" in name else 250, options)
        points = [scaling.apart(scaling.point, name, count) for count in counts]
        yield slope(f"{name}, fit by images", counts, [it["update"] + it["fit"] for it in points], 1)
        yield _memory(
            f"{name}, memory of the fit by images", counts, [it["peak"] / scaling.MIB for it in points], order
        )


def _memory(what: str, sizes: Sequence[float], values: Sequence[float], order: float) -> Row:
    """Of order 0, the peak may rise by a quarter from the first to the last."""
    if order:
        return slope(what, sizes, values, order, "MiB")
    told = ", ".join(f"{size:,.0f}: {value:.3g}" for size, value in zip(sizes, values, strict=True))
    return Row(f"growth: {what}", "constant", values[-1], values[0], "MiB", values[-1] / values[0], 1.25, note=told,
               rounds=len(sizes))  # fmt: skip


def _channels(options: Options) -> Iterator[Row]:
    sizes, fits, scores = doubled(25, options), [], []
    for channels in sizes:
        generator = torch.Generator().manual_seed(0)
        features = [torch.randn(50, channels, 14, 14, generator=generator)]

        def fit(channels: int = channels, features: list[torch.Tensor] = features) -> PaDiM:
            detector = PaDiM([channels], [8], num_features=channels)
            detector.update(features, torch.arange(50))
            detector.fit()
            return detector

        fits.append(least(fit, options.rounds))
        detector = fit()
        scores.append(least(partial(detector, [features[0][:1]], (112, 112)), 3 * options.rounds))
    yield slope("PaDiM, fit by channels", sizes, fits, 3)
    yield slope("PaDiM, one image by channels", sizes, scores, 2)


def _bank(options: Options) -> Row:
    sizes, seconds = doubled(2000, options), []
    queries = torch.randn(784, 152, generator=torch.Generator().manual_seed(1))
    for size in sizes:
        index = NearestIndex(
            torch.randn(size, 152, generator=torch.Generator().manual_seed(0)), num_queries=len(queries)
        )
        seconds.append(least(partial(index.search, queries), options.rounds))
    return slope("search of 784 patches by bank", sizes, seconds, 1)


def _pixels(options: Options) -> Iterator[Row]:
    sides = doubled(256, options)
    pixels, prepared, mapped = [side**2 for side in sides], [], []
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            noise = torch.randint(
                0, 256, (side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
            )
            path = Path(folder) / f"{side}.png"
            Image.fromarray(noise.numpy()).save(path, compress_level=1)
            preprocess = Preprocess(256, 224, (0.5,) * 3, (0.5,) * 3)
            prepared.append(least(lambda path=path, it=preprocess: it(it.read(path), None), options.rounds))  # type: ignore[misc]
            scores = torch.rand(1, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
            mapped.append(least(partial(anomaly_map, scores, (side, side)), options.rounds))
    yield slope("decode and prepare an image by pixels", pixels, prepared, 1)
    yield slope("anomaly map by pixels", pixels, mapped, 1.5)  # two products of side^2 / 8 with side


def _categories(options: Options) -> Row:
    """A sweep over categories, which are links to one."""
    adopt_orphans()
    counts, seconds = doubled(1, options), []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "data"
        root.mkdir()
        for number in range(counts[-1]):
            (root / f"part{number}").symlink_to(options.images())
        for count in counts:
            names = ",".join(f"part{number}" for number in range(count))
            command: list[str | Path] = [
                sys.executable, ROOT / "train.py", "-m", "debug=smoke", "model=padim", "data=custom",
                f"data.root={root}", f"data.category={names}", f"hydra.sweep.dir={scratch}/{count}",
                "callbacks.pictures=null",
            ]  # fmt: skip
            before = descendants_cpu()
            run(command)
            seconds.append(descendants_cpu() - before)
    return slope("a sweep by categories", counts, seconds, 1)
