"""The detector of a finished run gives the numbers of its test, whatever form the image comes in."""

import csv

import numpy as np
import pytest
import torch
from conftest import make_dataset, use_tiny_backbone
from PIL import Image
from test_pipeline import run, tiny

from oddpatch import AnomalyDetector, factory
from oddpatch.errors import ConfigError, DataError
from oddpatch.inference.detector import to_tensor


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of images of 48x48, resized to 40 and cropped to 32, whose folder is all that is left of it."""
    root = tmp_path_factory.mktemp("inference")
    make_dataset(root, good=45)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_backbone(patch)
        run(tiny(root, root / "run", "data.resize=40"))
        yield root


@pytest.fixture(scope="module")
def detector(finished):
    return AnomalyDetector.load(finished / "run")


def rows(finished):
    with (finished / "run/predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_numbers_are_those_of_the_test_loop(finished, detector):
    tested = rows(finished)
    results = detector([row["path"] for row in tested])
    for row, result in zip(tested, results, strict=True):
        assert result.score == pytest.approx(float(row["score"]), rel=1e-6)
        assert result.p_value == pytest.approx(float(row["p_value"]), rel=1e-6)
        assert result.is_anomalous == bool(int(row["is_anomalous"]))
        assert (result.anomaly_score > 0.5) == result.is_anomalous
    assert any(result.is_anomalous for result in results)
    assert not all(result.is_anomalous for result in results)


def test_every_form_of_an_image_gives_the_same(finished, detector):
    path = finished / "tile/test/spot/000.png"
    picture = Image.open(path)
    array = np.array(picture)
    wanted = detector(path)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for form in (str(path), picture, array, array.astype(np.float32) / 255, tensor, tensor.float() / 255):
        assert detector(form).score == pytest.approx(wanted.score, rel=1e-6)
    grey = np.array(picture.convert("L"))
    assert detector(grey).score == pytest.approx(detector(np.repeat(grey[..., None], 3, 2)).score, rel=1e-6)


def test_a_list_equals_one_by_one_and_may_mix_sizes(finished, detector):
    paths = sorted((finished / "tile/test/spot").iterdir())
    images = [*paths, Image.open(paths[0]).resize((96, 64))]
    together = detector(images)
    for image, result in zip(images, together, strict=True):
        assert detector(image).score == pytest.approx(result.score, rel=1e-5)
    assert [result.anomaly_map.shape for result in together] == [(48, 48)] * 4 + [(64, 96)]


def test_map_mask_and_regions_lie_on_the_image(finished, detector):
    path = finished / "tile/test/spot/000.png"
    result = detector(path)
    assert result.anomaly_map.shape == result.mask.shape == (48, 48)
    outside = np.isnan(result.anomaly_map)
    assert outside[0].all()  # the crop took 40 of 48 pixels' worth
    assert not outside[8:40, 8:40].any()
    truth = np.array(Image.open(finished / "tile/ground_truth/spot/000_mask.png")) > 0
    assert result.regions
    left, top, width, height = result.regions[0].box
    rows, columns = np.nonzero(truth)
    assert left <= columns.mean() <= left + width
    assert top <= rows.mean() <= top + height
    assert (result.mask > 0).sum() == sum(region.area for region in result.regions)
    np.testing.assert_array_equal(result.mask > 0, result.normalized_map > 0.5)


def test_thresholds_can_be_chosen(finished, detector):
    good = finished / "tile/test/good/000.png"
    assert AnomalyDetector.load(finished / "run", threshold=0.0)(good).is_anomalous is True
    loose = AnomalyDetector.load(finished / "run", target_fpr=0.3)
    assert loose.image_threshold < detector.image_threshold
    with pytest.raises(
        ConfigError, match=r"threshold='validation': the run has conformal; train again with .data.validation"
    ):
        AnomalyDetector.load(finished / "run", threshold="validation")
    with pytest.raises(ConfigError, match=r"device='cuda:77' cannot be used"):
        AnomalyDetector.load(finished / "run", device="cuda:77")


def test_exactly_at_a_threshold_nothing_is_found(finished):
    paths = [finished / "tile/test/good/000.png", finished / "tile/test/spot/000.png"]
    for path in paths:
        seen = AnomalyDetector.load(finished / "run")(path)
        highest = float(np.nanmax(seen.anomaly_map))
        at = AnomalyDetector.load(finished / "run", threshold=seen.score, pixel_threshold=highest)(path)
        assert (at.is_anomalous, at.regions, at.anomaly_score) == (False, [], 0.5)
        assert not at.mask.any()
        below = {
            "threshold": np.nextafter(seen.score, 0),
            "pixel_threshold": float(np.nextafter(np.float32(highest), np.float32(0))),
        }
        under = AnomalyDetector.load(finished / "run", **below)(path)
        assert under.is_anomalous
        assert len(under.regions) == 1


def test_scores_are_scaled_by_the_median_of_good_images(finished):
    model, _ = factory.restore(finished / "run")
    calibration = model.calibration
    for name in ("image_scores", "pixel_scores", "image_index"):  # of an even number the median lies between two
        setattr(calibration, name, getattr(calibration, name)[1:])
    detector = AnomalyDetector(model)
    result = detector(finished / "tile/test/good/001.png")
    for scores, threshold, value, scaled in (
        (calibration.image_scores, detector.image_threshold, result.score, result.anomaly_score),
        (calibration.pixel_scores, detector.pixel_threshold, result.anomaly_map, result.normalized_map),
    ):
        assert len(scores) % 2 == 0
        typical = np.median(scores.numpy())
        assert abs(typical - scores.mean()) > 1e-3 * typical
        ratio = (value - threshold) / (threshold - typical)
        np.testing.assert_allclose(scaled, 0.5 * (1 + ratio / (1 + abs(ratio))), rtol=1e-5)


def test_two_detectors_of_one_model_do_not_disturb_each_other(finished):
    model, _ = factory.restore(finished / "run")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings, described = dict(vars(model.calibration)), model.calibration.describe()
    one = AnomalyDetector(model)
    first = (one.image_threshold, one.pixel_threshold)
    loose = AnomalyDetector(model, target_fpr=0.3)
    assert loose.image_threshold < first[0]
    assert loose.pixel_threshold < first[1]
    again = AnomalyDetector(model)
    assert (one.image_threshold, one.pixel_threshold) == (again.image_threshold, again.pixel_threshold) == first
    assert model.calibration.describe() == described
    assert dict(vars(model.calibration)) == settings
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    for module in (model, model.detector):
        module.train()
    AnomalyDetector(model)
    assert model.training
    assert model.detector.fitted.device.type == "cpu"


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (np.zeros((4, 4, 4, 3), np.uint8), "image"),
        (np.full((40, 40), 3.0), "not all in"),
        (torch.zeros(40, 40), "give .3, H, W."),
        (42, "int is no image"),
        ("nowhere.png", "str is no image"),
    ],
)
def test_what_is_no_image_is_refused(bad, told):
    with pytest.raises(DataError, match=told):
        to_tensor(bad)


def test_a_region_that_must_be_larger_than_the_image_is_told(finished):
    path = finished / "tile/test/spot/000.png"
    assert AnomalyDetector.load(finished / "run", min_area=48 * 48)(path).regions == []
    with pytest.raises(DataError, match=r"min_area=2305, but the image has 48 x 48 pixels, .*: choose up to 2304"):
        AnomalyDetector.load(finished / "run", min_area=48 * 48 + 1)(path)
