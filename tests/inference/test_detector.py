"""The detector of a finished run gives the numbers of its test, whatever form the image comes in."""

import csv
import subprocess
import sys
import threading
import weakref
from contextlib import closing
from dataclasses import fields
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_dataset, use_tiny_backbone
from PIL import Image
from scoring import green_detector
from test_pipeline import run, tiny

from oddpatch import AnomalyDetector, Detection, factory
from oddpatch.data.decoding import to_rgb_planes
from oddpatch.errors import ConfigError, DataError, NameTooLongError, ResourceError
from oddpatch.inference.scorer import Prepared, Scored
from oddpatch.inference.sources import Files, Frame
from oddpatch.inference.torch_scorer import to_tensor
from oddpatch.metrics.good_scores import GoodScores


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


def test_without_maps_all_else_is_the_same_and_good_images_are_not_laid_out(finished, detector, monkeypatch):
    paths = [row["path"] for row in rows(finished)]
    lay_out, calls = detector.scorer.lay_out, []

    def lay_out_and_note(*given):
        calls.append(given)
        return lay_out(*given)

    monkeypatch.setattr(detector.scorer, "lay_out", lay_out_and_note)
    full = [result for _, result in detector.stream(paths, 4)]
    calls.clear()
    bare = [result for _, result in detector.stream(paths, 4, maps=False)]
    anomalous = 0
    for one, other in zip(full, bare, strict=True):
        for field in fields(Detection):
            if field.name in ("anomaly_map", "normalized_map", "mask"):
                assert getattr(other, field.name) is None
                assert getattr(one, field.name) is not None
            elif field.name != "seconds":
                assert getattr(one, field.name) == getattr(other, field.name)
        anomalous += bool(one.regions)
    assert 0 < anomalous <= len(calls) < len(paths)


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


def test_detectors_leave_the_model_as_it_is(finished):
    model, _ = factory.restore(finished / "run")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings, described = dict(vars(model.calibration)), model.calibration.to_dict()
    settings_of_detectors: list[dict[str, Any]] = [{}, {"target_fpr": 0.3}, {"threshold": 0.0, "max_pixels": 10}]
    for wanted in settings_of_detectors:
        AnomalyDetector(model, **wanted)
        assert model.calibration.to_dict() == described
        assert dict(vars(model.calibration)) == settings
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    for module in (model, model.detector):
        module.train()
        AnomalyDetector(model)
        assert module.training
        model.eval()
    assert model.detector.fitted.device.type == "cpu"


def of(detector, path):
    """What tells detectors of different settings apart."""
    try:
        result = detector(path)
    except DataError as error:
        return str(error)
    return detector.image_threshold, detector.pixel_threshold, result.is_anomalous, [r.area for r in result.regions]


SETTINGS = [{}, {"target_fpr": 0.3}, {"max_pixels": 100}, {"threshold": 0.0, "pixel_threshold": 0.5, "min_area": 20}]


@pytest.mark.parametrize("order", [SETTINGS, SETTINGS[::-1]], ids=["forwards", "backwards"])
def test_two_detectors_of_one_model_do_not_disturb_each_other(finished, order):
    path = finished / "tile/test/spot/001.png"
    alone = [of(AnomalyDetector.load(finished / "run", **settings), path) for settings in order]
    assert len(set(map(str, alone))) == len(order)
    model, _ = factory.restore(finished / "run")
    together = [AnomalyDetector(model, **settings) for settings in order]
    assert [of(detector, path) for detector in together] == alone
    assert [of(detector, path) for detector in together[::-1]] == alone[::-1]


def same(one, other):
    """Whether two results agree to the last bit, but for the time they took."""
    for field in fields(Detection):
        if field.name != "seconds":
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


def test_a_stream_gives_each_image_or_its_error_in_order_to_the_last_bit(finished, tmp_path):
    detector = AnomalyDetector.load(finished / "run", min_area=600)
    (tmp_path / "broken.png").write_bytes(b"no image")
    small = tmp_path / "small.png"
    Image.new("RGB", (48, 12)).save(small)  # of fewer pixels than a region must have
    good = [*sorted((finished / "tile/test/spot").iterdir()), *sorted((finished / "tile/test/good").iterdir())]
    source = Files([str(good[0]), str(tmp_path), *map(str, good[1:]), "nowhere"])
    results = list(detector.stream((frame for frame in source), batch_size=3))
    assert [frame.name for frame, _ in results] == [frame.name for frame in source]
    told = {frame.name: str(result) for frame, result in results if isinstance(result, DataError)}
    assert list(told) == ["nowhere", str(tmp_path / "broken.png"), str(small)]
    assert told["nowhere"] == "nowhere: no such file or folder"
    assert told[str(small)].startswith(f"{small}: min_area=600")
    assert all(told[str(path)].startswith(f"{path}: ") for path in (tmp_path / "broken.png", small))
    found = [result for _, result in results if not isinstance(result, DataError)]
    # In batches as they come, with what could not be prepared left out.
    images = [detector.scorer.prepare(path) for path in (good[0], small, *good[1:])]
    batches = [images[:1], images[1:4], images[4:7], images[7:]]
    scores = [score for batch in batches for score, *_ in detector.scorer.score(batch)]
    assert [result.score for result in found] == [scores[0], *scores[2:]]
    for path, result in zip(good, found, strict=True):
        assert result.score == pytest.approx(detector(path).score, rel=1e-6)
    for one, other in zip(detector.stream(good, 1), map(detector, good), strict=True):
        same(one[1], other)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
@pytest.mark.parametrize("where", ["score", "map", "ratio", "refused"])
def test_a_score_that_is_no_number_is_the_error_of_its_image_alone(finished, where, batch_size, monkeypatch):
    detector = AnomalyDetector.load(finished / "run")
    paths = sorted((finished / "tile/test/good").iterdir())[:3] + sorted((finished / "tile/test/spot").iterdir())[:3]
    expected = detector(list(paths))
    odd = detector.scorer.prepare(paths[1]).pixels
    score = detector.scorer.score

    def with_nan(images):
        bad = [torch.equal(image.pixels, odd) for image in images]
        if where == "refused" and any(bad):
            raise DataError(f"row {bad.index(True)} holds NaN")
        return [_without_number(one, where) if it else one for one, it in zip(score(images), bad, strict=True)]

    monkeypatch.setattr(detector.scorer, "score", with_nan)
    found = [result for _, result in detector.stream(paths, batch_size)]
    told = (
        "holds NaN" if where == "refused" else "its score or map is NaN or infinite: check the weights of the backbone"
    )
    for path, result, other in zip(paths, found, expected, strict=True):
        if path == paths[1]:
            assert isinstance(result, DataError)
            assert str(result).startswith(f"{path}: ")
            assert told in str(result)
        else:
            assert isinstance(result, Detection)
            assert result.score == pytest.approx(other.score, rel=1e-6)
            assert result.is_anomalous == other.is_anomalous
    with pytest.raises(DataError, match=told):
        detector(paths[1])


def _without_number(scored, where):
    if where != "map":
        return scored._replace(**{where: float("nan")})
    anomaly_map = scored.anomaly_map.copy()
    anomaly_map[3, 4] = np.inf
    return scored._replace(anomaly_map=anomaly_map)


def test_a_stream_without_end_is_inspected_as_it_comes_and_ends_when_it_is_closed(finished, detector):
    image = np.array(Image.open(finished / "tile/test/spot/000.png"))
    taken = []

    def camera():
        for number in count():
            taken.append(number)
            yield Frame(f"camera 0, image {number}", DataError("no light") if number == 4 else image, time=number / 25)

    before = set(threading.enumerate())
    with closing(detector.stream(camera(), batch_size=1)) as results:
        first = list(islice(results, 10))
    assert [frame.time for frame, _ in first] == [number / 25 for number in range(10)]
    assert [number for number, (_, result) in enumerate(first) if isinstance(result, DataError)] == [4]
    assert len(taken) < 100
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


def test_of_large_images_no_two_are_in_memory_at_once():
    detector = green_detector()
    taken, images = [], [np.full((4, 4, 3), value, np.uint8) for value in (10, 250, 10)]

    def source():
        for number, image in enumerate(images):
            taken.append(number)
            yield image

    detector.scorer.settings["adapted"] = {"size": [6000, 8000]}
    expected = [detector(image).score for image in images]
    for place, (_, result) in enumerate(detector.stream(source(), batch_size=16)):
        assert taken == list(range(place + 1))
        assert result.score == expected[place]
    assert place == 2


def test_saving_is_part_of_the_stream_and_its_errors_are_those_of_the_image_or_of_all(finished, detector):
    good = sorted((finished / "tile/test/good").iterdir())
    saved = []

    def save(frame, image, detection):
        if frame.name == str(good[1]):
            raise NameTooLongError("its name is too long")
        saved.append((frame.name, tuple(image.shape), detection.score))

    results = list(detector.stream(good, 2, save))
    assert str(results[1][1]) == "its name is too long"
    del results[1]
    assert sorted(saved) == sorted((frame.name, (3, 48, 48), result.score) for frame, result in results)

    def full(*_):
        raise ResourceError("the disk is full")

    with pytest.raises(ResourceError, match="the disk is full"):
        list(detector.stream(good, 2, full))


class Brightness:
    """A scorer that knows neither torch nor a backbone."""

    def __init__(self, calibration):
        self.calibration, self.settings = calibration, {"roi": None, "fit": "stretch"}
        self.originals, self.held = [], 0

    def prepare(self, image, max_pixels=None):
        original = to_rgb_planes(image)
        self.originals.append(weakref.ref(original))
        return Prepared(original, original / np.float32(255), None, 1.0)

    def score(self, images):
        self.held = sum(original() is not None for original in self.originals)
        maps = [image.pixels.mean(axis=0) for image in images]
        return [Scored(float(brightness.max()), brightness) for brightness in maps]

    def lay_out(self, anomaly_map, image):
        return anomaly_map


@pytest.mark.parametrize("wanted", [False, True])
def test_pixels_are_held_only_for_who_saves_them(wanted):
    scores, saved = np.arange(9) / 20, []
    scorer = Brightness(GoodScores(scores, scores, np.nan, target_fpr=0.2, absent=None))
    images = [np.full((6, 8), level, np.uint8) for level in range(4)]
    save = (lambda frame, image, detection: saved.append(int(image.sum()))) if wanted else None
    results = [result for _, result in AnomalyDetector(scorer).stream(images, 4, save)]
    found = [result.light.brightness for result in results if isinstance(result, Detection)]
    assert found == [float(f"{level / 255:.6g}") for level in range(4)]
    assert scorer.held == (4 if wanted else 0)
    assert sorted(saved) == ([144 * level for level in range(4)] if wanted else [])


def test_any_scorer_will_do():
    scores = np.arange(9) / 20
    detector = AnomalyDetector(Brightness(GoodScores(scores, scores, np.nan, target_fpr=0.2, absent=None)))
    dark, spot = np.full((2, 6, 8), 30, np.uint8)
    spot[2:4, 5:7] = 255
    results = detector([dark, spot])
    assert [result.is_anomalous for result in results] == [False, True]
    assert all(0 < result.seconds < 60 for result in results)
    assert [region.box for region in results[1].regions] == [(5, 2, 2, 2)]
    good, odd = (result.p_value for result in results)
    assert good is not None
    assert odd is not None
    assert odd < 1 / 8 < good


@pytest.mark.slow
def test_loading_a_detector_loads_what_it_needs_and_no_more(finished):
    script = """
import sys
sys.path.insert(0, sys.argv[2])
import pytest, conftest
with pytest.MonkeyPatch.context() as patch:
    conftest.restore_tiny_backbone(patch)
    from oddpatch import AnomalyDetector
    AnomalyDetector.load(sys.argv[1])
unwanted = ("lightning", "pytorch_lightning", "hydra", "oddpatch.learning", "oddpatch.pipeline", "oddpatch.cli")
print([name for name in sys.modules if name.startswith(unwanted)])
"""
    command = [sys.executable, "-c", script, finished / "run", Path(__file__).parent.parent]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


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
