"""`oddpatch data convert`."""
# ruff: noqa: B008 - an option is declared by a call in the default, which is how Typer reads it

from pathlib import Path

import typer

from oddpatch.cli.common import tell, warn_of_left_out
from oddpatch.cli.data.common import DRY, FORCE, SEED, progress_bar, say


def convert(
    layout: str = typer.Argument(
        help="mvtec_ad2, mvtec_loco, visa, btad, mpdd, deeppcb, kolektor, labels: coco, lookout (Amazon Lookout for "
        "Vision), or one's own: folder, beside (with masks beside their images)."
    ),
    source: Path = typer.Argument(help="Folder of the dataset as its owner packs it."),
    target: Path = typer.Argument(help="Folder of the categories; TARGET/CATEGORY is made."),
    category: str = typer.Option("", help="One of several categories, or the name to give."),
    test_share: float = typer.Option(0.2, help="Good images for testing, where the owner has no split."),
    seed: int = SEED,
    good: str = typer.Option("good", help="Layouts folder and beside: name of the folder of good images."),
    masks_folder: str = typer.Option("ground_truth", "--masks", help="Layout folder: name of the folder of masks."),
    mask_suffix: str = typer.Option("", help="Layout beside: what masks have behind their image's stem, as in _mask."),
    mask_extension: str = typer.Option("", help="Layout beside: extension of masks, as in png."),
    link: bool = typer.Option(False, "--link", help="Link images instead of copying them."),
    dry_run: bool = DRY,
    force: bool = FORCE,
) -> None:
    """Turn a published layout into MVTec layout, checked against the counts its owner states."""
    from oddpatch.datatools.converting import Options, counts, deviations, make_plans, write_plan
    from oddpatch.datatools.writing import check_folder

    options = Options(category, test_share, seed, good, masks_folder, mask_suffix, mask_extension)
    plans = make_plans(layout, source, options)
    for plan in plans:
        check_folder(target / plan.category, force)
    warn_of_left_out(dict.fromkeys(item for plan in plans for item in plan.left_out))
    for plan in plans:
        if not dry_run:
            with progress_bar(plan.category) as progress:
                write_plan(plan, target, source, layout, link=link, force=force, progress=progress)
        for line in plan.notes:
            tell(f"note: {line}")
        for line in deviations(plan):
            tell(f"warning: {line}", err=True)
        found = ", ".join(f"{name} {count}" for name, count in counts(plan).items())
        say(dry_run, f"{target / plan.category}: {found}")
