"""What every method of configs/model promises; a new one is found here by its YAML."""

import io
from typing import Any

import pytest
import torch
from methods import (
    CHANNELS,
    FITTED,
    INSPECTING_REGIONS,
    METHODS,
    SETTINGS,
    SIZE,
    STRIDES,
    config,
    features,
    fit,
    make,
    plant,
)
from torch.profiler import ProfilerActivity, profile

from oddpatch.errors import ConfigError, NotFittedError
from oddpatch.models.base import Detector
from oddpatch.models.state import Rows


@pytest.fixture(params=METHODS, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(name):
    return fit(make(name))


def require_equal(found, expected, rtol=1e-5, atol=1e-5):
    torch.testing.assert_close(found.score, expected.score, rtol=rtol, atol=atol)
    assert (found.anomaly_map is None) == (expected.anomaly_map is None)
    if expected.anomaly_map is not None:
        torch.testing.assert_close(found.anomaly_map, expected.anomaly_map, rtol=10 * rtol, atol=atol)


def test_shapes_and_finite_values(fitted):
    score, anomaly_map = fitted(features(5, seed=1), SIZE)
    assert score.shape == (5,)
    assert score.dtype == torch.float32
    assert torch.isfinite(score).all()
    assert (anomaly_map is not None) == fitted.localizes
    if anomaly_map is not None:
        assert anomaly_map.shape == (5, 1, *SIZE)
        assert anomaly_map.dtype == torch.float32
        assert torch.isfinite(anomaly_map).all()


def test_four_at_once_equal_four_singles(fitted):
    test = features(4, seed=1)
    together = fitted(test, SIZE)
    for i in range(4):
        single = fitted([f[i : i + 1] for f in test], SIZE)
        part = type(single)(*(None if value is None else value[i : i + 1] for value in together))
        require_equal(single, part)


@pytest.mark.parametrize(("batch", "seed"), [(1, 1), (5, 2)])
def test_neither_the_order_of_images_nor_the_batch_matters(name, fitted, batch, seed):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    require_equal(fit(make(name), batch=batch, order=order)(features(4, seed=1), SIZE),
                  fitted(features(4, seed=1), SIZE), rtol=1e-4)  # fmt: skip


def test_a_planted_defect_scores_higher_and_is_found(fitted):
    good, anomalous = features(6, seed=2), features(6, seed=2)
    plant(anomalous, 1, 2)
    of_good, of_anomalous = fitted(good, SIZE), fitted(anomalous, SIZE)
    assert of_anomalous.score.min() > of_good.score.max()
    if of_anomalous.anomaly_map is not None:
        peaks = of_anomalous.anomaly_map.flatten(1).argmax(1)
        rows, columns = peaks // SIZE[1], peaks % SIZE[1]
        assert ((rows >= 12) & (rows < 36)).all()
        assert ((columns >= 28) & (columns < 52)).all()


def test_save_and_load_give_the_same_scores_to_the_bit(name, fitted):
    file = io.BytesIO()
    torch.save(fitted.state_dict(), file)
    file.seek(0)
    loaded = make(name)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    test = features(3, seed=3)
    require_equal(loaded(test, SIZE), fitted(test, SIZE), rtol=0, atol=0)


def test_scoring_before_fit_is_refused(name):
    with pytest.raises(NotFittedError, match=r"call update\(\).*fit\(\)"):
        make(name)(features(1), SIZE)


def test_nothing_accumulated_is_left_after_fit(fitted):
    for part in fitted.detectors_within:
        for accumulator in part.accumulators:
            accumulator.probing = False
            assert accumulator.required(100) == 0


@pytest.mark.parametrize("name", FITTED)
def test_it_can_be_fitted_on_several_devices(name):
    make(name).require_mergeable()


# -- what a method that is not written to the contract is told --------------------------------------------------------


class Foreign(Detector):
    """A method whose author has thought of nothing but the three functions."""

    def __init__(self, channels, strides, kept="list"):
        super().__init__(channels, strides)
        self.rows = Rows()
        self.kept, self.counts = [], 0
        self.register_buffer("sum", torch.zeros(()))
        self.keeps = kept

    def update(self, features, index):
        if self.keeps == "list":
            self.kept.append(features[0])
        elif self.keeps == "count":
            self.counts += len(index)
        elif self.keeps == "buffer":
            self.sum += features[0].sum()
        self.rows.add(index, features[0])

    def fit(self, progress=None): ...
    def forward(self, features, image_size): ...


@pytest.mark.parametrize(("keeps", "named"), [("list", "kept"), ("count", "counts"), ("buffer", "sum")])
def test_state_outside_of_accumulators_is_refused_on_several_devices(keeps, named):
    detector = Foreign(CHANNELS, STRIDES, keeps)
    with pytest.raises(ConfigError, match=f"as it keeps {named} outside of accumulators: set trainer=default"):
        detector.require_mergeable()
    assert detector.kept == []
    Foreign(CHANNELS, STRIDES, "rows").require_mergeable()


def test_a_method_without_an_accumulator_is_refused_on_several_devices():
    detector: Any = Foreign(CHANNELS, STRIDES, "rows")
    detector.rows = None
    detector.update = lambda features, index: None
    with pytest.raises(ConfigError, match="Foreign cannot be fitted on several devices, as it keeps no accumulator"):
        detector.require_mergeable()


def test_a_method_that_does_not_look_at_regions_is_refused():
    with pytest.raises(ConfigError, match=r"Foreign cannot leave out what lies outside data\.roi: set data.roi=null"):
        Foreign(CHANNELS, STRIDES).restrict(torch.ones(SIZE, dtype=torch.bool))


def test_leaving_out_is_refused_by_default():
    assert not Foreign(CHANNELS, STRIDES).leaves_out
    with pytest.raises(ConfigError, match="Foreign cannot leave an image out: set calibration=cross"):
        Foreign(CHANNELS, STRIDES).score_left_out(features(1), torch.tensor([0]), SIZE)


@pytest.mark.parametrize(
    ("name", "settings", "draws"),
    [
        ("anomalydino", {}, False),
        ("anomalydino", {"reduced_dim": 4}, True),
        ("procon", {}, True),
        ("superadd", {"coreset_size": 300}, True),
        ("padim", {}, True),
        ("padim", {"num_features": None}, False),
        ("padim", {"num_features": None, "reduction": "semi_orthogonal"}, False),
        ("patchcore", {}, True),
        ("patchcore", {"selector": "none"}, False),
        ("lunar", {}, True),
    ],
)
def test_a_method_says_whether_another_seed_gives_another_fit(name, settings, draws):
    first, second = (make(name, seed=seed, **settings) for seed in (0, 1))
    assert type(first).draws({**config(name).model, **SETTINGS.get(name, {}), **settings}) is draws
    one, other = (fit(detector)(features(4, seed=7), SIZE).anomaly_map for detector in (first, second))
    assert torch.equal(one, other) is not draws


# -- memory -----------------------------------------------------------------------------------------------------------


def allocated_at_the_peak(action):
    """Bytes that torch held at most during `action` beyond those at its start, from the events of its allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        action()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


#: Large enough that what does not grow with the data does not count, small enough to be fitted in seconds.
WIDE: dict[str, Any] = {"channels": [128, 256], "strides": [8, 16], "size": 256, "images": 40}
WIDE_SETTINGS: dict[str, dict[str, Any]] = {
    "padim": {"num_features": 100},
    "patchcore": {"coreset_ratio": 0.02, "finest_stride": 8},
    "patchcore_ensemble": {"maps": [1, 1], "member": {"coreset_ratio": 0.02, "finest_stride": 8}},
}


#: Images of methods that compare each with others: their time grows with the square of the number.
FEWER = {"musc": 14, "procon": 20}
#: Those whose fit to so many patches takes seconds.
LONG = {"lunar", "mh_patchcore", "musc", "patchcore_ensemble", "procon"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in FITTED])
def test_the_estimate_of_memory_is_within_a_fifth_of_the_peak(name):
    channels, strides, images = WIDE["channels"], WIDE["strides"], FEWER.get(name, WIDE["images"])
    detector = make(name, channels, strides, **WIDE_SETTINGS.get(name, {}))
    shapes = [(c, WIDE["size"] // s, WIDE["size"] // s) for c, s in zip(channels, strides, strict=True)]
    needed, remedy = detector.required_memory(shapes, images)
    drawn = torch.Generator().manual_seed(0)
    # Like features of a network, few of their directions hold most of the variance.
    scales = [torch.linspace(0, -6, shape[0]).exp()[:, None, None] for shape in shapes]
    maps = [torch.randn(images, *s, generator=drawn) * scale for s, scale in zip(shapes, scales, strict=True)]

    def run():
        for i in range(images):
            detector.update([m[i : i + 1] for m in maps], torch.tensor([i]))
        detector.fit()
        detector([m[:1] for m in maps], (WIDE["size"], WIDE["size"]))

    peak = allocated_at_the_peak(run)
    # NumPy allocates the blocks of PaDiM, beside the covariances that they are made of: torch sees nothing of them.
    peak += sum(block.nbytes for block in getattr(detector, "blocks", []))
    assert 0.8 * peak <= needed <= 1.2 * peak
    assert remedy


@pytest.mark.parametrize("name", sorted({*FITTED} - {*INSPECTING_REGIONS}))
def test_a_method_that_looks_at_whole_images_refuses_a_region(name):
    with pytest.raises(ConfigError, match=r"cannot leave out what lies outside data\.roi: set data\.roi=null"):
        make(name).restrict(torch.ones(SIZE, dtype=torch.bool))
