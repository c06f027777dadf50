"""What comes out of a file is built from a table, and nothing else is reached."""

import importlib
import inspect
import logging
import pkgutil
import re
import subprocess
import sys
import types

import pytest
import torch
from omegaconf import OmegaConf

import oddpatch
from oddpatch.errors import CheckpointError, ConfigError
from oddpatch.known import BASES, KINDS, check_plain, known_class, may_be_known, read_spec

PATCHCORE = {"_target_": "oddpatch.models.patchcore.PatchCore", "coreset_ratio": 0.5}
GRID = {"channels": [8, 12], "strides": [8, 16]}


def modules():
    for info in pkgutil.walk_packages(oddpatch.__path__, "oddpatch."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def class_of(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def concrete():
    """By kind, every concrete class of the package that is of it, found by importing everything; and one of PyOD."""
    loaded = [*modules(), importlib.import_module("pyod.models.ecod")]
    return {
        kind: {
            f"{value.__module__}.{value.__qualname__}"
            for module in loaded
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, class_of(base))
            and not inspect.isabstract(value)
            and value.__name__[0] != "_"
        }
        for kind, base in BASES.items()
    }


def test_every_class_that_a_checkpoint_can_hold_is_known_without_being_listed():
    assert {"oddpatch.models.patchcore.PatchCore", "oddpatch.models.ensemble.EnsembleDetector"} <= concrete()["model"]
    assert {"oddpatch.data.few.FewImages", "oddpatch.data.datamodule.MVTecDataModule"} == concrete()["data"]
    for kind, names in concrete().items():
        assert names or kind in ("selector", "embedding")  # ours are named, not described
        assert all(known_class(name, kind) is class_of(name) for name in names)
        assert all(may_be_known(name) for name in names)


@pytest.mark.parametrize(
    "name",
    [
        "oddpatch.models.base.Detector", "oddpatch.models.base.PatchDetector",
        "oddpatch.models.anomaly_model.AnomalyModel",
        "oddpatch.models.region.Region", "oddpatch.models.patchcore.Greedy", "oddpatch.models.spade.PaDiM",
        "oddpatch.models.patchcore.torch", "oddpatch.models.patchcore.PatchCore.fit", "oddpatch.models.patchcore",
        "oddpatch.models.PATCHCORE.PatchCore", "oddpatch.models.__init__.PatchCore", "oddpatch.models..PatchCore",
        "oddpatch.models.patchcore.PatchCore ", "oddpatch.models.patchcore.__builtins__", "oddpatch.models.absent.A",
        "oddpatch.backbones.timm.PatchCore", "models.patchcore.PatchCore", "", None, 1, ["oddpatch.models.spade.SPADE"],
    ],
)  # fmt: skip
def test_nothing_else_of_the_kinds_packages_is_known(name):
    assert known_class(name, "model") is None


def test_parts_are_arguments_of_their_class():
    found = [class_of(name) for names in concrete().values() for name in names]
    for one in found:
        parts = getattr(one, "parts", {})
        assert parts.keys() <= inspect.signature(one).parameters.keys()
        assert all(kind in KINDS and given in ("object", "maker", "makers") for kind, given in parts.values())
    assert sum(bool(getattr(one, "parts", {})) for one in found) == 6


@pytest.mark.slow
def test_no_public_attribute_of_the_package_can_be_reached():
    """Every path of names, through what the modules have imported: `oddpatch.checkpoint.torch.load` and the like."""
    allowed = {name for names in concrete().values() for name in names}
    paths, pending, seen = set(), [(module.__name__, module, 0) for module in modules()], set()
    while pending:
        path, value, depth = pending.pop()
        if depth:
            paths.add(path)
        deeper = isinstance(value, types.ModuleType) or inspect.isclass(value)
        if depth == 3 or not deeper or (depth > 1 and id(value) in seen):
            continue
        seen.add(id(value))
        pending += [(f"{path}.{name}", inner, depth + 1) for name, inner in vars(value).items() if name[0] != "_"]
    assert {
        "oddpatch.checkpoint.torch.load",
        "oddpatch.environment.subprocess.run",
        "oddpatch.known.importlib",
    } <= paths
    assert len(paths) > 10_000
    reached = []
    for path in paths - allowed:
        for kind in KINDS:
            try:
                reached.append(read_spec({"_target_": path}, kind, "file"))
            except CheckpointError:
                continue
    assert reached == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_is_built_at_a_place_of_its_kind_only(kind):
    for other, names in concrete().items():
        for name in names:
            if other == kind and getattr(class_of(name), "parts", {}).keys() <= {"selector", "embedding"}:
                assert read_spec({"_target_": name}, kind, "file").target == name
            elif other != kind:
                with pytest.raises(CheckpointError, match="asks for"):
                    read_spec({"_target_": name}, kind, "file")


def test_reading_imports_nothing_of_what_is_refused():
    script = (
        "import sys; from oddpatch.known import KINDS, read_spec\n"
        "for name in ('os.system', 'antigravity.fly', 'oddpatch.pipeline.fit', 'oddpatch.models.base.torch.load',\n"
        "             'oddpatch.files.replacing', 'oddpatch.learning.one_epoch.OneEpoch', 'torch.load'):\n"
        "    for kind in KINDS:\n"
        "        try: read_spec({'_target_': name}, kind, 'file'); print(name)\n"
        "        except Exception: pass\n"
        "print([name for name in sys.modules if name in ('torch', 'hydra', 'antigravity', 'oddpatch.models')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_known_is_built():
    detector = read_spec(PATCHCORE, "model", "file").make(**GRID)
    assert type(detector).__name__ == "PatchCore"
    assert detector.coreset_ratio == 0.5


def test_an_ensemble_is_built_from_its_parts():
    member = {"_target_": "oddpatch.backbones.timm.TimmBackbone", "name": "test_resnet.r160_in1k", "_partial_": True}
    backbone = read_spec(
        {
            "_target_": "oddpatch.backbones.ensemble.EnsembleBackbone",
            "members": {"a": {**member, "layers": [1, 2]}, "b": {**member, "layers": [2]}},
        },
        "backbone",
        "file",
    ).make(weights="random")
    assert backbone.info.strides == [4, 8, 8]
    detector = read_spec(
        {
            "_target_": "oddpatch.models.ensemble.EnsembleDetector",
            "maps": [2, 1],
            "member": {**PATCHCORE, "finest_stride": 1, "_partial_": True},
        },
        "model",
        "file",
    ).make(channels=backbone.info.channels, strides=backbone.info.strides)
    assert [one.coreset_ratio for one in detector.detectors] == [0.5, 0.5]


OWN = """
from oddpatch.models.embeddings import Embedding
from oddpatch.models.selectors import Selector

class First(Selector):
    def __call__(self, points, count, generator, progress=None, others=None):
        return torch.arange(count)

class Halves(Embedding):
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, features):
        return self.factor * features[0].permute(0, 2, 3, 1)
"""


@pytest.mark.parametrize("part", ["selector", "embedding"])
def test_a_part_is_a_name_or_an_object_of_ones_own_class(part, tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(f"import torch\n{OWN}")
    monkeypatch.syspath_prepend(tmp_path)
    own: dict[str, dict[str, object]] = {
        "selector": {"_target_": "own_parts.First"}, "embedding": {"_target_": "own_parts.Halves", "factor": 0.5},
    }  # fmt: skip
    described = own[part]
    assert read_spec({**PATCHCORE, part: {"selector": "random", "embedding": "joined"}[part]}, "model", "file")
    detector = read_spec({**PATCHCORE, part: described}, "model", "file", trust=["own_parts"]).make(**GRID)
    assert (
        f"{type(getattr(detector, part)).__module__}.{type(getattr(detector, part)).__name__}" == described["_target_"]
    )
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(4, *shape, generator=generator) for shape in ((8, 8, 8), (12, 4, 4))]
    detector.update(features, torch.arange(4))
    detector.fit()
    assert len(detector.memory_bank)
    for hidden in (
        described,
        {"_target_": "os.system"},
        PATCHCORE,
        {**described, "_partial_": True},
        {"a": 1},
        [described],
    ):
        with pytest.raises(CheckpointError):
            read_spec({**PATCHCORE, part: hidden}, "model", "file")


PYOD = {"_target_": "oddpatch.models.pyod.PyOD"}
ECOD = {"_target_": "pyod.models.ecod.ECOD", "_partial_": True}


def test_a_detector_of_pyod_is_built_where_it_belongs():
    described = {**PYOD, "detector": {"_target_": "pyod.models.knn.KNN", "n_neighbors": 3, "_partial_": True}}
    assert read_spec(described, "model", "file").make(**GRID).make().n_neighbors == 3
    for kind in KINDS:
        if kind != "outlier":
            with pytest.raises(CheckpointError, match="asks for"):
                read_spec({"_target_": ECOD["_target_"]}, kind, "file")
    for place in ({**PATCHCORE, "selector": ECOD}, {**PATCHCORE, "k": ECOD}, {**PYOD, "detector": PATCHCORE}):
        with pytest.raises(CheckpointError):
            read_spec(place, "model", "file")


@pytest.mark.parametrize(
    "name",
    [
        "pyod.models.base.BaseDetector", "pyod.models.base_dl.BaseDeepLearningDetector", "pyod.models.ecod.column_ecdf",
        "pyod.models.ecod.Parallel", "pyod.models.ecod.BaseDetector", "pyod.models.ecod.ECOD.fit",
        "pyod.models.embedding.EmbeddingOD", "pyod.models.embedding.MultiModalOD", "pyod.models.audio_ae.AudioAE",
        "pyod.utils.persistence.load", "pyod.models.absent.A", "pyod.ecod.ECOD", "pyod.models.knn.ECOD",
        "pyod.models.kpca.PyODKernelPCA", "os.system", "sklearn.svm.OneClassSVM", "numpy.load", None, 1,
    ],
)  # fmt: skip
def test_nothing_else_of_pyod_is_known(name):
    with pytest.raises(CheckpointError):
        read_spec({**PYOD, "detector": {"_target_": name, "_partial_": True}}, "model", "file")


@pytest.mark.parametrize(
    "hidden", [{"metric": {"_target_": "os.system"}}, {"_args_": [1]}, {"_partial_": False}, {"x": (1,)}, {"a": [ECOD]}]
)
def test_arguments_of_a_detector_of_pyod_are_plain_values(hidden):
    with pytest.raises(CheckpointError):
        read_spec({**PYOD, "detector": {**ECOD, **hidden}}, "model", "file")


def test_a_file_that_needs_pyod_says_so_where_it_is_not_installed(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyod" else find(name))
    with pytest.raises(
        CheckpointError, match=r"needs PyOD, which is not installed: pip install 'oddpatch\[outlier\]'$"
    ):
        read_spec({**PYOD, "detector": ECOD}, "model", "file")


class Text(str):
    pass


@pytest.mark.parametrize(
    "value",
    [
        OmegaConf.create({"a": 1}), OmegaConf.create([1]), {"a": OmegaConf.create({"_target_": "os.system"})}, (1, 2),
        {"a": ({"_target_": "os.system"},)}, Text("x"), {Text("a"): 1}, {"a": Text("x")}, {1: 2}, {b"a": 1}, b"x", 1j,
        torch.zeros(1), {"a": {1, 2}}, [float("nan")], ["${oc.env:HOME}"], {"_args_": []}, {"a": [{"__x__": 1}]},
        object(), print, type, frozenset(),
    ],
    ids=lambda value: re.sub(r" (object )?at 0x\w+", "", repr(value)),  # workers name tests alike
)  # fmt: skip
def test_nothing_but_plain_values_is_plain(value):
    with pytest.raises(CheckpointError):
        check_plain(value, "config", "file")


def test_plain_values_are_plain():
    check_plain({"a": [1, 2.5, "x", True, None, {"b": [[], {}]}], "_target_": "x"}, "config", "file")


# -- a user's own code ------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package of the user's with a detector, a function that makes one, and what it has merely imported."""
    (tmp_path / "own_methods").mkdir()
    (tmp_path / "own_methods/__init__.py").write_text("")
    (tmp_path / "own_methods/knn.py").write_text(
        "from os import system\n"
        "from pathlib import Path\n"
        "from oddpatch.models.patchcore import PatchCore\n"
        "class KNN(PatchCore):\n"
        "    def __init__(self, channels, strides, distance_fn=None, parts=()):\n"
        "        super().__init__(channels, strides)\n"
        "        self.distance_fn, self.parts = distance_fn, parts\n"
        "def make(channels, strides): return KNN(channels, strides)\n"
        "def wrong(channels, strides): return 1\n"
        "def fails(channels, strides): raise KeyError('x')\n"
        "def distance(a, b=2): return a + b\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_methods"
    for name in [name for name in sys.modules if name.startswith("own_methods")]:
        del sys.modules[name]


def test_own_code_needs_its_package_to_be_named(own, caplog):
    value = {"_target_": "own_methods.knn.KNN"}
    with pytest.raises(CheckpointError, match="name their package: --trust own_methods"):
        read_spec(value, "model", "file")
    with pytest.raises(CheckpointError, match="--trust own_methods"):
        read_spec(value, "model", "file", ["own"])  # a name that merely begins so
    assert "own_methods.knn" not in sys.modules
    with caplog.at_level(logging.WARNING):
        made = read_spec(value, "model", "file", [own]).make(**GRID)
    assert type(made).__name__ == "KNN"
    assert [record.getMessage() for record in caplog.records] == [
        "file: runs own_methods.knn.KNN, of a package that you trust"
    ]
    assert type(
        read_spec({"_target_": "own_methods.knn.make"}, "model", "f", ["own_methods.knn"]).make(**GRID)
    ) is type(made)


def test_own_code_may_hold_more_of_it_and_known_classes(own):
    value = {
        "_target_": "own_methods.knn.KNN",
        "distance_fn": {"_target_": "own_methods.knn.distance", "_partial_": True, "b": 5},
        "parts": [{**PATCHCORE, "_partial_": True}],
    }
    made = read_spec(value, "model", "file", [own]).make(**GRID)
    assert made.distance_fn(a=1) == 6
    assert made.parts[0](**GRID).coreset_ratio == 0.5
    for hidden in ({"_target_": "os.system"}, [{"_target_": "oddpatch.files.replacing"}], {"_args_": [1]}):
        with pytest.raises(CheckpointError):
            read_spec({**value, "distance_fn": hidden}, "model", "file", [own])
    with pytest.raises(CheckpointError, match="asks for"):  # oddpatch's own classes hold none of it
        read_spec({**PATCHCORE, "k": value["distance_fn"]}, "model", "file", [own])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("system", "is no class or function of own_methods"),
        ("Path", "is no class or function of own_methods"),
        ("PatchCore", "is no class or function of own_methods"),
        ("absent", "cannot be imported.*PYTHONPATH"),
        ("KNN.fit", "cannot be imported"),
        ("wrong", "makes a int, no detector"),
        ("fails", "cannot be built .KeyError"),
    ],
)
def test_trust_reaches_what_the_package_defines_and_no_further(own, name, told):
    with pytest.raises(CheckpointError, match=told) as error:
        read_spec({"_target_": f"own_methods.knn.{name}"}, "model", "file", [own]).make(**GRID)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "trust", ["own_methods", [""], ["a b"], ["own/x"], [1], ["oddpatch"], ["oddpatch.checkpoint"], ["x."]]
)
def test_trust_names_packages(trust):
    with pytest.raises(ConfigError, match="trust"):
        read_spec(PATCHCORE, "model", "file", trust)


def test_a_folder_may_be_called_like_a_reference(tmp_path):
    named = {
        "_target_": "oddpatch.data.datamodule.MVTecDataModule",
        "root": str(tmp_path),
        "category": "${oc.env:HOME}",
    }
    data = read_spec(named, "data", "file").make(mean=[0.5] * 3, std=[0.5] * 3)
    assert data.category == "${oc.env:HOME}"
