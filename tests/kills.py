"""Ends commands by signals at random moments, and shows that they leave nothing half-written and can be run again.

python tests/kills.py                100 kills, some 20 minutes
python tests/kills.py 18 7           18 kills, other moments: those of seed 7

Each command is first run undisturbed on a tiny dataset. Then it is started again and again, gets SIGKILL, SIGTERM or
SIGINT after a random share of that time, and is run once more, to its end. After the signal: the exit code says what
came, no process is left, and every file under its final name is whole. After the run that follows: the normal exit
code, the results of the undisturbed run, and no temporary file. Prints a line for each kill; the exit code is 0 if all
of this held every time, else 1.
"""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from conftest import ROOT, make_dataset, write_image
from PIL import Image

from oddpatch.cache.features import SUFFIX, FeatureCache
from oddpatch.checkpoint import read_checkpoint
from oddpatch.datatools.writing import MANIFEST
from oddpatch.factory import CHECKPOINT
from oddpatch.sweep.record import Record
from oddpatch.temporary import DRAFT, PARTIAL

#: Commands that run at once, and seconds after which one that was told to end is counted as hanging.
AT_ONCE, PATIENCE = 2, 60.0
#: What `Popen` says of a program that ended as told. A program that has no handler yet, or none any more, dies of the
#: signal itself, of which a shell reports the same exit code.
CODES = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2)}
#: Environment variable by which every process of a kill is found, however it was started.
MARK = "ODDPATCH_TEST_KILL"
#: Good images to convert, to update with and to predict, so that these take longer than their imports.
PARTS = 60


class Place(NamedTuple):
    """Where a command reads and writes."""

    shared: Path  # what no command changes
    own: Path


class Command(NamedTuple):
    """What is ended, and how its files are looked at."""

    name: str
    arguments: Callable[[Place], list[str]]  # of Python
    normal: int  # exit code of an undisturbed run
    results: Callable[[Place], Any]  # of a run that has ended by itself; the same each time


def train(place: Place, out: str, *settings: str) -> list[str]:
    """Arguments of a run that takes seconds."""
    return [
        "train.py", "data=mvtec", f"data.root={place.shared}/data", "data.category=tile", "data.resize=32",
        "data.crop=32", "data.batch_size=5", "data.num_workers=1", "backbone=resnet18", "backbone.weights=random",
        "trainer.accelerator=cpu", "callbacks.progress=null", out, *settings,
    ]  # fmt: skip


def cli(*arguments: str | Path) -> list[str]:
    """Arguments of a command of `oddpatch`."""
    return ["-m", "oddpatch.cli.main", *map(str, arguments)]


def scores(folder: Path) -> list[tuple[str, str]]:
    """Path and score of the test images of a run."""
    with (folder / "predictions.csv").open(encoding="utf-8") as file:
        return [(row["path"], row["score"]) for row in csv.DictReader(file)]


def of_run(folder: Path) -> Any:
    """What a finished run gives."""
    metrics = json.loads((folder / "metrics.json").read_text())
    names = sorted(path.name for path in (folder / "figures").glob("*.png"))
    assert read_checkpoint(folder / CHECKPOINT)
    return metrics["image_auroc"], metrics.get("au_pro"), scores(folder), names


def of_sweep(place: Place) -> Any:
    """What a finished sweep gives."""
    records = {path.parent: Record.read(path.parent) for path in sorted(place.own.rglob("job.json"))}
    assert len(records) == 2, f"{len(records)} jobs"
    assert all(record is not None and record.status == "done" for record in records.values()), records
    assert (place.own / "sweep/sweep.csv").is_file()
    return [(folder.name, of_run(folder)) for folder in records]


def of_cached(place: Place) -> Any:
    """What a finished run with a cache gives: every image's features are kept."""
    return of_run(place.own / "run"), len(list((place.own / "cache").rglob(f"*{SUFFIX}")))


def of_predict(place: Place) -> Any:
    """What `predict` prints and saves."""
    lines = [json.loads(line) for line in printed(place).read_text().splitlines()]
    saved = sorted(str(path.relative_to(place.own)) for path in (place.own / "saved").rglob("*.*"))
    return [(line["path"], line["score"], line["is_anomalous"]) for line in lines], saved


def of_update(place: Place) -> Any:
    """The bank of the newest version."""
    folder = max(place.own.glob("run-v*"))
    about = read_checkpoint(folder / CHECKPOINT)
    return about["oddpatch"]["num_fitted"], about["state_dict"]["model.detector.memory_bank"].double().sum().item()


def of_convert(place: Place) -> Any:
    """Content of the new dataset, but for the list of files, which has the time in it."""
    root = place.own / "new/parts"
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != MANIFEST)
    return [(str(path.relative_to(root)), path.read_bytes()) for path in files]


def printed(place: Place) -> Path:
    """Where the standard output of a command goes."""
    return place.own / "stdout"


NO_PICTURES = "callbacks.pictures=null"
COMMANDS = [
    Command("train", lambda p: train(p, f"hydra.run.dir={p.own}/run", "model=patchcore"), 0,
            lambda p: of_run(p.own / "run")),
    Command("sweep", lambda p: ["train.py", "-m", *train(p, f"hydra.sweep.dir={p.own}/sweep", "model=padim",
                                                         "model.num_features=10,11", NO_PICTURES)[1:]], 0, of_sweep),
    Command("predict", lambda p: cli("predict", p.shared / "run", p.shared / "parts/good", p.shared / "data/tile/test",
                                     "--save", "heatmap,overlay,mask,map", "--out", p.own / "saved"), 1, of_predict),
    Command("update", lambda p: cli("update", p.own / "run", p.shared / "parts/good"), 0, of_update),
    Command("convert", lambda p: cli("data", "convert", "folder", p.shared / "parts", p.own / "new", "--force"), 0,
            of_convert),
    Command("cache", lambda p: train(p, f"hydra.run.dir={p.own}/run", "model=padim", "model.num_features=10",
                                     NO_PICTURES, "cache=features", f"cache.folder={p.own}/cache"), 0, of_cached),
]  # fmt: skip


def start(command: Command, place: Place) -> subprocess.Popen[bytes]:
    """Start a command; signals go to the process alone, as those of `kill` do."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", MARK: str(place.own)}
    with printed(place).open("wb") as out, (place.own / "stderr").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, *command.arguments(place)], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT,
            env=environment, start_new_session=True,
        )  # fmt: skip


def prepare(command: Command, place: Place) -> None:
    """What a command needs of its own."""
    place.own.mkdir(parents=True)
    if command.name == "update":  # which writes beside its run
        shutil.copytree(place.shared / "run", place.own / "run")


def left_running(place: Place) -> list[int]:
    """Processes that a command has started and that are there still."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(place.own):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def settle(place: Place) -> list[int]:
    """Processes that do not end in time; they are killed."""
    deadline = time.monotonic() + PATIENCE
    while (left := left_running(place)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def temporary(folder: Path) -> list[str]:
    """Temporary files and drafts in a folder."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.suffix in (PARTIAL, DRAFT)]


def half_written(command: Command, place: Place, wanted: Any) -> Iterator[str]:
    """What is wrong with the files that a command has left under their final names.

    Args:
        wanted: results of the undisturbed run.
    """
    cache = FeatureCache(place.own / "cache") if command.name == "cache" else None
    for path in sorted(place.own.rglob("*")):
        inner = path.relative_to(place.own)
        if not path.is_file() or any(part.endswith(DRAFT) for part in inner.parts) or path.suffix == PARTIAL:
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".ckpt":
                read_checkpoint(path)
            elif path.suffix in (".png", ".tiff"):
                with Image.open(path) as image:
                    image.load()
            elif path.suffix == ".npz":
                with np.load(path) as arrays:
                    assert all(arrays[name] is not None for name in arrays)
            elif path.suffix == ".html":
                assert path.read_text().rstrip().endswith("</html>"), "has no end"
            elif path.name == "predictions.csv":
                assert len(scores(path.parent)) == len(list((place.shared / "data/tile/test").rglob("*.png")))
            elif path.suffix == SUFFIX and cache is not None:
                assert cache.load(str(inner.relative_to("cache").with_suffix(""))), "does not load"
            elif path == printed(place) and command.name == "predict":
                text = path.read_text()
                assert not text or text.endswith("\n"), "ends within a line"
                assert all("score" in json.loads(line) for line in text.splitlines())
        except Exception as error:
            yield f"{inner}: {type(error).__name__}: {error}"
    if command.name == "convert" and (place.own / "new/parts").exists() and of_convert(place) != wanted:
        yield "new/parts is there and not complete"


def faults(command: Command, place: Place, how: signal.Signals, share: float, seconds: float, wanted: Any) -> list[str]:
    """Start a command, end it and run it again; all that is wrong. The first entry is how it ended, whatever it is."""
    process = start(command, place)
    try:
        process.wait(share * seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(how)
    sent = process.returncode is None
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return ["hung", f"runs {PATIENCE:g} s after {how.name}"]
    found = []
    if code not in ((*CODES[how], command.normal) if sent else (command.normal,)):
        found.append(f"exit code {code}")
    found += [f"process {pid} is left" for pid in settle(place)]
    found += half_written(command, place, wanted)
    if code == command.normal and command.results(place) != wanted:
        found.append(f"exit code {code}, and other results than undisturbed")
    if how != signal.SIGKILL:
        found += [f"left behind: {name}" for name in temporary(place.own)]
    told = (place.own / "stderr").read_text(errors="replace")
    if code in (143, 130) and "Traceback" in told:
        found.append("a traceback")
    if found:
        shutil.copy(place.own / "stderr", place.own / "stderr of the kill")
    again = start(command, place)
    second = again.wait()
    if second != command.normal:
        found.append(f"run again: exit code {second}: {(place.own / 'stderr').read_text(errors='replace')[-300:]!r}")
    elif command.results(place) != wanted:
        found.append("run again: other results than undisturbed")
    found += [f"run again, and left: {name}" for name in temporary(place.own)]
    return [f"exit code {code}" if sent else "done before", *found]


def main(count: int = 100, seed: int = 0) -> int:
    """End commands `count` times."""
    scratch = Path(tempfile.mkdtemp(prefix="kills-"))
    shared = scratch / "shared"
    make_dataset(shared / "data")
    rng = np.random.default_rng(seed)
    for number in range(PARTS):
        write_image(shared / f"parts/good/{number:03}.png", rng)
    for number in range(10):
        write_image(shared / f"parts/spot/{number:03}.png", rng, defect=True)
    subprocess.run(
        [sys.executable, *train(Place(shared, shared), f"hydra.run.dir={shared}/run", "model=patchcore", NO_PICTURES)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip

    def undisturbed(command: Command) -> tuple[float, Any]:
        place = Place(shared, scratch / f"undisturbed-{command.name}")
        prepare(command, place)
        start_time = time.monotonic()
        code = start(command, place).wait()
        seconds = time.monotonic() - start_time
        assert code == command.normal, f"{command.name}: {(place.own / 'stderr').read_text()}"
        return seconds, command.results(place)

    def kill(number: int) -> tuple[str, str, bool]:
        command = COMMANDS[number % len(COMMANDS)]
        how = list(CODES)[number // len(COMMANDS) % len(CODES)]
        share = random.Random(f"{seed} {number}").random()
        seconds, wanted = known[command.name]
        place = Place(shared, scratch / f"{number:03}")
        prepare(command, place)
        try:
            ended, *found = faults(command, place, how, share, seconds, wanted)
        except Exception:
            ended, found = "?", [traceback.format_exc()]
        sys.stdout.write(
            f"{number:3}  {command.name:8}{how.name:8} after {share * seconds:5.2f} of {seconds:5.2f} s  {ended}"
            f"  {'; '.join(found) or 'whole'}\n"
        )
        sys.stdout.flush()
        if not found:
            shutil.rmtree(place.own)
        return command.name, f"{how.name} {ended}", bool(found)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        known = dict(zip((it.name for it in COMMANDS), pool.map(undisturbed, COMMANDS), strict=True))
        outcomes = list(pool.map(kill, range(count)))
    for what, times in (
        *sorted(Counter(name for name, _, _ in outcomes).items()),
        *sorted(Counter(ended for _, ended, _ in outcomes).items()),
    ):
        sys.stdout.write(f"{times:5}  {what}\n")
    failed = sum(failed for *_, failed in outcomes)
    sys.stdout.write(f"{count - failed} of {count} kills: nothing half-written, and run again to the end\n")
    if failed:
        sys.stdout.write(f"what those that failed have left is in {scratch}\n")
    else:
        shutil.rmtree(scratch)
    return int(failed > 0 or not outcomes)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
