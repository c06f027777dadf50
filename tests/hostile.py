"""A small checkpoint that is in order, and ways to make hostile ones of it. Nothing here is harmful: a payload leaves
a file, `CANARY`, or is seen by the audit hook of `watched`."""

import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyod.models.ecod  # noqa: F401  loads its own libraries before anything is watched
import torch
from torch import nn

from oddpatch.backbones.timm import TimmBackbone
from oddpatch.checkpoint import FORMAT
from oddpatch.data.transforms import Preprocess
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.models.calibration import Calibration
from oddpatch.models.patchcore import PatchCore

BACKBONE: dict[str, Any] = {
    "_target_": "oddpatch.backbones.timm.TimmBackbone", "name": "test_resnet.r160_in1k", "layers": [1, 2],
}  # fmt: skip
PATCHCORE = {"_target_": "oddpatch.models.patchcore.PatchCore", "coreset_size": 8, "finest_stride": 1, "seed": 0}
NAMES = {"model": "patchcore", "backbone": "tiny", "data": "mvtec", "category": "tile", "experiment": None}
Change = Callable[[dict[str, Any]], Any]


def sound(data: Path) -> dict[str, Any]:
    """The content of a checkpoint of PatchCore, fitted to noise, whose data is the category `tile` in `data`."""
    torch.manual_seed(0)
    backbone = TimmBackbone(BACKBONE["name"], BACKBONE["layers"], weights="random")
    detector = PatchCore(
        backbone.info.channels, backbone.info.strides, coreset_size=8, coreset_ratio=None, finest_stride=1
    )
    preprocess = Preprocess(32, 32, backbone.info.mean, backbone.info.std)
    model = AnomalyModel(preprocess, backbone, detector, Calibration("holdout"))
    model.update(torch.randn(3, 3, 32, 32), torch.arange(3))
    detector.fit()
    model.calibration.calibrate(torch.arange(9.0), torch.arange(9.0), torch.arange(3, 12), torch.rand(9, 2))
    names = [f"tile/train/good/{number:03}.png" for number in range(12)]
    settings = {"root": str(data), "category": "tile", "resize": 32, "crop": 32, "num_workers": 0, "batch_size": 4}
    return {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "oddpatch": {
            "format": FORMAT,
            "version": "0.1.0",
            "versions": {"torch": str(torch.__version__)},
            "git_commit": None,
            "config": {
                "model": {**PATCHCORE, "coreset_ratio": None},
                "backbone": {**BACKBONE, "weights": "random", "options": None},
                "calibration": {"_target_": "oddpatch.models.calibration.Calibration", "method": "holdout"},
                "data": {"_target_": "oddpatch.data.datamodule.MVTecDataModule", **settings},
                "run": {**NAMES, "image_size": [32, 32]},
            },
            "preprocess": preprocess.settings(),
            "weights": "random",
            "train_images": names,
            "held_out": names[3:],
            "num_fitted": 12,
            "no_threshold": None,
        },
    }


def put(path: str, value: Any) -> Change:
    """Set what lies at a dotted path of the description."""

    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place = content["oddpatch"]
        for name in parents:
            place = place[name]
        place[last] = value

    return change


def drop(path: str) -> Change:
    """Remove what lies at a dotted path of the content."""

    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place = content
        for name in parents:
            place = place[name]
        del place[last]

    return change


def tensor(name: str, make: Callable[[torch.Tensor], Any]) -> Change:
    """Replace a tensor of the model."""

    def change(content: dict[str, Any]) -> None:
        content["state_dict"][f"model.{name}"] = make(content["state_dict"][f"model.{name}"])

    return change


#: Texts that `save` replaces: what is nested so deeply cannot be pickled, but a pickle of it can be written.
_KEY = b"X\x01\x00\x00\x00a"
NESTED = {
    "@@ 100,000 lists @@": b"]" * 100_000 + b"a" * 99_999,
    "@@ 100,000 mappings @@": (b"}" + _KEY) * 99_999 + b"}" + b"s" * 99_999,
}


def save(content: dict[str, Any], path: Path) -> None:
    """As `torch.save`, with the texts of `NESTED` replaced."""
    path.unlink(missing_ok=True)  # its tensors may still be mapped
    whole = io.BytesIO()
    torch.save(content, whole)
    with zipfile.ZipFile(whole) as given, zipfile.ZipFile(path, "w") as made:
        for name in given.namelist():
            data = given.read(name)
            if name.endswith("data.pkl"):
                for text, nested in NESTED.items():
                    data = data.replace(b"X" + struct.pack("<I", len(text)) + text.encode(), nested)
            made.writestr(name, data)


def shared(levels: int) -> Any:
    """A small object that is walked for ever: each level holds the one below ten times."""
    value: Any = [1]
    for _ in range(levels):
        value = [value] * 10
    return value


def endless() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def payloads(canary: Path) -> dict[str, Change]:
    """Hostile changes by name; each asks for an effect, or is malformed."""
    touch = f"touch {canary}"
    call = {"_target_": "os.system", "_args_": [touch]}
    write = {"_target_": "oddpatch.checkpoint.write_checkpoint", "content": {}, "path": str(canary)}
    statistics = "oddpatch.metrics.uncertainty.pixel_statistics"
    found: dict[str, Change] = {}

    # What a file may not name, at every place where a name is looked for.
    targets = {
        "os.system": call,
        "subprocess": {"_target_": "subprocess.run", "args": ["touch", str(canary)]},
        "builtins.eval": {"_target_": "builtins.eval", "_args_": [f"open({str(canary)!r}, 'w')"]},
        "builtins.open": {"_target_": "builtins.open", "file": str(canary), "mode": "w"},
        "pathlib": {"_target_": "pathlib.Path.touch", "_args_": [str(canary)]},
        "writer": write,
        "git": {"_target_": "oddpatch.environment._git", "_args_": [".", "-c", f"alias.x=!{touch}", "x"]},
        "torch.load": {"_target_": "oddpatch.checkpoint.torch.load", "f": str(canary), "weights_only": False},
        "torch.hub": {"_target_": "oddpatch.backbones.weights.torch.hub.load_state_dict_from_url", "url": "http://x"},
        "urllib": {"_target_": "oddpatch.backbones.weights.urllib.request.urlretrieve", "url": "http://localhost:9"},
        "numpy.load": {"_target_": f"{statistics}.np.load", "file": str(canary)},
        "replacing": {"_target_": "oddpatch.files.replacing", "path": str(canary)},
        "hostile import": {"_target_": "hostile_package.Innocent"},
        "hydra": {"_target_": "hydra.utils.instantiate", "config": call, "_recursive_": False},
        "factory": {"_target_": "oddpatch.hydra_entry.building.make", "part": call},
        "classmethod": {"_target_": f"{statistics}.PixelStatistics.load", "path": str(canary)},
        "class of another kind": {"_target_": "oddpatch.cache.features.FeatureCache", "folder": str(canary)},
        "callback": {"_target_": "oddpatch.callbacks.writers.Results", "folder": str(canary)},
        "base": {"_target_": "oddpatch.models.base.Detector"},
        "module": {"_target_": "oddpatch.models.patchcore"},
        "method": {"_target_": "oddpatch.models.patchcore.PatchCore.fit"},
        "spaces": {"_target_": " oddpatch.models.patchcore.PatchCore"},
        "relative": {"_target_": "oddpatch.models..patchcore.PatchCore"},
        "wide letters": {"_target_": "\uff4fddpatch.models.patchcore.PatchCore"},
        "empty": {"_target_": ""},
        "number": {"_target_": 1},
        "bytes": {"_target_": b"os.system"},
        "list": {"_target_": ["os", "system"]},
        "none": {"_target_": None},
        "mapping": {"_target_": call},
        "terminal": {"_target_": "\x1b]0;title\x07\x1b[2Jos.system\n"},
        "long": {"_target_": "oddpatch." + "a" * 100_000},
    }
    for name, target in targets.items():
        found[f"model is {name}"] = put("config.model", target)
    for part in ("backbone", "calibration", "data"):
        for name in ("os.system", "writer", "git", "hostile import", "base", "callback"):
            found[f"{part} is {name}"] = put(f"config.{part}", targets[name])
    # The right class in the wrong place.
    found["backbone is a model"] = put("config.backbone", dict(PATCHCORE))
    found["model is a backbone"] = put("config.model", dict(BACKBONE))

    # Hidden in an argument.
    hidden = {
        "argument": call,
        "list": [call],
        "deep list": [[[[call]]]],
        "mapping": {"a": {"b": call}},
        "tuple": (call,),
        "tuple in a list": [("x", call)],
        "set": {"os.system"},
        "ordered mapping": OrderedDict(call),
        "ordered mapping in a list": [OrderedDict(call)],
        "default mapping": defaultdict(list, call),
        "size": torch.Size([1, 2]),
        "bytes": b"x",
        "bytearray": bytearray(b"x"),
        "complex": 1j,
        "tensor": torch.zeros(2),
        "parameter": nn.Parameter(torch.zeros(2)),
        "dtype": torch.float32,
        "bytes key": {b"_target_": "os.system", b"_args_": [touch]},
        "number key": {1: "x"},
        "tuple key": {("_target_",): "os.system"},
        "args": {"_args_": [touch]},
        "partial": {"_partial_": True},
        "known class": {"_target_": "oddpatch.models.calibration.Calibration"},
        "partial known class": {**PATCHCORE, "_partial_": True},
        "environment": "${oc.env:HOME}",
        "environment in a list": ["${oc.env:HOME}"],
        "decoded": "${oc.decode:'1'}",
        "created": "${oc.create:{a: 1}}",
        "reference": "${..data.root}",
        "escaped": "\\${oc.env:HOME}",
        "part of a text": "x-${oc.env:HOME}-y",
        "nan": float("nan"),
        "infinite": [float("-inf")],
        "100,000 lists": "@@ 100,000 lists @@",
        "100,000 mappings": "@@ 100,000 mappings @@",
        "shared": shared(30),
        "itself": endless(),
        "wide": [0] * 30_000,
    }
    for name, value in hidden.items():
        found[f"argument holds {name}"] = put("config.model.k", value)
    for place in (
        "config.backbone.options",
        "config.data.align",
        "preprocess.align",
        "config.run.category",
        "versions",
    ):
        for name in ("argument", "tuple", "environment", "itself"):
            found[f"{place} holds {name}"] = put(place, hidden[name])
    for key in ("_args_", "_partial_", "_recursive_", "_convert_", "_mode_"):
        found[f"model has {key}"] = put(f"config.model.{key}", True)

    # Loading weights by other means.
    evil = str(canary.with_name("evil.pth"))
    for name, options in {
        "checkpoint_path": {"checkpoint_path": evil},
        "pretrained": {"pretrained": True},
        "pretrained_cfg": {"pretrained_cfg": {"file": evil}},
        "pretrained_cfg_overlay": {"pretrained": True, "pretrained_cfg_overlay": {"file": evil}},
        "cache_dir": {"cache_dir": str(canary)},
        "unknown": {"nothing": 1},
        "text": "pretrained",
    }.items():
        found[f"options have {name}"] = put("config.backbone.options", options)
    for name, value in {
        "hf-hub": f"hf-hub:{canary}", "local-dir": f"local-dir:{canary.parent}", "../../x": "../../x", "7": 7,
        "a list": ["test_resnet"],
    }.items():  # fmt: skip
        found[f"backbone is called {name}"] = put("config.backbone.name", value)

    # Ensembles: the one place where descriptions stand for what makes an object.
    ensemble = {"_target_": "oddpatch.backbones.ensemble.EnsembleBackbone", "weights": "random"}
    member = {**BACKBONE, "_partial_": True}
    for name, members in {
        "os.system": {"a": {**call, "_partial_": True}, "b": member},
        "a model": {"a": {**PATCHCORE, "_partial_": True}, "b": member},
        "built at once": {"a": BACKBONE, "b": member},
        "partial of 1": {"a": {**BACKBONE, "_partial_": 1}, "b": member},
        "a list": [member, member],
        "one": member,
        "texts": {"a": "os.system", "b": "os.system"},
        "none": None,
        "deep": {"a": {"a": member}, "b": member},
    }.items():
        found[f"members are {name}"] = put("config.backbone", {**ensemble, "members": members})
    detectors = {"_target_": "oddpatch.models.ensemble.EnsembleDetector", "maps": None}
    for name, one in {"os.system": {**call, "_partial_": True}, "a backbone": member, "none": None}.items():
        found[f"member is {name}"] = put("config.model", {**detectors, "member": one})

    # Outlier detectors: classes of another package.
    outliers: dict[str, Any] = {"_target_": "oddpatch.models.pyod.PyOD", "finest_stride": 1}
    ecod = {"_target_": "pyod.models.ecod.ECOD", "_partial_": True}
    for name, outlier in {
        "os.system": {**call, "_partial_": True},
        "unpickling": {"_target_": "pyod.utils.persistence.load", "path": str(canary), "_partial_": True},
        "what ecod imports": {**ecod, "_target_": "pyod.models.ecod.Parallel"},
        "a fetching one": {**ecod, "_target_": "pyod.models.embedding.EmbeddingOD", "encoder": "x"},
        "abstract": {**ecod, "_target_": "pyod.models.base.BaseDetector"},
        "of scikit-learn": {**ecod, "_target_": "sklearn.svm.OneClassSVM"},
        "ours": {**PATCHCORE, "_partial_": True},
        "built at once": {"_target_": ecod["_target_"]},
        "given a class": {**ecod, "n_jobs": call},
        "given nothing it takes": {**ecod, "x": 1},
        "given a text": {**ecod, "contamination": "os.system"},
        "text": "pyod.models.ecod.ECOD",
        "none": None,
    }.items():
        found[f"outlier detector is {name}"] = put("config.model", {**outliers, "detector": outlier})

    # Missing, or of another type.
    for path in (
        "oddpatch", "state_dict", "oddpatch.format", "oddpatch.version", "oddpatch.versions", "oddpatch.config",
        "oddpatch.config.model", "oddpatch.config.backbone", "oddpatch.config.data", "oddpatch.config.calibration",
        "oddpatch.config.run", "oddpatch.config.model._target_", "oddpatch.preprocess", "oddpatch.preprocess.mean",
        "oddpatch.weights", "oddpatch.no_threshold",
        "oddpatch.train_images", "oddpatch.held_out", "oddpatch.git_commit",
    ):  # fmt: skip
        found[f"without {path}"] = drop(path)
    others: dict[str, list[Any]] = {
        "format": ["1", True, None, 1.0, 0, -1, 99, [1]],
        "version": [1, None, b"0.1.0"],
        "config": [None, [], "model", ({},)],
        "config.model": [None, [], "oddpatch.models.patchcore.PatchCore"],
        "config.run": [None, "x"],
        "preprocess": [None, [1], {}, {"resize": 32, "unknown": 1}],
        "preprocess.mean": ["abc", [1], [1, 2, "x"], 0.5],
        "preprocess.crop": [-1, [0, 0], "x", [1, 2, 3], 10**12],
        "preprocess.roi": ["data:image/png;base64,AAAA", "/etc/passwd", 5],
        "preprocess.align": [{"reference": "/etc/passwd", "size": [1, 1]}, {"reference": 1}, [1], {"a": 1}],
        "weights": [None, 1],
        "train_images": [None, "abc", [1], [None], ["x", b"y"], {"a": "b"}, (1,)],
        "held_out": [None, [0], "x", ["none.png"], []],
        "no_threshold": [1, ["x"], b"x"],
        "updates": [None, 1, [1], {"a": 1}],
        "calibrations": [None, 1, [1], {"a": 1}, [{}], [{"when": 1}]],
        "config.model.coreset_size": ["many", -1],
        "config.model.k": [0, "x", [1]],
        "config.model.selector": ["os.system", 1],
        "config.model.unknown": [1],
        "config.calibration.target_fpr": [7, "x"],
        "config.backbone.layers": [[99], "x", None, [[1]], {}],
        "config.backbone.engine": ["os.system", 1],
    }
    for path, values in others.items():
        for value in values:
            found[f"{path} is {str(value)[:40]!r} ({type(value).__name__})"] = put(path, value)

    for side in (30_000, 10**9, 10**400):

        def widen(content: dict[str, Any], side: int = side) -> None:
            content["oddpatch"]["preprocess"].update(resize=side, crop=side)

        found[f"images have sides of {str(side)[:12]}"] = widen

    # Weights and fitted state.
    for name, make in {
        "of another shape": lambda t: t[:, :3],
        "of one dimension": lambda t: t.flatten(),
        "empty": lambda t: t[:0],
        "a number": lambda t: torch.tensor(1.0),
        "nan": lambda t: t * float("nan"),
        "infinite": lambda t: t / 0,
        "sparse": lambda t: t.to_sparse(),
        "complex": lambda t: t.to(torch.complex64),
        "a list": lambda t: t.tolist(),
        "text": lambda t: "os.system",
        "none": lambda t: None,
        "larger than the file": lambda t: t.new_zeros(()).expand(2**40, 36),
        "of whole numbers in another shape": lambda t: torch.ones(2, 2, 2, dtype=torch.int64),
    }.items():
        found[f"memory bank is {name}"] = tensor("detector.memory_bank", make)
    found["memory bank is missing"] = drop_tensor("detector.memory_bank")
    found["not fitted"] = tensor("detector.fitted", lambda t: torch.tensor(False))
    for name, make in {
        "of another shape": lambda t: t[:, :1],
        "too short": lambda t: t[:1],
        "of fractions": lambda t: t.double(),
        "beyond the images": lambda t: t + 100,
        "before the images": lambda t: t - 100,
    }.items():
        found[f"source is {name}"] = tensor("detector.source", make)
    found["weights are nan"] = tensor("backbone.network.conv1.0.weight", lambda t: t * float("nan"))
    found["weights of another shape"] = tensor("backbone.network.conv1.0.weight", lambda t: t[:1])
    found["weights are missing"] = drop_tensor("backbone.network.conv1.0.weight")
    found["scores are nan"] = tensor("calibration.image_scores", lambda t: t * float("nan"))
    found["scores have two dimensions"] = tensor("calibration.image_scores", lambda t: t.reshape(3, -1))
    for name, change in {
        "fewer images": lambda t: t[1:], "four": lambda t: t.repeat(1, 2), "of one dimension": lambda t: t[:, 0],
        "nan": lambda t: t * float("nan"),
    }.items():  # fmt: skip
        found[f"statistics are {name}"] = tensor("calibration.image_statistics", change)
    for name in ("image_scores", "pixel_scores", "image_statistics"):
        found[f"{name} is of truth values"] = tensor(f"calibration.{name}", lambda t: t.bool())
    found["scores are of no image"] = tensor("calibration.image_index", lambda t: t + 100)
    found["scores are of fewer images"] = tensor("calibration.image_index", lambda t: t[1:])
    found["scores are of fractions of images"] = tensor("calibration.image_index", lambda t: t.double())
    found["state is a list"] = lambda content: content.update(state_dict=[1])
    found["state is a number"] = lambda content: content.update(state_dict=1)
    found["state has a number as name"] = lambda content: content["state_dict"].update({1: torch.zeros(1)})
    found["state has bytes as name"] = lambda content: content["state_dict"].update({b"x": torch.zeros(1)})
    found["state has another entry"] = lambda content: content["state_dict"].update({"model.x": torch.zeros(1)})
    return found


def drop_tensor(name: str) -> Change:
    return lambda content: content["state_dict"].pop(f"model.{name}")


class Pickled:
    """Pickles to a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return (os.system, (self.command,))


def files(canary: Path) -> dict[str, bytes]:
    """Files that are no checkpoint at all."""
    pickled = pickle.dumps(Pickled(f"touch {canary}"))
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w") as archive:
        archive.writestr("fitted/data.pkl", pickled)
        archive.writestr("fitted/version", "3")
        archive.writestr("fitted/byteorder", "little")
    climbing = io.BytesIO()
    with zipfile.ZipFile(climbing, "w") as archive:
        archive.writestr("../../data.pkl", pickled)
    return {
        "empty": b"",
        "text": b"not a checkpoint\n",
        "pickle": pickled,
        "archive of a pickle": inside.getvalue(),
        "archive that climbs": climbing.getvalue(),
        "empty archive": b"PK\x05\x06" + bytes(18),
        "zeros": bytes(4096),
        "deep pickle": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
    }


_watching: list[str] | None = None
_EFFECTS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "socket.connect",
    "socket.getaddrinfo", "urllib.Request", "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.symlink",
    "os.link", "shutil.rmtree", "ctypes.dlopen",
)  # fmt: skip


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is None:
        return
    if event in _EFFECTS:
        _watching.append(f"{event} {arguments!r:.200}")
    elif event == "open" and isinstance(arguments[0], str | bytes):
        mode, flags = str(arguments[1] or ""), int(arguments[2] or 0)
        if set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _watching.append(f"open {arguments!r:.200}")
    elif event == "import" and str(arguments[0]).startswith("hostile_package"):
        _watching.append(f"import {arguments[0]}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """What the process does to the world inside: programs started, hosts spoken to, files opened to be written."""
    global _watching
    place: Any = sys
    if not getattr(place, "oddpatch_hook", False):
        sys.addaudithook(_hook)  # it cannot be removed
        place.oddpatch_hook = True
    seen: list[Any] = []
    _watching = seen
    try:
        yield seen
    finally:
        _watching = None


@contextmanager
def unwatched() -> Iterator[None]:
    """What a test does itself in between."""
    global _watching
    kept, _watching = _watching, None
    try:
        yield
    finally:
        _watching = kept
