"""Rows of fitting and testing each method: against decoding and the backbone alone, and against anomalib.

    python benchmarks/run.py --only padim bounded
    python benchmarks/run.py --only boards --rounds 1

Each side is a process of its own and counts CPU seconds of itself and its workers from when its imports are done.
Ours fits, sets its threshold from good images, tests with all metrics, confidence intervals, result files and the
report; pictures are off on both sides. Against the floor no threshold is set (`calibration=none`), nor is anything kept
for one while fitting. Methods with a target are measured against two floors: decoding as we do it, and by OpenCV, as
most programs do it.
"""

import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import peers
from common import (
    BUILD,
    BenchmarkError,
    Options,
    Row,
    Used,
    alternate,
    compare,
    cpu_seconds,
    memory,
    metrics_of,
    run,
)

OURS = {
    "image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "AU-PRO": "au_pro",
    "balanced accuracy": "balanced_accuracy",
}  # fmt: skip
#: What a quick run changes: a few images, so that the figures mean nothing.
QUICK = ["data._target_=oddpatch.data.few.FewImages", "+data.train_images=64", "+data.test_images=4"]
THREE, TWO = ["blocks.1", "blocks.2", "blocks.4"], ["blocks.2", "blocks.4"]


class Peer(NamedTuple):
    """A method of anomalib, and the largest ratios of CPU seconds and memory that will do."""

    model: str
    layers: list[str]
    settings: dict[str, float]
    time: float
    memory: float = 0.5


class Method(NamedTuple):
    """A method as it is run here, with the largest ratio to the floor that will do."""

    name: str
    overrides: list[str]
    floor: float | None = None
    peer: Peer | None = None


PADIM = Method("PaDiM", ["model=padim"], 1.15, Peer("padim", THREE, {"n_features": 100}, 1 / 4))
PATCHCORE_1 = Method(
    "PatchCore 1 %", ["model=patchcore", "model.coreset_ratio=0.01"], 1.4,
    Peer("patchcore", TWO, {"coreset_sampling_ratio": 0.01}, 1 / 18),
)  # fmt: skip
PATCHCORE_10 = Method("PatchCore 10 %", ["model=patchcore"], 1.8)
BOUNDED = Method(
    "bounded PatchCore, bank of 1,000",
    ["model=patchcore", "model.coreset_size=1000", f"model.max_bank_memory={8 * 2**20}", "model.reduce_to=0.125"],
    peer=Peer("mh_patchcore", TWO, {"memory_bank_size": 1000}, 1 / 12),
)
OTHERS = [
    Method(name, [f"model={model}"])
    for name, model in {
        "SPADE": "spade", "Gaussian-AD": "gaussian", "SubspaceAD": "subspacead", "AnomalyDINO": "anomalydino",
        "RAD": "rad", "ProCon": "procon", "SuperADD": "superadd", "MH-PatchCore": "mh_patchcore", "DFM": "dfm",
        "MuSc": "musc", "LUNAR": "lunar", "PyOD (ECOD)": "pyod",
    }.items()
]  # fmt: skip
CAM = Method("CAM, trained on 4/5 of the images", ["model=cam", "experiment=cam_lite0"])
#: How rendered boards are read.
BOARDS = ["data.align=auto"]


def padim(options: Options) -> Iterator[Row]:
    """PaDiM."""
    yield from measure(PADIM, options)


def patchcore_1(options: Options) -> Iterator[Row]:
    """PatchCore with a coreset of 1 %; and of 10 %, which anomalib would take half an hour for, by its picks."""
    ten = _child("run", PATCHCORE_10, options)
    for row, used in measure_with(PATCHCORE_1, options):
        yield row
        if row.against.startswith("anomalib") and row.unit == "CPU s" and used:
            # Greedy selection costs the same for every pick: nine times as many again, and a search no dearer.
            theirs = [Used(it.cpu + 9 * it.facts["coreset"], it.wall) for it in used]
            note = f"theirs extrapolated: {used[0].facts['coreset']:.0f} s for its 1 %, nine times that more"
            ours = [ten() for _ in theirs]
            metrics = metrics_of(ours[0], OURS)
            yield compare(
                "PatchCore 10 %, fit + test", row.against, ours, theirs, 1 / 100, note=f"{note}; ours {metrics}"
            )


def patchcore_10(options: Options) -> Iterator[Row]:
    """PatchCore with a coreset of 10 %."""
    yield from measure(PATCHCORE_10, options)


def bounded(options: Options) -> Iterator[Row]:
    """A bank that is bounded in memory, against a method that was published for that."""
    yield from measure(BOUNDED, options)


def others(options: Options) -> Iterator[Row]:
    """Every other method, against the floor."""
    yield from measure_each([*OTHERS, CAM], options)


def boards(options: Options) -> Iterator[Row]:
    """Every method on rendered boards, moved onto one of them, which the floor does not do."""
    from oddpatch.scenes import render_dataset

    root = BUILD / "bench/boards"
    if not (root / "pcb").is_dir():
        render_dataset(root / "pcb", "pcb", train=80, test_good=20, test_per_defect=12)
    methods = [PADIM._replace(floor=None, peer=None), PATCHCORE_10._replace(floor=None), *OTHERS]
    methods = [
        method._replace(name=f"boards: {method.name}", overrides=[*method.overrides, *BOARDS]) for method in methods
    ]
    yield from measure_each(methods, replace(options, root=root, category="pcb"))


def measure_each(methods: Sequence[Method], options: Options) -> Iterator[Row]:
    """The rows of methods; one that fails is a row that says so, and stops no other."""
    for method in methods:
        try:
            yield from measure(method, options)
        except BenchmarkError as error:
            yield Row(f"{method.name}, fit + test", "decode + backbone", error=str(error))


def measure(method: Method, options: Options) -> Iterator[Row]:
    """The rows of a method."""
    for row, _ in measure_with(method, options):
        yield row


def measure_with(method: Method, options: Options) -> Iterator[tuple[Row, list[Used]]]:
    """The rows of a method, with what the other side used."""
    options.images()
    what = f"{method.name}, fit + test"
    ours = _child("run", method, options)
    alone = _child("run", method._replace(overrides=[*method.overrides, "calibration=none"]), options)
    floors = {"decode + backbone": _child("floor", method, options)}
    if method.floor is not None:
        floors["decode by OpenCV + backbone"] = _child("floor by OpenCV", method, options)
    used = alternate({**floors, "ours": alone}, options.rounds)
    for floor in floors:
        note = metrics_of(used["ours"][0], OURS)
        yield compare(what, floor, used["ours"], used[floor], method.floor, note=note), used[floor]
    if method.peer is None:
        return
    peer, against = method.peer, f"anomalib {peers.ANOMALIB} {method.peer.model}"
    settings = dict(peer.settings)
    if options.quick and "coreset_sampling_ratio" in settings:
        settings["coreset_sampling_ratio"] = 0.0005

    def theirs() -> Used:
        return peers.fit_and_test(options, peer.model, peer.layers, settings)

    try:
        used = alternate({"ours": ours, "theirs": theirs}, options.rounds)
    except BenchmarkError as error:
        yield Row(what, against, error=str(error)), []
        return
    both = f"ours {metrics_of(used['ours'][0], OURS)}; theirs {metrics_of(used['theirs'][0], peers.METRICS)}"
    yield compare(what, against, used["ours"], used["theirs"], peer.time, note=both), used["theirs"]
    yield (
        compare(
            f"{method.name}, peak memory", against, used["ours"], used["theirs"], peer.memory, take=memory, unit="MiB"
        ),
        [],
    )


def _child(side: str, method: Method, options: Options) -> Callable[[], Used]:
    overrides = [*method.overrides, *(QUICK if options.quick else [])]
    spec = {"side": side, "overrides": overrides, "root": str(options.root), "category": options.category,
            "backbone": options.backbone, "device": options.device}  # fmt: skip
    return lambda: run([sys.executable, __file__, json.dumps(spec)])


def main() -> None:
    """One side, in this process: prints what it took as JSON."""
    import overhead

    spec = json.loads(sys.argv[1])
    model, *rest = spec["overrides"]
    with tempfile.TemporaryDirectory() as out:
        args = Namespace(
            model=model.removeprefix("model="), backbone=spec["backbone"], root=spec["root"],
            category=spec["category"], overrides=[*rest, f"trainer.accelerator={spec['device']}", "logger=none"],
        )  # fmt: skip
        prepared = overhead.prepare(args, out)
        prepared.data.setup("fit")
        start, wall = cpu_seconds(), time.perf_counter()
        found: dict[str, Any] = {}
        if spec["side"] != "run":
            overhead.floor(prepared, opencv="OpenCV" in spec["side"])
        else:
            prepared.fit()
            prepared.calibrate()
            prepared.test()
            found["metrics"] = json.loads((Path(out) / "metrics.json").read_text())
            found["metrics"] = {key: value for key, value in found["metrics"].items() if isinstance(value, float)}
        found |= {"cpu": cpu_seconds() - start, "wall": time.perf_counter() - wall}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
