"""Fitted models are restored by what is needed to score, and no more."""

import subprocess
import sys


def test_restoring_a_model_loads_no_lightning():
    script = "import sys, oddpatch.factory, oddpatch.inference.detector; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
