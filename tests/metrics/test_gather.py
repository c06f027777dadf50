"""Several devices, uneven and empty ones included, give what one gives: real processes, over gloo."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from oddpatch.errors import DataError
from oddpatch.metrics import ImageMetrics, PixelMetrics
from oddpatch.metrics.gather import gather_rows

pytestmark = pytest.mark.slow  # two fresh processes import torch and torchmetrics
WORLD = 2
SHARES = {"uneven": ([5, 0, 4], [3, 1, 2, 0]), "empty": ([], [2, 0, 4, 1, 3, 5])}  # images of each rank


def images():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(6, 1, 8, 8, generator=generator)
    masks = (torch.rand(6, 1, 8, 8, generator=generator) < 0.2).to(torch.uint8)
    masks[:2] = 0
    return maps, masks


def measure(share, batch_size):
    maps, masks = images()
    image, pixel = ImageMetrics(), PixelMetrics()
    for rows in torch.tensor(share, dtype=torch.long).split(batch_size) if share else ():
        image.update(maps[rows].amax((1, 2, 3)), masks[rows].amax((1, 2, 3)).long(), rows)
        pixel.update(maps[rows], masks[rows], rows)
    return image.compute() | pixel.compute()


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    found = {name: measure(shares[rank], 2) for name, shares in SHARES.items()}
    found["none"] = ImageMetrics().compute()
    found["loaded"] = {"lightning", "pytorch_lightning", "hydra"} & set(sys.modules)
    try:
        gather_rows(torch.zeros(1, 2 + rank))
    except DataError as error:
        found["shapes"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(folder,), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", SHARES)
def test_every_rank_gives_to_the_bit_what_one_device_gives(found, name):
    alone = measure(list(range(6)), 6)
    assert len(alone) == 9
    assert [rank[name] for rank in found] == [alone] * WORLD


def test_no_images_anywhere_is_no_crash(found):
    assert [rank["none"] for rank in found] == [{}] * WORLD


def test_maps_of_different_sizes_are_refused_by_every_rank(found):
    assert all("different shapes [(2,), (3,)]" in rank["shapes"] for rank in found)


def test_importing_the_classes_loads_neither_lightning_nor_hydra(found):
    assert [rank["loaded"] for rank in found] == [set()] * WORLD
