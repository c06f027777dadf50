"""`oddpatch data render`."""
# ruff: noqa: B008 - an option is declared by a call in the default, which is how Typer reads it

from pathlib import Path

import typer

from oddpatch.cli.common import split_names
from oddpatch.cli.data.common import DRY, SEED, WORKERS, progress_bar, say


def render(
    scene: str = typer.Argument(help="pcb or toolbox."),
    target: Path = typer.Argument(help="Folder of the category to make."),
    train: int = typer.Option(300, help="Good images for training."),
    test_good: int = typer.Option(50, help="Good images for testing."),
    test_per_defect: int = typer.Option(12, help="Images of each defect type."),
    defects: str = typer.Option("", help="Defect mix instead, as in missing_objects=20,scratch=5; others 0."),
    size: int = typer.Option(320, help="Width and height in pixels."),
    seed: int = SEED,
    workers: int | None = WORKERS,
    dry_run: bool = DRY,
) -> None:
    """Render a synthetic dataset in MVTec layout; an existing folder is never replaced."""
    from oddpatch.scenes import check_absent, defect_counts, render_dataset

    check_absent(target)
    counts = defect_counts(scene, _mix(defects) if defects else test_per_defect)
    if not dry_run:
        with progress_bar(scene) as progress:
            render_dataset(
                target, scene, train=train, test_good=test_good, test_per_defect=counts, size=size, seed=seed,
                workers=workers, progress=progress,
            )  # fmt: skip
    types = ", ".join(f"test/{name} {count}" for name, count in counts.items())
    say(dry_run, f"{target}: train/good {train}, test/good {test_good}, {types}")


def _mix(text: str) -> dict[str, int]:
    from oddpatch.errors import ConfigError

    found: dict[str, int] = {}
    for part in split_names(text):
        name, _, count = part.partition("=")
        if not count.strip().isdecimal() or name.strip() in found:
            raise ConfigError(f"--defects {part!r}: give each type once, as NAME=NUMBER, such as missing_objects=20")
        found[name.strip()] = int(count)
    return found
