"""`oddpatch update`: add good images to a fitted PatchCore, as a new version beside the old one."""

from pathlib import Path
from typing import Annotated

import typer

from oddpatch.cli.common import Trust, tell, warn_of_left_out
from oddpatch.wording import counted


def update(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of PatchCore.")],
    folder: Annotated[Path, typer.Argument(help="Folder of further good images, with all below it.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the new version. (default: RUN-v2, RUN-v3, ...)")] = None,
    coreset_size: Annotated[
        int | None, typer.Option(help="Patches in the new memory bank. (default: as many as now)")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images embedded at once.")] = 16,
    trust: Trust = None,
) -> None:
    """Add good images to a fitted PatchCore without the old ones, and write it as a new version."""
    from oddpatch.inference.update import good_images, update

    found = good_images(folder)
    warn_of_left_out(found.left_out)
    done = update(run, found, folder, out, coreset_size, batch_size, trust or ())
    tell(done.thresholds)
    tell(
        f"{counted(done.added, 'image')} added, {counted(len(found.left_out), 'file')} left out; the memory bank held "
        f"{done.before} patches and holds {done.after}, of which {done.new} are new"
    )
    tell(f"written: {done.folder}; test it with: oddpatch eval run={done.folder}")
