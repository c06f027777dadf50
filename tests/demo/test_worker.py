"""A fit in a process of its own: its progress, its errors, its end."""

import gc
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from narrowing import present
from patience import PATIENCE, wait_until

from oddpatch.demo.worker import Fit


@pytest.mark.slow
def test_an_error_that_the_user_can_correct_is_one_line(tiles, tmp_path):
    fit = Fit(tiles / "tile/train/good", {"model": "padym"}, tmp_path / "run")
    wait_until(lambda: not fit.running)
    assert "padym" in (fit.error or "")
    assert "\n" not in (fit.error or "")


@pytest.mark.parametrize("last", ["cancelled", "killed"])
def test_a_fit_that_is_ended_leaves_no_process(tiles, tmp_path, last):
    before = set(psutil.Process().children())
    fit = Fit(tiles / "tile/train/good", {}, tmp_path / "run")
    (process,) = set(psutil.Process().children()) - before
    if last == "cancelled":
        fit.cancel()
        assert fit.error == "it was ended"
    else:
        process.kill()
        wait_until(lambda: not fit.running)
        assert "is there enough memory?" in (fit.error or "")
    assert not fit.running
    assert not process.is_running()


@pytest.mark.slow
def test_a_fit_ends_with_the_page(tmp_path):
    code = f"""
import sys, time
import psutil
from pathlib import Path
from oddpatch.demo.boards import Boards
from oddpatch.demo.worker import Fit
fit = Fit(Path({str(tmp_path)!r}), {{}}, Path({str(tmp_path)!r}) / "run", Boards({str(tmp_path / "boards")!r}))
print(psutil.Process().children()[0].pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(present(parent.stdout).readline()))
    wait_until(lambda: (tmp_path / "boards").exists())
    parent.kill()
    parent.wait()
    present(parent.stdout).close()
    child.wait(PATIENCE)
    assert not child.is_running()


@pytest.mark.slow
def test_a_fit_gives_the_run_of_the_python_interface_and_tells_each_stage(tiles, tmp_path):
    import torch

    from oddpatch import AnomalyDetector

    settings = {"model": "patchcore", "data.resize": 48, "data.batch_size": 4}
    fit = Fit(tiles / "tile/train/good", settings, tmp_path / "run")
    seen = set()
    while fit.running:
        seen.add((fit.what, fit.done, fit.total))
        time.sleep(0.005)
    assert fit.error is None
    assert {what for what, *_ in seen} >= {"starting", "loading the network", "accumulating good images"}
    assert any(0 < done < total for _, done, total in seen)
    ours = torch.load(tmp_path / "run/checkpoints/fitted.ckpt", weights_only=True)["state_dict"]
    kept = AnomalyDetector.fit(tiles / "tile/train/good", **settings)
    theirs = torch.load((kept.run or Path()) / "checkpoints/fitted.ckpt", weights_only=True)["state_dict"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].nan_to_num(-1), theirs[name].nan_to_num(-1)) for name in ours)
    gc.collect()
