"""False alarms and delays of the drift test on simulated lines, and what it costs for each image.

    python benchmarks/drift.py                          # false alarms and delays; some minutes
    python benchmarks/drift.py --cost ../shared/data/mvtec/bottle/train/good

Every line has good images, a threshold (calibration=holdout, target_fpr=0.01) and a stream of its own. What is
simulated is what `DriftMonitor` does with scores, by the same functions, for all lines at once.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oddpatch.drift.martingale import (
    EXCESSES,
    SHIFTS,
    SPREADS,
    Evidence,
    allowed_share,
    bets_on,
    bets_on_rejection,
    urn_p_value,
)
from oddpatch.drift.monitor import PARTS

Floats = NDArray[np.float64]
NEVER = np.iinfo(np.int64).max
DEFECTS = 0.05


class Line(NamedTuple):
    """Many lines of one kind."""

    known: Floats  # (lines, n) scores of good images
    threshold: Floats  # (lines,)
    draw: Callable[[int], Floats]  # scores (lines,) of a part, by number


def first_alarms(
    line: Line, parts: int, rng: np.random.Generator, false_alarms: float, streams: int
) -> NDArray[np.int64]:
    """(lines, 2) the part at which score and share of rejected parts raise their alarm; NEVER."""
    lines, n = line.known.shape
    above = 1 + (line.known > line.threshold[:, None]).sum(axis=1)
    alarm_at, rows = PARTS / false_alarms * streams, np.arange(lines)
    known = np.where(line.known < line.threshold[:, None], line.known, np.inf)
    known.sort(axis=1)
    gaps = np.isfinite(known).sum(axis=1)
    # A gap beyond the accepted good images is no gap of the urn: its weight is taken away.
    counts = np.where(np.arange(known.shape[1] + 1) <= gaps[:, None], 0, -1)
    score = Evidence.at_start(lines, len(SHIFTS) + len(SPREADS), head_start=PARTS)
    rejected = Evidence.at_start(lines, len(EXCESSES), head_start=0)
    found = np.full((lines, 2), NEVER)
    for part in range(parts):
        values = line.draw(part)
        out = values > line.threshold
        gap = (known < values[:, None]).sum(axis=1)
        after = score.after(bets_on(urn_p_value(counts, np.minimum(gap, gaps), np.asarray(rng.random(lines)))), part)
        score = Evidence(*(np.where(out[:, None], old, new) for old, new in zip(score, after, strict=True)))
        counts[rows[~out], gap[~out]] += 1
        allowed = allowed_share(DEFECTS, above, np.array(1 + n + part))
        rejected = rejected.after(bets_on_rejection(out, allowed), part)
        above += out  # these thresholds are scores of good images, so that nothing lies between the two
        for column, evidence in enumerate((score, rejected)):
            found[:, column] = np.minimum(found[:, column], np.where(evidence.value >= alarm_at, part, NEVER))
            np.minimum(evidence.sums, 1e200, out=evidence.sums)  # an alarm is raised once
            np.minimum(evidence.runs, 1e200, out=evidence.runs)
    return found


def normal_line(lines: int, n: int, rng: np.random.Generator, defects: float = 0.0, missed: float = 0.0) -> Line:
    """Scores of good parts are standard normal, defects score far above the threshold, those missed just below it."""
    known = rng.normal(size=(lines, n))
    threshold = held_out_threshold(known)

    def draw(part: int) -> Floats:
        values, kind = rng.normal(size=lines), rng.random(lines)
        values = np.where(kind < defects, threshold + 1, values)
        return np.where(kind < missed, np.minimum(threshold, rng.uniform(1.5, 2.5, lines)) - 1e-9, values)

    return Line(known, threshold, draw)


def left_out_line(lines: int, n: int, rng: np.random.Generator, dimensions: int = 10) -> Line:
    """Scores are distances to the nearest of n good images, which are left out in turn (calibration=leave_one_out)."""
    good = rng.normal(size=(lines, n, dimensions)).astype(np.float32)
    norms = (good**2).sum(axis=2)
    known = np.empty((lines, n))
    for row in range(lines):
        squared = norms[row][:, None] + norms[row] - 2 * good[row] @ good[row].T
        np.fill_diagonal(squared, np.inf)
        known[row] = np.sqrt(squared.min(axis=1))

    def draw(part: int) -> Floats:
        new = rng.normal(size=(lines, dimensions)).astype(np.float32)
        squared = norms + (new**2).sum(axis=1)[:, None] - 2 * np.einsum("lnd,ld->ln", good, new)
        return np.sqrt(squared.min(axis=1)).astype(np.float64)

    return Line(known, held_out_threshold(known), draw)


def held_out_threshold(known: Floats) -> Floats:
    """As `conformal_threshold` of each row at 1 %."""
    n = known.shape[1]
    return np.sort(known, axis=1)[:, min(int(np.ceil((n + 1) * 0.99 - 1e-9)), n) - 1]


def shifted(line: Line, by: float, begin: int) -> Line:
    """From a part on all scores are shifted."""
    return line._replace(draw=lambda part: line.draw(part) + (by if part >= begin else 0.0))


def report_false_alarms(lines: int, parts: int, false_alarms: float) -> None:
    """Print how many of many lines on which nothing happens raise an alarm."""
    bound = false_alarms * (1 + parts / PARTS)
    print(f"false alarms in {parts} parts of {lines} lines, stated: at most {bound:.1%} of the lines, of both streams")
    kinds: dict[str, Callable[[np.random.Generator], Line]] = {
        "40 good images": lambda rng: normal_line(lines, 40, rng),
        "200 good images": lambda rng: normal_line(lines, 200, rng),
        "200, 2 % defects, rejected": lambda rng: normal_line(lines, 200, rng, defects=0.02),
        "200, 2 % defects, half of them missed": lambda rng: normal_line(lines, 200, rng, 0.02, 0.01),
        "40, each left out of a nearest-neighbour fit": lambda rng: left_out_line(lines, 40, rng),
    }
    for seed, (name, make) in enumerate(kinds.items()):
        rng = np.random.default_rng(seed)
        found = first_alarms(make(rng), parts, rng, false_alarms, streams=2) < NEVER
        score, rejected = found.mean(axis=0)
        print(f"  {name:<46} {found.any(axis=1).mean():6.2%}  (score {score:.2%}, rejected {rejected:.2%})", flush=True)


def report_delays(lines: int, false_alarms: float) -> None:
    """Print after how many parts a shift is noticed, with four streams watched besides that of the rejected parts."""
    print(f"delay in parts after which a shift of the score is noticed, {lines} lines: median, 90 % (missed in 3,000)")
    for n in (50, 200, 1000):
        for begin in (0, 1000):
            told = []
            for by in (0.5, 1.0, 2.0):
                rng = np.random.default_rng(n + begin)
                line = shifted(normal_line(lines, n, rng, defects=0.02), by, begin)
                found = first_alarms(line, begin + 3000, rng, false_alarms, streams=5).min(axis=1)
                noticed = found[(found >= begin) & (found < NEVER)] - begin
                missed = (found == NEVER).mean()
                if missed < 0.5:
                    delays = np.sort(np.concatenate([noticed, np.full(int(missed * lines), 3000)]))
                    middle, most = np.quantile(delays, [0.5, 0.9])
                    told.append(f"{by} sd {middle:.0f}, {most:.0f} ({missed:.0%})")
                else:
                    told.append(f"{by} sd - ({missed:.0%})")
            print(f"  {n:>4} good images, shift at part {begin}: {'; '.join(told)}", flush=True)


def report_cost(folder: Path) -> None:
    """Print CPU milliseconds of decoding, of measuring an image, and of the monitor's part."""
    from oddpatch.data.decoding import read_planes
    from oddpatch.data.light import measure
    from oddpatch.drift.monitor import DriftMonitor
    from oddpatch.metrics.good_scores import GoodScores

    paths = sorted(folder.iterdir())[:50]
    start = time.process_time()
    images = [read_planes(path) for path in paths]
    decoded = time.process_time()
    for image in images:
        measure(image)
    measured = time.process_time()
    rng = np.random.default_rng(0)
    known = {name: rng.normal(1, 0.1, 200) for name in ("brightness", "sharpness", "aligned")}
    good = GoodScores(np.sort(rng.normal(3, 1, 200)), np.empty(0), float("nan"), 0.01, None, statistics=known)
    monitor = DriftMonitor(good, 9.0)
    records = [
        {"score": score, "is_anomalous": False, "brightness": 1.0, "sharpness": 1.0, "aligned": 1.0}
        for score in rng.normal(3, 1, 2000).tolist()
    ]
    begun = time.process_time()
    for record in records:
        monitor.add(record)
    seen = time.process_time()
    height, width = images[0].shape[1:]
    print(
        f"CPU ms of an image of {width}x{height}: decoding {1000 * (decoded - start) / len(paths):.2f}, brightness and "
        f"sharpness {1000 * (measured - decoded) / len(paths):.2f}, monitor of five streams "
        f"{1000 * (seen - begun) / len(records):.2f}"
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000, help="lines that are simulated")
    parser.add_argument("--parts", type=int, default=10_000, help="parts of each, where nothing happens")
    parser.add_argument("--false-alarms", type=float, default=0.01, help="see oddpatch drift")
    parser.add_argument("--cost", type=Path, help="folder of images: measure what each costs instead")
    args = parser.parse_args()
    if args.cost is not None:
        report_cost(args.cost)
        return
    report_delays(max(args.lines // 10, 1), args.false_alarms)
    report_false_alarms(args.lines, args.parts, args.false_alarms)


if __name__ == "__main__":
    main()
