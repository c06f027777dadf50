"""Examples in docstrings run and print what they say; every public class has one; Python on the pages runs."""

import doctest
import inspect
import pkgutil
import re
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, make_dataset, restore_tiny_backbone, use_tiny_backbone
from PIL import Image
from torch import nn
from videos import write_video

import oddpatch
from oddpatch import hub
from oddpatch.export.exporting import export
from oddpatch.models.trainable import TrainableDetector
from oddpatch.types import Prediction

pytestmark = pytest.mark.slow

MODULES = [module.name for module in pkgutil.walk_packages([str(ROOT / "src/oddpatch")], "oddpatch.")]
#: What the package exports, and what a config names.
PUBLIC = sorted(
    {f"oddpatch.{name}" for name in oddpatch.__all__ if inspect.isclass(getattr(oddpatch, name))}
    | {
        target
        for path in CONFIGS.rglob("*.yaml")
        for target in re.findall(r"^[^#\n]*_target_: (oddpatch\.[\w.]+)", path.read_text(), re.MULTILINE)
    }
)


def docstrings():
    """Those with an example, by their names."""
    for name in MODULES:
        if ">>>" in Path(import_module(name).__file__ or "").read_text(encoding="utf-8"):
            yield from (test for test in doctest.DocTestFinder().find(import_module(name)) if test.examples)


EXAMPLES = {test.name: test for test in docstrings()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with what examples name: `parts/good`, `part.png`, `line.mp4`, `data/tile`, and the run `housing`."""
    folder = tmp_path_factory.mktemp("examples")
    tile = make_dataset(folder / "data", good=6)
    shutil.copytree(tile / "train/good", folder / "parts/good")
    shutil.copy(tile / "test/spot/000.png", folder / "part.png")
    shown = [np.asarray(Image.open(path)) for path in (folder / "parts/good/000.png", folder / "part.png")]
    write_video(folder / "line.mp4", shown, pixels="yuv444p", qp="0")
    oddpatch.AnomalyDetector.fit(folder / "parts/good", model="patchcore").save(folder / "housing")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        oddpatch.AnomalyDetector.fit(folder / "parts/good", model="patchcore").save(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def result(prepared):
    """A `TestResult` with pictures and what else a callback may want."""
    return oddpatch.AnomalyDetector.load(prepared / "housing").evaluate(prepared / "data/tile")


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_runs_and_prints_what_it_says(name, prepared, result, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    if name == "oddpatch.api.AnomalyDetector":
        shutil.rmtree(folder / "housing")
    monkeypatch.chdir(folder)
    example = EXAMPLES[name]
    example.globs |= {"result": result, "trainer": None}
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append, clear_globs=False)
    assert not said, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_class_has_an_example(name):
    module, _, attribute = name.rpartition(".")
    cls = getattr(import_module(module), attribute)
    assert f"{cls.__module__}.{cls.__qualname__}" in EXAMPLES


BLOCKS = [
    pytest.param(block, id=f"{path.relative_to(ROOT)}-{number}")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_on_a_page_runs(block, prepared, tmp_path, monkeypatch):
    use_tiny_backbone(monkeypatch)
    restore_tiny_backbone(monkeypatch)
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    (folder / "data/tile").rename(folder / "data/bottle")
    for run in ("RUN", "outputs/FOLDER", "outputs/RUN"):
        shutil.copytree(folder / "tiny", folder / run)
    if "model.onnx" in block:
        export(folder / "outputs/RUN", "onnx")
    (folder / "housing").rename(folder / "before")
    if "save(" not in block:
        shutil.copytree(folder / "tiny", folder / "housing")
    (folder / "my_methods").mkdir()
    (folder / "my_methods/__init__.py").touch()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(hub, "push", lambda run, address, private: "uploaded")
    monkeypatch.setattr(hub, "fetch", lambda address, target: shutil.copytree("tiny", target, dirs_exist_ok=True))
    images = [Image.open(path) for path in sorted(Path("parts/good").iterdir())]
    names = {"image": "part.png", "images": images, "nn": nn, "torch": torch, "Prediction": Prediction}
    names |= {"AnomalyDetector": oddpatch.AnomalyDetector, "TrainableDetector": TrainableDetector}
    if "detector." in block and "detector =" not in block:
        names["detector"] = oddpatch.AnomalyDetector.load("tiny")
    exec(compile(block, "page", "exec"), names)
