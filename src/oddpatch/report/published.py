"""Published numbers, and which of them a run may be put beside.

`reference/published.csv` holds values, `sources.csv` where each was published and read, `protocols.csv` what is known
of the settings behind them. A run matches a published variant if

- it ran on the test images that it was published on (`oddpatch.report.datasets`) with pretrained weights,
- method and backbone are the same, and the image size, where it is stated,
- every setting of role `same` is: what distinguishes the variant, as the coreset ratio does PatchCore-10%.

Settings of role `told` need not be the same; where they are not, the match says so, and it repeats what `note` says.
Variants without a protocol are matched by none: nothing is known that would make them comparable.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from oddpatch.report.datasets import DATASETS, OWN, dataset_of
from oddpatch.report.runs import FinishedRun

#: Names under which publications report what a class does.
NAMES = {
    "PaDiM": ("PaDiM", "SemiOrthogonal"),
    "PatchCore": ("PatchCore", "PatchCoreViT"),
    "SPADE": ("SPADE",),
    "GaussianAD": ("Gaussian-AD",),
    "CAM": ("VGG16-CAM (supervised)",),
    "MemoryBanks": ("AnomalyDINO", "ProCon", "SuperADD"),
    "SubspaceAD": ("SubspaceAD",),
    "RAD": ("RAD",),
    "MHPatchCore": ("MH-PatchCore",),
    "MuSc": ("MuSc",),
    "DFM": ("DFM",),
}
#: Weights of timm that are those the publications used, and how the name of the backbone then ends there.
_WEIGHTS = {"": "", "tv_in1k": "", "orig_in21k": "_in21k", "lvd142m": "", "lvd1689m": "", "openai": ""}
_ALIASES = {
    "resnext101_32x8d": "resnext101",
    "vit_small_patch14_dinov2": "dinov2_vits14",
    "vit_base_patch14_dinov2": "dinov2_vitb14",
    "vit_large_patch14_dinov2": "dinov2_vitl14",
    "vit_giant_patch14_reg4_dinov2": "dinov2_vitg14_reg",
    "vit_base_patch16_dinov3": "dinov3_vitb16",
    "vit_large_patch14_clip_336": "clip_vit_l14_336",
}
_STRIDE_BY_LAYER = ("resnet", "wide_resnet", "resnext", "densenet")  # timm's maps of these: layer l has stride 2^(l+1)
_CALLED = {"data.interpolation": "image interpolation", "model.interpolation": "map interpolation"}
_MISSING = "not set"


class Source(NamedTuple):
    """Where numbers were published, and how they were read."""

    source_id: str
    title: str
    where: str
    url_or_repo: str
    year: str
    kind: str  # paper or repo


@dataclass(frozen=True)
class Published:
    """The numbers of one variant of a method, by one publication."""

    sources: tuple[Source, ...]
    method: str
    variant: str
    backbone: str
    image_size: str  # empty if not stated
    values: Mapping[tuple[str, str, str], float]  # (dataset, category or group, metric)
    same: Mapping[str, tuple[Any, ...]]  # values that a run's setting may have
    told: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Match:
    """A published variant that a run may be put beside, and what differs all the same."""

    published: Published
    differences: tuple[str, ...]


class Protocol(NamedTuple):
    """What is compared of a run."""

    method: str  # the class
    backbone: str  # as publications name it
    image_size: str
    settings: Mapping[str, Any]  # by dotted name


def matches(run: FinishedRun) -> tuple[list[Match], str]:
    """The published variants that a run may be put beside, papers first; and why, if there are none."""
    reason = _not_comparable(run)
    if reason:
        return [], reason
    ours = protocol_of(run)
    named = [
        entry
        for entry in published()
        if entry.method in NAMES.get(ours.method, ())
        and sorted(entry.backbone.split("+")) == sorted(ours.backbone.split("+"))  # an ensemble has no order
        and (entry.same or entry.told)
    ]
    if not named:
        return [], f"no published numbers of {ours.method} with {ours.backbone} whose settings are known"
    sized = [entry for entry in named if entry.image_size in ("", ours.image_size)]
    found = [entry for entry in sized if not _disagreements(entry, ours)]
    if not found:
        nearest = sorted(named, key=lambda entry: len(_needs(entry, ours)))[:3]
        needed = "; ".join(f"{entry.variant} needs {', '.join(_needs(entry, ours))}" for entry in nearest)
        return [], f"published variants of {ours.method} with {ours.backbone} have other settings: {needed}"
    found.sort(key=lambda entry: entry.sources[0].kind != "paper")
    return [Match(entry, (*_differences(entry, ours, run), *entry.notes)) for entry in found], ""


def _not_comparable(run: FinishedRun) -> str:
    tested = int(run.metrics["num_test_images"])
    if run.is_random:
        return "random weights"
    if dataset_of(run.category, tested) == OWN:
        sizes = [(d.title, d.categories[run.category].test) for d in DATASETS.values() if run.category in d.categories]
        wanted = f"{run.category} of {sizes[0][0]} has {sizes[0][1]} test images" if sizes else "not a public dataset"
        return f"{run.category}, {tested} test images: {wanted}"
    return ""


def protocol_of(run: FinishedRun) -> Protocol:
    """What publications name of a run's settings."""
    model, backbone, data = (dict(run.settings[part]) for part in ("model", "backbone", "data"))
    model = {**model, **dict(model.get("member") or {})}
    settings = {"augmentation": "none"}
    for part, values in (("model", model), ("backbone", backbone), ("data", data)):
        settings.update({f"{part}.{key}": value for key, value in values.items()})
    settings["backbone.layers"] = _layers_used(settings)
    size = run.names["image_size"]
    side = str(size[0]) if size and size[0] == size[1] else "x".join(map(str, size or ()))
    return Protocol(str(model["_target_"]).rpartition(".")[2], _backbone_name(backbone)[0], side, settings)


def _layers_used(settings: Mapping[str, Any]) -> Any:
    """The layers that reach the detector: it leaves out maps finer than `finest_stride`."""
    layers, name = settings.get("backbone.layers"), str(settings.get("backbone.name"))
    if isinstance(layers, list) and name.startswith(_STRIDE_BY_LAYER) and all(isinstance(i, int) for i in layers):
        return [i for i in layers if 2 ** (i + 1) >= settings.get("model.finest_stride", 1)]
    return layers


def _backbone_name(config: Mapping[str, Any]) -> tuple[str, str]:
    """How publications call a backbone, and which weights it has if they are not the ones they used."""
    members = config.get("members")
    if members:
        names, weights = zip(*map(_backbone_name, members.values()), strict=True)
        return "+".join(names), ", ".join(filter(None, weights))
    name, _, tag = str(config.get("name", "")).partition(".")
    name = _ALIASES.get(name, name.replace("-", "_"))
    return name + _WEIGHTS.get(tag, ""), "" if tag in _WEIGHTS else f"{name}.{tag}"


def _required(entry: Published) -> Mapping[str, Sequence[Any]]:
    """Settings without which a run is not put beside it. What was fitted to all images is beside no run of a few."""
    return {"data.shots": (None,), **entry.same}


def _disagreements(entry: Published, ours: Protocol) -> list[str]:
    required = _required(entry).items()
    return [name for name, values in required if not any(_equal(ours.settings.get(name), v) for v in values)]


def _needs(entry: Published, ours: Protocol) -> list[str]:
    wrong = [f"{name}={_required(entry)[name][0]}" for name in _disagreements(entry, ours)]
    size = [] if entry.image_size in ("", ours.image_size) else [f"image size {entry.image_size}"]
    return [*size, *wrong]


def _differences(entry: Published, ours: Protocol, run: FinishedRun) -> list[str]:
    told = []
    if not entry.image_size:
        told.append("image size not stated there")
    for name, value in entry.told.items():
        here = ours.settings.get(name, _MISSING)
        if not _equal(here, value):
            told.append(f"{_CALLED.get(name, name.rpartition('.')[2])} {_show(value)} there, {_show(here)} here")
    told += [f"data.{name} here" for name in ("align", "roi", "split") if ours.settings.get(f"data.{name}")]
    weights = _backbone_name(run.settings["backbone"])[1]
    if weights:
        told.append(f"weights {weights} here")
    fitted = int(run.metrics["num_train_images"])
    if run.together_with:
        return [*told, f"one model of {len(run.together_with)} categories here, fitted to {fitted} images"]
    dataset = DATASETS[dataset_of(run.category, int(run.metrics["num_test_images"]))]
    if fitted != entry.same.get("data.shots", [dataset.categories[run.category].train])[0]:
        told.append(
            f"fitted to {fitted} of {dataset.categories[run.category].train} training images of {run.category} here"
        )
    return told


def _equal(here: Any, there: Any) -> bool:
    if isinstance(here, list) and len(here) == 2 and here[0] == here[1] and not isinstance(there, list):
        here = here[0]  # a square size
    if isinstance(here, float | int) and isinstance(there, float | int):
        return abs(here - there) <= 1e-9 * max(1.0, abs(there))
    return bool(here == there)


def _show(value: Any) -> str:
    return "none" if value is None else str(value)


@cache
def published() -> list[Published]:
    """Every published variant; what two sources report of the same publication is one."""
    sources = {row["source_id"]: Source(**row) for row in _read("sources.csv")}
    # By publication and not by source: the PaDiM paper was read in two places.
    Key = tuple[str, str, str, str, str]
    values: dict[Key, dict[tuple[str, str, str], float]] = defaultdict(dict)
    read_in: dict[Key, list[str]] = defaultdict(list)
    for row in _read("published.csv"):
        source = sources[row["source_id"]]
        work = source.url_or_repo.partition(";")[0] if source.kind == "paper" else row["source_id"]
        key = (work, row["method"], row["variant"], row["backbone"], row["image_size"])
        values[key][row["dataset"], row["category"], row["metric"]] = float(row["value"])
        if row["source_id"] not in read_in[key]:
            read_in[key].append(row["source_id"])
    protocols: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
    for row in _read("protocols.csv"):
        protocols[row["source_id"], row["method"], row["variant"]].append(row)
    return [
        Published(
            tuple(sources[name] for name in read_in[key]),
            *key[1:],
            values=found,
            **_protocol([row for name in read_in[key] for row in protocols[name, key[1], key[2]]]),
        )
        for key, found in values.items()
    ]


def _protocol(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {
        "same": {
            row["setting"]: tuple(json.loads(value) for value in row["value"].split("|"))
            for row in rows
            if row["role"] == "same"
        },
        "told": {row["setting"]: json.loads(row["value"]) for row in rows if row["role"] == "told"},
        "notes": tuple(dict.fromkeys(row["value"] for row in rows if row["role"] == "note")),
    }


def _read(name: str) -> list[dict[str, str]]:
    text = (resources.files("oddpatch.report") / "reference" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
