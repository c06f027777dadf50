"""`oddpatch data extract-good`."""
# ruff: noqa: B008 - an option is declared by a call in the default, which is how Typer reads it

from pathlib import Path

import typer

from oddpatch.cli.common import warn_of_left_out
from oddpatch.cli.data.common import DRY, FORCE, SEED, progress_bar, say


def extract_good(
    source: Path = typer.Argument(help="Folder with images at any depth."),
    target: Path = typer.Argument(help="Folder to copy them to, with their sub-folders and time stamps."),
    suffix: str = typer.Option("", help="Put behind each name: a.png becomes a_solo_16.png."),
    pattern: list[str] | None = typer.Option(
        None, help="Glob on the name or path, as in '*.camera.png'; may be repeated."
    ),
    limit: int | None = typer.Option(None, help="Take the first so many, by path."),
    split: float | None = typer.Option(None, help="Share for TARGET/train/good; the rest goes to TARGET/test/good."),
    seed: int = SEED,
    unique: bool = typer.Option(False, "--unique", help="Leave out files with the content of another."),
    manifest: Path | None = typer.Option(
        None, help="Where the hashes go, .json or .csv.  [default: TARGET/extracted.json]"
    ),
    dry_run: bool = DRY,
    force: bool = FORCE,
) -> None:
    """Collect images of good parts; run again after an interruption, it goes on."""
    from oddpatch.datatools.extracting import extract_good

    with progress_bar("images") as progress:
        report = extract_good(
            source, target, suffix=suffix, patterns=pattern or (), limit=limit, split=split, seed=seed, unique=unique,
            manifest=manifest, force=force, dry_run=dry_run, progress=progress,
        )  # fmt: skip
    warn_of_left_out(report.left_out)
    say(dry_run, f"{report.copied} copied, {report.there} already there, {report.repeats} repeats; {report.manifest}")
