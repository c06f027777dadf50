"""Where log messages go: to the terminal, and into a run's log file."""

import logging
import sys

import rich
from rich.logging import RichHandler

from oddpatch.ending import tell_lost
from oddpatch.files import escape_on_terminal, shown


class LogFile(logging.FileHandler):
    """A run's log file. Where it cannot be written, one line says so, and the run goes on: it has results to write."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Called while the error is handled; logging's own way is a traceback for each message."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            tell_lost(self.baseFilename, error)


def console_handler() -> logging.Handler:
    """Rich's on a terminal; elsewhere a message is one line, however long: file names in it can be searched for."""
    escape_on_terminal()
    handler: logging.Handler
    if rich.get_console().is_terminal:
        handler = RichHandler(show_time=False, show_path=False, markup=False)
    else:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(levelname)-8s %(message)s"))
    handler.addFilter(show_names)
    return handler


def show_names(record: logging.LogRecord) -> bool:
    """Filter of a handler: our messages hold the names of files, which change no terminal."""
    if record.name.partition(".")[0] == "oddpatch":
        record.msg, record.args = shown(record.getMessage()), ()
    return True
