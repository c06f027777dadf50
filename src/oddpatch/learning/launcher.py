"""Starts the processes of a run on several devices of this machine, and watches over them.

The process that the user (or a Hydra sweep) started does not compute: it gives each rank the composed config, waits,
and passes on the result. It therefore outlives a rank that is killed, and can say so; and under a sweep the next job
runs as if nothing had happened. Ranks are not given the command line again, which a sweep would sweep once more.
"""

import functools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from oddpatch import errors
from oddpatch.errors import ConfigError, OddpatchError, ResourceError
from oddpatch.limits import cores, free_memory
from oddpatch.locking import hold

Task = Callable[[DictConfig], float | None]

#: Seconds that other ranks get to say why they failed, once one has; then all are killed.
GRACE = 2.0
#: Seconds that ranks get to end by themselves after Ctrl-C or SIGTERM.
INTERRUPT_GRACE = 3.0
POLL = 0.05
#: Bytes that a rank holds once it has imported torch and Lightning, and before it has looked at an image.
RANK_MEMORY = 512 * 2**20


class RankError(RuntimeError):
    """A rank ended by an error that the user cannot mend; the message has its traceback."""


def on_every_device(task: Task) -> Task:
    """Run a Hydra task in one process per device where `trainer.devices` asks for several, else just run it."""

    @functools.wraps(task)
    def wrapped(cfg: DictConfig) -> float | None:
        size = num_ranks(cfg.trainer)
        # Ranks that were started from outside, by torchrun, are not started again.
        return task(cfg) if size == 1 or "LOCAL_RANK" in os.environ else launch(task, cfg, size)

    return wrapped


def num_ranks(trainer: Mapping[str, Any]) -> int:
    """How many processes this machine is to run.

    Raises:
        ConfigError: `devices` cannot be understood, or asks for several without `trainer=ddp`.
    """
    devices = trainer["devices"]
    if not isinstance(devices, int | str):  # a list of devices
        size = len(devices)
        if not size:
            raise ConfigError(
                "trainer.devices=[] names no device: give a number of at least 1, a list of GPUs, or auto"
            )
    elif str(devices) in ("auto", "-1"):
        import torch

        size = max(1, torch.cuda.device_count()) if trainer.get("strategy") else 1
    elif isinstance(devices, int) and devices >= 1:
        size = devices
    else:
        raise ConfigError(f"trainer.devices={devices!r}: give a number of at least 1, a list of GPUs, or auto")
    if size > 1 and not trainer.get("strategy"):
        raise ConfigError(f"trainer.devices={devices} asks for {size} processes: add trainer=ddp")
    if trainer.get("num_nodes", 1) > 1 and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            "trainer.num_nodes is more than 1: start it on each machine by `torchrun ... -m oddpatch.train`"
        )
    if str(trainer.get("accelerator")) in ("gpu", "cuda"):
        _require_gpus(devices, size)
    return size


def _require_gpus(devices: Any, size: int) -> None:
    """Refuse to look for GPUs that this machine does not have."""
    import torch

    count = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if not count:
        raise ConfigError(
            "trainer.accelerator=gpu, but torch finds no GPU on this machine: set trainer.accelerator=cpu"
        )
    if size > count or (not isinstance(devices, int | str) and max(devices, default=0) >= count):
        raise ConfigError(f"trainer.devices={devices}, but this machine has {count} GPUs: set trainer.devices={count}")


def launch(task: Task, cfg: DictConfig, size: int) -> float | None:
    """Run `task` in `size` processes of this machine; gives what it returns on rank zero.

    Raises:
        OddpatchError: the one that a rank raised.
        ResourceError: a rank was killed.
        RankError: a rank raised another error.
    """
    from hydra.core.hydra_config import HydraConfig

    if size * RANK_MEMORY > (free := free_memory()):
        raise ResourceError(
            f"trainer.devices={size} processes need {size * RANK_MEMORY / 2**30:.0f} GiB of memory before the first "
            f"image, but {free / 2**30:.1f} GiB is available: lower trainer.devices"
        )
    if cfg.get("paths"):
        hold(Path(str(cfg.paths.output_dir)))
    job = pickle.dumps(
        {
            "script": os.path.abspath(task.__code__.co_filename),  # noqa: PTH100
            "name": task.__name__,
            "argv": sys.argv,
            "path": sys.path,
            "cfg": cfg,
            "hydra": HydraConfig.instance().cfg,
        }
    )
    with tempfile.TemporaryDirectory(prefix="oddpatch-ranks-") as scratch:
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(size):
                ranks.append(_start(rank, size, Path(scratch)))
                with suppress(BrokenPipeError):  # it has died already, which is noticed below
                    ranks[rank].stdin.write(job)  # type: ignore[union-attr]
                    ranks[rank].stdin.flush()  # type: ignore[union-attr]
            _wait(ranks)
        except KeyboardInterrupt:
            for process in ranks:
                process.send_signal(signal.SIGINT)
            _wait_all(ranks, INTERRUPT_GRACE)
            raise
        finally:
            codes = [process.poll() for process in ranks]
            for process in ranks:
                _kill(process)
        return result_of(codes, Path(scratch))


def _start(rank: int, size: int, scratch: Path) -> "subprocess.Popen[bytes]":
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores() // size)),
        **_local_interface(),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "ODDPATCH_STORE": str(scratch / "store"),
        "ODDPATCH_RESULT": str(scratch / f"{rank}.json"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "oddpatch.learning.worker"],
        stdin=subprocess.PIPE,  # it ends when this process does, however that happens: a rank then ends too
        stdout=None if rank == 0 else subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C comes here only, and a rank is killed together with its data loaders
    )


def _local_interface() -> dict[str, str]:
    """All ranks are on this machine: gloo need not find out by which of its names and addresses others see it."""
    names = {name for _, name in socket.if_nameindex()}
    return next(({"GLOO_SOCKET_IFNAME": name} for name in ("lo", "lo0") if name in names), {})


def _wait(ranks: "list[subprocess.Popen[bytes]]") -> None:
    """Return when all have ended well, or one has not and the others have had time to."""
    while None in (codes := [process.poll() for process in ranks]):
        if any(codes):
            _wait_all(ranks, GRACE)
            return
        time.sleep(POLL)


def _wait_all(ranks: "list[subprocess.Popen[bytes]]", seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
        time.sleep(POLL)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a rank and its data loaders; they may outlive it, so this is done to ranks that have ended too."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with suppress(BrokenPipeError):
        process.stdin.close()  # type: ignore[union-attr]


def result_of(codes: list[int | None], scratch: Path) -> float | None:
    """What rank zero returned, or the error that explains the others."""
    size = len(codes)
    # A rank that is killed makes others fail that talk to it, so it comes first.
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            raise ResourceError(
                f"rank {rank} of {size} was killed by {name}{hint}, so the run ended: lower data.batch_size or "
                "trainer.devices, or see the messages above"
            )
    reports = [json.loads(path.read_text()) for path in sorted(scratch.glob("*.json"))]
    failed = sorted((report for report in reports if not report["ok"]), key=lambda report: report["time"])
    for report in (report for report in failed if report["kind"]):
        error: OddpatchError = getattr(errors, report["kind"])(report["message"])
        raise error
    if failed:
        raise RankError(f"rank {failed[0]['rank']} of {size} failed:\n{failed[0]['message']}")
    if any(codes) or len(reports) < size:
        raise RankError(f"the {size} ranks ended with the exit codes {codes} and no message: see those above")
    return next(report["value"] for report in reports if report["rank"] == 0)
