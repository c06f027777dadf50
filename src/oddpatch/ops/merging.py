"""Coresets that ranks have reduced their patches to as they streamed in, brought together."""

from typing import TYPE_CHECKING

import torch

from oddpatch.ops.coreset import StreamingCoreset

if TYPE_CHECKING:
    from oddpatch.ops.ranks import Ranks

#: Points that travel at a time.
PIECE = 65536


def merge_streams(
    own: StreamingCoreset | None, ranks: "Ranks", generator: torch.Generator, device: torch.device
) -> StreamingCoreset | None:
    """What all ranks hold, in the room of one: on rank zero; None on the others, and where nothing was taken in.

    While no rank has dropped a point and there is room for all of them, the result is that of one stream which was
    given them in the order of their first label. Otherwise it depends on the number of ranks, as it depends on the
    order of the points for one stream.

    Args:
        own: this rank's stream; None if it took in nothing.
        ranks: the processes that take part.
        generator: of the result, where rank zero has no stream of its own.
        device: of the points.
    """
    counts = [c for c in ranks.exchange((own.num_seen, own.num_held, own.max_rows) if own else None) if c]
    parts = [part.split(PIECE) for part in own.held()] if own else [(), ()]
    received = ranks.collect([part for pair in zip(*parts, strict=True) for part in pair], device)
    if not ranks.first or not counts:
        return None
    seen, held, room = (list(numbers) for numbers in zip(*counts, strict=True))
    pieces = zip(received, received, strict=True)
    if sum(held) == sum(seen) <= room[0]:
        points, labels = (torch.cat(part) for part in zip(*([own.held()] if own else []), *pieces, strict=True))
        order = labels[:, 0].argsort(stable=True)
        own, pieces = None, zip([points[order]], [labels[order]], strict=True)
    merged = own or StreamingCoreset(room[0], generator)
    for points, labels in pieces:
        merged.add(points, labels)
    merged.num_seen = sum(seen)
    return merged
