"""Every method of configs/model in both engines, for any number of images: the numbers of torch."""

import numpy as np
import pytest
import torch
from conftest import TinyBackbone
from methods import METHODS, make

from oddpatch.data.transforms import Preprocess
from oddpatch.errors import ConfigError
from oddpatch.export.exporting import describe
from oddpatch.export.graph import Inspection, to_onnx, to_openvino, to_program
from oddpatch.inference.artifact import onnxruntime_run, openvino_run
from oddpatch.models.anomaly_model import AnomalyModel
from oddpatch.models.trainable import TrainableDetector

SIZE = (64, 64)
ABOUT = {"config": {}, "weights": "tiny", "num_fitted": 16}
#: Methods whose graph is another one with a setting.
OTHERS = [
    ("cam", {"trained_layers": 0, "place_channels": 4, "pool": 16}),
    ("procon", {"fade": 0.03}),
]
#: Normalised.
FITTED_TO = torch.randn(16, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def fitted(method, **settings):
    backbone = TinyBackbone()
    detector = make(method, backbone.info.channels, backbone.info.strides, **settings)
    preprocess = Preprocess(mean=backbone.info.mean, std=backbone.info.std, resize=SIZE, crop=None)
    model = AnomalyModel(preprocess, backbone, detector).eval()
    if isinstance(detector, TrainableDetector) and not detector.accumulators:
        detector.finish()
    else:
        with torch.no_grad():
            model.update(FITTED_TO, torch.arange(len(FITTED_TO)))
            detector.fit()
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("method", "settings"), [*((name, {}) for name in METHODS), *OTHERS])
def test_both_engines_give_the_numbers_of_torch(method, settings):
    model = fitted(method, **settings)
    inspection = Inspection(model, threshold=1.0)
    if not all(detector.exportable for detector in model.detector.detectors_within):
        with pytest.raises(ConfigError, match=r"cannot be exported: choose another model$"):
            to_program(inspection)
        return
    onnx_model = to_onnx(to_program(inspection), inspection.outputs).SerializeToString()
    metadata = describe(model, ABOUT, "float32", 1.0)
    runs = [onnxruntime_run(onnx_model, metadata), openvino_run(to_openvino(onnx_model), metadata)]
    preprocess = model.preprocess
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    drawn = [torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(count)) for count in (1, 5)]
    # Of what was fitted to, some distances are 0, which a difference of large squares is not.
    scales: dict[str, float] = {}
    for images in (*drawn, FITTED_TO[:2] * std + mean):
        with torch.inference_mode():
            expected = dict(zip(inspection.outputs, inspection(images), strict=True))
        for run in runs:
            found = run(images.numpy())
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                scales[name] = max(scales.get(name, 0.0), float(values.float().abs().max()))
                np.testing.assert_allclose(found[name], values.numpy(), rtol=0, atol=1e-4 * scales[name])
