"""Feature maps put together from tiles."""

import json
import re

import pytest
import torch
from torch.nn import functional as F
from vectors import VECTORS

from oddpatch.errors import ConfigError
from oddpatch.ops.tiles import Tiling


def network(images):
    """Two maps whose positions see 5 x 5 of their own, padded with zeros at the edge as in a convolutional network."""
    kernel = torch.arange(75.0).sin().view(1, 3, 5, 5)
    fine = F.conv2d(F.avg_pool2d(images, 4), kernel, padding=2)
    return [fine, F.conv2d(F.avg_pool2d(images, 8), kernel, padding=2), images.mean((2, 3), keepdim=True)]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 200), (200, 136), (328, 344), (40, 512)])
@pytest.mark.parametrize("overlap", [32, 40])
def test_tiles_that_overlap_enough_leave_no_seam(height, width, overlap):
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    whole, tiled = network(images), Tiling(64, overlap, [4, 8, 0]).run(network, images)
    for map_, expected in zip(tiled[:2], whole[:2], strict=True):
        torch.testing.assert_close(map_, expected)
    assert tiled[2].shape == (2, 3, 1, 1)


def test_images_may_come_in_bands_and_maps_that_nobody_wants_stay_empty():
    images = torch.randn(1, 3, 200, 136, generator=torch.Generator().manual_seed(0))

    class InBands:
        size = (200, 136)
        asked: list[tuple[int, int]] = []  # noqa: RUF012

        def rows(self, first, last):
            self.asked.append((first, last))
            return images[..., first:last, :]

    tiling, bands = Tiling(64, 32, [4, 8, 0]), InBands()
    whole, found = tiling.run(network, images), tiling.run(network, bands, wanted={1, 2})
    assert bands.asked == [(top, top + 64) for top, _, _ in tiling.spans(200)]
    assert found[0].numel() == 0
    for map_, expected in zip(found[1:], whole[1:], strict=True):
        assert torch.equal(map_, expected)


def test_without_overlap_the_seams_are_seen():
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(Tiling(64, 0, [4, 8, 0]).run(network, images)[0], network(images)[0])


@pytest.mark.parametrize("length", range(64, 700, 8))
def test_every_position_counts_once_and_deep_within_its_tile(length):
    tiling = Tiling(64, 24, [8])
    spans = tiling.spans(length)
    assert [begin for _, begin, _ in spans] == [0, *(end for _, _, end in spans[:-1])]
    assert spans[-1][2] == length
    for start, begin, end in spans:
        assert start % 8 == begin % 8 == end % 8 == 0
        assert start <= begin < end <= start + 64
        assert begin == 0 or begin - start >= 8
        assert end == length or start + 64 - end >= 8


def test_sizes_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match=r"tiles.side=500 must be a multiple of 16 with this backbone: choose 496"):
        Tiling(500, 0, [4, 8, 16])
    with pytest.raises(ConfigError, match=r"tiles.overlap=64 must be 0 or more and less than tiles.side=64"):
        Tiling(64, 64, [4])
    with pytest.raises(ConfigError, match=r"images of 60x64 cannot be tiled: both sides must divide by 8"):
        Tiling(64, 0, [8]).run(network, torch.zeros(1, 3, 60, 64))


@pytest.mark.vector
@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("patch640_overlap128_token16_dim640", True),
        ("patch640_overlap128_token16_dim1024", True),
        ("patch448_overlap16_token16_dim1000", True),
        # SuperADD's code takes more tiles than its least overlap asks for, four and six where three and four do.
        ("patch640_overlap128_token16_dim1530", False),
        ("patch448_overlap112_token14_dim1400", False),
    ],
)
def test_tiles_lie_as_those_of_superadd(name, same):
    tiles, _, places = json.loads((VECTORS / "superadd_splits.json").read_text())[name]
    side, overlap, token, length = map(int, re.findall(r"\d+", name))
    spans = Tiling(side, overlap, [token]).spans(length // token * token)
    if not same:
        assert len(spans) < len(tiles)
        return
    assert [start for start, _, _ in spans] == [start for start, _ in tiles]
    for (_, begin, end), (first, last) in zip(spans, places, strict=True):
        # The middle of an overlap of an odd number of tokens is rounded down here, and up there.
        assert max(abs(begin // token - first), abs(end // token - last)) <= 1
