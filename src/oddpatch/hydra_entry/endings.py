"""How `oddpatch train` and `oddpatch eval` end: with one line where the user can mend what went wrong."""

import functools
import logging
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from oddpatch.ending import conclude
from oddpatch.errors import in_one_line
from oddpatch.files import shown

P = ParamSpec("P")
R = TypeVar("R")


def one_line_errors(task: Callable[P, R]) -> Callable[P, R]:
    """Have a Hydra task end with one line, not a traceback, when the user can mend what went wrong.

    In a sweep the error travels on, so that the launcher counts the job as failed and goes on with the next. Lightning
    exits as if a run had failed once it has put its files away after Ctrl-C: see `oddpatch.ending`.
    """

    @functools.wraps(task)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return task(*args, **kwargs)
        except (Exception, SystemExit) as error:
            conclude(error, logging.getLogger("oddpatch").warning)
            if isinstance(error, SystemExit) or (told := in_one_line(error)) is None:
                raise
            logging.getLogger("oddpatch").error("%s", shown(told))
            if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            sys.exit(1)

    return wrapped
