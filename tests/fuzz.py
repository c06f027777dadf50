"""Feeds what reads files and command lines with spoilt ones: it must work, or say in one line what is wrong.

python tests/fuzz.py                          10 minutes, shared among all surfaces
python tests/fuzz.py 60 7                     an hour, other cases: those of seed 7
python tests/fuzz.py 5 0 --only checkpoints   one surface (see SURFACES)

A finding is an error that is no `OddpatchError`, or one that names no file or has several lines; a case that takes
more than SECONDS of the processor or MEMORY; anything written, started or called outside of its folder; a crash.
Prints for each surface how many cases were run and what was found, one line for each place in the source with its
smallest case; the exit code is 0 if nothing was found, else 1. Images are also changed by atheris, which looks for
bytes that reach other lines of the decoders, where it is installed (`pip install atheris`).

What a finding taught is kept as a test beside the others of that file; `tests/test_fuzz.py` runs a few cases of each.
"""

import argparse
import atexit
import csv
import faulthandler
import gc
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import hostile
import numpy as np
import torch
from conftest import CONFIGS, make_dataset, write_image
from finished_runs import write_run
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from mutations import TEXTS, spoilt, spoilt_archive, spoilt_bytes, texts, with_checksums
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from oddpatch.errors import OddpatchError

#: Of the processor and of the clock, after which a case counts as hanging.
SECONDS, PATIENCE = 10.0, 60.0
#: Bytes of address space beyond what a surface's process has at its start. An image may take half of what is free; for
#: that half and what is held beside it, so many bytes of memory are too many.
ADDRESSES, MEMORY = 2**32, 2**31 + 2**28
Case = Any  # of plain values, so that `repr` keeps it


class Surface(NamedTuple):
    """Something that reads what others wrote."""

    cases: Callable[[], SearchStrategy[Case]]
    check: Callable[[Case, Path], None]  # raises whatever is raised; its files lie in a folder of its own
    from_bytes: Callable[[bytes], Case] | None = None  # for atheris
    seeds: Callable[[], list[bytes]] | None = None


class HangError(BaseException):
    """A case takes too long."""


class WrongError(Exception):
    """What came back is not what was promised."""


@dataclass
class Findings:
    """What was found on a surface: the smallest case of each kind, and how it shows."""

    cases: int = 0
    found: dict[str, tuple[str, str]] = field(default_factory=dict)  # kind -> case, how

    def add(self, kind: str, case: str, how: str) -> None:
        """Note a finding."""
        if kind not in self.found or len(case) < len(self.found[kind][0]):
            self.found[kind] = case, how


@cache
def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="oddpatch-fuzz-")


def place() -> Path:
    """Where this process keeps what cases are made of; it goes with the process."""
    return Path(_place().name)


def need(right: object, told: str) -> None:
    """Raise a `WrongError` unless something holds."""
    if not right:
        raise WrongError(told)


# -- images -----------------------------------------------------------------------------------------------------------

SUFFIXES = (".png", ".jpg", ".tif", ".bmp", ".webp", ".gif", ".ppm", ".jp2", ".ico", ".tga", ".hdr", ".avif")


@cache
def images() -> list[bytes]:
    """Small image files of all kinds."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (11, 9, 3), np.uint8))
    grey, deep = rgb.convert("L"), Image.fromarray(rng.integers(0, 65536, (8, 8), np.uint16))
    exif = Image.Exif()
    exif[274] = 6
    made: list[tuple[Image.Image, dict[str, Any]]] = [
        (rgb, {"format": "PNG", "exif": exif}), (grey, {"format": "PNG"}), (deep, {"format": "PNG"}),
        (rgb.convert("P"), {"format": "PNG", "transparency": 3}), (rgb.convert("RGBA"), {"format": "PNG"}),
        (rgb.convert("1"), {"format": "PNG"}), (rgb.convert("LA"), {"format": "PNG"}),
        (rgb, {"format": "JPEG", "exif": exif}), (rgb, {"format": "JPEG", "progressive": True}),
        (rgb.convert("CMYK"), {"format": "JPEG"}), (grey, {"format": "JPEG"}),
        (rgb, {"format": "TIFF", "compression": "tiff_lzw"}), (rgb, {"format": "TIFF", "compression": "jpeg"}),
        (rgb, {"format": "TIFF", "compression": "tiff_adobe_deflate"}), (deep, {"format": "TIFF"}),
        (grey.convert("F").point(lambda v: v / 255), {"format": "TIFF"}), (rgb.convert("1"), {"format": "TIFF"}),
        (rgb, {"format": "BMP"}), (rgb.convert("P"), {"format": "BMP"}), (rgb, {"format": "WEBP"}),
        (rgb, {"format": "WEBP", "lossless": True, "exif": exif}), (rgb, {"format": "GIF"}),
        (rgb, {"format": "GIF", "save_all": True, "append_images": [rgb.rotate(90)]}), (rgb, {"format": "PPM"}),
        (deep, {"format": "PPM"}), (rgb, {"format": "JPEG2000"}), (rgb, {"format": "ICO", "sizes": [(8, 8), (9, 9)]}),
        (rgb, {"format": "TGA", "compression": "tga_rle"}),
    ]  # fmt: skip
    found = []
    for image, options in made:
        file = io.BytesIO()
        image.save(file, **options)
        found.append(file.getvalue())
    import cv2
    import tifffile

    wide = rng.integers(0, 65536, (6, 7, 3), np.uint16)
    found.append(cv2.imencode(".png", wide)[1].tobytes())
    found.append(cv2.imencode(".hdr", wide.astype(np.float32) / 65535)[1].tobytes())
    for array, more in (
        (wide, {}), (wide, {"compression": "zlib"}), (wide, {"bigtiff": True, "tile": (16, 16)}),
        (np.moveaxis(wide, -1, 0), {"planarconfig": "separate", "photometric": "rgb"}),
        (wide.astype(np.float32) / 65535, {"byteorder": ">"}), (wide[..., 0], {"photometric": "miniswhite"}),
    ):  # fmt: skip
        file = io.BytesIO()
        tifffile.imwrite(file, array, **more)
        found.append(file.getvalue())
    return found


def image_cases() -> SearchStrategy[Case]:
    return st.tuples(st.sampled_from(SUFFIXES), spoilt_bytes(images()) | st.binary(max_size=64))


def image_of(data: bytes) -> Case:
    """A case of bytes: the first chooses the suffix."""
    return SUFFIXES[(data or b"\0")[0] % len(SUFFIXES)], with_checksums(data[1:])


def check_pixels(image: torch.Tensor, header: Any) -> None:
    size = tuple(image.shape[-2:])
    need(header is not None and header.size == size, f"is {size}, and its header is said to be {header}")
    need(image.dtype == torch.uint8 or (image.min() >= 0 and image.max() <= 1), "values outside of [0, 1]")


def check_image(case: Case, folder: Path) -> None:
    from oddpatch.data.decoding import read_image
    from oddpatch.data.headers import read_header
    from oddpatch.data.masks import read_mask

    suffix, data = case
    path = folder / f"image{suffix}"
    path.write_bytes(data)
    header = read_header(path)
    for read in (partial(read_image, path), partial(read_image, path, keep_uint8=True), partial(read_mask, path)):
        with refusing():
            check_pixels(read(), header)


@contextmanager
def refusing(names_file: bool = True) -> Iterator[None]:
    """One of several things that are tried of a case: what it refuses is told as it should be."""
    try:
        yield
    except OddpatchError as error:
        refused(error, names_file)


def refused(error: OddpatchError, names_file: bool) -> None:
    """See that an error is told in one line."""
    text = str(error)
    need(text.strip(), f"{type(error).__name__} says nothing")
    need(len(text) < 5000, f"{type(error).__name__} does not end: {text[:300]!r}")
    need("\n" not in text or "\\n" in SPOKEN.case, f"{type(error).__name__} has several lines: {text[:300]!r}")
    need(not names_file or SPOKEN.names_file(text), f"{type(error).__name__} names no file: {text[:300]!r}")


class Spoken:
    """What messages of the present case must name."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.case = ""

    def names_file(self, text: str) -> bool:
        return self.folder is None or self.folder.name in text


SPOKEN = Spoken()


# -- folders ----------------------------------------------------------------------------------------------------------

NAMES = (
    "train", "test", "ground_truth", "good", "OK", "Good", "spot", "stain", "a.png", "b.PNG", "a_mask.png", "a.jpg",
    "\udcff\udcfe.png", "\x1b[2J.png", "new\nline.png", " .png", ".hidden.png", "._a.png", "Thumbs.db", "noext",
    "é.png", "e\u0301.png", "🙂.png", "[a-b]*?.png", "-rf", "${x}", "n" * 251 + ".png", "masks", "...", "~", "x.heic",
    "defective", "%s.png", "a" * 60,
)  # fmt: skip


def tree_cases() -> SearchStrategy[Case]:
    small_dataset()
    path = st.lists(st.sampled_from(NAMES), min_size=1, max_size=5)
    target = path | st.sampled_from(([".."], ["."], ["..", ".."], ["absent"]))
    step = st.tuples(
        st.sampled_from(("file", "file", "image", "mask", "folder", "link", "pipe", "remove", "closed")), path, target
    )
    return st.tuples(st.booleans(), st.lists(step, max_size=12))


def grow(base: Path, steps: list[tuple[str, list[str], list[str]]]) -> None:
    """Change a folder; a step that the file system refuses is left out."""
    for kind, parts, other in steps:
        path, target = base.joinpath(*parts), base.joinpath(*other)
        with suppress(OSError):
            if kind != "remove":
                path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                with path.open("xb") as file:
                    file.write(b"x")
            elif kind in ("image", "mask"):
                with path.open("xb") as file:
                    Image.new("L", (16, 16), 255 if kind == "mask" else 90).save(file, "PNG")
            elif kind == "folder":
                path.mkdir()
            elif kind == "link":
                path.symlink_to(os.path.relpath(target, path.parent))
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "closed":
                path.chmod(0)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


@cache
def small_dataset() -> Path:
    """A category `tile` to copy."""
    make_dataset(place() / "data", good=3, test_good=2, defects=2)
    return place() / "data"


def check_tree(case: Case, folder: Path) -> None:
    from oddpatch.data.datamodule import MVTecDataModule
    from oddpatch.data.layout import categories, scan, scan_types
    from oddpatch.data.walk import walk
    from oddpatch.datatools.converting import Options, make_plans, write_plan
    from oddpatch.datatools.splitting import split_by_share
    from oddpatch.inference.sources import Files

    known, steps = case
    base = folder / "tile"
    if known:
        shutil.copytree(small_dataset() / "tile", base)
    base.mkdir(exist_ok=True)
    with hostile.unwatched():
        grow(base, steps)
    tries: list[Callable[[], Any]] = [
        lambda: scan(folder, "tile"), lambda: categories(folder), lambda: scan_types(base / "test"),
        lambda: walk(base), lambda: walk(base, all_files=True), lambda: split_by_share(base),
        lambda: list(Files([str(base), f"{base}/**/*.png", f"{base}/*"])),
        lambda: MVTecDataModule(str(folder), "tile", mean=[0.5] * 3, std=[0.5] * 3, resize=16, crop=16).setup("fit"),
    ]  # fmt: skip
    for one in tries:
        with refusing():
            one()
    for number, kind in enumerate(("folder", "beside")):
        with refusing():
            for plan in make_plans(kind, base, Options()):
                write_plan(plan, folder / f"made{number}", base, kind)


# -- manifests and labels ---------------------------------------------------------------------------------------------


def as_csv(rows: list[Any]) -> str:
    """Rows of anything as a CSV."""
    file = io.StringIO()
    for row in rows if isinstance(rows, list) else [rows]:
        csv.writer(file).writerow(row if isinstance(row, list) else [row])
    return file.getvalue()


def texts_of(documents: list[Any], write: Callable[[Any], str]) -> SearchStrategy[bytes]:
    """Files of a document that was spoilt, and such whose bytes were."""
    sound = [write(document).encode("utf-8", "surrogatepass") for document in documents]
    by_content = spoilt(documents).map(lambda content: write(content).encode("utf-8", "surrogatepass"))
    return by_content | spoilt_bytes(sound) | st.sampled_from((b"[" * 100_000, b"\xff\xfe", b"\xef\xbb\xbf[]", b""))


def manifest_cases() -> SearchStrategy[Case]:
    small_dataset()
    names = [f"{part}/good/{i:03}.png" for part, count in (("train", 3), ("test", 2)) for i in range(count)]
    rows = [["path", "part", "defect_type"], *([name, name.split("/")[0], "good"] for name in names)]
    folds = [["path", "part", "defect_type"], *([name, f"fold{i % 3}", "good"] for i, name in enumerate(names))]
    files = {"tool": "split", "files": [{"path": name, "part": name.split("/")[0]} for name in names]}
    return st.one_of(
        st.tuples(st.just("split.csv"), texts_of([rows, folds], as_csv), st.sampled_from((None, 0, 1, 7))),
        st.tuples(st.just("split.json"), texts_of([files], json.dumps), st.sampled_from((None, 0))),
    )


def check_manifest(case: Case, folder: Path) -> None:
    from oddpatch.data.layout import scan
    from oddpatch.data.splits import follow, read_parts

    name, data, fold = case
    path = folder / name
    path.write_bytes(data)
    with refusing():
        read_parts(path)
    category = small_dataset() / "tile"
    with refusing():
        follow(scan(small_dataset(), "tile"), category, path, fold)


def _solo() -> Any:
    colour = [255, 0, 0, 255]
    semantic = {"@type": "type.unity.com/unity.solo.SemanticSegmentationAnnotation", "id": "s", "filename": "s.png",
                "instances": [{"labelName": "scratch", "pixelValue": colour}]}  # fmt: skip
    instance = {"@type": "type.unity.com/unity.solo.InstanceSegmentationAnnotation", "id": "i", "filename": "s.png",
                "instances": [{"instanceId": 1, "labelId": 1, "labelName": "scratch", "color": colour}]}  # fmt: skip
    metric = {"@type": "type.unity.com/unity.solo.RenderedObjectInfoMetric", "sensorId": "camera",
              "values": [{"instanceId": 1, "visiblePixels": 9}]}  # fmt: skip
    capture = {"@type": "RGBCamera", "id": "camera", "filename": "a.png", "annotations": [semantic, instance]}
    return {"frame": 1, "captures": [capture], "metrics": [metric]}


def _legacy() -> tuple[Any, Any]:
    spec = [{"label_id": 1, "label_name": "scratch", "pixel_value": {"r": 1.0, "g": 0, "b": 0, "a": 1}}]
    boxes = {"annotation_definition": "box", "values": [{"instance_id": 1, "label_name": "scratch"}]}
    annotation = {
        "annotation_definition": "seg",
        "filename": "s.png",
        "values": [{"instance_id": 1, "color": [255, 0, 0]}],
    }
    capture = {"filename": "a.png", "format": "PNG", "annotations": [annotation, boxes]}
    definitions = {"annotation_definitions": [{"id": "seg", "spec": spec}, {"id": "box", "spec": []}]}
    return {"captures": [capture]}, definitions


VISA = [
    ["object", "split", "label", "image", "mask"],
    ["nut", "train", "normal", "nut/Data/Images/Normal/a.png", ""],
    ["nut", "test", "anomaly", "nut/Data/Images/Anomaly/b.png", "nut/Data/Masks/Anomaly/b.png"],
]
DEEPPCB = [[1, 1, 5, 5, 1], [2, 3, 9, 9, 4]]


def label_cases() -> SearchStrategy[Case]:
    captures, definitions = _legacy()

    def boxes(rows: Any) -> str:
        lists = rows if isinstance(rows, list) else [rows]
        return "\n".join(" ".join(map(str, row)) if isinstance(row, list) else str(row) for row in lists)

    return st.one_of(
        st.tuples(st.just("solo"), texts_of([_solo()], json.dumps)),
        st.tuples(st.just("captures"), texts_of([captures], json.dumps)),
        st.tuples(st.just("definitions"), texts_of([definitions], json.dumps)),
        st.tuples(st.just("visa"), texts_of([VISA], as_csv)),
        st.tuples(st.just("deeppcb"), texts_of([DEEPPCB], boxes)),
        st.tuples(st.just("list"), texts_of([[["group0/a.jpg", "group0_not/a.txt"]]], boxes)),
    )


def check_labels(case: Case, folder: Path) -> None:
    from oddpatch.datatools.converting import Options, Plan, make_plans, write_plan
    from oddpatch.datatools.from_unity import plan_unity

    kind, data = case
    source, rng = folder / "source", np.random.default_rng(0)
    sound = {"solo": _solo(), "captures": _legacy()[0], "definitions": _legacy()[1]}
    made: dict[str, Callable[[], list[Plan]]] = {}
    if kind in sound:
        files = {"solo": "step0.frame_data.json", "captures": "captures_000.json",
                 "definitions": "annotation_definitions.json"}  # fmt: skip
        base = source / "good"
        write_image(base / "a.png", rng, size=16)
        Image.new("RGB", (16, 16), (255, 0, 0)).save(base / "s.png")
        for name, content in sound.items():
            if (name == "solo") == (kind == "solo"):
                (base / files[name]).write_text(json.dumps(content))
        (base / files[kind]).write_bytes(data)
        made["by label"] = lambda: [plan_unity(source, "new", defects=["scratch"])]
        made["by folder"] = lambda: [plan_unity(source, "new", masks=["scratch"], skip=True)]
    elif kind == "visa":
        for name in ("Images/Normal/a.png", "Images/Anomaly/b.png", "Masks/Anomaly/b.png"):
            write_image(source / "nut/Data" / name, rng, size=16)
        (source / "split_csv").mkdir()
        (source / "split_csv/1cls.csv").write_bytes(data)
        made["visa"] = lambda: make_plans("visa", source, Options())
    else:
        for name in ("a_temp.jpg", "a_test.jpg"):
            write_image(source / "group0" / name, rng, size=16)
        (source / "group0_not").mkdir()
        (source / "group0_not/a.txt").write_bytes(data if kind == "deeppcb" else b"1 1 5 5 1\n")
        if kind == "list":
            (source / "trainval.txt").write_bytes(data)
            (source / "test.txt").write_bytes(data)
        made["deeppcb"] = lambda: make_plans("deeppcb", source, Options())
    for number, plans in enumerate(made.values()):
        with refusing():
            for plan in plans():
                write_plan(plan, folder / f"made{number}", source, kind)


# -- checkpoints ------------------------------------------------------------------------------------------------------


@cache
def checkpoints() -> list[Any]:
    """Contents of checkpoints of each method."""
    from oddpatch.backbones.timm import TimmBackbone
    from oddpatch.data.transforms import Preprocess
    from oddpatch.models.anomaly_model import AnomalyModel
    from oddpatch.models.base import Detector
    from oddpatch.models.calibration import Calibration
    from oddpatch.models.gaussian import GaussianAD
    from oddpatch.models.padim import PaDiM
    from oddpatch.models.spade import SPADE

    found = [hostile.sound(Path("/data"))]
    methods: list[tuple[type[Detector], dict[str, Any]]] = [
        (PaDiM, {"num_features": 5}),
        (GaussianAD, {}),
        (SPADE, {"k": 2, "finest_stride": 1}),
    ]
    for detector_class, chosen in methods:
        content = hostile.sound(Path("/data"))
        backbone = TimmBackbone(hostile.BACKBONE["name"], hostile.BACKBONE["layers"], weights="random")
        detector = detector_class(backbone.info.channels, backbone.info.strides, **chosen)
        model = AnomalyModel(
            Preprocess(32, 32, backbone.info.mean, backbone.info.std), backbone, detector, Calibration("holdout")
        )
        model.update(torch.randn(6, 3, 32, 32), torch.arange(6))
        detector.fit()
        pixels = torch.arange(9.0) if detector.localizes else torch.empty(0)
        model.calibration.calibrate(torch.arange(9.0), pixels, torch.arange(3, 12))
        content["state_dict"] = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        target = f"{detector_class.__module__}.{detector_class.__name__}"
        content["oddpatch"]["config"]["model"] = {"_target_": target, **chosen}
        found.append(content)
    return [{**content, "state_dict": dict(content["state_dict"])} for content in found]


#: Ways to change a tensor.
TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "empty": lambda t: t[:0] if t.ndim else t.new_empty(0),
    "scalar": lambda t: t.new_zeros(()),
    "flat": lambda t: t.flatten(),
    "row": lambda t: t[None],
    "half": lambda t: t.half() if t.is_floating_point() else t.int(),
    "double": lambda t: t.double(),
    "integer": lambda t: t.long(),
    "bool": lambda t: t.bool(),
    "byte": lambda t: t.byte(),
    "less": lambda t: t[..., :-1] if t.ndim else t,
    "fewer": lambda t: t[:-1] if t.ndim else t,
    "more": lambda t: torch.cat([t, t]) if t.ndim else torch.stack([t, t]),
    "huge": lambda t: torch.full_like(t, 1e30) if t.is_floating_point() else torch.full_like(t, 100),
    "negative": lambda t: torch.full_like(t, -1) if t.dtype != torch.bool else t,
    "zero": lambda t: torch.zeros_like(t),
    "expanded": lambda t: t.new_zeros(()).expand(2**16, 2**16) if t.ndim == 2 else t.new_zeros(()).expand(2**30),
    "turned": lambda t: t.mT if t.ndim > 1 else t,
    "list": lambda t: t.flatten()[:4].tolist(),
    "none": lambda t: None,
}


def checkpoint_cases() -> SearchStrategy[Case]:
    """By structure: which method, the spoilt description and changes of tensors; or the bytes of the file."""
    about = [content["oddpatch"] for content in checkpoints()]
    names = sorted({name for content in checkpoints() for name in content["state_dict"]})
    fitted = [name for name in names if not name.startswith("model.backbone.")]
    changes = st.lists(
        st.tuples(st.sampled_from(fitted) | st.sampled_from(names), st.sampled_from(sorted(TENSORS))), max_size=3
    )
    structure = st.one_of(
        *(st.tuples(st.just(method), spoilt([one]) | st.just(one), changes) for method, one in enumerate(about))
    )
    return structure | spoilt_archive(archives()) | spoilt_bytes(archives(), most=3)


@cache
def archives() -> list[bytes]:
    """Checkpoints as files."""
    found = []
    for content in checkpoints()[:2]:
        file = io.BytesIO()
        torch.save(content, file)
        found.append(file.getvalue())
    return found


def check_checkpoint(case: Case, folder: Path) -> None:
    from oddpatch.inference.detector import AnomalyDetector

    path = folder / "fitted.ckpt"
    if isinstance(case, bytes):
        path.write_bytes(case)
    else:
        method, about, changes = case
        state = dict(checkpoints()[method]["state_dict"])
        for name, change in changes:
            tensor = state.get(name)
            if isinstance(tensor, torch.Tensor) and tensor.numel() < 2**20:
                with suppress(RuntimeError):  # the type does not hold such numbers
                    state[name] = TENSORS[change](tensor)
        torch.save({"state_dict": state, "oddpatch": about}, path)
    with refusing():
        detector = AnomalyDetector.load(path)
        SPOKEN.folder = None  # what is said of the image does not name the checkpoint
        detector(np.zeros((40, 40, 3), np.uint8))


# -- files of runs ----------------------------------------------------------------------------------------------------


@cache
def statistics() -> bytes:
    """A sound pixel_statistics.npz."""
    from oddpatch.metrics.uncertainty.pixel_statistics import PixelStatistics

    rng = np.random.default_rng(0)
    masks = np.zeros((4, 12, 12), np.uint8)
    masks[:2, 3:6, 3:6] = 1
    path = place() / "pixel_statistics.npz"
    PixelStatistics.from_maps(rng.random((4, 12, 12), np.float32) + masks, masks).save(path)
    return path.read_bytes()


def statistics_cases() -> SearchStrategy[Case]:
    return spoilt_archive([statistics()]) | spoilt_bytes([statistics()], most=3) | array_cases()


#: Ways to change an array.
ARRAYS: tuple[Callable[[Any], Any], ...] = (
    lambda a: a[:0], lambda a: a.ravel(), lambda a: a[..., None], lambda a: a.astype(np.float64), lambda a: a[::-1],
    lambda a: a.astype(np.int64), lambda a: a[:-1], lambda a: a * 0, lambda a: a - 1, lambda a: a.astype(object),
    lambda a: a.astype("U8"), lambda a: a.astype(np.complex64), lambda a: a.astype(">f4"), lambda a: np.float32(1),
    lambda a: np.concatenate([a, a]), lambda a: a + 2**40, lambda a: a * 10**6,
)  # fmt: skip


@st.composite
def array_cases(draw: st.DrawFn) -> bytes:
    """An archive with one of its arrays replaced by another."""
    with np.load(io.BytesIO(statistics())) as file:
        arrays = {name: file[name] for name in file.files}
    for name in draw(st.lists(st.sampled_from(sorted(arrays)), min_size=1, max_size=2, unique=True)):
        old = arrays[name]
        arrays[name] = draw(st.sampled_from(ARRAYS))(old)
    whole = io.BytesIO()
    np.savez_compressed(whole, **arrays)
    return whole.getvalue()


def check_statistics(case: Case, folder: Path) -> None:
    from oddpatch.metrics.uncertainty.bootstrap import pixel_metrics_by_draw
    from oddpatch.metrics.uncertainty.pixel_statistics import PixelStatistics

    path = folder / "pixel_statistics.npz"
    path.write_bytes(case)
    with refusing():
        found = PixelStatistics.load(path)
        need(np.isfinite(found.region_overlaps(0.5)).all(), "overlaps that are not finite")
        by_draw = pixel_metrics_by_draw(found, np.ones((1, found.num_images), np.int64))
        need(all(np.nanmax(np.append(v, 0)) <= 1 + 1e-6 for v in by_draw.values()), f"metrics above 1: {by_draw}")


PREDICTIONS = [
    ["path", "label", "defect_type", "score", "p_value", "is_anomalous"],
    ["/d/bottle/test/good/1.png", 0, "good", 0.1, "", ""], ["/d/bottle/test/good/2.png", 0, "good", 0.2, "", ""],
    ["/d/bottle/test/bad/1.png", 1, "bad", 0.9, "", ""], ["/d/bottle/test/bad/2.png", 1, "bad", 0.8, "", ""],
]  # fmt: skip


@cache
def finished_run() -> Path:
    """A folder to copy."""
    more = {"image_f1_max": 0.9, "image_f1_max_threshold": 0.5, "confidence": {"image_auroc": [0.9, 1.0]}}
    more |= {"image_auroc_by_defect_type": {"bad": 1.0}, "pixel_auroc": 0.9, "au_pro": 0.8}
    folder = write_run(place() / "run", **more)
    (folder / "predictions.csv").write_text(as_csv(PREDICTIONS))
    (folder / "pixel_statistics.npz").write_bytes(statistics())
    return folder


def run_cases() -> SearchStrategy[Case]:
    metrics = json.loads((finished_run() / "metrics.json").read_text())
    return st.one_of(
        st.tuples(st.just("metrics.json"), texts_of([metrics, metrics["settings"]], json.dumps)),
        st.tuples(st.just("predictions.csv"), texts_of([PREDICTIONS], as_csv)),
        st.tuples(st.just("pixel_statistics.npz"), spoilt_archive([statistics()])),
    )


def check_run(case: Case, folder: Path) -> None:
    from rich.console import Console

    from oddpatch.metrics.uncertainty.bootstrap import Confidence
    from oddpatch.report import formats
    from oddpatch.report.columns import columns_of
    from oddpatch.report.comparison import compare_runs
    from oddpatch.report.page import to_html
    from oddpatch.report.results_json import results_of
    from oddpatch.report.roc import image_curve, pixel_curve
    from oddpatch.report.runs import find_runs
    from oddpatch.report.table import build_report

    name, data = case
    shutil.copytree(finished_run(), folder / "run")
    (folder / "run" / name).write_bytes(data)
    console = Console(file=io.StringIO(), width=120)
    with refusing():
        runs = find_runs([folder])
        for metrics in (["image_auroc"], ["image_auroc", "pixel_auroc", "au_pro", "image_f1_max"]):
            with refusing(names_file=False):  # no run has the metric
                report = build_report(runs, metrics, True)
                for render in (formats.to_markdown, formats.to_csv, formats.to_latex, formats.to_json, to_html):
                    need(isinstance(render(report), str), "no text")
                formats.print_terminal(report, console)
        with refusing():
            json.dumps(results_of(columns_of(runs)))
        with refusing():
            compare_runs(runs[0], runs[0], Confidence(20, 0.95, 0))
        for curve in (image_curve, pixel_curve):
            with refusing():
                curve(runs[0], "run")


@cache
def record() -> dict[str, Any]:
    """The content of a sound job.json."""
    from oddpatch.sweep.identity import Identity
    from oddpatch.sweep.record import Record

    folder = place()
    Record("done", Identity("a", "b", "c"), ["model=padim"], objective=0.9, seconds=3.0).write(folder)
    found: dict[str, Any] = json.loads((folder / "job.json").read_text())
    return found


def job_cases() -> SearchStrategy[Case]:
    metrics = json.loads((finished_run() / "metrics.json").read_text())
    return st.one_of(
        st.tuples(st.just("job.json"), texts_of([record()], json.dumps)),
        st.tuples(st.just("metrics.json"), texts_of([metrics], json.dumps)),
        st.tuples(st.just(".lock"), texts_of([{"host": "x", "pid": 7}], json.dumps)),
    )


def check_job(case: Case, folder: Path) -> None:
    from rich.console import Console

    from oddpatch.locking import held_by, job_lock
    from oddpatch.sweep.identity import Identity
    from oddpatch.sweep.job import objective, why_again
    from oddpatch.sweep.outcome import outcome_of
    from oddpatch.sweep.plan import Job
    from oddpatch.sweep.record import Record
    from oddpatch.sweep.table import count, print_table, rows, write_csv, write_html

    name, data = case
    (folder / "metrics.json").write_text((finished_run() / "metrics.json").read_text())
    (folder / "job.json").write_text(json.dumps(record()))
    (folder / name).write_bytes(data)
    read = Record.read(folder)
    need(read is not None or name == "job.json", "a sound record is not read")
    why_again(read, folder, Identity("a", "b", "c"))
    job = Job(["model=padim"], folder, {"model": "padim", "backbone": "b", "data": "d", "category": "c"})
    outcomes = [outcome_of(job, None, lost="lost")]
    table = rows(outcomes, folder)
    write_csv(table, folder / "sweep.csv")
    write_html(table, count(outcomes), folder / "sweep.html", False)
    print_table(outcomes, "image_auroc", Console(file=io.StringIO()))
    with refusing():
        objective(folder, "image_auroc")
    held_by(folder)
    with job_lock(folder):
        pass


# -- the cache --------------------------------------------------------------------------------------------------------

SHAPES = [(8, 4, 4), (12, 2, 2)]


@cache
def cache_entry() -> tuple[str, bytes]:
    """Key and content of an entry of the feature cache."""
    from oddpatch.cache.features import SUFFIX, Entry, FeatureCache

    folder = place() / "cache"
    cached = FeatureCache(folder)
    cached.fingerprint = "made"
    key = cached.key(b"image")
    cached.store([Entry(key, (16.0, 16.0))], [torch.rand(1, *shape) for shape in SHAPES])
    return key, (folder / f"{key}{SUFFIX}").read_bytes()


@st.composite
def cache_cases(draw: st.DrawFn) -> bytes:
    from oddpatch.cache.fingerprint import hash_tensors

    key, data = cache_entry()
    if draw(st.booleans()):
        return draw(spoilt_bytes([data], most=4))
    tensors = load_tensors(data)
    for name in draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=2, unique=True)):
        kind = draw(st.sampled_from(sorted(set(TENSORS) - {"list", "none", "expanded", "huge"})))
        changed = TENSORS[kind](tensors[name])
        if draw(st.booleans()):
            tensors[name] = changed.contiguous()
        else:
            tensors.pop(name)
            tensors[draw(st.sampled_from(("7", "x", "", "facts", "digest")))] = changed.contiguous()
    if draw(st.booleans()):  # as somebody would who wants it to be used
        tensors.pop("digest", None)
        tensors["digest"] = torch.tensor(list(hash_tensors(tensors, key)), dtype=torch.uint8)
    return save_tensors({name: tensor.clone() for name, tensor in tensors.items()})


def check_cache(case: Case, folder: Path) -> None:
    from oddpatch.cache.features import SUFFIX, FeatureCache, stack

    key, _ = cache_entry()
    found = FeatureCache(folder)
    found.fingerprint, found.shapes = "made", SHAPES
    (folder / f"{key}{SUFFIX}").parent.mkdir(exist_ok=True)
    (folder / f"{key}{SUFFIX}").write_bytes(case)
    cached = found.load(key)
    if cached is not None:
        need([tuple(feature.shape[1:]) for feature in stack([cached])] == SHAPES, "other shapes")


# -- the command line -------------------------------------------------------------------------------------------------


@cache
def setting_names() -> list[str]:
    """Names that are set on command lines, and misspelt ones."""
    from oddpatch.hydra_entry.overrides import NAMES as KNOWN_NAMES
    from oddpatch.hydra_entry.overrides import PATHS

    more = [
        "model", "model.k", "modle", "model.num_featuers", "backbone", "data", "data.crop", "seed", "trainer.devices",
        "callbacks", "hydra.run.dir", "hydra/launcher", "x", "", "data.", ".data", "data..root", "model@x", "~model",
    ]  # fmt: skip
    return [*PATHS, *KNOWN_NAMES, *more]


def override_cases() -> SearchStrategy[Case]:
    pieces = st.sampled_from(
        (*TEXTS, "[", "]", "{", "}", "(", ")", "=", ":", "$", "${", "choice(a,b)", "padim", "1", " ", "\\'")
    )
    value = st.lists(pieces, max_size=4).map("".join) | st.text(max_size=12)
    sign = st.sampled_from(("", "", "", "+", "++", "~", "-"))
    one = st.builds(
        lambda a, b, c, d: f"{a}{b}{c}{d}",
        sign,
        st.sampled_from(setting_names()) | texts,
        st.sampled_from(("=", "=", "=", "")),
        value,
    )
    return st.tuples(st.sampled_from(("train", "eval")), st.booleans(), st.lists(one, min_size=1, max_size=3))


def check_overrides(case: Case, folder: Path) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from oddpatch.errors import in_one_line
    from oddpatch.files import shown
    from oddpatch.hydra_entry.composition import explain, is_of_composition, top_level
    from oddpatch.hydra_entry.overrides import as_typed, quoted

    SPOKEN.folder = None
    name, sweep, given = case
    for text in given:
        if "\x00" not in text:
            value = OmegaConf.create({"x": OverridesParser.create().parse_override(f"x={quoted(text)}").value()}).x
            need(value == text, f"{text!r} is read as {value!r}")
    arguments = as_typed([*(["-m"] if sweep else []), *given], top_level(CONFIGS / f"{name}.yaml"))
    overrides = [text for text in arguments if text != "-m"]
    told = "nothing"
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            compose(name, overrides, return_hydra_config=True)
    except Exception as error:
        line = explain(error, overrides, CONFIGS, name) if is_of_composition(error) else in_one_line(error)
        if line is None:
            raise
        told = line
    need(told.strip(), "it is said nothing of")
    need("\n" not in shown(told), f"several lines: {told!r}")


SURFACES: dict[str, Surface] = {
    "images": Surface(image_cases, check_image, image_of, images),
    "layout": Surface(tree_cases, check_tree),
    "manifests": Surface(manifest_cases, check_manifest),
    "labels": Surface(label_cases, check_labels),
    "checkpoints": Surface(checkpoint_cases, check_checkpoint),
    "statistics": Surface(statistics_cases, check_statistics),
    "runs": Surface(run_cases, check_run),
    "jobs": Surface(job_cases, check_job),
    "cache": Surface(cache_cases, check_cache),
    "overrides": Surface(override_cases, check_overrides),
}  # fmt: skip


# -- running ----------------------------------------------------------------------------------------------------------


def kind_of(error: BaseException) -> str:
    """What makes two findings one: the error and where in the package it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}oddpatch{os.sep}" in frame.filename] or frames
    told = str(error).split(":")[0][:60] if isinstance(error, WrongError) else ""
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} {told} at {place}"


def run_case(surface: Surface, case: Case, scratch: Path, findings: Findings) -> None:
    """Run a case in a folder of its own, and note what is found."""
    findings.cases += 1
    folder = scratch / "case-folder"
    folder.mkdir()
    SPOKEN.folder, SPOKEN.case = folder, repr(case)
    try:
        with hostile.watched() as effects:
            surface.check(case, folder)
        # `shutil.rmtree`, which is seen itself, removes what is in a folder by names without one.
        inside = re.compile(rf"{re.escape(str(scratch))}|libnvidia-ml|fc-list|^os\.(remove|rmdir) \(b?'[^/]*', \d+\)")
        outside = [effect for effect in effects if not inside.search(effect)]
        need(not outside, f"acts outside: {outside}")
    except OddpatchError as error:
        findings.add(f"not told by its check: {kind_of(error)}", repr(case), traceback.format_exc())
    except (Exception, HangError) as error:
        findings.add(kind_of(error), repr(case), traceback.format_exc())
    finally:
        for path in [folder, *folder.rglob("*")]:
            with suppress(OSError):
                if not (path.is_symlink() or path.is_fifo() or path.stat().st_mode & 0o700 == 0o700):
                    path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


def run_few(name: str, count: int, scratch: Path) -> Findings:
    """The same few cases each time."""
    surface, findings = SURFACES[name], Findings()

    @settings(max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(surface.cases())
    def run(case: Case) -> None:
        run_case(surface, case, scratch, findings)

    run()
    return findings


class Account:
    """What a surface's process leaves for the one that started it: findings, and the case that it is at."""

    def __init__(self, folder: Path) -> None:
        self.findings, self.path, self.present = Findings(), folder / "findings.json", folder / "present"

    def write(self) -> None:
        """Write the findings, whole."""
        partial_path = self.path.with_suffix(".new")
        partial_path.write_text(json.dumps([self.findings.cases, self.findings.found]))
        partial_path.replace(self.path)


def limited(surface: Surface, case: Case, account: Account, scratch: Path) -> None:
    """Run a case under limits of time and memory."""
    account.present.write_text(repr(case), errors="backslashreplace")
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    before, known = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(account.findings.found)
    try:
        run_case(surface, case, scratch, account.findings)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if (after - before) * 1024 > MEMORY:
        account.findings.add("takes too much memory", repr(case), f"{(after - before) >> 10} MiB")
    if account.findings.cases % 100 == 0 or len(account.findings.found) > known:
        account.write()


def run_surface(name: str, seconds: float, first_seed: int, folder: Path, by_atheris: bool) -> None:
    """The process of a surface: cases until the time is over."""
    import logging

    def hang(*_: Any) -> None:
        raise HangError

    logging.disable()
    warnings.simplefilter("ignore")
    faulthandler.enable((folder / "crash").open("w"))
    sys.stdout = sys.stderr = (folder / "printed").open("w")
    signal.signal(signal.SIGPROF, hang)
    signal.signal(signal.SIGALRM, hang)
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ["HOME"] = str(folder / "home")
    surface, account, end = SURFACES[name], Account(folder), time.monotonic() + seconds
    surface.cases()  # what they are made of is made without limits
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + ADDRESSES,) * 2)
    if by_atheris:
        change_bytes(surface, account, folder, seconds, first_seed)
    number = 0
    while time.monotonic() < end:

        @seed(first_seed * 1_000_003 + number)
        @settings(max_examples=100, database=None, deadline=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(surface.cases())
        def run(case: Case) -> None:
            if time.monotonic() < end:
                limited(surface, case, account, folder)

        run()
        number += 1
    account.write()


def change_bytes(surface: Surface, account: Account, folder: Path, seconds: float, first_seed: int) -> None:
    """Have atheris change bytes, led by the lines that they reach; it ends the process."""
    import atheris

    image_cases(), images()
    for function in [one for one in gc.get_objects() if isinstance(one, FunctionType)]:
        if str(function.__module__).startswith(("PIL.", "tifffile", "oddpatch.data")):
            with suppress(Exception):  # some cannot be
                atheris.instrument_func(function)
    corpus = folder / "corpus"
    corpus.mkdir()
    assert surface.seeds is not None
    assert surface.from_bytes is not None
    for number, data in enumerate(surface.seeds()):
        (corpus / f"{number:03}").write_bytes(bytes([number % len(SUFFIXES)]) + data)
    from_bytes = surface.from_bytes
    options = {
        "max_total_time": round(seconds), "seed": first_seed + 1, "max_len": 2**14, "rss_limit_mb": 0, "verbosity": 0,
        "timeout": round(2 * PATIENCE), "handle_alrm": 0, "artifact_prefix": f"{folder}/",
    }  # fmt: skip
    arguments = ["fuzz", str(corpus), *(f"-{name}={value}" for name, value in options.items())]
    atheris.Setup(arguments, lambda data: limited(surface, from_bytes(data), account, folder))
    atexit.register(account.write)
    atheris.Fuzz()


def watch(name: str, seconds: float, first_seed: int, scratch: Path, by_atheris: bool) -> Findings:
    """Run a surface's process, and another one where it hangs or crashes, until the time is over."""
    total, end, attempt = Findings(), time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 1:
        folder = scratch / f"{name}-{'atheris-' if by_atheris else ''}{attempt}"
        folder.mkdir()
        arguments = (name, left, first_seed + 1000 * attempt, folder, by_atheris)
        process = multiprocessing.get_context("spawn").Process(target=run_surface, args=arguments)
        process.start()
        account = Account(folder)
        while process.is_alive():
            process.join(1)
            begun = account.present.stat().st_mtime if account.present.exists() else time.time()
            if time.time() - begun > 2 * PATIENCE:  # within a library, where no signal reaches it
                process.kill()
                process.join()
                total.add("hangs", account.present.read_text(), "killed")
        if account.path.exists():
            cases, found = json.loads(account.path.read_text())
            total.cases += cases
            for kind, (case, how) in found.items():
                total.add(kind, case, how)
        if process.exitcode not in (0, -signal.SIGKILL):
            how = "\n".join(
                (folder / file).read_text()[-3000:] for file in ("crash", "printed") if (folder / file).exists()
            )
            case = account.present.read_text() if account.present.exists() else "none"
            total.add(f"ends with {process.exitcode}", case, how)
        attempt += 1
    return total


def main(arguments: list[str] | None = None) -> int:
    """Run the surfaces one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float, nargs="?", default=10.0)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--only", choices=SURFACES)
    chosen = parser.parse_args(arguments)
    names = [chosen.only] if chosen.only else list(SURFACES)
    turns = [(name, False) for name in names]
    if find_spec("atheris"):
        turns += [(name, True) for name in names if SURFACES[name].from_bytes]
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    failed = 0
    for name, by_atheris in turns:
        start = time.monotonic()
        found = watch(name, 60 * chosen.minutes / len(turns), chosen.seed, scratch, by_atheris)
        minutes = (time.monotonic() - start) / 60
        told = f"{name} (atheris)" if by_atheris else name
        sys.stdout.write(f"{told:18}{found.cases:9} cases in {minutes:5.1f} min  {len(found.found)} findings\n")
        for number, (kind, (case, how)) in enumerate(found.found.items()):
            path = scratch / f"{name}-finding-{failed + number}.txt"
            path.write_text(f"{kind}\n\n{case}\n\n{how}\n", errors="backslashreplace")
            sys.stdout.write(f"  {kind}: {path}\n")
        sys.stdout.flush()
        failed += len(found.found)
    if not failed:
        shutil.rmtree(scratch)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
