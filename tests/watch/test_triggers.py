"""When a frame is looked at."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddpatch.errors import ConfigError
from oddpatch.watch.triggers import Every, WhenStill


def chosen(trigger, times, images=None):
    images = [None] * len(times) if images is None else images
    return [number for number, (image, time) in enumerate(zip(images, times, strict=True)) if trigger(image, time)]


def test_every_so_often():
    assert chosen(Every(0.2), [k / 25 for k in range(26)]) == [0, 5, 10, 15, 20, 25]
    assert chosen(Every(0.1), [k / 25 for k in range(11)]) == [0, 3, 5, 8, 10]  # 0.1 lies between 0.08 and 0.12
    assert chosen(Every(0.01), [0, 1, 2, 2.001, 3]) == [0, 1, 2, 4]
    assert chosen(Every(1), [1000, 1000.5, 10, 10.5, 11]) == [0, 2, 4]  # the clock was set back


@given(gaps=st.lists(st.floats(0.001, 5), min_size=1, max_size=50), seconds=st.floats(0.01, 10))
def test_every_mark_with_a_frame_has_one(gaps, seconds):
    times = np.cumsum(gaps)
    marks = np.floor((times - times[0] + 1e-6) / seconds)
    first = [0, *(np.flatnonzero(np.diff(marks)) + 1)]
    found = chosen(Every(seconds), list(times))
    assert len(found) in (len(first) - 1, len(first), len(first) + 1)  # rounding at a mark


def scene(place, noise=0.0, seed=0):
    """A dark belt with a bright part, of which the left edge is at `place`."""
    image = np.full((120, 160, 3), 50, np.uint8)
    image[40:80, max(place, 0) : max(place + 40, 0)] = 200
    rng = np.random.default_rng(seed)
    return (image + rng.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)


def test_one_frame_of_each_stop():
    places = [0] * 10 + list(range(0, 100, 10)) + [100] * 10 + list(range(100, 160, 10)) + [20] * 3 + [30] * 8
    images = [scene(place, noise=6, seed=k) for k, place in enumerate(places)]
    times = [k / 10 for k in range(len(places))]
    # Still since frame 0, 20, and 39: 0.5 s later, once each. Three frames at 20 are too short a stop.
    assert chosen(WhenStill(0.5), times, images) == [5, 25, 44]


def test_what_creeps_is_not_still():
    creeping = [scene(k) for k in range(60)]  # a pixel a frame
    fading = [np.full((96, 96, 3), 60 + 3 * k, np.uint8) for k in range(60)]  # 0.012 of the full scale a frame
    for images in (creeping, fading):
        assert chosen(WhenStill(0.5), [k / 10 for k in range(60)], images) == []


def test_light_and_size_that_change_are_no_error():
    images = [scene(10), scene(10)[:60, :60], scene(10), (scene(10) * 0.5).astype(np.uint8)]
    assert chosen(WhenStill(0.1), [0, 1, 2, 3], images) == []


def test_what_cannot_be_seen_is_asked_for():
    trigger = WhenStill(0.5)
    assert trigger(None, 0.0)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Every(0), "every 0 ms"), (lambda: Every(float("nan")), "every nan ms"),
        (lambda: WhenStill(-1), "still for -1000 ms"), (lambda: WhenStill(1, 0), "stillness=0"),
        (lambda: WhenStill(1, 1.5), "stillness=1.5"),
    ],
)  # fmt: skip
def test_values_that_cannot_work(make, told):
    with pytest.raises(ConfigError, match=told):
        make()
