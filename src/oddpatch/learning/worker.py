"""One rank of a run: what `oddpatch.learning.launcher` starts. Not for use by hand."""

import inspect
import json
import os
import pickle
import runpy
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from oddpatch import errors
from oddpatch.errors import ConfigError, in_one_line
from oddpatch.files import replacing
from oddpatch.learning.launcher import Task


def main() -> int:
    """Run the task that comes in through the standard input, and report how it ended."""
    pipe = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # data loaders must not share the pipe as their input
    with os.fdopen(pipe, "rb", closefd=False) as stream:
        job = pickle.load(stream)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    sys.argv, sys.path[:] = job["argv"], job["path"]  # classes of one's own are found as there
    try:
        _restore_hydra(job["hydra"])
        value = _load(Path(job["script"]), job["name"])(job["cfg"])
        _leave()
        report: dict[str, Any] = {"ok": True, "value": value}
    except BaseException as error:
        # Told by the first process, once: the others fail too, for want of this one.
        told = in_one_line(error)
        message = traceback.format_exc() if told is None else told
        report = {"ok": False, "kind": None if told is None else _public_class(error), "message": message}
    report |= {"rank": int(os.environ["RANK"]), "time": time.time()}
    with replacing(Path(os.environ["ODDPATCH_RESULT"])) as file:
        json.dump(report, file)
    return 0 if report["ok"] else 1


def _end_with(pipe: int) -> None:
    """Wait for the first process to end, and then end this one with its data loaders, whatever it is doing."""
    while os.read(pipe, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _restore_hydra(config: Any) -> None:
    """Have `${hydra:...}`, HydraConfig and logging in this process as in the one that composed the config."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import configure_log, setup_globals

    setup_globals()
    if config is None:  # not started by Hydra
        return
    HydraConfig.instance().cfg = config
    if os.environ["RANK"] == "0":
        configure_log(config.hydra.job_logging, config.hydra.verbose)


def _load(script: Path, name: str) -> Task:
    """The function that Hydra's and our own decorators are around."""
    return inspect.unwrap(runpy.run_path(str(script), run_name="__oddpatch_rank__")[name])


def _public_class(error: BaseException) -> str:
    """Of oddpatch's errors, the one to raise for this one."""
    return next(
        (base.__name__ for base in type(error).__mro__ if base.__module__ == errors.__name__), ConfigError.__name__
    )


def _leave() -> None:
    if "torch" in sys.modules:  # else there is nothing to leave
        from oddpatch.learning.distributed import leave

        leave()


if __name__ == "__main__":
    sys.exit(main())
