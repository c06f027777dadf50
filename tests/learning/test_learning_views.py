"""Runs on several views of each training image."""

from pathlib import Path

import pytest
import torch
from conftest import use_tiny_backbone
from methods import SIZE, features, make
from test_pipeline import run, tiny

from oddpatch.errors import ConfigError
from oddpatch.inference.explain import restore_memory_bank

TURNED = "data.views={rotations:[90,180,270]}"


@pytest.fixture
def tiny_backbone(monkeypatch):
    use_tiny_backbone(monkeypatch)


@pytest.mark.usefixtures("tiny_backbone")
def test_all_views_are_fitted_to_and_the_image_itself_is_scored(tiles, tmp_path):
    settings = ["model=anomalydino", "model.finest_stride=1", "calibration=leave_one_out"]
    plain, job = (run(tiny(tiles, tmp_path / name, *settings, *more)) for name, more in (("a", []), ("b", [TURNED])))
    plain, turned = plain.module, job.module
    source = turned.model.detector.source[0, :, 0]
    assert len(source) == 4 * len(plain.model.detector.source[0])
    assert source.unique().tolist() == list(range(turned.num_fitted))
    assert turned.num_fitted == plain.num_fitted == len(turned.model.calibration.image_scores)
    calibration, model = turned.model.calibration, turned.model
    for score, index in zip(calibration.image_scores, calibration.image_index, strict=True):
        with torch.no_grad():
            image = job.data.train_image(int(index))[None]
            own = model.detector.score_left_out(model.backbone(image), index[None], model.preprocess.image_size)
        assert own.score.item() == pytest.approx(score.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["anomalydino", "rad"])
def test_an_image_is_left_out_with_all_of_its_views(name):
    maps = features(8)
    index = torch.arange(4).repeat_interleave(2)
    whole = make(name, finest_stride=4)
    assert whole.leaves_out_all_views
    whole.update(maps, index)
    whole.fit()
    without = make(name, finest_stride=4)
    without.update([m[2:] for m in maps], index[2:])
    without.fit()
    first = [m[:1] for m in maps]
    found, expected = whole.score_left_out(first, index[:1], SIZE), without(first, SIZE)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map)
    torch.testing.assert_close(found.score, expected.score)


@pytest.mark.usefixtures("tiny_backbone")
def test_methods_that_do_not_tell_views_apart_are_fitted_to_folds(tiles, tmp_path, caplog):
    done = run(tiny(tiles, tmp_path, "model=patchcore", "calibration=leave_one_out", TURNED))
    assert "PatchCore cannot leave one image out" in caplog.text
    assert len(done.module.model.calibration.image_scores) == done.module.num_fitted
    with pytest.raises(ConfigError, match=r"fitted to altered views too, which explain cannot show or add"):
        restore_memory_bank(Path(tmp_path), (), "explain")


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=spade"], r"SPADE keeps one row of each image.*: set data\.views=null"),
        (["cache=features"], "altered training images are not worth keeping: set cache=null"),
    ],
)
def test_views_that_would_not_be_used_are_refused(tiles, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(tiny(tiles, tmp_path, TURNED, *settings))
