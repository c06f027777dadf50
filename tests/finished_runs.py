"""Finished runs, written by hand: their folders, and the results of their tests."""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from oddpatch.known import with_defaults
from oddpatch.report.datasets import DATASETS
from oddpatch.results.test_result import ScoredImage, TestResult, Thresholds

MVTEC = DATASETS["mvtec_ad"].categories
WIDE_RESNET: dict[str, Any] = {"_target_": "oddpatch.backbones.timm.TimmBackbone", "name": "wide_resnet50_2.tv_in1k"}
WIDE_RESNET |= {"layers": [1, 2, 3], "weights": "pretrained"}
PATCHCORE = {"_target_": "oddpatch.models.patchcore.PatchCore", "coreset_ratio": 0.1, "seed": "${seed}"}


def write_run(
    folder, category="bottle", *, model=PATCHCORE, backbone=WIDE_RESNET, names=("patchcore", "wide_resnet50"),
    weights="weights.pth", data=None, calibration=None, fpr_limits=(0.3,), **metrics,
):  # fmt: skip
    """A finished run's `metrics.json`; image AUROC is 0.99 unless given."""
    size = MVTEC.get(category)
    run = {"model": names[0], "backbone": names[1], "data": "mvtec", "category": category, "experiment": None}
    data = {"root": "/data", "category": category, "resize": 256, "crop": 224, **(data or {})}
    data["_target_"] = "oddpatch.data.datamodule.MVTecDataModule"
    settings = {"model": model, "backbone": backbone, "data": data, "calibration": calibration or {"method": "none"}}
    content = {
        "run": {**run, "image_size": [224, 224]},
        "image_auroc": 0.99,
        "absent": {},
        "num_train_images": size.train if size else 60,
        "num_test_images": size.test if size else 40,
        "weights": weights,
        "fpr_limits": list(fpr_limits),
        "settings": with_defaults(settings),
        **metrics,
    }
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def write_all(root, skip=(), **settings):
    for place, category in enumerate(c for c in MVTEC if c not in skip):
        write_run(root / category, category, image_auroc=0.9 + place / 1000, **settings)


def make_result(scores=(), labels=(), **changes):
    """A result of a test on images of these scores, without pictures; `changes` are its fields."""
    types = ["spot" if label else "good" for label in labels]
    rows = [ScoredImage(f"/data/{kind}/{i}.png", label, kind, score, i)
            for i, (score, label, kind) in enumerate(zip(scores, labels, types, strict=True))]  # fmt: skip
    nothing = TestResult(
        rows=tuple(rows), good=(), metrics={}, absent={}, auroc_by_type={}, by_category={}, thresholds=Thresholds(),
        fpr_limits=(),
        pixels=None, statistics=None, confidence=None, confidence_settings=None, examples=None,
        levels=np.empty((0, 3), np.float32), timing={}, features_found=False, num_fitted=0, test_set=None, skipped=(),
        left_out=(), inspected=None, inspected_text="", alignment=None, config={}, settings={}, detector="PaDiM",
        weights="pretrained", versions={}, git_commit=None, peak_memory=0,
    )  # fmt: skip
    return replace(nothing, **changes)
