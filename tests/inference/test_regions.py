"""Anomalous regions against scipy's labelling, merging, and maps that are not known everywhere."""

import numpy as np
from scipy import ndimage

from oddpatch.inference.regions import find_regions


def test_regions_are_those_of_scipy():
    rng = np.random.default_rng(0)
    anomaly_map = ndimage.gaussian_filter(rng.normal(size=(80, 120)), 3)
    threshold = float(np.quantile(anomaly_map, 0.9))
    regions, mask = find_regions(anomaly_map, threshold)
    labels, count = ndimage.label(anomaly_map > threshold, np.ones((3, 3)))
    assert len(regions) == count > 5
    np.testing.assert_array_equal(mask > 0, labels > 0)
    wanted = set()
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        values = anomaly_map[labels == label]
        box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        wanted.add((box, values.size, round(values.max(), 9), round(values.mean(), 9)))
    assert {(r.box, r.area, round(r.peak, 9), round(r.mean, 9)) for r in regions} == wanted
    assert [r.peak for r in regions] == sorted((r.peak for r in regions), reverse=True)


def test_small_regions_are_left_out():
    anomaly_map = np.zeros((20, 20))
    anomaly_map[2:4, 2:4], anomaly_map[10:15, 10:15] = 5, 3
    regions, mask = find_regions(anomaly_map, 1, min_area=5)
    assert [r.area for r in regions] == [25]
    assert mask.sum() == 25 * 255
    assert regions[0].contours == [[(10, 10), (10, 14), (14, 14), (14, 10)]]


def test_pixels_that_meet_at_a_corner_are_one_region_and_the_least_area_is_enough():
    anomaly_map = np.zeros((6, 6))
    anomaly_map[2, 2] = anomaly_map[3, 3] = 1
    assert [r.area for r in find_regions(anomaly_map, 0.5, min_area=2)[0]] == [2]
    assert find_regions(anomaly_map, 0.5, min_area=3)[0] == []


def test_near_regions_merge_at_exactly_the_distance():
    for gap in range(1, 7):
        anomaly_map = np.zeros((9, 30))
        anomaly_map[3:6, 4:8], anomaly_map[3:6, 8 + gap : 12 + gap] = 2, 4
        for distance in range(7):
            regions, _ = find_regions(anomaly_map, 1, merge_distance=distance)
            assert len(regions) == (1 if gap <= distance else 2), (gap, distance)
            assert sum(r.area for r in regions) == 24
    regions, _ = find_regions(anomaly_map, 1, merge_distance=6)
    assert regions[0].box == (4, 3, 14, 3)
    assert len(regions[0].contours) == 2


def test_what_is_not_known_is_not_odd():
    anomaly_map = np.full((8, 8), np.nan)
    anomaly_map[2:4, 2:4] = 7
    regions, mask = find_regions(anomaly_map, 1)
    assert [r.area for r in regions] == [4]
    assert (mask > 0).sum() == 4
    assert find_regions(np.full((8, 8), np.nan), 1)[0] == []
