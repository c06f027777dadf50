"""`oddpatch reproduce`: published recipes run here, and whether their numbers are the published ones."""

from pathlib import Path
from typing import Annotated

import typer

from oddpatch.cli.common import tell


def reproduce(
    name: Annotated[
        str, typer.Argument(help="A recipe (configs/experiment), what the names of several begin with, or all.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the datasets (paths.data_dir): MVTec AD is in its mvtec.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs; what is finished there is not run again.")] = Path(
        "outputs/reproduce"
    ),
    tolerance: Annotated[float, typer.Option(help="Largest difference that counts as reproduced.")] = 0.01,
) -> None:
    """Run published recipes over all categories at hand, and compare: ours, published, difference.

    Three seeds where the method draws numbers. The exit code is 0 if all that was compared is within the tolerance, 1
    if something is not or could not be run.
    """
    from oddpatch.errors import ConfigError
    from oddpatch.sweep import reproduction

    if tolerance < 0:
        raise ConfigError(f"tolerance={tolerance} must be 0 or more, such as 0.01")
    recipes = []
    names = reproduction.recipes_named(name)
    for one in names:
        try:
            recipes.append(reproduction.prepare(one, data))
        except reproduction.NothingPublishedError as error:
            tell(f"left out: {error}", err=True)
    if not recipes:
        raise ConfigError(f"{name}: there is nothing to compare with: choose another recipe, or all")
    for recipe in recipes:
        told = recipe.obstacle or (
            f"{', '.join(recipe.categories)}; seed{'s' if len(recipe.seeds) > 1 else ''} "
            f"{', '.join(map(str, recipe.seeds))}"
        )
        tell(f"{recipe.name}: {'cannot be run: ' if recipe.obstacle else ''}{told}", err=True)
    findings: list[reproduction.Finding] = []
    table = out / "reproduced.csv"
    for recipe in recipes:
        folder = out / recipe.name
        if not recipe.obstacle:
            reproduction.run(recipe, folder, data)
        findings += reproduction.judge(recipe, folder, tolerance)
        reproduction.write(findings, table)
    reproduction.show(findings)
    tell(f"written: {table}", err=True)
    raise typer.Exit(0 if reproduction.all_reproduced(findings) else 1)
