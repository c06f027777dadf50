"""What the page cannot show: a run without a threshold, an image that cannot be inspected."""

from pathlib import Path

import pytest
from narrowing import stand_in

pytest.importorskip("streamlit")

from oddpatch.demo import inspecting, server
from oddpatch.errors import ConfigError, DataError


def test_a_run_without_a_threshold_is_refused(monkeypatch):
    calibration = stand_in(absent="it was fitted with calibration=none: train again")
    detector = stand_in(image_threshold=None, scorer=stand_in(calibration=calibration))
    monkeypatch.setattr(server.AnomalyDetector, "load", lambda run: detector)
    with pytest.raises(ConfigError, match=r"^outputs/run has no threshold: it was fitted with calibration=none"):
        server.load("outputs/run")


def test_an_image_that_cannot_be_inspected_is_told_by_its_own_name():
    path = Path("/tmp/session/0001.png")

    def stream(frames, batch_size, keep):
        yield frames[0], DataError(f"{path}: no image")

    with pytest.raises(DataError, match=r"^part\.png: no image$"):
        inspecting.look(stand_in(stream=stream), stand_in(name="part.png", path=path))
