"""oddpatch: learn what good parts look like; find the odd patch."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oddpatch.api import AnomalyDetector
    from oddpatch.inference.detector import Detection

__all__ = ["AnomalyDetector", "Detection", "__version__"]
__version__ = "0.1.0"

# Idle OpenMP threads that spin take the cores from the processes that decode images: with more threads than cores,
# everything runs several times slower. It only works before torch is loaded; a value set by the user stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


_WHERE = {"AnomalyDetector": "oddpatch.api", "Detection": "oddpatch.inference.detector"}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: who only asks for the version should not wait for it.
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
