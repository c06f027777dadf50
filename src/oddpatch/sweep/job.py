"""One job of a sweep, the same under every launcher: skipped if it is finished, locked, run in a process of its own."""

import functools
import inspect
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from oddpatch.errors import INTERRUPTED, CheckpointError, ConfigError, OddpatchError
from oddpatch.hydra_entry.overrides import quoted
from oddpatch.locking import JobBusyError, job_lock
from oddpatch.report.runs import METRICS, is_number, read_run
from oddpatch.sweep.identity import Identity, identify
from oddpatch.sweep.process import run_script
from oddpatch.sweep.record import Record
from oddpatch.temporary import remove_leftovers

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

#: Category that stands for all of a dataset.
#: Overrides that are about the sweep, and mean nothing to one job of it.
_OF_THE_SWEEP = ("hydra.sweep.", "hydra.sweeper", "hydra/sweeper", "hydra.launcher", "hydra/launcher", "hydra.mode",
                 "hydra.output_subdir")  # fmt: skip


class JobError(OddpatchError, RuntimeError):
    """A job of a sweep has failed."""


def sweep_job(task: Callable[P, R]) -> Callable[P, R | float | None]:
    """Have a Hydra task, when it is a job of a sweep, run in a process of its own and only if it is not finished.

    In that process the task is an ordinary single run: `oddpatch train OVERRIDES hydra.run.dir=FOLDER`.
    """
    script = Path(inspect.getfile(inspect.unwrap(task))).resolve()

    @functools.wraps(task)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R | float | None:
        config: Any = args[0]
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            return run_job(config, script)
        category = config.data.get("category")
        if isinstance(category, str) and "," in category and not (Path(str(config.data.root)) / category).is_dir():
            raise ConfigError(
                f"data.category={category} is many runs: add -m, as oddpatch train -m data.category={category}; for "
                f"one model of all of them, data.category=[{category}]"
            )
        return task(*args, **kwargs)

    return wrapped


def run_job(cfg: DictConfig, script: Path) -> float | None:
    """Run a job in its folder, unless it is finished or another process runs it.

    Returns:
        The metric that `objective` names; None if it could not be computed, or if the job is another's.

    Raises:
        JobError: the job has failed; the reason is in its `job.json`.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with job_lock(folder):
            identity = identify(cfg)
            before = Record.read(folder)
            stale = "resume=false" if not cfg.resume else why_again(before, folder, identity)
            if before is not None and stale is None:
                log.info("%s is finished: skipped", folder.name)
                return before.objective
            if before is not None:
                log.info("%s runs again: %s", folder.name, stale)
            record = Record("running", identity, overrides()["task"])
            record.attempt = before.attempt + 1 if before else 1
            return _run(cfg, script, folder, record)
    except JobBusyError as busy:
        log.warning("%s is left to another sweep: %s", folder.name, busy)
        return None


def why_again(record: Record | None, folder: Path, identity: Identity) -> str | None:
    """Why a job must be run; None if what is in its folder is its result."""
    if record is None:
        return "it has not run"
    if record.status != "done":
        return {"failed": "it had failed", "running": "it was killed"}.get(record.status, "it was interrupted")
    if not (folder / METRICS).is_file():
        return f"{METRICS} is missing"
    return identity.change_from(record.identity)


def _run(cfg: DictConfig, script: Path, folder: Path, record: Record) -> float | None:
    """Run it and keep account of it in `job.json`."""
    record.cuda_visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    record.threads = os.environ.get("OMP_NUM_THREADS")
    known = (record.cuda_visible_devices, record.threads)
    told = ["unset" if value is None else value or "empty" for value in known]
    log.info("%s: CUDA_VISIBLE_DEVICES=%s OMP_NUM_THREADS=%s", folder.name, *told)
    # An earlier result would pass for this run's if it fails; and what a killed run was writing is of no use.
    (folder / METRICS).unlink(missing_ok=True)
    remove_leftovers(folder)
    record.write(folder)
    start = time.monotonic()
    group = Path(HydraConfig.get().sweep.dir).resolve().name
    environment = {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", group)}
    if record.cuda_visible_devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = record.cuda_visible_devices
    in_order = HydraConfig.get().launcher._target_.endswith(".BasicLauncher")
    console = None if in_order else folder / "console.log"  # jobs side by side would talk over each other
    try:
        code, record.reason = run_script(script, job_arguments(folder), environment, console, folder)
        if code == 0 and not (folder / METRICS).is_file():
            code, record.reason = 1, f"it left no {METRICS}"
        if code == 0:
            try:
                record.objective = objective(folder, cfg.objective)
            except CheckpointError as error:
                code, record.reason = 1, str(error)
        record.status = "done" if code == 0 else "interrupted" if code == INTERRUPTED else "failed"
        if code == 0 and record.identity.data is None:  # the job has rendered its data
            record.identity = identify(cfg)
    except BaseException:
        record.status, record.reason = "interrupted", "it was interrupted"
        raise
    finally:
        record.seconds = round(time.monotonic() - start, 2)
        record.write(folder)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise JobError(f"{folder.name}: {record.reason}")
    log.info("%s: done in %.0f s", folder.name, record.seconds)
    return record.objective


def objective(folder: Path, name: str) -> float | None:
    """A metric of a finished job; None if it is absent.

    Raises:
        CheckpointError: the job's metrics cannot be read.
    """
    value = read_run(folder).metrics.get(name)
    return float(value) if value is not None and is_number(value) else None


def overrides() -> dict[str, list[str]]:
    """Hydra's `task` and `hydra` overrides of this job, as they were given: references in them are not looked up."""
    found: Any = OmegaConf.to_container(HydraConfig.get().overrides, resolve=False)
    return found


def job_arguments(folder: Path) -> list[str]:
    """The command line of this job as a single run."""
    hydra = HydraConfig.get()
    given = overrides()
    kept = [text for text in given["task"] + given["hydra"] if not text.lstrip("+~").startswith(_OF_THE_SWEEP)]
    flags = ["--config-name", str(hydra.job.config_name)]
    for source in hydra.runtime.config_sources:
        if source.provider == "main" and source.schema == "file":
            flags += ["--config-path", source.path]
        if source.provider == "command-line":
            flags += ["--config-dir", source.path]
    return [*flags, *kept, f"hydra.run.dir={quoted(str(folder))}"]
