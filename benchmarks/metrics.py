"""Time and memory of the pixel metrics, as ratios in one run: to one sort of the same pixels, and to scikit-learn.

python benchmarks/metrics.py --images 83 --size 900
python benchmarks/metrics.py --size 224 --bootstrap 400 800 1600 3200
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from oddpatch.metrics import pixel_metrics, rank_pixels
from oddpatch.metrics.uncertainty.bootstrap import pixel_metrics_by_draw, resample
from oddpatch.metrics.uncertainty.pixel_statistics import PixelStatistics

Maps = NDArray[np.float32]
Masks = NDArray[np.uint8]


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


class Timing(NamedTuple):
    """Seconds that a call took."""

    wall: float
    cpu: float  # summed over threads; what to compare on a busy machine


def timed(call: Callable[[], Any]) -> tuple[Timing, Any]:
    """How long a call takes, and what it gives."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu), result


def best(timings: Sequence[Timing]) -> Timing:
    """The shortest times."""
    return Timing(min(timing.wall for timing in timings), min(timing.cpu for timing in timings))


def peak_rss_gib() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def against_sort(maps: Maps, masks: Masks, repeats: int) -> None:
    """Compare all pixel metrics with one sort of all pixels, taking turns so that both see the same machine."""
    before = peak_rss_gib()
    ours, plain = [], []
    first, result = timed(lambda: pixel_metrics(maps, masks, (0.3, 0.05)))
    peak = peak_rss_gib()
    ours.append(first)
    for _ in range(repeats):
        plain.append(timed(lambda: np.sort(maps, axis=None))[0])
        ours.append(timed(lambda: pixel_metrics(maps, masks, (0.3, 0.05)))[0])
    sort, metrics = best(plain), best(ours)
    print(f"{len(maps)} maps of {maps.shape[1]}x{maps.shape[2]}, {masks.mean():.1%} defect pixels, best of {repeats}")
    print(f"  {result}")
    print(f"  with {torch.get_num_threads()} threads               wall  ratio       CPU  ratio")
    print(f"  numpy.sort of the pixels {sort.wall:7.2f} s 1.00  {sort.cpu:7.2f} s 1.00")
    print(
        f"  pixel_metrics            {metrics.wall:7.2f} s {metrics.wall / sort.wall:.2f}  "
        f"{metrics.cpu:7.2f} s {metrics.cpu / sort.cpu:.2f}  (goal: at most 2)"
    )
    print(f"  peak RSS                 {peak:7.2f} GiB, of which {before:.2f} before the call (goal: below 3 GB)")


def against_scikit_learn(maps: Maps, masks: Masks) -> None:
    """Compare with scikit-learn's AUROC and average precision, which sort all pixels with their positions."""
    scores, labels = maps.ravel(), masks.ravel()
    ours, result = timed(lambda: pixel_metrics(maps, masks))
    theirs, (auroc, ap) = timed(lambda: (roc_auc_score(labels, scores), average_precision_score(labels, scores)))
    print(f"{len(maps)} maps, pixel AUROC and average precision alone by scikit-learn")
    print(f"  scikit-learn             {theirs.wall:7.2f} s 1.00  {theirs.cpu:7.2f} s 1.00")
    print(
        f"  pixel_metrics            {ours.wall:7.2f} s {ours.wall / theirs.wall:.2f}  "
        f"{ours.cpu:7.2f} s {ours.cpu / theirs.cpu:.2f}  (AU-PRO and F1-max included)"
    )
    print(f"  largest difference {max(abs(result.auroc - auroc), abs(result.ap - ap)):.1e}")


def bootstrap(counts: Sequence[int], size: int, seed: int) -> None:
    """CPU seconds of the bootstrap beside those of the metrics, which rank the pixels anyway."""
    print(f"maps of {size}x{size}, 1000 draws, CPU seconds")
    print("images  numpy.sort  rank_pixels  statistics  draws  both per 800 images")
    for images in counts:
        maps, masks = make_data(images, size, seed)
        sort, _ = timed(partial(np.sort, maps, axis=None))
        ranked, ranking = timed(partial(rank_pixels, maps, masks))
        gathered, statistics = timed(partial(PixelStatistics.from_maps, maps, masks, (0.3, 0.05), ranking))
        weights = resample(masks.any((1, 2)).astype(int), 1000, seed)
        drawn, _ = timed(partial(pixel_metrics_by_draw, statistics, weights))
        both = (gathered.cpu + drawn.cpu) * 800 / images
        print(f"{images:6d}  {sort.cpu:10.2f}  {ranked.cpu:11.2f}  {gathered.cpu:10.2f}  {drawn.cpu:5.2f}  {both:.2f}")


def main() -> None:
    """Run the comparisons, or the bootstrap alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=83)
    parser.add_argument("--size", type=int, default=900, help="height and width of a map in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-images", type=int, default=8, help="maps given to scikit-learn; 0 leaves it out")
    parser.add_argument("--bootstrap", type=int, nargs="+", metavar="IMAGES", help="time the bootstrap instead")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.bootstrap:
        bootstrap(options.bootstrap, options.size, options.seed)
        return
    maps, masks = make_data(options.images, options.size, options.seed)
    against_sort(maps, masks, options.repeats)
    if options.peer_images:
        against_scikit_learn(maps[: options.peer_images], masks[: options.peer_images])


if __name__ == "__main__":
    main()
