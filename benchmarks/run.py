"""Every row of RESULTS.md: oddpatch against peers, against its own floor, and as the work grows.

    python benchmarks/run.py                               # as `make bench`: all parts, hours
    python benchmarks/run.py --only padim coreset          # or padim,coreset; rows of the others stay as they are
    python benchmarks/run.py --quick                       # small and once, into build/bench/quick: does it run?

A part is a function that yields rows (`common.Row`), and runs in a process of its own. Rows are saved as they come:
after Ctrl-C, RESULTS.md has those of before. The exit code is 1 if a part or a row failed, which a row then says.
A target that is missed is no failure.
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common import BUILD, BenchmarkError, Options, Row, add_options, read_options

HERE = Path(__file__).resolve().parent
#: Parts in the order of the table: what `--only` takes, and the function that yields the rows.
PARTS = {
    "padim": "fit_and_test:padim",
    "patchcore_1": "fit_and_test:patchcore_1",
    "patchcore_10": "fit_and_test:patchcore_10",
    "bounded": "fit_and_test:bounded",
    "others": "fit_and_test:others",
    "boards": "fit_and_test:boards",
    "predict": "predict:rows",
    "archive": "archive:rows",
    "export": "exports:rows",
    "coreset": "coreset:rows",
    "metrics": "metrics:rows",
    "pipeline": "image_pipeline:rows",
    "cache": "cache:rows",
    "devices": "devices:rows",
    "growth": "growth:rows",
}
PACKAGES = (
    "oddpatch", "torch", "timm", "lightning", "openvino", "onnxruntime", "numpy", "opencv-python-headless", "kornia-rs",
)  # fmt: skip
LINE = "row: "
INTRODUCTION = """\
# Results

Written by `make bench`; [docs/performance.md](../docs/performance.md) says how to read it.

A ratio is ours / theirs, the median over rounds in which both sides take turns: less is better. CPU s are user and
system seconds of all processes of a side. Other programs ran on the machine.

"""
HEAD = """\
| what | against | ours | theirs | ratio | target | met | wall, s | rounds | date | notes | command |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def machine() -> dict[str, str]:
    """Processor, cores, memory and versions: what figures belong to. No names of hosts, no paths."""
    from oddpatch.limits import cores

    model = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        found = [line.partition(":")[2].strip() for line in cpu.read_text().splitlines() if "model name" in line]
        model = found[0] if found else model
        # Clouds hide the name of a processor; its family and model tell a generation from another.
        ids = dict(re.findall(r"^(cpu family|model)\s*: (\d+)$", cpu.read_text(), re.MULTILINE))
        model += "".join(f", {name} {number}" for name, number in ids.items())
    memory = Path("/proc/meminfo")
    gib = int(memory.read_text().split()[1]) / 2**20 if memory.exists() else 0.0
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    return {
        "processor": f"{model}, {cores()} cores" + (f", {gib:.0f} GiB" if gib else ""),
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    }


def run_part(name: str, options: Options, arguments: list[str], save: Callable[[Row], None]) -> None:
    """Run a part in a process of its own, and hand over its rows as they come.

    Raises:
        BenchmarkError: it failed.
    """
    command = [sys.executable, str(HERE / "run.py"), "--part", name, *arguments]
    # In a group of its own, so that what it starts ends with it.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(LINE):
                    save(Row(**json.loads(line.removeprefix(LINE))))
                else:
                    print(line, end="", flush=True)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if process.returncode:
        raise BenchmarkError(f"it ended with exit code {process.returncode}, its messages say why")


def print_part(name: str, options: Options) -> None:
    """Run a part in this process, and print its rows for `run_part`."""
    module, function = PARTS[name].split(":")
    own = f'make bench ARGS="--only {name}"'
    try:
        for row in getattr(importlib.import_module(module), function)(options):
            print(LINE + json.dumps(asdict(replace(row, command=row.command or own))), flush=True)
    except BenchmarkError as error:
        print(LINE + json.dumps(asdict(Row(name, "", error=str(error), command=own))), flush=True)


def save_rows(folder: Path, name: str, rows: list[Row], about: dict[str, str], ended: bool) -> None:
    """Write what is known of a part, whole or not at all, and whether the part came to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about, "ended": ended, "rows": [asdict(row) for row in rows]}, indent=1)
    new = folder / f"{name}.json.new"
    new.write_text(text)
    new.replace(folder / f"{name}.json")


def table(folder: Path, about: dict[str, str]) -> str:
    """RESULTS.md from the rows of all parts: those of this machine with these versions, then those of others."""
    sections: dict[str, list[str]] = {_title(about): []}
    without, elsewhere = [], []
    for name in PARTS:
        file = folder / f"{name}.json"
        if not file.exists():
            without.append(f"`{name}`")
            continue
        found = json.loads(file.read_text())
        date, title = found["about"]["date"], _title(found["about"])
        if title != _title(about):
            elsewhere.append(f"`{name}`")
        if not found["ended"]:
            without.append(f"the rest of `{name}` (stopped on {date})")
        sections.setdefault(title, []).extend(_line(Row(**row), date) for row in found["rows"])
    missing = f"\nNot measured: {', '.join(without)}.\n" if without else ""
    missing += f"\nMeasured elsewhere or with other versions, see below: {', '.join(elsewhere)}.\n" if elsewhere else ""
    first, *others = (f"{title}\n\n{HEAD}" + "\n".join(lines) + "\n" for title, lines in sections.items())
    return "".join([INTRODUCTION, first, missing, *(f"\n## Elsewhere or with other versions\n\n{it}" for it in others)])


def _title(about: dict[str, str]) -> str:
    return f"{about['processor']}; {about['versions']}."


def _line(row: Row, date: str) -> str:
    if row.error:
        cells = [row.what, row.against, "", "", "", "", row.met, "", "", date, row.error.replace("|", "/")]
    else:
        cells = [
            row.what, row.against, _number(row.ours, row.unit), _number(row.theirs, row.unit), _number(row.ratio),
            _number(row.target), row.met, row.wall, str(row.rounds), date, row.note,
        ]  # fmt: skip
    return f"| {' | '.join(cells)} | `{row.command}` |"


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.3g} {unit}".rstrip() if value < 1000 else f"{value:,.0f} {unit}".rstrip()


def main() -> None:
    """Measure what was asked for, and write the table after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    add_options(parser)
    args = parser.parse_args()
    options = read_options(args)
    if args.part:
        return print_part(args.part, options)
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, signal.default_int_handler)
    # One thread for each process: threads that wait for each other count as work.
    os.environ.update({"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"})
    chosen = [name for given in args.only for name in given.split(",") if name]
    if unknown := sorted(set(chosen) - set(PARTS)):
        parser.error(f"--only {unknown[0]}: choose of {', '.join(PARTS)}")
    folder = BUILD / "bench/quick" if options.quick else HERE / "rows"  # kept with RESULTS.md, which is made of them
    results = folder / "RESULTS.md" if options.quick else HERE / "RESULTS.md"
    about = machine() | {"date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    arguments = [
        "--root", str(options.root), "--category", options.category, "--backbone", options.backbone,
        "--rounds", str(args.rounds), "--device", options.device, *(["--quick"] if options.quick else []),
    ]  # fmt: skip
    failed = False
    for name in chosen:
        rows: list[Row] = []

        def keep(ended: bool, name: str = name, rows: list[Row] = rows) -> None:
            save_rows(folder, name, rows, about, ended)
            results.write_text(table(folder, about))

        def save(row: Row, keep: Callable[[bool], None] = keep, rows: list[Row] = rows) -> None:
            rows.append(row)
            keep(False)
            print(_line(row, about["date"]), flush=True)

        print(f"{name}:", flush=True)
        try:
            run_part(name, options, arguments, save)
        except BenchmarkError as error:
            save(Row(name, "", error=str(error), command=f'make bench ARGS="--only {name}"'))
        except KeyboardInterrupt:
            sys.exit(f"stopped; the rows so far are in {results.relative_to(HERE.parent)}")
        keep(True)
        failed = failed or any(row.error for row in rows)
    print(f"written: {results.relative_to(HERE.parent)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
