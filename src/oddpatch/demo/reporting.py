"""The progress of a fit, told to the process that waits for it."""

from collections.abc import Callable
from typing import Any

from oddpatch.callbacks.progress import Progress


def _unheard(**content: Any) -> None:
    """Nobody listens."""


#: Is told `done`, `total` and `what`.
tell: Callable[..., None] = _unheard


class Reporting(Progress):
    """Tells each stage and how far it is, in place of a bar.

    Examples:
        >>> from oddpatch.demo import reporting
        >>> reporting.tell = lambda **content: print(content)
        >>> reporting.Reporting()._show(1, 4, "scoring for the threshold")
        {'done': 1, 'total': 4, 'what': 'scoring for the threshold'}
    """

    def _show(self, done: int, total: int, what: str) -> None:
        tell(done=done, total=total, what=what)
