"""Where log messages go on the terminal."""

import logging
import sys

import rich
from rich.logging import RichHandler

from oddpatch.files import escape_on_terminal


def console_handler() -> logging.Handler:
    """Rich's on a terminal; elsewhere a message is one line, however long: file names in it can be searched for."""
    escape_on_terminal()
    if rich.get_console().is_terminal:
        return RichHandler(show_time=False, show_path=False, markup=False)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(levelname)-8s %(message)s"))
    return handler
