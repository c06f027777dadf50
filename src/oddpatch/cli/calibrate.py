"""`oddpatch calibrate`: set a run's thresholds again on confirmed good images, as a new version beside it."""

from pathlib import Path
from typing import Annotated

import typer

from oddpatch.cli.common import Trust, tell, warn_of_left_out
from oddpatch.wording import counted

#: Doubtful images that are named.
NAMED = 20


def calibrate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or a checkpoint.")],
    folder: Annotated[Path, typer.Argument(help="Folder of good images that it was not fitted to, with all below it.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the new version. (default: RUN-v2, RUN-v3, ...)")] = None,
    batch_size: Annotated[int, typer.Option(help="Images scored at once.")] = 16,
    trust: Trust = None,
) -> None:
    """Set the thresholds of a run on confirmed good images, and write it as a new version; the old one stays.

    Images that the run calls anomalous so far, or that stand out, are named on stderr: if one is not good, remove the
    new version, take the image out of FOLDER and calibrate again.
    """
    from oddpatch.inference.recalibration import calibrate
    from oddpatch.inference.update import good_images

    found = good_images(folder)
    warn_of_left_out(found.left_out)
    done = calibrate(run, found, folder, out, batch_size, trust or ())
    for doubt in done.doubtful[:NAMED]:
        tell(f"warning: {doubt}?", err=True)
    if more := len(done.doubtful) - NAMED if len(done.doubtful) > NAMED else 0:
        tell(f"warning: {counted(more, 'further warning')} of this kind", err=True)
    tell(done.told)
    for step in done.history:
        before = "none" if step["before"] is None else f"{step['before']:.4g}"
        images = counted(step["images"], "image")
        tell(f"{step['when']}  {images} of {step['folder']}: threshold {step['after']:.4g}, before {before}")
    tell(f"written: {done.folder}; inspect with it: oddpatch predict {done.folder} IMAGES")
