"""`oddpatch data align`."""
# ruff: noqa: B008 - an option is declared by a call in the default, which is how Typer reads it

from pathlib import Path

import typer

from oddpatch.cli.common import tell
from oddpatch.cli.data.common import DRY, FORCE, WORKERS, progress_bar, say, show_table
from oddpatch.wording import counted


def align(
    source: Path = typer.Argument(help="ROOT/CATEGORY."),
    target: Path = typer.Argument(help="Folder of the category to make."),
    reference: Path = typer.Option(help="Image of a good part that the others are moved onto."),
    method: str = typer.Option("homography", help="homography: shift, turn, scale, tilt; or translation: shift only."),
    min_quality: float = typer.Option(0.6, help="Images that register with less, of at most 1, are refused."),
    skip: bool = typer.Option(False, "--skip", help="Leave out what is refused, and say so."),
    workers: int | None = WORKERS,
    dry_run: bool = DRY,
    force: bool = FORCE,
) -> None:
    """Move every image of a category onto a reference image, masks with it; misplaced parts stay misplaced."""
    from oddpatch.data.alignment import Alignment, load_alignment
    from oddpatch.datatools.aligning import place_images, require_quality, write_aligned
    from oddpatch.datatools.writing import check_folder

    source = source.resolve()
    check_folder(target, force)
    settings = load_alignment({"reference": reference, "method": method, "min_quality": min_quality})
    alignment = Alignment(**settings or {})
    with progress_bar("registering") as progress:
        placed = place_images(source, alignment, workers, progress)
    rows = [
        (p.sample.path.relative_to(source), f"{p.registration.quality:.3f}", f"{p.shift:.1f}", f"{p.turn:.2f}")
        for p in placed
    ]
    show_table(("image", "quality", "shift (pixels)", "turn (degrees)"), rows)
    kept = [p for p in placed if p.registration.quality >= min_quality]
    if not skip:
        require_quality(placed, min_quality)
    for p in placed:
        if p.registration.quality < min_quality:
            tell(f"warning: left out {p.sample.path}: quality {p.registration.quality:.2f}", err=True)
    if not dry_run:
        with progress_bar("writing") as progress:
            write_aligned(kept, alignment, source, target, reference, force=force, progress=progress)
    lowest = min((p.registration.quality for p in kept), default=0.0)
    say(dry_run, f"{target}: {len(kept)} of {counted(len(placed), 'image')}, lowest quality {lowest:.3f}")
