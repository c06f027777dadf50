"""`oddpatch explain`: which normal patches an image's most anomalous patches were compared with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from oddpatch.cli.common import Trust, tell
from oddpatch.errors import ConfigError
from oddpatch.wording import counted


def explain(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of PatchCore, with --distance of others too.")],
    image: Annotated[Path, typer.Argument(help="Image to explain.")],
    out: Annotated[
        Path | None, typer.Option(help="Picture to write. (default: IMAGE's name-explained.png, .gif)")
    ] = None,
    top: Annotated[
        int,
        typer.Option(help="How many patches to show, the worst first, none beside another; with --patch, normal ones."),
    ] = 3,
    patch: Annotated[
        str | None, typer.Option(metavar="X,Y", help="The patch at this pixel of the file instead of the worst.")
    ] = None,
    gif: Annotated[bool, typer.Option("--gif", help="Every patch in turn, as an animation.")] = False,
    distance: Annotated[
        str | None,
        typer.Option(help="The maps by the run's distance and the other, euclidean or cosine, side by side instead."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the folder of the categories is now, if it was moved.")
    ] = None,
    trust: Trust = None,
) -> None:
    """Show the training patches that an image's most anomalous patches were measured against."""
    if distance is not None:
        _side_by_side(run, image, out, distance, gif or patch is not None, trust or ())
        return
    from oddpatch.inference.explain import explain

    done = explain(run, image, out, top, gif, data_root, trust or (), None if patch is None else _pixel(patch))
    for number, match in enumerate(() if gif else done.matches, start=1):
        tell(f"{number}  distance {match.distance:.6g}  nearest normal patch in {match.train_image}")
    if done.absent:
        absent = f"{counted(len(done.absent), 'training image')} not in {done.root}, such as {done.absent[0]}"
        tell(f"{absent}: set --data-root", err=True)
    tell(f"written: {done.picture}")


def _side_by_side(run: Path, image: Path, out: Path | None, distance: str, more: bool, trust: Sequence[str]) -> None:
    if more:
        raise ConfigError("--distance shows two maps, and --patch and --gif patches: leave out one of them")
    from oddpatch.inference.distance import compare_distances

    done = compare_distances(run, image, distance, out, trust)
    for name, score in done.scores.items():
        tell(f"{name}  score {score:.6g}")
    tell(f"written: {done.picture}")


def _pixel(text: str) -> tuple[int, int]:
    x, comma, y = text.partition(",")
    if not (comma and x.strip().isdecimal() and y.strip().isdecimal()):
        raise ConfigError(f"--patch={text}: give a pixel of the image as X,Y, such as --patch 120,80")
    return int(x), int(y)
