import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from oddpatch.errors import DataError, OddpatchError
from oddpatch.metrics import (
    NonFiniteScoreError,
    UndefinedMetricError,
    auroc,
    auroc_by_type,
    average_precision,
    f1_max,
    rank,
)


@st.composite
def scored(draw):
    """Scores with many ties, and labels of both classes."""
    pairs = draw(st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1)), min_size=2, max_size=60))
    scores, labels = np.array(pairs).T
    labels[:2] = (0, 1)
    return (scores * draw(st.sampled_from([0.1, 1.0, 1e4]))).astype(draw(st.sampled_from(["f4", "f8"]))), labels


def brute_force_f1(scores, labels):
    best = max((f1_score(labels, scores >= threshold), threshold) for threshold in np.unique(scores))
    return float(best[0]), float(best[1])


@settings(deadline=None)
@given(scored())
def test_agrees_with_scikit_learn_however_many_ties(data):
    scores, labels = data
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(scored())
def test_f1_max_is_the_best_of_all_thresholds_and_the_highest_of_equals(data):
    assert f1_max(*data) == pytest.approx(brute_force_f1(*data), abs=1e-12)


def test_of_equally_good_thresholds_the_highest_is_given():
    # Both thresholds 3 and 2 give F1 = 2/3: one of two found without a false alarm, or two with two.
    assert f1_max([3.0, 2.0, 2.0, 2.0, 1.0], [1, 1, 0, 0, 0]) == (pytest.approx(2 / 3), 3.0)


@settings(deadline=None, max_examples=50)
@given(scored())
def test_only_the_order_of_the_scores_matters(data):
    scores, labels = data[0].astype(np.float64), data[1]
    for moved in (scores * 3 - 7, np.arctan(scores / 1e3), np.cbrt(scores)):
        assert auroc(moved, labels) == auroc(scores, labels)
        assert average_precision(moved, labels) == average_precision(scores, labels)
        assert f1_max(moved, labels)[0] == f1_max(scores, labels)[0]


def test_large_raw_scores_are_not_squashed():
    scores, labels = [100.0, 101.0, 102.0, 103.0], [0, 0, 1, 1]
    assert auroc(scores, labels) == average_precision(scores, labels) == 1.0
    assert f1_max(scores, labels) == (1.0, 102.0)


def test_more_pairs_than_32_bits_can_count():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100_000)
    scores = (generator.normal(size=200_000) + labels).astype(np.float32)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_zero_and_minus_zero_are_a_tie():
    assert auroc([0.0, -0.0], [0, 1]) == auroc([-0.0, 0.0], [0, 1]) == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_takes_tensors_of_any_type(dtype):
    scores, labels = torch.tensor([3, 1, 2, 2], dtype=dtype), torch.tensor([1, 0, 1, 0])
    assert auroc(scores, labels) == 0.875


def test_float64_and_large_integers_keep_their_order():
    assert auroc(np.array([1.0, 1.0 + 1e-12]), [0, 1]) == 1.0
    assert auroc(np.array([2**24, 2**24 + 1]), [0, 1]) == 1.0


@pytest.mark.parametrize("metric", [auroc, average_precision, f1_max])
@pytest.mark.parametrize(("labels", "counts"), [([0, 0], "2 and 0"), ([1, 1], "0 and 2"), ([], "0 and 0")])
def test_one_class_is_undefined_and_says_so_in_one_line(metric, labels, counts):
    with pytest.raises(UndefinedMetricError, match=counts) as caught:
        metric(np.arange(len(labels), dtype=np.float32), labels)
    assert isinstance(caught.value, OddpatchError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_without_a_rank_are_refused(bad):
    with pytest.raises(NonFiniteScoreError, match=r"2 of 4 .* position 1"):
        rank([0.0, bad, 1.0, bad], [0, 0, 1, 1])


def test_wrong_labels_and_shapes_are_refused():
    with pytest.raises(DataError, match="hold 255"):
        rank([0.0, 1.0], [0, 255])
    with pytest.raises(DataError, match=r"\(2,\) and labels \(3,\)"):
        rank([0.0, 1.0], [0, 1, 1])


def test_auroc_by_type_compares_each_type_with_all_good():
    types = ["good", "crack", "good", "hole", "crack", "hole"]
    scores = np.array([1.0, 2.0, 3.0, 0.5, 4.0, 5.0])
    expected = {
        name: roc_auc_score([t == name for t in types if t in ("good", name)], scores[np.isin(types, ["good", name])])
        for name in ("crack", "hole")
    }
    assert auroc_by_type(scores, types) == (pytest.approx(expected), {})


def test_auroc_by_type_without_good_images_gives_reasons():
    values, absent = auroc_by_type([1.0, 2.0], ["crack", "hole"], good="ok")
    assert values == {}
    assert absent == dict.fromkeys(["crack", "hole"], "no image of type 'ok' to compare with")


def test_a_label_that_is_neither_good_nor_anomalous_is_refused():
    with pytest.raises(DataError, match="labels hold 2: give 0 for good and 1 for anomalous"):
        rank([0.1, 0.2], [0, 2])


def test_defect_types_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r"scores \(2,\) and defect_types \(1,\) must both be of one shape \(N,\)"):
        auroc_by_type([0.1, 0.2], ["good"])
