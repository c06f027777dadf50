"""oddpatch: learn what good parts look like; find the odd patch."""

import os

__version__ = "0.1.0"

# Idle OpenMP threads that spin take the cores from the processes that decode images: with more threads than cores,
# everything runs several times slower. It only works before torch is loaded; a value set by the user stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
