"""`oddpatch report`: one table over many runs, beside published numbers if wanted."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from oddpatch.cli.common import tell


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
    critical_difference: Annotated[
        Path | None,
        typer.Option(help="PNG to write: three or more methods ranked over their categories, by the first metric."),
    ] = None,
    shots: Annotated[
        Path | None, typer.Option(help="PNG to write: the metric by the number of good images (data.shots).")
    ] = None,
    results_json: Annotated[
        Path | None, typer.Option("--results-json", help="JSON to write: one model in PatchCoreViT's form.")
    ] = None,
) -> None:
    """One table over many runs: methods and backbones by category, with averages as papers give them."""
    from oddpatch.files import replacing
    from oddpatch.report import formats
    from oddpatch.report.columns import columns_of
    from oddpatch.report.page import to_html
    from oddpatch.report.runs import find_runs
    from oddpatch.report.table import build_report

    found = find_runs(runs)
    built = build_report(found, metric, published, tolerance)
    if format_ == Format.terminal and output is None:
        formats.print_terminal(built)
    else:
        render = {
            Format.terminal: formats.to_text,
            Format.markdown: formats.to_markdown,
            Format.csv: formats.to_csv,
            Format.latex: formats.to_latex,
            Format.json: formats.to_json,
            Format.html: to_html,
        }
        text = render[format_](built)
        if output is None:
            sys.stdout.write(text)
        else:
            with replacing(output) as file:
                file.write(text)
            tell(f"written: {output}", err=True)
    if results_json is not None:
        from oddpatch.report.results_json import results_of

        with replacing(results_json) as file:
            json.dump(results_of(columns_of(found)), file, indent=4)
            file.write("\n")
        tell(f"written: {results_json}", err=True)
    if critical_difference is not None:
        from oddpatch.report.ranks import draw_ranks, rank_methods

        ranking = rank_methods(columns_of(found), built.grids[0].metric)
        for line in ranking.lines:
            tell(line, err=True)
        draw_ranks(ranking, critical_difference)
        tell(f"written: {critical_difference}", err=True)
    if roc is not None:
        from oddpatch.report.roc import draw_roc

        draw_roc(columns_of(found), roc)
        tell(f"written: {roc}", err=True)
    if shots is not None:
        from oddpatch.report.few_shot import draw_shots

        draw_shots(columns_of(found), shots, *(metric or [])[:1])
        tell(f"written: {shots}", err=True)
