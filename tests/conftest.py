"""A tiny dataset and a tiny backbone, so that most tests need neither real images nor weights."""

import functools
import gc
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow down parallel tests
os.environ["HF_HUB_OFFLINE"] = "1"  # a test must never wait for a network
os.environ["WANDB_MODE"] = "offline"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of tests in the background: what they start would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from oddpatch import environment, factory
from oddpatch.backbones.base import Backbone
from oddpatch.limits import cores
from oddpatch.types import FeatureInfo

ROOT = Path(__file__).parent.parent
REAL_DATA = ROOT.parent / "shared" / "data"
CONFIGS = ROOT / "configs"


class TinyBackbone(Backbone):
    """Three frozen, random convolutions: features of strides 2, 4 and 8, in a moment."""

    def __init__(self, weights: str = "random", channels_last: bool = False) -> None:
        super().__init__()
        self.info = FeatureInfo([8, 12, 16], [2, 4, 8], layers=[0, 1, 2])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            steps = [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise([3, *self.info.channels])]
        self.steps = nn.ModuleList(steps)
        self.weights_origin = "tiny"
        self.freeze(channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[(B, 8, h/2, w/2), (B, 12, h/4, w/4), (B, 16, h/8, w/8)]."""
        features, x = [], images
        for step in self.steps:
            x = step(x).relu()
            features.append(x)
        return features


def use_tiny_backbone(patch: pytest.MonkeyPatch) -> None:
    """Every backbone that a config or a checkpoint asks for becomes the tiny one."""
    restore_tiny_backbone(patch)
    from oddpatch.hydra_entry import building  # loads Hydra

    compose = building.make

    def make(part: Any, **kwargs: Any) -> Any:
        target = part.get("_target_", "") if hasattr(part, "get") else ""
        return TinyBackbone() if str(target).startswith("oddpatch.backbones.") else compose(part, **kwargs)

    patch.setattr(building, "make", make)


def restore_tiny_backbone(patch: pytest.MonkeyPatch) -> None:
    """Every backbone that a checkpoint asks for becomes the tiny one."""
    restore = factory.make_known

    def make_known(spec: Any, **kwargs: Any) -> Any:
        return TinyBackbone() if spec.kind == "backbone" else restore(spec, **kwargs)

    patch.setattr(factory, "make_known", make_known)


def write_image(path: Path, rng: np.random.Generator, size: int = 48, defect: bool = False) -> np.ndarray:
    """A striped tile with a little noise; a defect is a bright square. Returns the defect's mask."""
    tile = 90 + 40 * np.sin(np.arange(size) / 3)[None, :, None] + rng.normal(0, 6, (size, size, 3))
    mask = np.zeros((size, size), np.uint8)
    if defect:
        y, x = rng.integers(10, size - 20, 2)
        mask[y : y + 9, x : x + 9] = 255
        tile[mask > 0] = [250, 240, 60]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(path)
    return mask


def make_dataset(root: Path, good: int = 12, test_good: int = 5, defects: int = 4, masks: bool = True) -> Path:
    """A category `tile` in MVTec layout with the defect types `spot` and `stain`."""
    rng = np.random.default_rng(0)
    folder = root / "tile"
    for i in range(good):
        write_image(folder / f"train/good/{i:03}.png", rng)
    for i in range(test_good):
        write_image(folder / f"test/good/{i:03}.png", rng)
    for kind in ("spot", "stain"):
        for i in range(defects):
            mask = write_image(folder / f"test/{kind}/{i:03}.png", rng, defect=True)
            if masks:
                path = folder / f"ground_truth/{kind}/{i:03}_mask.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path)
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs a package of the system is run where it is asked for, and skipped elsewhere, installed or not."""
    if "system" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("system"):
                item.add_marker(pytest.mark.skip(reason="needs packages of the system: run by make test-system"))


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look through its hundreds of thousands of objects."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: it has work while tests of others wait for a camera or a broker."""
    return cores() + 1


def program(name: str, package: str) -> str:
    """The path of a program, or the end of a test that needs it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return found or pytest.skip(f"{name} is not installed: apt-get install {package}")


@pytest.fixture(autouse=True)
def same_numbers_are_drawn() -> None:
    """Whatever was drawn before, in whichever order tests run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def absl_leaves_the_captured_streams_open() -> None:
    """Hydra closes every log handler there is; absl's, which TensorBoard brings, closes the stream it began with."""
    if (absl := sys.modules.get("absl.logging")) is not None:
        absl.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(autouse=True)
def no_job_is_left_running() -> Iterator[None]:
    """Hydra keeps the config of the last job in the process: a run built by hand would take its names from there."""
    yield
    if (module := sys.modules.get("hydra.core.hydra_config")) is not None:
        module.HydraConfig.instance().cfg = None


@pytest.fixture(scope="session", autouse=True)
def read_once() -> Iterator[None]:
    """Typer makes its commands, Hydra reads its files, versions are looked up at each call: here, once a process."""
    load = OmegaConf.load
    parsed = functools.cache(lambda text: pickle.dumps(load(io.StringIO(text))))  # faster than `copy.deepcopy`

    def load_once(file: Any) -> Any:
        return pickle.loads(parsed(file.read())) if isinstance(file, io.TextIOWrapper) else load(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        patch.setattr(OmegaConf, "load", staticmethod(load_once))
        patch.setattr(environment, "version", functools.cache(environment.version))
        yield


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this call of pytest, the same in each of its workers."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a dataset with the one category `tile`; do not change it."""
    root = tmp_path_factory.mktemp("data")
    make_dataset(root)
    return root


@pytest.fixture
def real_bottle() -> Path:
    """Root of the real MVTec AD category bottle."""
    root = REAL_DATA / "mvtec"
    if not (root / "bottle").is_dir():
        pytest.skip(f"needs the MVTec AD category bottle in {root}")
    return root


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of one node with one core, which tests may add nodes to; it notices fast that one is lost."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Of the nodes: they have not the environment of whoever uses them.
    paths = [str(ROOT / "src"), str(ROOT / "tests/sweep"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    watchful = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}
    watchful["worker_niceness"] = 0  # Ray's own, 15, leaves next to nothing of a core that other tests use
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": watchful}
    with pytest.MonkeyPatch.context() as patch:  # else whatever calls `ray.init()` beside this test joins it
        patch.setattr("ray._private.utils.write_ray_address", lambda *_: None)
        found = Cluster(initialize_head=True, head_node_args=head)
    yield found
    found.shutdown()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def make_read_only(disk: Path) -> None:
    """Have a `small_disk` be read only from now on."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
