"""Rows of the pixel metrics: against one sort of the same pixels, scikit-learn and anomalib, and as images double.

python benchmarks/run.py --only metrics
python benchmarks/metrics.py --size 224 --bootstrap 400 800 1600 3200
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

import peers
from common import BenchmarkError, Options, Row, Used, alternate, compare, run, slope, timed
from oddpatch.metrics import pixel_metrics, rank_pixels
from oddpatch.metrics.pixel import PixelResult
from oddpatch.metrics.uncertainty.bootstrap import pixel_metrics_by_draw, resample
from oddpatch.metrics.uncertainty.pixel_statistics import PixelStatistics

Maps = NDArray[np.float32]
Masks = NDArray[np.uint8]
LIMITS = (0.3, 0.05)


def make_data(images: int, size: int, seed: int) -> tuple[Maps, Masks]:
    """Smooth maps, as upsampled patch scores are, and round defects on three images of four (some 6 %)."""
    rng = np.random.default_rng(seed)
    maps, masks = np.empty((images, size, size), np.float32), np.zeros((images, size, size), np.uint8)
    for position in range(images):
        if position % 4:
            for x, y in rng.integers(size // 8, size - size // 8, (3, 2)):
                cv2.circle(masks[position], (int(x), int(y)), int(rng.integers(size // 14, size // 9)), 1, -1)
        patches = rng.gamma(4.0, 5.0, (56, 56)).astype(np.float32)
        smooth = cv2.GaussianBlur(cv2.resize(patches, (size, size), interpolation=cv2.INTER_LINEAR), (0, 0), 4)
        maps[position] = smooth + 10 * cv2.GaussianBlur(masks[position].astype(np.float32), (0, 0), size / 60)
    return maps, masks


def everything(maps: Maps, masks: Masks) -> PixelResult:
    """Pixel AUROC, AP, F1-max and AU-PRO at two limits, and 1,000 draws for their confidence intervals."""
    ranking = rank_pixels(maps, masks)
    statistics = PixelStatistics.from_maps(maps, masks, LIMITS, ranking)
    pixel_metrics_by_draw(statistics, resample(masks.any((1, 2)).astype(int), 1000, 0))
    return ranking.metrics(LIMITS)


def rows(options: Options) -> Iterator[Row]:
    """AUROC, AU-PRO and intervals: against one sort of the pixels, and against anomalib, which gives no intervals."""
    sizes = [(8, 200)] if options.quick else [(83, 900), (1000, 224)]
    for images, size in sizes:
        maps, masks = make_data(images, size, 0)
        # Into [0, 1], as anomalib normalises its maps: beyond it torchmetrics takes scores for logits, and ties them.
        maps = (maps - maps.min()) / np.ptp(maps)
        what = f"AUROC, AU-PRO, intervals, {images} x {size} x {size}"
        sides: dict[str, Callable[[], Used]] = {
            "ours": lambda maps=maps, masks=masks: timed(partial(everything, maps, masks)),  # type: ignore[misc]
            "sort": lambda maps=maps: timed(partial(np.sort, maps, axis=None)),  # type: ignore[misc]
        }
        used = alternate(sides, options.rounds)
        found = used["ours"][0].facts["result"]
        yield compare(what, "one numpy.sort of the pixels", used["ours"], used["sort"], 2)
        sides = {"ours": sides["ours"], "theirs": lambda maps=maps, masks=masks: _anomalib(maps, masks)}  # type: ignore[misc]
        try:
            used = alternate(sides, options.rounds)
        except BenchmarkError as error:
            yield Row(what, f"anomalib {peers.ANOMALIB}", error=str(error))
            continue
        other = used["theirs"][0].facts["metrics"]
        note = (
            f"pixel AUROC ours {found.auroc:.4f}, theirs {other['pixel_AUROC']:.4f}; AU-PRO ours "
            f"{found.au_pro[0.3]:.4f}, theirs {other['pixel_AUPRO']:.4f}; theirs without intervals"
        )
        yield compare(what, f"anomalib {peers.ANOMALIB}", used["ours"], used["theirs"], 1 / 10, note=note)
    yield from _scikit_learn(options)
    yield from _growth(options)


def _anomalib(maps: Maps, masks: Masks) -> Used:
    with tempfile.TemporaryDirectory() as folder:
        spec = {"do": "metrics", "maps": f"{folder}/maps.npy", "masks": f"{folder}/masks.npy"}
        np.save(spec["maps"], maps)
        np.save(spec["masks"], masks)
        return run([peers.anomalib(), Path(__file__).parent / "peer_anomalib.py", json.dumps(spec)])


def _scikit_learn(options: Options) -> Iterator[Row]:
    maps, masks = make_data(2 if options.quick else 8, 200 if options.quick else 900, 0)
    flat, labels = maps.ravel(), masks.ravel()
    used = alternate(
        {
            "ours": lambda: timed(partial(pixel_metrics, maps, masks)),
            "theirs": lambda: timed(lambda: (roc_auc_score(labels, flat), average_precision_score(labels, flat))),
        },
        options.rounds,
    )
    found, (auroc, ap) = used["ours"][0].facts["result"], used["theirs"][0].facts["result"]
    note = f"values differ by {max(abs(found.auroc - auroc), abs(found.ap - ap)):.1e} at most; AU-PRO and F1-max too"
    yield compare(f"AUROC and AP, {len(maps)} maps", "scikit-learn", used["ours"], used["theirs"], note=note)


def _growth(options: Options) -> Iterator[Row]:
    counts = [4 * 2**i for i in range(3)] if options.quick else [64 * 2**i for i in range(5)]
    seconds = []
    for count in counts:
        maps, masks = make_data(count, 224, 0)
        seconds.append(min(timed(partial(everything, maps, masks)).cpu for _ in range(options.rounds)))
    yield slope("metrics and intervals by test images", counts, seconds, 1.0)


def bootstrap(counts: Sequence[int], size: int, seed: int) -> None:
    """CPU seconds of the bootstrap beside those of the metrics, which rank the pixels anyway."""
    print(f"maps of {size}x{size}, 1000 draws, CPU seconds")
    print("images  numpy.sort  rank_pixels  statistics  draws  both per 800 images")
    for images in counts:
        maps, masks = make_data(images, size, seed)
        sort = timed(partial(np.sort, maps, axis=None))
        ranked = timed(partial(rank_pixels, maps, masks))
        gathered = timed(partial(PixelStatistics.from_maps, maps, masks, LIMITS, ranked.facts["result"]))
        weights = resample(masks.any((1, 2)).astype(int), 1000, seed)
        drawn = timed(partial(pixel_metrics_by_draw, gathered.facts["result"], weights))
        both = (gathered.cpu + drawn.cpu) * 800 / images
        print(f"{images:6d}  {sort.cpu:10.2f}  {ranked.cpu:11.2f}  {gathered.cpu:10.2f}  {drawn.cpu:5.2f}  {both:.2f}")


def main() -> None:
    """The bootstrap alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="height and width of a map in pixels")
    parser.add_argument("--bootstrap", type=int, nargs="+", metavar="IMAGES", required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bootstrap(options.bootstrap, options.size, options.seed)


if __name__ == "__main__":
    main()
