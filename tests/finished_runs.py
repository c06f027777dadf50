"""Folders of finished runs, written by hand."""

import json

import yaml

from oddpatch.report.datasets import DATASETS

MVTEC = DATASETS["mvtec_ad"].categories
WIDE_RESNET = {"_target_": "oddpatch.backbones.timm.TimmBackbone", "name": "wide_resnet50_2.tv_in1k"}
WIDE_RESNET |= {"layers": [1, 2, 3], "weights": "pretrained"}
PATCHCORE = {"_target_": "oddpatch.models.patchcore.PatchCore", "coreset_ratio": 0.1, "seed": "${seed}"}


def write_run(
    folder, category="bottle", *, model=PATCHCORE, backbone=WIDE_RESNET, names=("patchcore", "wide_resnet50"),
    weights="weights.pth", data=None, config=None, fpr_limits=(0.3,), **metrics,
):  # fmt: skip
    """A finished run's `metrics.json` and config; image AUROC is 0.99 unless given."""
    size = MVTEC.get(category)
    run = {"model": names[0], "backbone": names[1], "data": "mvtec", "category": category, "experiment": None}
    content = {
        "run": {**run, "image_size": [224, 224]},
        "image_auroc": 0.99,
        "absent": {},
        "num_train_images": size.train if size else 60,
        "num_test_images": size.test if size else 40,
        "weights": weights,
        **metrics,
    }
    (folder / ".hydra").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    data = {"root": "/data", "category": category, "resize": 256, "crop": 224, **(data or {})}
    data["_target_"] = "oddpatch.data.datamodule.MVTecDataModule"
    composed = {"model": model, "backbone": backbone, "data": data, "fpr_limits": list(fpr_limits), **(config or {})}
    (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(composed))
    return folder


def write_all(root, skip=(), **settings):
    for place, category in enumerate(c for c in MVTEC if c not in skip):
        write_run(root / category, category, image_auroc=0.9 + place / 1000, **settings)
