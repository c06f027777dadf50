"""A run and its artifacts give the same numbers, or nothing is written; without torch, whatever the engine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_dataset, use_tiny_backbone, write_image
from PIL import Image
from test_pipeline import run, tiny

from oddpatch import AnomalyDetector
from oddpatch.errors import ConfigError, DataError, ParityError
from oddpatch.export import exporting
from oddpatch.export.exporting import export
from oddpatch.export.graph import Inspection, least_above
from oddpatch.export.parity import real_images
from oddpatch.inference.artifact import ArtifactScorer, read_artifact
from oddpatch.inference.recalibration import calibrate
from oddpatch.inference.update import good_images
from oddpatch.models.base import Detector

pytestmark = pytest.mark.slow

FORMATS = ["onnx", "openvino", "torch"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    make_dataset(root, good=45)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        run(tiny(root, root / "run", "data.resize=40"))
        yield root


@pytest.fixture(scope="module")
def artifacts(finished):
    return {kind: export(finished / "run", kind) for kind in FORMATS}


def images(finished):
    return [str(path) for path in sorted((finished / "tile/test").rglob("*.png"))]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_artifact_is_used_like_its_run_and_gives_its_numbers(finished, artifacts, kind):
    ours, theirs = AnomalyDetector.load(finished / "run"), AnomalyDetector.load(artifacts[kind].path)
    paths = images(finished)
    array = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    given = [*paths, array, array[..., 0], Image.fromarray(array), torch.from_numpy(array.copy()).permute(2, 0, 1)]
    for expected, found in zip(ours(given), theirs(given), strict=True):
        assert found.score == pytest.approx(expected.score, rel=1e-5)
        assert found.is_anomalous == expected.is_anomalous
        assert found.p_value == pytest.approx(expected.p_value, rel=1e-4)
        assert found.anomaly_score == pytest.approx(expected.anomaly_score, rel=1e-4)
        assert found.inspected == expected.inspected
        assert expected.anomaly_map is not None
        top = float(np.nanmax(expected.anomaly_map))
        np.testing.assert_allclose(np.asarray(found.anomaly_map), expected.anomaly_map, rtol=0, atol=1e-4 * top)
        assert [region.box for region in found.regions] == [region.box for region in expected.regions]
    assert len({result.is_anomalous for result in theirs(paths)}) == 2


@pytest.mark.parametrize("kind", FORMATS)
def test_what_was_compared_is_told(artifacts, kind):
    done = artifacts[kind]
    assert done.parity.agrees
    assert done.parity.images > 10
    assert 0 < done.size == sum(file.stat().st_size for file in done.path.parent.glob(f"{done.path.stem}.*")
                                if file.suffix in {"onnx": (".onnx",), "openvino": (".xml", ".bin"),
                                                   "torch": (".pt2",)}[kind])  # fmt: skip


def test_images_are_found_wherever_the_run_was_started_and_the_data_moved(tmp_path):
    for name in ("tile/test/good/0.png", "tile/train/good/1.png", "tile/test/spot/2.png"):
        (tmp_path / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "parts" / name).touch()
    about = {"held_out": ["tile/train/good/1.png"], "config": {"data": {"root": str(tmp_path / "parts")}}}
    (tmp_path / "run").mkdir()

    def found(first, second, root=None):
        lines = f"path,label\n{first}/tile/test/good/0.png,0\n{second}/tile/test/spot/2.png,1\n"
        (tmp_path / "run/predictions.csv").write_text(lines)
        return [path.name for path in real_images(tmp_path / "run", about, root).compared]

    everything = ["1.png", "0.png", "2.png"]
    assert found("parts", "../there/parts") == everything  # data.root as it was given, from another folder
    assert found(tmp_path / "parts", tmp_path / "parts") == everything
    (tmp_path / "parts").rename(tmp_path / "moved")
    assert found("parts", tmp_path / "parts", tmp_path / "moved") == everything


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_graph_decides_as_the_detector_does_for_any_batch(finished, artifacts, kind):
    artifact = read_artifact(artifacts[kind].path)
    threshold = artifact.metadata["thresholds"]["image"]
    batch = np.random.default_rng(1).random((5, 3, *artifact.metadata["image_size"]), dtype=np.float32)
    together = artifact.run(batch)
    np.testing.assert_array_equal(together["is_anomalous"], together["score"] > threshold)
    for place in range(5):
        alone = artifact.run(batch[place : place + 1])
        np.testing.assert_allclose(alone["score"], together["score"][place : place + 1], rtol=1e-5)


@pytest.mark.parametrize("threshold", [1.5, 1.5 + 1e-12, 1.5 - 1e-12, float(np.nextafter(np.float64(0.1), 0))])
def test_a_threshold_between_two_float32_is_kept_exactly(threshold):
    least = np.float32(least_above(threshold))
    assert float(least) > threshold
    assert float(np.nextafter(least, np.float32(-np.inf))) <= threshold


def test_the_program_of_torch_has_the_numbers_and_metadata(finished, artifacts):
    extra = {"oddpatch.json": ""}
    program = torch.export.load(artifacts["torch"].path, extra_files=extra)
    metadata = json.loads(extra["oddpatch.json"])
    assert metadata["precision"] == "float32"
    batch = torch.rand(4, 3, *metadata["image_size"])
    score, _, is_anomalous = program.module()(batch)
    expected = read_artifact(artifacts["onnx"].path).run(batch.numpy())
    np.testing.assert_allclose(score.detach().numpy(), expected["score"], rtol=1e-5)
    np.testing.assert_array_equal(is_anomalous.numpy(), expected["is_anomalous"])
    with pytest.raises(ConfigError, match=r"model\.pt2 is a program of torch, and reading it can run code"):
        AnomalyDetector.load(artifacts["torch"].path)


SCRIPT = """
import sys
from oddpatch import AnomalyDetector
result = AnomalyDetector.load(sys.argv[1])(sys.argv[2])
assert result.anomaly_map.ndim == 2
loaded = [name for name in ("torch", "torchvision", "timm", "onnx", "lightning", "hydra") if name in sys.modules]
print(result.score, loaded)
"""


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_torch_is_not_loaded(finished, artifacts, kind):
    path = next(path for path in images(finished) if "spot" in path)  # one with regions
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, artifacts[kind].path, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    score, loaded = done.stdout.split(" ", 1)
    assert loaded.strip() == "[]"
    assert float(score) == pytest.approx(AnomalyDetector.load(finished / "run")(path).score, rel=1e-5)


def break_graph(patch, change):
    """Have every artifact computed otherwise than the run."""
    forward = Inspection.forward
    patch.setattr(Inspection, "forward", lambda self, image: change(self, image, forward))


@pytest.mark.parametrize("kind", FORMATS)
def test_an_artifact_that_gives_other_scores_is_not_written(finished, tmp_path, monkeypatch, kind):
    break_graph(monkeypatch, lambda self, image, forward: forward(self, image * 1.001))
    out = tmp_path / f"broken{exporting.SUFFIXES[kind]}"
    with pytest.raises(ParityError, match=r"nothing is written.*\.png \(score .* instead of .*\): export with another"):
        export(finished / "run", kind, out)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_that_gives_another_map_is_not_written(finished, tmp_path, monkeypatch):
    def shifted(self, image, forward):
        score, anomaly_map, decision = forward(self, image)
        return score, anomaly_map.roll(1, dims=3), decision

    break_graph(monkeypatch, shifted)
    monkeypatch.setattr(Detector, "parity_remedy", "train it otherwise")
    with pytest.raises(ParityError, match=r"nothing is written.*: train it otherwise$"):
        export(finished / "run", "onnx", tmp_path / "broken.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("allowed", [0, 1000])  # of a lower precision
def test_an_artifact_that_decides_otherwise_is_not_written(finished, tmp_path, monkeypatch, allowed):
    def opposite(self, image, forward):
        score, anomaly_map, decision = forward(self, image)
        return score, anomaly_map, ~decision

    break_graph(monkeypatch, opposite)
    with pytest.raises(ParityError, match=r"decisions changed"):
        export(finished / "run", "onnx", tmp_path / "broken.onnx", max_changed_decisions=allowed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_half_precision_is_smaller_and_measured(finished, artifacts, tmp_path, kind):
    done = export(finished / "run", kind, tmp_path / f"half{exporting.SUFFIXES[kind]}", "float16")
    assert 1e-6 < done.parity.score < 1e-2
    assert done.size < 0.8 * artifacts[kind].size
    assert read_artifact(done.path).metadata["precision"] == "float16"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_eight_bits_are_measured_and_changed_decisions_limited(finished, tmp_path, monkeypatch, kind):
    out = tmp_path / f"small{exporting.SUFFIXES[kind]}"
    done = export(finished / "run", kind, out, "int8", max_changed_decisions=1000)
    assert 1e-4 < done.parity.score < 0.5
    assert AnomalyDetector.load(out)(images(finished)[0]).score > 0
    changed = done.parity._replace(changed=[finished / "a.png", finished / "b.png"])
    monkeypatch.setattr(exporting, "compare", lambda *_: changed)
    with pytest.raises(ParityError, match=r"int8 changes more decisions than --max-changed-decisions=1: .*a\.png"):
        export(finished / "run", kind, tmp_path / f"none{exporting.SUFFIXES[kind]}", "int8", max_changed_decisions=1)
    assert not list(tmp_path.glob("none*"))
    export(finished / "run", kind, tmp_path / f"two{exporting.SUFFIXES[kind]}", "int8", max_changed_decisions=2)


def test_images_that_were_moved_are_found_below_another_root(finished, tmp_path):
    with pytest.raises(DataError, match=r"none of its \d+ images is below .*elsewhere.*--root FOLDER"):
        export(finished / "run", out=tmp_path / "a.onnx", root=tmp_path / "elsewhere")
    (tmp_path / "moved").symlink_to(finished)
    assert export(finished / "run", out=tmp_path / "a.onnx", root=tmp_path / "moved").parity.images > 10


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"kind": "tensorrt"}, "--format=tensorrt: choose onnx, openvino, torch"),
        ({"precision": "int4"}, "--precision=int4: choose float32, float16, int8"),
        ({"kind": "torch", "precision": "int8"}, "--precision=int8 is for --format onnx or openvino"),
        ({"out": "model.bin"}, r"--out=model.bin: an artifact of --format onnx is a file that ends with \.onnx"),
        ({"max_changed_decisions": -1}, "--max-changed-decisions=-1: choose 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(finished, given, told):
    settings: dict[str, Any] = {name: Path(v) if name == "out" else v for name, v in given.items()}
    with pytest.raises(ConfigError, match=told):
        export(finished / "run", **settings)


def test_a_version_with_new_thresholds_is_exported_with_these(finished, artifacts, tmp_path):
    rng = np.random.default_rng(9)
    for number in range(30):
        write_image(tmp_path / f"good/{number:03}.png", rng)
    done = calibrate(finished / "run", good_images(tmp_path / "good"), tmp_path / "good", tmp_path / "newer")
    version, artifact = AnomalyDetector.load(done.folder), AnomalyDetector.load(export(done.folder).path)
    assert artifact.image_threshold == version.image_threshold
    assert artifact.image_threshold != AnomalyDetector.load(artifacts["onnx"].path).image_threshold
    np.testing.assert_array_equal(
        artifact.scorer.calibration.image_scores, version.scorer.calibration.image_scores.astype(np.float64)
    )
    assert isinstance(artifact.scorer, ArtifactScorer)
    assert artifact.scorer.metadata["calibrations"] == done.history
    (decided,) = artifact.scorer.run([artifact.scorer.prepare(images(finished)[0])])["is_anomalous"]
    assert decided == version(images(finished)[0]).is_anomalous


def test_images_in_tiles_are_refused(finished, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        run(
            tiny(finished, tmp_path / "tiled", "data.crop=null", "data.fit=tiles", "data.tiles={side: 32, overlap: 16}")
        )
    with pytest.raises(
        ConfigError, match=r"tiled looks at images in tiles \(data.fit=tiles\), which cannot be exported"
    ):
        export(tmp_path / "tiled")
    assert not list(tmp_path.rglob("model.*"))


def test_a_missing_package_is_named_with_its_extra(finished, artifacts, monkeypatch):
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name.startswith("onnx") else find(name))
    with pytest.raises(ConfigError, match=r"--format=onnx needs onnx, .* pip install 'oddpatch\[onnx\]'"):
        export(finished / "run")
    with pytest.raises(ConfigError, match=r"needs onnxruntime, .* pip install 'oddpatch\[onnx\]'"):
        AnomalyDetector.load(artifacts["onnx"].path)
