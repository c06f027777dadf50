import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from oddpatch.metrics import UndefinedMetricError, precision_recall_curve, rank_pixels, roc_curve
from oddpatch.metrics.curves import thin

scored = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), max_size=40).map(
    lambda pairs: np.array([*pairs, (0, 0), (1, 1)], dtype=np.float32).T
)


@settings(deadline=None)
@given(scored)
def test_curves_are_those_of_scikit_learn(data):
    scores, labels = data
    for ours, theirs in (
        (roc_curve(scores, labels), sklearn_metrics.roc_curve(labels, scores)),
        (precision_recall_curve(scores, labels), sklearn_metrics.precision_recall_curve(labels, scores)),
    ):
        for mine, reference in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, reference, atol=1e-12)


def test_one_distinct_score_gives_the_diagonal():
    fpr, tpr, thresholds = roc_curve([5.0, 5.0], [0, 1])
    np.testing.assert_array_equal([fpr, tpr, thresholds], [[0, 1], [0, 1], [np.inf, 5]])


@pytest.mark.parametrize("curve", [roc_curve, precision_recall_curve])
def test_one_class_is_undefined(curve):
    with pytest.raises(UndefinedMetricError, match="2 and 0"):
        curve([0.0, 1.0], [0, 0])


@pytest.fixture(params=["distinct", "ties"])
def pixels(request):
    generator = np.random.default_rng(0)
    masks = (generator.random((3, 40, 50)) < 0.1).astype(np.uint8)
    maps = (generator.normal(size=masks.shape) + masks).astype(np.float32)
    return (maps if request.param == "distinct" else np.round(maps)), masks


def test_pixel_curves_pass_through_every_point_of_scikit_learns(pixels):
    maps, masks = pixels
    ranking = rank_pixels(maps, masks)
    fpr, tpr, _ = sklearn_metrics.roc_curve(masks.ravel(), maps.ravel(), drop_intermediate=False)
    x, y = ranking.roc_curve(max_points=10**6)
    assert distance_to_polyline(fpr, tpr, x, y) < 1e-12
    precision, recall, _ = sklearn_metrics.precision_recall_curve(masks.ravel(), maps.ravel())
    x, y = ranking.precision_recall_curve(max_points=10**6)
    found = recall > 0  # scikit-learn adds (0, 1), which is no threshold's
    assert distance_to_polyline(recall[found], precision[found], x, y) < 1e-12


@pytest.mark.parametrize("max_points", [10, 100, 1000])
def test_thinning_keeps_to_the_shape(pixels, max_points):
    ranking = rank_pixels(*pixels)
    for curve in (ranking.roc_curve, ranking.pro_curve, ranking.precision_recall_curve):
        exact, thinned = curve(10**6), curve(max_points)
        length = np.abs(np.diff(exact)).sum()
        assert len(thinned[0]) <= max_points + 1
        assert set(zip(*thinned, strict=True)) <= set(zip(*exact, strict=True))
        assert [thinned[0][0], thinned[1][0], thinned[0][-1], thinned[1][-1]] == [
            *(exact[0][0], exact[1][0], exact[0][-1], exact[1][-1])
        ]
        assert distance_to_polyline(*exact, *thinned) <= length / (max_points - 1)


def test_a_short_curve_is_left_alone():
    x, y = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])
    np.testing.assert_array_equal(thin(x, y, 3), (x, y))


def distance_to_polyline(px, py, x, y):
    """Largest Euclidean distance of points (px, py) from the polyline (x, y)."""
    start, step = np.stack([x[:-1], y[:-1]]), np.stack([np.diff(x), np.diff(y)])  # (2, S)
    squared = np.maximum((step**2).sum(axis=0), 1e-300)
    largest = 0.0
    for point in zip(px, py, strict=True):
        offset = np.array(point)[:, None] - start  # (2, S)
        along = np.clip((offset * step).sum(axis=0) / squared, 0, 1)
        largest = max(largest, float(np.hypot(*(offset - along * step)).min()))
    return largest
