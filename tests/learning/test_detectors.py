"""Detectors fitted by several processes equal those fitted by one, whoever holds which images: real ranks over gloo."""

import multiprocessing
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from filelock import FileLock
from methods import FITTED, config, make

from oddpatch.errors import ConfigError, DataError
from oddpatch.learning import distributed
from oddpatch.models.base import no_progress
from oddpatch.models.padim import PaDiM
from oddpatch.models.patchcore import PatchCore
from oddpatch.models.spade import SPADE
from oddpatch.ops.ranks import Ranks

CHANNELS, STRIDES, IMAGES, SIZE = [4, 6], [2, 4], 13, (16, 16)
ROW = 10 * 4 + 16  # bytes of a patch of 4 + 6 float32 values and where it is from


MEMBER = {"embedding": "joined", "coreset_ratio": 0.2, "finest_stride": 1}
#: What the methods need to work on so few channels and images; a new one should need nothing.
SMALL: dict[str, Any] = {
    "padim": {"num_features": 6}, "spade": {"k": 3}, "patchcore": MEMBER,
    "lunar": {"coreset_size": 200, "steps": 5},
    "patchcore_ensemble": {"maps": [1, 1], "member": MEMBER, "holdout": 0.25},
}  # fmt: skip


def small(name):
    """A method with the finest of so few strides, where it leaves such maps out."""
    finest = {"finest_stride": 1} if "finest_stride" in config(name).model else {}
    return make(name, CHANNELS, STRIDES, **{**finest, **SMALL.get(name, {})})


#: Every method of configs/model that is fitted in one epoch, and settings of them that keep other things.
DETECTORS: dict[str, Any] = {
    **{name: partial(small, name) for name in FITTED},
    "padim_projected": lambda: PaDiM(CHANNELS, STRIDES, num_features=3, reduction="semi_orthogonal"),
    "patchcore_random": lambda: PatchCore(CHANNELS, STRIDES, selector="random", embedding="joined", finest_stride=1),
    "patchcore_roomy": lambda: PatchCore(
        CHANNELS, STRIDES, embedding="joined", finest_stride=1, max_bank_memory=ROW * 64 * (IMAGES + 1)
    ),
    "spade_joined": lambda: SPADE(CHANNELS, STRIDES, k=2, pyramid="join", gallery_dtype="float16"),
}
#: Not exact by choice: there is room for 200 of 832 patches.
BOUNDED: dict[str, Any] = {
    "patchcore_bounded": lambda: PatchCore(
        CHANNELS, STRIDES, embedding="joined", finest_stride=1, coreset_size=60, max_bank_memory=ROW * 200
    ),
    "patchcore_bounded_share": lambda: PatchCore(
        CHANNELS, STRIDES, embedding="joined", finest_stride=1, coreset_ratio=0.1, max_bank_memory=ROW * 200
    ),
}


def features(first, last):
    """Feature maps of images first..last-1; each image has its own generator, so that batching cannot matter."""
    drawn = [torch.Generator().manual_seed(index) for index in range(first, last)]
    return [
        torch.stack(
            [torch.randn(c, 16 // s, 16 // s, generator=g) for g in drawn] or [torch.empty(c, 16 // s, 16 // s)]
        )
        for c, s in zip(CHANNELS, STRIDES, strict=True)
    ]


def take_in(detector, images, batch_size):
    for batch in torch.tensor(images, dtype=torch.int64).split(batch_size) if images else ():
        parts = [features(index, index + 1) for index in batch.tolist()]
        detector.update([torch.cat(maps) for maps in zip(*parts, strict=True)], batch)


def outcome(detector):
    score, anomaly_map = detector([m * 1.5 for m in features(100, 103)], SIZE)
    return {"state": dict(detector.state_dict()), "score": score, "map": anomaly_map}


def shares(world):
    """Who holds what: dealt out as the sampler does, all with the last rank, or rank one with nothing."""
    dealt = [list(range(rank, IMAGES, world)) for rank in range(world)]
    everything = list(range(IMAGES))
    return {
        "dealt": dealt,
        "last": [everything if rank == world - 1 else [] for rank in range(world)],
        "gap": [everything[:5] if world > 2 else everything, [], everything[5:]][:world],
    }


def work(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    found: dict[Any, Any] = {}
    for share, images in shares(world).items():
        for name, unfitted in {**DETECTORS, **BOUNDED}.items():
            detector = unfitted()
            take_in(detector, images[rank], 2)
            distributed.fit(detector, no_progress)
            found[share, name] = outcome(detector)
    found["nothing"] = said(PaDiM(CHANNELS, STRIDES, num_features=6), rank)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def said(detector, rank):
    """What a detector says that was shown nothing on any rank, on the rank that says it."""
    try:
        detector.merge(Ranks())
        return detector.fit() if rank == 0 else None
    except (DataError, ConfigError) as error:
        return str(error)


def gather(folder: Path, world):
    """What each rank has fitted; another worker of pytest may have had them do it."""
    found, scratch = folder / f"ranks-{world}", folder / f"ranks-{world}-at-work"
    with FileLock(folder / f"ranks-{world}.lock"):
        if not found.is_dir():
            scratch.mkdir()
            # What ranks have in common takes each of them seconds to be imported: a server does it once, and is forked.
            multiprocessing.set_forkserver_preload(["hydra.utils", "oddpatch.learning.distributed", "pyod.models.ecod"])
            mp.start_processes(work, args=(world, scratch), nprocs=world, start_method="forkserver")
            scratch.rename(found)
    return [torch.load(found / f"{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def two(of_all_workers):
    return gather(of_all_workers, 2)


@pytest.fixture(scope="module")
def three(of_all_workers):
    return gather(of_all_workers, 3)


WORLDS = [pytest.param(world, marks=pytest.mark.slow) for world in ("two", "three")]


@cache
def alone(name):
    """What one process that is shown all images fits."""
    detector = DETECTORS[name]()
    take_in(detector, list(range(IMAGES)), 4)
    detector.fit()
    return outcome(detector)


def require_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            require_equal(found[name], value)
        elif value is None or not value.is_floating_point():  # which patches, which channels, how many: exactly
            assert value is found[name] is None or torch.equal(found[name], value), name
        else:
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("share", ["dealt", "last", "gap"])
@pytest.mark.parametrize("name", DETECTORS)
def test_ranks_together_fit_what_one_fits(request, world, share, name):
    for found in request.getfixturevalue(world):
        require_equal(found[share, name], alone(name))


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_have_the_same_model_to_the_bit(request, world):
    first, *others = request.getfixturevalue(world)
    for other in others:
        for key in first:
            if not isinstance(first[key], str | None):
                state = other[key]["state"]
                assert all(torch.equal(state[name], value) for name, value in first[key]["state"].items()), key


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("share", ["dealt", "last", "gap"])
def test_with_bounded_memory_the_merged_coreset_covers_nearly_as_well(request, world, share):
    bank, source = (request.getfixturevalue(world)[0][share, "patchcore_bounded"]["state"][n] for n in
                    ("memory_bank", "source"))  # fmt: skip
    exact = PatchCore(CHANNELS, STRIDES, embedding="joined", finest_stride=1, coreset_size=60)
    every = exact.embed(features(0, IMAGES))  # (N, h, w, D)
    take_in(exact, list(range(IMAGES)), 4)
    exact.fit()
    assert len(bank) == len(source.unique(dim=0)) == 60
    torch.testing.assert_close(bank, every.flatten(1, 2)[source[:, 0], source[:, 1]])
    patches = every.flatten(0, 2)
    radius, least = (torch.cdist(patches, rows).min(1).values.max() for rows in (bank, exact.memory_bank))
    assert radius <= 2 * least


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("share", ["dealt", "last", "gap"])
def test_the_size_of_a_bounded_coreset_is_a_share_of_all_that_was_seen(request, world, share):
    state = request.getfixturevalue(world)[0][share, "patchcore_bounded_share"]["state"]
    assert len(state["memory_bank"]) == int(0.1 * IMAGES * 64)


def test_nothing_taken_in_anywhere_is_said_by_rank_zero(two):
    assert "needs at least 2 good images for a covariance, it was given 0" in two[0]["nothing"]
    assert two[1]["nothing"] is None
