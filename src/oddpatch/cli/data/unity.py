"""`oddpatch data from-unity`."""
# ruff: noqa: B008 - an option is declared by a call in the default, which is how Typer reads it

from pathlib import Path

import typer

from oddpatch.cli.common import split_names, warn_of_left_out
from oddpatch.cli.data.common import DRY, FORCE, SEED, progress_bar, say


def from_unity(
    source: Path = typer.Argument(
        help="Unity Perception captures: folders good and DEFECT_TYPE, or any with --defects."
    ),
    target: Path = typer.Argument(help="Folder of the category to make."),
    defects: str = typer.Option("", help="Labels that make a capture defective, separated by commas."),
    labels: str = typer.Option("", help="Labels for the masks of captures that folders tell apart."),
    test_share: float = typer.Option(0.2, help="Good captures for testing, where folders do not tell."),
    seed: int = SEED,
    skip: bool = typer.Option(False, "--skip", help="Leave out captures without a segmentation, and count them."),
    link: bool = typer.Option(False, "--link", help="Link images instead of copying them."),
    dry_run: bool = DRY,
    force: bool = FORCE,
) -> None:
    """Turn Unity Perception captures into MVTec layout, masks included."""
    from oddpatch.datatools.converting import Options, counts, write_plan
    from oddpatch.datatools.from_unity import plan_unity
    from oddpatch.datatools.writing import check_folder

    share = Options(test_share=test_share).test_share
    check_folder(target, force)
    plan = plan_unity(
        source, target.name, defects=split_names(defects), masks=split_names(labels), test_share=share, seed=seed,
        skip=skip,
    )  # fmt: skip
    warn_of_left_out(plan.left_out)
    if not dry_run:
        with progress_bar(target.name) as progress:
            write_plan(plan, target.parent, source, "unity", link=link, force=force, progress=progress)
    say(dry_run, f"{target}: " + ", ".join(f"{name} {count}" for name, count in counts(plan).items()))
