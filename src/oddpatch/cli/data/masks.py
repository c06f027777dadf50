"""`oddpatch data masks`."""
# ruff: noqa: B008 - an option is declared by a call in the default, which is how Typer reads it

from pathlib import Path
from typing import Any

import typer

from oddpatch.cli.common import split_names, tell
from oddpatch.cli.data.common import DRY, FORCE, progress_bar, say
from oddpatch.files import shown
from oddpatch.wording import counted


def masks(
    source: Path = typer.Argument(
        help="Unity Perception output (SOLO or legacy), or a segmentation or folder of them."
    ),
    target: Path = typer.Argument(help="Folder for the masks."),
    labels: str = typer.Option("", help="Label names, separated by commas: Unity Perception output."),
    instances: bool = typer.Option(False, "--instances", help="One mask for each instance; all without --labels."),
    rgb: list[str] | None = typer.Option(None, help="Colour R,G,B; may be repeated: any segmentation images."),
    tolerance: int = typer.Option(0, help="Largest difference per channel from --rgb."),
    rename: str = typer.Option("", help="OLD=NEW: a part of the file names in the JSON that has changed since."),
    skip: bool = typer.Option(False, "--skip", help="Leave out what cannot be read, and say so."),
    dry_run: bool = DRY,
    force: bool = FORCE,
) -> None:
    """Binary masks out of colour segmentations, by colour or by the label names of Unity Perception."""
    from oddpatch.datatools.masks import masks_by_colour, masks_by_label
    from oddpatch.errors import ConfigError

    if bool(rgb) == bool(labels or instances):
        raise ConfigError("choose either --rgb, or --labels and --instances")
    if rename and rename.count("=") != 1:
        raise ConfigError(f"--rename {rename!r} is not OLD=NEW")
    with progress_bar("masks") as progress:
        common: dict[str, Any] = {"force": force, "dry_run": dry_run, "skip": skip, "progress": progress}
        if rgb:
            report = masks_by_colour(source, target, [_colour(text) for text in rgb], tolerance, **common)
        else:
            old, _, new = rename.partition("=")
            pair = (old, new) if rename else None
            report = masks_by_label(source, target, split_names(labels), instances=instances, rename=pair, **common)
    for path, pixels in zip(report.masks, report.pixels, strict=True):
        typer.echo(f"{shown(path)}\t{counted(pixels, 'pixel')}")
    for problem in report.problems:
        tell(f"warning: {problem}", err=True)
    empty = report.pixels.count(0)
    say(dry_run, f"{counted(len(report.masks), 'mask')}, {empty} empty, {counted(len(report.problems), 'problem')}")


def _colour(text: str) -> tuple[int, int, int]:
    from oddpatch.errors import ConfigError

    try:
        r, g, b = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--rgb {text!r} is not a colour: give R,G,B as in 255,0,43") from None
    return r, g, b
