"""Every method of configs/model as torch exports it, for any number of images: the same numbers."""

import pytest
import torch
from conftest import TinyBackbone
from methods import INSPECTING_REGIONS, METHODS, SIZE, features, fit, make
from test_region import LEFT

from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.models.padim import PaDiM
from oddpatch.models.spade import SPADE
from oddpatch.ops import statistics

SETTINGS = {
    "patchcore_weighted": ("patchcore", {"num_neighbors": 3, "k": 2}),
    "patchcore_cosine": ("patchcore", {"distance": "cosine", "num_neighbors": 3}),
    "patchcore_joined": ("patchcore", {"embedding": "joined"}),
    "padim_raw": ("padim", {"score_from": "raw", "reduction": "semi_orthogonal", "alignment": "bilinear"}),
    "lunar_score": ("lunar", {"network": "score", "top": 0.1}),
    "spade_join": ("spade", {"pyramid": "join", "kappa": 3}),
}


#: Those that torch takes seconds to follow; the settings differ from their method in few operations.
LONG = {"musc", "procon", *SETTINGS}


class Scores(torch.nn.Module):
    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, maps):
        score, anomaly_map = self.detector(maps, SIZE)
        return (score,) if anomaly_map is None else (score, anomaly_map)


def require_equal(exported, model, given):
    for found, expected in zip(exported(given), model(given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "region"),
    [
        *(pytest.param(n, False, marks=pytest.mark.slow if n in LONG else ()) for n in (*METHODS, *SETTINGS)),
        *(
            pytest.param(n, True, marks=() if n in ("patchcore", "subspacead") else pytest.mark.slow)
            for n in (*INSPECTING_REGIONS, "spade_join")
        ),
    ],
)
def test_an_exported_detector_gives_the_same_numbers_for_any_batch(name, region):
    method, settings = SETTINGS.get(name, (name, {}))
    detector = make(method, **settings)
    if region:
        detector.restrict(LEFT)
    model = Scores(fit(detector)).eval()
    example = features(3, seed=1)
    model(example)
    dynamic = ([{0: torch.export.Dim("batch", min=1, max=64)}] * len(example),)
    if not detector.exportable:
        with pytest.raises(ConfigError, match=r"cannot be exported: choose another model$"):
            torch.export.export(model, (example,), dynamic_shapes=dynamic)
        return
    exported = torch.export.export(model, (example,), dynamic_shapes=dynamic).module()
    for count in (1, 3, 5):
        require_equal(exported, model, features(count, seed=2))


def test_padim_is_exported_with_its_matrices_in_blocks(monkeypatch):
    monkeypatch.setattr(statistics, "COLUMNS", 3)
    detector = fit(make("padim"))
    assert isinstance(detector, PaDiM)
    model = Scores(detector).eval()
    assert len(detector.blocks) > 1
    example = features(3, seed=1)
    dynamic = ([{0: torch.export.Dim("batch", min=1, max=64)}] * len(example),)
    exported = torch.export.export(model, (example,), dynamic_shapes=dynamic).module()
    for count in (1, 5):
        require_equal(exported, model, features(count, seed=2))


def test_a_model_is_exported_with_its_backbone():
    backbone = TinyBackbone()
    preprocess = Preprocess(mean=backbone.info.mean, std=backbone.info.std, resize=(32, 32), crop=None)
    detector = SPADE(backbone.info.channels, backbone.info.strides, k=3)
    model = AnomalyModel(preprocess, backbone, detector).eval()
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.update(images, torch.arange(8))
    detector.fit()
    model(images)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: batch},)).module()
    require_equal(exported, model, images[:5])
