"""`oddpatch data split`."""
# ruff: noqa: B008 - an option is declared by a call in the default, which is how Typer reads it

from pathlib import Path

import typer

from oddpatch.cli.common import tell
from oddpatch.cli.data.common import DRY, FORCE, SEED, say
from oddpatch.wording import counted


def split(
    category: Path = typer.Argument(help="ROOT/CATEGORY."),
    manifest: Path = typer.Argument(help="Where to write the split, .json or .csv."),
    train_share: float | None = typer.Option(None, help="Stratified by defect type, as in 0.8."),
    shots: int | None = typer.Option(None, help="Few-shot: so many good training images."),
    folds: int | None = typer.Option(None, help="So many folds, stratified by defect type."),
    into: Path | None = typer.Option(None, help="Also make a category of links there, to train on."),
    fold: int = typer.Option(0, help="The fold that --into tests on."),
    seed: int = SEED,
    dry_run: bool = DRY,
    force: bool = FORCE,
) -> None:
    """Split a category: stratified shares, few-shot or folds, seeded, written as a manifest."""
    from oddpatch.datatools import splitting
    from oddpatch.errors import ConfigError

    if sum(choice is not None for choice in (train_share, shots, folds)) != 1:
        raise ConfigError("choose one of --train-share, --shots and --folds")
    if folds is not None and not 0 <= fold < folds:
        raise ConfigError(f"--fold {fold}: choose 0..{folds - 1}")
    category = category.resolve()
    if train_share is not None:
        assigned = splitting.split_by_share(category, train_share, seed)
    elif shots is not None:
        assigned = splitting.split_few_shot(category, shots, seed)
    else:
        assigned = splitting.split_folds(category, folds or 0, seed)
    if not dry_run:
        settings: dict[str, object] = {"train_share": train_share, "shots": shots, "folds": folds, "seed": seed}
        splitting.write_split(manifest, assigned, category, settings, force)
        if into:
            splitting.apply_split(assigned, category, into, fold, force)
    for part, types in splitting.summary(assigned).items():
        tell(f"{part}: " + ", ".join(f"{name} {count}" for name, count in types.items()))
    say(dry_run, f"{counted(len(assigned), 'image')}; {manifest}")
