"""`oddpatch report`: one table over many runs, beside published numbers if wanted."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oddpatch.cli.common import tell

if TYPE_CHECKING:
    from oddpatch.report.table import Report


class Format(StrEnum):
    """How the table is written."""

    terminal = "terminal"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    json = "json"
    html = "html"


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, or folders that hold some.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Key of metrics.json; may be repeated. By default image_auroc, pixel_auroc, au_pro."),
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="How the table is written.")] = Format.terminal,
    output: Annotated[Path | None, typer.Option(help="File to write; the terminal without it.")] = None,
    published: Annotated[bool, typer.Option("--published", help="Put published numbers beside the runs.")] = False,
    tolerance: Annotated[float, typer.Option(help="Largest difference from a published number that passes.")] = 0.01,
    roc: Annotated[Path | None, typer.Option(help="PNG to write: ROC curves of all categories.")] = None,
    results_json: Annotated[
        Path | None, typer.Option("--results-json", help="JSON to write: one model in PatchCoreViT's form.")
    ] = None,
) -> None:
    """One table over many runs: methods and backbones by category, with averages as papers give them."""
    from oddpatch.files import replacing
    from oddpatch.report.columns import columns_of
    from oddpatch.report.formats import print_terminal
    from oddpatch.report.runs import find_runs
    from oddpatch.report.table import DEFAULT_METRICS, build_report

    found = find_runs(runs)
    # Of the default metrics those that there are: a method may score whole images only.
    wanted = metric or [name for name in DEFAULT_METRICS if any(name in run.metrics for run in found)]
    built = build_report(found, wanted or DEFAULT_METRICS[:1], published, tolerance)
    if format_ == Format.terminal and output is None:
        print_terminal(built)
    else:
        text = _render(built, format_)
        if output is None:
            sys.stdout.write(text)
        else:
            with replacing(output) as file:
                file.write(text)
            tell(f"written: {output}", err=True)
    if results_json is not None:
        from oddpatch.report.results_json import results_of

        content = results_of(columns_of(found))
        with replacing(results_json) as file:
            json.dump(content, file, indent=4)
            file.write("\n")
        tell(f"written: {results_json}", err=True)
    if roc is not None:
        from oddpatch.figures.roc import draw_roc

        draw_roc(columns_of(found), roc)
        tell(f"written: {roc}", err=True)


def _render(built: "Report", format_: Format) -> str:
    from oddpatch.report import formats

    if format_ == Format.html:
        from oddpatch.report.page import to_html

        return to_html(built)
    if format_ == Format.terminal:
        import io

        from rich.console import Console

        console = Console(file=io.StringIO(), width=120)
        formats.print_terminal(built, console)
        return console.file.getvalue()  # type: ignore[attr-defined]
    render = {
        Format.markdown: formats.to_markdown,
        Format.csv: formats.to_csv,
        Format.latex: formats.to_latex,
        Format.json: formats.to_json,
    }
    return render[format_](built)
