"""What a detector, an artifact and a file of results refuse before an image is inspected."""

import importlib.util
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from narrowing import stand_in

from oddpatch.errors import CheckpointError, ConfigError, DataError
from oddpatch.inference.artifact import ArtifactScorer
from oddpatch.inference.detector import AnomalyDetector
from oddpatch.inference.records import COLUMNS, read_records
from oddpatch.inference.scorer import Preparing, Scorer


class Uncalibrated(Scorer):
    """Of a run without thresholds."""

    calibration = stand_in(calibrated=False, absent="it was fitted with calibration=none: train again")


def test_a_rate_without_good_images_to_set_it_on_is_refused():
    kind: Any = Uncalibrated
    scorer = object.__new__(kind)
    told = "target_fpr=0.1 needs a threshold from good images: it was fitted with calibration=none: train again"
    with pytest.raises(ConfigError, match=told):
        AnomalyDetector(scorer, target_fpr=0.1)


@pytest.mark.parametrize(("suffix", "extra"), [(".onnx", "onnx"), (".xml", "openvino")])
def test_an_artifact_without_its_engine_names_the_extra(tmp_path, monkeypatch, suffix, extra):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"model{suffix} needs .*, which is not installed: .*'oddpatch\[{extra}\]'"):
        AnomalyDetector.load(path)


def test_an_artifact_has_the_distance_of_its_run(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"compares patches as its run did: for another distance load the run's folder"
    ):
        AnomalyDetector.load(tmp_path / "model.onnx", distance="cosine")


def test_what_is_no_image_is_refused():
    nothing: Any = {}
    with pytest.raises(DataError, match="dict is no image: give a path, a PIL image, an array or a tensor"):
        Preparing.prepare(stand_in(), nothing)


def test_an_image_that_cannot_be_prepared_is_named():
    def refuse(original):
        raise DataError("it is too small")

    room = stand_in(taking=lambda pixels: nullcontext())
    scorer = stand_in(_prepare=refuse, _read=lambda path, max_pixels: None, _decoding=room)
    with pytest.raises(DataError, match=r"^a\.png: it is too small$"):
        Preparing.prepare(scorer, "a.png")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"path,score\na.png,1\n"),
        ("a.csv", ",".join(COLUMNS).encode() + b"\na.png,x" + b"," * (len(COLUMNS) - 2) + b"\n"),
        ("a.jsonl", b'["a.png"]\n'),
        ("a.parquet", b"no table"),
    ],
)
def test_results_of_something_else_are_refused(tmp_path, name, content):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"holds something else than results of `oddpatch predict` after record 0"):
        list(read_records(tmp_path / name))


def test_an_engine_that_fails_on_an_image_is_one_line():
    scorer = stand_in(_run=lambda pixels: [][0], _path="a.onnx", engine="onnxruntime")
    with pytest.raises(CheckpointError, match=r"^a\.onnx: onnxruntime fails: .*: export the run again$"):
        ArtifactScorer.run(scorer, [stand_in(pixels=np.zeros((3, 2, 2), np.float32))])
