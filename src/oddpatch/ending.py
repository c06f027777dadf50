"""How a program ends on request: by Ctrl-C, by SIGTERM, or because nobody reads its output any more."""

import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any

from oddpatch.errors import INTERRUPTED

#: Exit codes that a shell reports of programs that SIGTERM and SIGPIPE have ended.
TERMINATED, UNREAD = 143, 141
#: Exit code and last word, by the signal that ends a program.
ENDINGS = {signal.SIGTERM: (TERMINATED, "terminated"), signal.SIGINT: (INTERRUPTED, "interrupted")}
#: Seconds after the signal in which a program puts its files away; then it ends wherever it is.
GRACE = 4.0

_asked: list[signal.Signals] = []  # the signal that has come
_told = threading.Event()


class Terminated(KeyboardInterrupt):
    """SIGTERM has come. All that puts its files away after Ctrl-C does so, too."""


@contextmanager
def ending_when_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Have SIGTERM and Ctrl-C end the block, and the program with the exit code that says why it ended.

    Code that is called back from C can swallow the exception, which is then raised again, and may keep the interpreter
    from raising it for long. So a second thread learns of the signal by itself, and ends the process if it still runs
    `GRACE` seconds later.

    Args:
        tell: told "terminated" or "interrupted", once.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    _asked.clear()
    _told.clear()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {which: signal.getsignal(which) for which in ENDINGS}
    for which, handler in before.items():
        if handler is not signal.SIG_IGN or which == signal.SIGTERM:  # a shell's background jobs ignore Ctrl-C
            signal.signal(which, _raise)
    hook, sys.unraisablehook = sys.unraisablehook, _swallowed
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    _forget_in_children()
    try:
        yield
        conclude(None, tell)
    except BaseException as error:
        conclude(error, tell)
        raise
    finally:
        signal.set_wakeup_fd(wakeup)
        sys.unraisablehook = _no_news if _asked else hook
        for which, handler in before.items():
            signal.signal(which, handler)
        if not _asked:  # else the watch goes on until the interpreter has ended
            os.close(writing)


def conclude(error: BaseException | None, tell: Callable[[str], None]) -> None:
    """Exit if the program was asked to end; return if `error`, or None, is how it ended by itself."""
    chain = list(_chain(error))
    if _asked:
        code, word = ENDINGS[_asked[0]]
    elif any(isinstance(link, KeyboardInterrupt) for link in chain):
        code, word = INTERRUPTED, "interrupted"
    elif any(isinstance(link, BrokenPipeError) for link in chain) and _unread():
        drop_unwritten()
        code, word = UNREAD, ""
    else:
        return
    if word and not _told.is_set():
        _told.set()
        with suppress(OSError):
            tell(word)
    sys.exit(code)


def end_as_meant() -> None:
    """Call where a program ends because it was asked to, and always ends so: its exit code is that of success.

    It has what is left of `GRACE` seconds for it.
    """
    _asked.clear()


def drop_unwritten() -> None:
    """Give up what the standard output cannot take; the interpreter would complain of it at its end."""
    for stream in filter(None, (sys.stdout, sys.__stdout__)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_closed_streams() -> None:
    """Open the standard streams that were closed when the program began: else the next file would get their number.

    What is printed cannot be written then, which is an error like that of a full disk; messages on stderr are lost.
    """
    for name, mode, flags in (
        ("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)
    ):  # fmt: skip
        if getattr(sys, name) is None:
            stream = os.fdopen(os.open(os.devnull, flags), mode)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def go_on_unread() -> None:
    """Have what cannot be printed any more go nowhere: for programs whose results are files, not what they print.

    A reader that has gone is ignored; a full disk and the like are reported in one line.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):  # neither closed nor captured
            setattr(sys, name, _reopen(stream))


class _Output(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if not isinstance(error, BrokenPipeError):
                tell_lost("the output", error)
            return super().write(data)


def _reopen(stream: Any) -> Any:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False)),
        stream.encoding, stream.errors, line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


def tell_lost(place: str, error: OSError) -> None:
    """Tell, if there is still where to, that messages cannot be written."""
    reason = os.strerror(error.errno) if error.errno else error
    with suppress(OSError):
        os.write(2, f"{place} cannot be written ({reason}): messages are lost, the run goes on\n".encode())


def follow_parent() -> None:
    """Have this process, a worker that was spawned, end with the one that started it, however that ends."""
    from multiprocessing import connection, parent_process

    if (parent := parent_process()) is None:
        return

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception; of SystemExit, also those during which it was raised: who puts files away exits afterwards."""
    if error is not None:
        yield error
    if isinstance(error, SystemExit):
        while (error := error.__context__) is not None:
            yield error


def _raise(number: int, frame: FrameType | None) -> None:
    if _loads_native_code(frame):  # which would abort: many a library cannot let an exception through there
        _raise_later(number)
        return
    for which in ENDINGS:
        signal.signal(which, signal.SIG_IGN)  # once is enough: a second would end the putting away
    _asked.append(signal.Signals(number))
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _loads_native_code(frame: FrameType | None) -> bool:
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def _raise_later(number: int) -> None:
    timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _swallowed(unraisable: Any) -> None:
    """Called where an exception cannot be raised, such as in a destructor."""
    if not _asked:
        sys.__unraisablehook__(unraisable)
    elif isinstance(unraisable.exc_value, KeyboardInterrupt):
        signal.signal(_asked[0], _raise)
        _raise_later(_asked[0])


def _no_news(unraisable: Any) -> None:
    """While the interpreter ends as it was asked to: a signal to a whole process group has ended workers, too."""


def _watch(pipe: int) -> None:
    while received := os.read(pipe, 64):
        for which in ENDINGS:
            if which in received:
                time.sleep(GRACE)
                _end_now(which)
    os.close(pipe)


def _end_now(which: signal.Signals) -> None:
    """End this process and all that it has started."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    code, word = ENDINGS[which]
    if not _told.is_set():
        with suppress(OSError):
            os.write(2, f"{word}\n".encode())
    os._exit(code)


def _unread() -> bool:
    """Whether what reads this program's output is gone."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


_forgetting = False


def _forget_in_children() -> None:
    """SIGTERM ends a process that is forked, such as a data loader, at once, and is no news to its parent."""
    global _forgetting
    if not _forgetting:
        os.register_at_fork(after_in_child=_forget)
        _forgetting = True


def _forget() -> None:
    signal.set_wakeup_fd(-1)
    for which, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(which) is _raise:
            signal.signal(which, handler)
    sys.excepthook = partial(_unless_unread, sys.excepthook)


def _unless_unread(hook: Callable[..., object], kind: type[BaseException], *rest: Any) -> None:
    """The hook of a forked process: silent where the thread that hands tensors over has lost its reader."""
    if threading.current_thread() is threading.main_thread() or not issubclass(kind, (ConnectionError, EOFError)):
        hook(kind, *rest)
