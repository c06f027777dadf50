"""What three processes say to each other: who comes first, and what is left of what they give."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from oddpatch.metrics.gather import gather_rows
from oddpatch.ops.ranks import Ranks

WORLD = 3


def talk(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    ranks = Ranks()
    largest = torch.tensor([rank, -rank, 7 if rank == 1 else 0])
    ranks.maximum_(largest)
    own = torch.tensor([5.0, 6.0]) if rank == 0 else torch.zeros(2)
    ranks.broadcast_(own)
    given = [torch.full((rank, 2), 10 * rank), torch.tensor(rank)]  # rank zero's stay where they are
    found = {
        "exchanged": ranks.exchange(f"of {rank}"),
        "largest": largest.tolist(),
        "broadcast": own.tolist(),
        "collected": [tensor.tolist() for tensor in ranks.collect(given, "cpu")],
        "rows": [rows.tolist() for rows in gather_rows(torch.full((rank, 1), float(rank)))],
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("fork")  # torch need not be imported three times
    processes = [context.Process(target=talk, args=(rank, folder)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_what_is_exchanged_is_in_the_order_of_the_ranks(told):
    assert [rank["exchanged"] for rank in told] == [["of 0", "of 1", "of 2"]] * WORLD
    assert [rank["rows"] for rank in told] == [[[], [[1.0]], [[2.0], [2.0]]]] * WORLD


def test_the_largest_of_each_element_is_left_everywhere(told):
    assert [rank["largest"] for rank in told] == [[2, 0, 7]] * WORLD


def test_all_have_what_rank_zero_has(told):
    assert [rank["broadcast"] for rank in told] == [[5.0, 6.0]] * WORLD


def test_rank_zero_collects_from_the_others_in_their_order(told):
    assert told[0]["collected"] == [[[10, 10]], 1, [[20, 20], [20, 20]], 2]
    assert [rank["collected"] for rank in told[1:]] == [[], []]
