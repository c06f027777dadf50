"""What anomalib does, measured. Run by anomalib's own Python, which has no oddpatch; see peers.py.

The first argument is JSON, whose "do" is one of
fit      fit and test; export as OpenVINO into a folder if "export" names one. CPU seconds of all processes, metrics.
predict  inspect images, one at a time, with the OpenVINO inferencer. CPU seconds once it is warm.
metrics  AUROC and AU-PRO of maps and masks in .npy files. CPU seconds once they are loaded.
Imports are inside of the functions, as a cold start counts them.
"""

import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")


def cpu_seconds() -> float:
    """User and system time of this process and of the workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def build(spec: dict[str, Any]) -> Any:
    """The model, with the same weights and preprocessing as ours and without pictures."""
    import torch
    from anomalib.metrics import AUPRO, AUROC, Evaluator
    from anomalib.models import MHPatchcore, Padim, Patchcore
    from anomalib.models.components.feature_extractors import TimmFeatureExtractor
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

    kind = {"padim": Padim, "patchcore": Patchcore, "mh_patchcore": MHPatchcore}[spec["model"]]
    transform = Compose(
        [Resize((256, 256), antialias=True), CenterCrop(224), Normalize(mean=spec["mean"], std=spec["std"])]
    )
    pixel = ["anomaly_map", "gt_mask"]
    metrics = [
        AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
        AUROC(fields=pixel, prefix="pixel_"),
        AUPRO(fields=pixel, prefix="pixel_"),
    ]
    model = kind(
        backbone=spec["backbone"], layers=spec["layers"], pre_trained=False, visualizer=False,
        pre_processor=PreProcessor(transform=transform), evaluator=Evaluator(test_metrics=metrics), **spec["settings"],
    )  # fmt: skip
    weights = torch.load(spec["weights"], weights_only=True)
    (network,) = (part.feature_extractor for part in model.modules() if isinstance(part, TimmFeatureExtractor))
    missing = network.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise SystemExit(f"the weights lack {missing[0]} and {len(missing) - 1} more")
    return model


def time_coreset() -> list[float]:
    """A list that gets the CPU seconds of every selection of a coreset."""
    from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy

    seconds: list[float] = []
    select = KCenterGreedy.select_coreset_idxs

    def timed(self: KCenterGreedy, *given: Any) -> Any:
        start = time.process_time()
        picks = select(self, *given)
        seconds.append(time.process_time() - start)
        return picks

    KCenterGreedy.select_coreset_idxs = timed
    return seconds


def fit(spec: dict[str, Any]) -> dict[str, Any]:
    """Fit and test, and export if asked to."""
    import torch
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine

    coreset = time_coreset()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as out:
        model = build(spec)
        data = MVTecAD(
            root=spec["root"], category=spec["category"], train_batch_size=32, eval_batch_size=32,
            num_workers=spec["workers"],
        )  # fmt: skip
        engine = Engine(
            default_root_dir=out, accelerator=spec["device"], devices=1, logger=False, enable_progress_bar=False
        )
        start, wall = cpu_seconds(), time.perf_counter()
        engine.fit(model, datamodule=data)
        fitted = cpu_seconds()
        (metrics,) = engine.test(model, datamodule=data, verbose=False)
        ended = cpu_seconds()
        found = {"cpu": ended - start, "fit": fitted - start, "test": ended - fitted}
        found |= {"wall": time.perf_counter() - wall, "metrics": metrics, "coreset": sum(coreset)}
        if spec.get("export"):
            engine.export(model, "openvino", export_root=spec["export"])
    return found


def predict(spec: dict[str, Any]) -> dict[str, Any]:
    """Inspect the images; CPU seconds are of the whole process where there is one alone."""
    from anomalib.deploy import OpenVINOInferencer

    inferencer = OpenVINOInferencer(spec["path"], device="CPU", config={"INFERENCE_NUM_THREADS": spec["threads"]})
    first, *images = spec["images"]
    found: dict[str, Any] = {"score": float(inferencer.predict(first).pred_score.squeeze())}
    if images:
        start, wall = time.process_time(), time.perf_counter()
        for path in images:
            inferencer.predict(path)
        found |= {"cpu": time.process_time() - start, "wall": time.perf_counter() - wall}
    return found


def metrics(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure the maps in one update."""
    import numpy as np
    import torch
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC

    maps, masks = (torch.from_numpy(np.load(spec[name])) for name in ("maps", "masks"))
    start, wall = time.process_time(), time.perf_counter()
    values = {}
    for name, metric in (("pixel_AUROC", _AUROC()), ("pixel_AUPRO", _AUPRO())):
        metric.update(maps, masks.int())
        values[name] = float(metric.compute())
    return {"cpu": time.process_time() - start, "wall": time.perf_counter() - wall, "metrics": values}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the inferencer leaves a cache where it is
        result = {"fit": fit, "predict": predict, "metrics": metrics}[given.get("do", "fit")](given)
        os.chdir(Path(__file__).parent)
    print(json.dumps(result))
