"""`oddpatch data ...`: make, convert, check and describe datasets; the work is in `oddpatch.data.tools`."""
# ruff: noqa: B008 - an option is declared by a call in the default, which is how Typer reads it

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

if TYPE_CHECKING:
    from oddpatch.data.tools.writing import Progress

app = typer.Typer(help="Make, convert, check and describe datasets.", no_args_is_help=True)

DRY = typer.Option(False, "--dry-run", help="Say what would be written, and write nothing.")
FORCE = typer.Option(False, "--force", help="Replace what is there.")
SEED = typer.Option(0, help="Seed of what is drawn at random.")


@app.command(epilog="Example: oddpatch data masks captures/solo_1 masks --labels Crate,Box")
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
    from oddpatch.data.tools.masks import masks_by_colour, masks_by_label
    from oddpatch.errors import ConfigError

    if bool(rgb) == bool(labels or instances):
        raise ConfigError("choose either --rgb, or --labels and --instances")
    if rename and rename.count("=") != 1:
        raise ConfigError(f"--rename {rename!r} is not OLD=NEW")
    with _bar("masks") as progress:
        common: dict[str, Any] = {"force": force, "dry_run": dry_run, "skip": skip, "progress": progress}
        if rgb:
            report = masks_by_colour(source, target, [_colour(text) for text in rgb], tolerance, **common)
        else:
            old, _, new = rename.partition("=")
            pair = (old, new) if rename else None
            report = masks_by_label(source, target, _names(labels), instances=instances, rename=pair, **common)
    for path, pixels in zip(report.masks, report.pixels, strict=True):
        typer.echo(f"{path}\t{pixels} pixels")
    for problem in report.problems:
        typer.echo(f"warning: {problem}", err=True)
    empty = report.pixels.count(0)
    _done(dry_run, f"{len(report.masks)} masks, {empty} of them empty, {len(report.problems)} problems")


@app.command(epilog="Example: oddpatch data check data/mvtec bottle --fix data/mended/bottle")
def check(
    root: Path = typer.Argument(help="Folder of the categories, or a category."),
    category: str | None = typer.Argument(None, help="Category; all by default."),
    fix: Path | None = typer.Option(None, help="Write a copy of the category there, mended where that is safe."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
    workers: int | None = typer.Option(None, help="Processes; one a core by default."),
    dry_run: bool = DRY,
    force: bool = FORCE,
) -> None:
    """All that is wrong with a dataset at once; exit code 0 if nothing is, 1 if something is, 2 after an error."""
    from oddpatch.data.tools.checking import check, find_categories, mend
    from oddpatch.errors import ConfigError

    folders = find_categories(root, category)
    if fix and len(folders) > 1:
        raise ConfigError(f"--fix mends one category at a time: name one of {', '.join(p.name for p in folders)}")
    reports = []
    for folder in folders:
        with _bar(folder.name) as progress:
            reports.append(check(folder, workers, progress))
    if as_json:
        found = [
            {"category": str(r.category), "counts": r.counts, "findings": [f._asdict() for f in r.findings]}
            for r in reports
        ]
        typer.echo(json.dumps(found, indent=2))
    else:
        for report in reports:
            counts = ", ".join(f"{name} {count}" for name, count in report.counts.items())
            typer.echo(f"{report.category}: {counts}")
            _table(("kind", "file", "what"), report.findings)
    if fix:
        if not dry_run:
            mend(reports[0], fix, force=force)
        text = f"{fix}: without {len(reports[0].dropped)} files, {len(reports[0].rewritten)} masks rewritten"
        typer.echo(f"{'would write: ' if dry_run else ''}{text}", err=as_json)
    total = sum(len(report.findings) for report in reports)
    typer.echo(f"{total} findings", err=as_json)
    if total:
        raise typer.Exit(1)


@app.command(
    "extract-good", epilog="Example: oddpatch data extract-good captures data/pcb/train/good --suffix _solo_16"
)
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
    from oddpatch.data.tools.extracting import extract_good

    with _bar("images") as progress:
        report = extract_good(
            source, target, suffix=suffix, patterns=pattern or (), limit=limit, split=split, seed=seed, unique=unique,
            manifest=manifest, force=force, dry_run=dry_run, progress=progress,
        )  # fmt: skip
    _done(dry_run, f"{report.copied} copied, {report.there} already there, {report.repeats} repeats; {report.manifest}")


@app.command(epilog="Example: oddpatch data convert deeppcb PCBData data")
def convert(
    layout: str = typer.Argument(help="deeppcb, visa, btad, mpdd, kolektor, or folder: one's own."),
    source: Path = typer.Argument(help="Folder of the dataset as its owner packs it."),
    target: Path = typer.Argument(help="Folder of the categories; TARGET/CATEGORY is made."),
    category: str = typer.Option("", help="One of several categories, or the name to give."),
    test_share: float = typer.Option(0.2, help="Good images for testing, where the owner has no split."),
    seed: int = SEED,
    good: str = typer.Option("good", help="Layout folder: name of the folder of good images."),
    masks_folder: str = typer.Option("ground_truth", "--masks", help="Layout folder: name of the folder of masks."),
    link: bool = typer.Option(False, "--link", help="Link images instead of copying them."),
    dry_run: bool = DRY,
    force: bool = FORCE,
) -> None:
    """Turn a published layout into MVTec layout, checked against the counts its owner states."""
    from oddpatch.data.tools.converting import Options, counts, deviations, make_plans, write_plan
    from oddpatch.data.tools.writing import check_folder

    plans = make_plans(layout, source, Options(category, test_share, seed, good, masks_folder))
    for plan in plans:
        check_folder(target / plan.category, force)
    for plan in plans:
        if not dry_run:
            with _bar(plan.category) as progress:
                write_plan(plan, target, source, layout, link=link, force=force, progress=progress)
        for line in plan.notes:
            typer.echo(f"note: {line}")
        for line in deviations(plan):
            typer.echo(f"warning: {line}", err=True)
        found = ", ".join(f"{name} {count}" for name, count in counts(plan).items())
        _done(dry_run, f"{target / plan.category}: {found}")


@app.command(epilog="Example: oddpatch data split data/mvtec/bottle bottle-4shot.json --shots 4")
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
    from oddpatch.data.tools import splitting
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
        typer.echo(f"{part}: " + ", ".join(f"{name} {count}" for name, count in types.items()))
    _done(dry_run, f"{len(assigned)} images; {manifest}")


@app.command(epilog="Example: oddpatch data render pcb data/pcb --train 200 --size 512")
def render(
    scene: str = typer.Argument(help="pcb or toolbox."),
    target: Path = typer.Argument(help="Folder of the category to make."),
    train: int = typer.Option(80, help="Good images for training."),
    test_good: int = typer.Option(20, help="Good images for testing."),
    test_per_defect: int = typer.Option(12, help="Images of each defect type."),
    size: int = typer.Option(320, help="Width and height in pixels."),
    seed: int = SEED,
    workers: int | None = typer.Option(None, help="Processes; one a core by default."),
    dry_run: bool = DRY,
) -> None:
    """Render a synthetic dataset in MVTec layout; an existing folder is never replaced."""
    from oddpatch.data.rendering import load_scene, render_dataset
    from oddpatch.data.tools.writing import check_folder

    check_folder(target, force=False)
    defects = load_scene(scene)(size, seed).defects
    if not dry_run:
        with _bar(scene) as progress:
            render_dataset(
                target, scene, train=train, test_good=test_good, test_per_defect=test_per_defect, size=size, seed=seed,
                workers=workers, progress=progress,
            )  # fmt: skip
    types = ", ".join(f"test/{name} {test_per_defect}" for name in defects)
    _done(dry_run, f"{target}: train/good {train}, test/good {test_good}, {types}")


@app.command("from-unity", epilog="Example: oddpatch data from-unity captures data/pcb --defects Scratch,Nail")
def from_unity(
    source: Path = typer.Argument(
        help="Unity Perception captures: folders good and DEFECT_TYPE, or any with --defects."
    ),
    target: Path = typer.Argument(help="Folder of the category to make."),
    defects: str = typer.Option("", help="Labels that make a capture defective, separated by commas."),
    labels: str = typer.Option("", help="Labels for the masks of captures that folders tell apart."),
    test_share: float = typer.Option(0.2, help="Good captures for testing, where folders do not tell."),
    seed: int = SEED,
    link: bool = typer.Option(False, "--link", help="Link images instead of copying them."),
    dry_run: bool = DRY,
    force: bool = FORCE,
) -> None:
    """Turn Unity Perception captures into MVTec layout, masks included."""
    from oddpatch.data.tools.converting import Options, counts, write_plan
    from oddpatch.data.tools.from_unity import plan_unity
    from oddpatch.data.tools.writing import check_folder

    share = Options(test_share=test_share).test_share
    check_folder(target, force)
    plan = plan_unity(
        source, target.name, defects=_names(defects), masks=_names(labels), test_share=share, seed=seed
    )  # fmt: skip
    if not dry_run:
        with _bar(target.name) as progress:
            write_plan(plan, target.parent, source, "unity", link=link, force=force, progress=progress)
    _done(dry_run, f"{target}: " + ", ".join(f"{name} {count}" for name, count in counts(plan).items()))


@app.command(epilog="Example: oddpatch data stats data/mvtec bottle --out bottle.png")
def stats(
    root: Path = typer.Argument(help="Folder of the categories."),
    category: str = typer.Argument(help="Category."),
    out: Path | None = typer.Option(None, help="Picture to write.  [default: CATEGORY-stats.png]"),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
    dry_run: bool = DRY,
    force: bool = FORCE,
) -> None:
    """Distributions of image size, brightness, colour and defect area, as a table and a picture."""
    from oddpatch.data.tools.statistics import collect, draw, table
    from oddpatch.data.tools.writing import Output, check_targets

    path = out or Path(f"{category}-stats.png")
    check_targets([Output(path)], force)
    with _bar(category) as progress:
        found = collect(root, category, progress)
    rows = table(found)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    if not dry_run:
        draw(found, path)
    typer.echo(f"{'would write' if dry_run else 'written'}: {path}", err=as_json)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table as wide as the terminal; one line a row, tab separated, where the output is a file or pipe."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        for row in rows:
            typer.echo("\t".join(str(cell) for cell in row))
    elif rows:
        table = Table(*head)
        for row in rows:
            table.add_row(*[escape(str(cell)) for cell in row])
        console.print(table)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _colour(text: str) -> tuple[int, int, int]:
    from oddpatch.errors import ConfigError

    try:
        r, g, b = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--rgb {text!r} is not a colour: give R,G,B as in 255,0,43") from None
    return r, g, b


def _done(dry_run: bool, text: str) -> None:
    typer.echo(f"{'would write: ' if dry_run else ''}{text}")


@contextmanager
def _bar(title: str) -> Iterator["Progress"]:
    """A progress bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
