"""Close-ups of patches, and the sheet that shows them beside each other."""

import numpy as np
import pytest

from oddpatch.figures.explanation import CONTEXT, SIDE, close_up, draw_explanation
from oddpatch.results.examples import Box, Match


def spotted(height=60, width=80):
    """Dark, with one bright patch of 4 pixels at (20, 30)."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[20:24, 30:34] = 240
    return image


def test_a_close_up_shows_the_patch_enlarged_in_its_surroundings():
    shown = close_up(spotted(), Box(30, 20, 4, 4), "#ff0000").astype(int)
    assert shown.shape == (SIDE, SIDE, 3)
    bright = shown.min(axis=2) > 200
    frame = (np.abs(shown - (255, 0, 0)).max(axis=2) < 5).nonzero()
    enlarged = SIDE / CONTEXT  # pixels of the patch
    assert np.ptp(frame[0]) == pytest.approx(enlarged, abs=2)
    assert np.ptp(frame[1]) == pytest.approx(enlarged, abs=2)
    assert frame[0].mean() == pytest.approx(SIDE / 2, abs=2)  # in the middle
    inside = bright[frame[0].min() : frame[0].max(), frame[1].min() : frame[1].max()]
    assert inside.mean() > 0.7
    assert (shown[:80] == 40).all()


@pytest.mark.parametrize("box", [Box(0, 0, 4, 4), Box(76, 56, 4, 4)])
def test_a_close_up_at_the_border_stays_within_the_image(box):
    shown = close_up(spotted(), box, "#ff0000", side=120).astype(int)
    rows, columns = (np.abs(shown - (255, 0, 0)).max(axis=2) < 5).nonzero()
    edge = 0 if box.left == 0 else 119
    assert abs(rows - edge).min() <= 1
    assert abs(columns - edge).min() <= 1


@pytest.mark.parametrize("shape", [(60, 80), (16, 400), (400, 16)])
def test_each_patch_has_a_row_with_both_close_ups(shape, monkeypatch):
    asked = []

    def noted(image, box, color):
        asked.append(box)
        return image[:8, :8]

    monkeypatch.setattr("oddpatch.figures.explanation.close_up", noted)
    matches = [Match(Box(4 * i, 0, 4, 4), Box(0, 4 * i, 4, 4), f"{i}.png", 5.0 - i) for i in range(3)]
    image = np.zeros((*shape, 3), np.uint8)
    sheet = draw_explanation(image, "part.png", matches, {"0.png": image, "1.png": image}.get)
    assert asked == [matches[0].patch, matches[0].normal, matches[1].patch, matches[1].normal, matches[2].patch]
    texts = [text.get_text() for text in sheet.figure.texts]
    assert [text for text in texts if "distance" in text] == ["1  distance 5", "2  distance 4", "3  distance 3"]
    assert "not on this machine" in texts
    assert sheet.width < 14
