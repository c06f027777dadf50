"""A job's own process: `python SCRIPT ARGUMENTS`, forked from one that has imported everything already."""

import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from oddpatch import ending
from oddpatch.ending import TERMINATED, Terminated
from oddpatch.errors import INTERRUPTED, OddpatchError
from oddpatch.locking import hold

#: What most jobs import; a job that needs more imports it itself.
PRELOADED = [
    "oddpatch.pipeline",
    "oddpatch.data.datamodule",
    "oddpatch.backbones.timm",
    "timm",
    "oddpatch.callbacks.writers",
    "rich.progress",
    "hydra.main",
]
#: Seconds that a job has to put its files away when it is interrupted.
GRACE = 20.0


class Ending(NamedTuple):
    """How a job's process ended."""

    code: int  # negative: the signal that killed it
    reason: str  # one line; empty if all is well


def run_script(
    script: Path, arguments: Sequence[str], environment: dict[str, str], console: Path | None, folder: Path
) -> Ending:
    """Run `script` as a program in a process of its own and wait for it.

    Importing torch and Lightning takes longer than many a job: a server process does it once for all jobs of this
    process and forks for each. Nothing else is shared, so a job that dies takes nothing with it.

    Args:
        environment: variables to set.
        console: file for what the job prints; None for where this process prints.
        folder: is held as a run's by the job, from its first moment to its last.
    """
    context = multiprocessing.get_context("forkserver")
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        # The job takes over how this process starts others, and knows nothing of joblib's "loky".
        multiprocessing.set_start_method(None, force=True)
    context.set_forkserver_preload(PRELOADED)
    _start_server()
    told, tell = context.Pipe(duplex=False)
    process: Any = context.Process(target=_main, args=(script, list(arguments), environment, console, folder, tell))
    try:
        process.start()
    except BaseException:  # most likely while the server imports, which nobody waits for any more
        _kill_server()
        raise
    tell.close()
    reason = ""
    try:
        with suppress(EOFError):  # the job's last words come before its end; without any, the pipe closes as it dies
            reason = str(told.recv())
        process.join()
    except BaseException as error:
        _stop(process, error)
        raise
    return Ending(process.exitcode, reason or _describe(process.exitcode))


def _start_server() -> None:
    """Start the server that jobs are forked from, deaf to Ctrl-C, which reaches it too: it would tell where it was."""
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # this unblocks the signal where it starts the tracker
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_server() -> None:
    """It would end by itself, but only when it has imported everything, and keep the output open until then."""
    from multiprocessing import forkserver

    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)


def _describe(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}" if code else ""
    name = signal.Signals(-code).name
    return f"it was killed by {name}" + (": is there enough memory?" if name == "SIGKILL" else "")


def _stop(process: Any, reason: BaseException) -> None:
    """Wait for a job that Ctrl-C has reached too; tell it, and in the end kill it, if it does not come to its end.

    SIGTERM reaches this process alone, which has a few seconds: it is passed on at once.
    """
    steps: list[tuple[int, float]] = [(0, GRACE / 4), (signal.SIGINT, GRACE), (signal.SIGKILL, GRACE)]
    if isinstance(reason, Terminated):
        steps = [(signal.SIGTERM, ending.GRACE - 1), (signal.SIGKILL, ending.GRACE)]
    for signum, seconds in steps:
        if process.is_alive():
            os.kill(process.pid, signum)
            process.join(seconds)


def _main(
    script: Path,
    arguments: list[str],
    environment: dict[str, str],
    console: Path | None,
    folder: Path,
    tell: Connection,
) -> None:
    """In the new process."""
    # Forked by a server, it would start others by one, which imports everything for each of a job's data loaders.
    multiprocessing.set_start_method(None, force=True)
    os.environ.update(environment)
    if console is not None:
        with console.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    threading.Thread(target=_follow_parent, daemon=True).start()
    sys.argv = [str(script), *arguments]
    code, reason = 1, ""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the server's
        hold(folder)
        runpy.run_path(str(script), run_name="__main__")
        code = 0
    except BaseException as error:
        code, reason = explain(error)
        if code not in (0, INTERRUPTED) and not isinstance(error, SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)
    finally:
        with suppress(BrokenPipeError):  # the sweep is gone, and with it who prints and listens
            _finish(code)
            tell.send(reason)
    sys.exit(code)


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and reason, in one line, of the exception that has ended a program."""
    code: Any = 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if code == 0:
            return 0, ""
        # Whoever reports an error and exits does so while it is being handled.
        while isinstance(error, SystemExit) and error.__context__ is not None:
            error = error.__context__
    if isinstance(error, Terminated):
        return TERMINATED, "it was terminated"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "it was interrupted"
    if isinstance(error, SystemExit):
        return code, f"it ended with exit code {code}"
    first = next((line for line in str(error).splitlines() if line.strip()), "").strip()
    return code, first if isinstance(error, OddpatchError) else f"{type(error).__name__}: {first}"


def _finish(code: int) -> None:
    """What the interpreter would do at its end, which a forked process does not come to."""
    if "wandb" in sys.modules:
        import wandb

        wandb.teardown(code)
    import atexit

    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()


def _follow_parent() -> None:
    """Interrupt this process when the one that started it is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE)
    os._exit(INTERRUPTED)
