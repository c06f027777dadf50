"""A report as text: for the terminal, Markdown, LaTeX, CSV and JSON."""

import io
import json
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from oddpatch.files import shown, write_cells
from oddpatch.report.datasets import DATASETS
from oddpatch.report.table import RANDOM, Cell, Grid, Heading, Report, Row

_LATEX = {c: "\\" + c for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
_LATEX |= {"✓": r"$\checkmark$", "✗": r"$\times$", "†": r"$\dagger$"}
#: Of published numbers, by whether ours are within the tolerance.
_COLORS = {True: "green", False: "red", None: ""}
#: Markdown takes HTML as it comes.
_MARKDOWN = {"|": r"\|", "*": r"\*", "`": r"\`", "<": "&lt;", "[": r"\["}


def legend(report: Report) -> list[str]:
    """What the columns are, and what is to be known of the numbers, a line each."""
    about = [f" ({'; '.join(heading.notes)})" if heading.notes else "" for heading in report.headings]
    lines = [f"{heading.key}: {heading.label}{told}" for heading, told in zip(report.headings, about, strict=True)]
    if report.has_published:
        lines.append(
            "published numbers: the value, ours less theirs, and "
            f"✓ within ±{report.tolerance:g} or ✗ beyond; averages as printed there, else the mean of its categories"
        )
    if any(heading.column.is_random for heading in report.headings):
        lines.append(f"†: {RANDOM}")
    return [*lines, *report.notes]


def section_of(dataset: str) -> str:
    """What stands above a dataset's rows."""
    return DATASETS[dataset].title if dataset in DATASETS else "own data"


def print_terminal(report: Report, console: Console | None = None) -> None:
    """A table for each metric, in parts where it is wider than the terminal, and below what the columns are."""
    console = console or Console()
    for grid in report.grids:
        for columns in _fitting(grid, console.width):
            console.print(_part(grid, columns))
            console.print()
    for line in legend(report):
        console.print(Text(shown(line)))


def to_text(report: Report) -> str:
    """What `print_terminal` prints, 120 characters wide."""
    text = io.StringIO()
    print_terminal(report, Console(file=text, width=120))
    return text.getvalue()


def _fitting(grid: Grid, width: int) -> list[list[int]]:
    """Positions of the columns, in parts that fit into the width; each has one column at least."""
    labels = max(len(text) for row in grid.rows for text in (row.label, section_of(row.dataset)))
    parts: list[list[int]] = []
    room = 0
    for position, heading in enumerate(grid.headings):
        needed = 2 + max(len(heading.key), *(len(row.cells[position].text) for row in grid.rows))
        if not parts or needed > room:
            parts.append([])
            room = width - labels
            if heading.match is not None:  # what it is to be compared with comes first again
                own = max(i for i in range(position) if grid.headings[i].match is None)
                parts[-1].append(own)
                room -= 2 + max(len(row.cells[own].text) for row in grid.rows)
        parts[-1].append(position)
        room -= needed
    return parts


def _part(grid: Grid, columns: list[int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold", title=grid.title, title_justify="left")
    table.add_column("", no_wrap=True)
    for position in columns:
        table.add_column(shown(grid.headings[position].key), justify="right", no_wrap=True)
    section = ""
    for row in grid.rows:
        if row.dataset != section:
            section = row.dataset
            table.add_row(Text(section_of(section), style="dim"))
        style = "bold" if row.is_average else ""
        shown_cells = [row.cells[position] for position in columns]
        cells = [Text(cell.text, style=f"{style} {_COLORS[cell.within]}".strip()) for cell in shown_cells]
        table.add_row(Text(shown(row.label), style=style), *cells)
    return table


def to_markdown(report: Report) -> str:
    """A table for each metric, and the legend as a list."""
    lines = []
    for grid in report.grids:
        lines += [f"### {grid.title}", ""]
        lines.append("| category | " + " | ".join(_escape(_name(h)) for h in grid.headings) + " |")
        lines.append("|---|" + "---:|" * len(grid.headings))
        for section, row in _sections(grid.rows):
            if section:
                lines.append(f"| *{_escape(section)}* |" + " |" * len(grid.headings))
            strong = "**" if row.is_average else ""
            cells = [f"{strong}{_escape(text)}{strong}" for text in (row.label, *(cell.text for cell in row.cells))]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join([*lines, *(f"- {_escape(line)}" for line in legend(report))]) + "\n"


def _name(heading: Heading) -> str:
    return heading.label if heading.match is None else f"{heading.key}: {heading.label}"


def _sections(rows: tuple[Row, ...]) -> Iterator[tuple[str, Row]]:
    """Each row with the title of its dataset where that begins, if there are several."""
    several, last = len({row.dataset for row in rows}) > 1, None
    for row in rows:
        yield (section_of(row.dataset) if several and row.dataset != last else ""), row
        last = row.dataset


def _escape(text: str) -> str:
    return "".join(_MARKDOWN.get(char, char) for char in shown(text))


def to_latex(report: Report) -> str:
    """A `table` environment for each metric; needs booktabs, and amssymb for the marks."""
    lines = ["% \\usepackage{booktabs,amssymb}"]
    for grid in report.grids:
        lines += [r"\begin{table}", r"\centering", rf"\caption{{{_latex(grid.title)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * len(grid.headings)}}}", r"\toprule"]
        lines.append(" & ".join(["", *(_latex(heading.key) for heading in grid.headings)]) + r" \\")
        lines.append(r"\midrule")
        averaging = False
        for section, row in _sections(grid.rows):
            if row.is_average and not averaging:
                lines.append(r"\midrule")
            averaging = row.is_average
            if section:
                lines.append(rf"\multicolumn{{{len(grid.headings) + 1}}}{{l}}{{\emph{{{_latex(section)}}}}} \\")
            lines.append(" & ".join(_latex(text) for text in (row.label, *(cell.text for cell in row.cells))) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    lines += [f"% {shown(line)}" for line in legend(report)]  # a line of its own would be no comment
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in shown(text))


def records_of(report: Report) -> list[dict[str, Any]]:
    """Every value with all that is known of it: one record for each, or one for each published number beside it."""
    records = []
    for heading in (heading for heading in report.headings if heading.match is None):
        for grid in report.grids:
            for row in grid.rows:
                cells = [(h, c) for h, c in zip(grid.headings, row.cells, strict=True) if h.column is heading.column]
                published = [_published(beside, cell) for beside, cell in cells[1:] if cell.value is not None]
                if published or cells[0][1].value is not None:
                    about = _about(heading, grid.metric, row, cells[0][1])
                    records += [{**about, **record} for record in published or [{}]]
    return records


def _about(heading: Heading, metric: str, row: Row, cell: Cell) -> dict[str, Any]:
    column = heading.column
    mean, runs, spread, interval = cell.ours or (None, 0, None, None)
    low, high = interval or (None, None)
    return {
        "model": column.model,
        "backbone": column.backbone,
        "image_size": column.image_size,
        "settings": "; ".join(column.settings),
        "random_weights": column.is_random,
        "dataset": row.dataset,
        "category": row.name,
        "metric": metric,
        "value": mean,
        "low": low,
        "high": high,
        "runs": runs,
        "spread": spread,
    }


def _published(heading: Heading, cell: Cell) -> dict[str, Any]:
    assert heading.match is not None
    return {
        "published": cell.value,
        "published_variant": heading.label,
        "published_source": ", ".join(source.source_id for source in heading.match.published.sources),
        "difference": cell.change,
        "within_tolerance": cell.within,
        "protocol_differences": "; ".join(heading.match.differences),
    }


def to_csv(report: Report) -> str:
    """One line for each record."""
    records = records_of(report)
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    write_cells(text, names, records, end="\n")
    return text.getvalue()


def to_json(report: Report) -> str:
    """The records, and which folders they come from."""
    columns = [
        {
            "key": heading.key,
            "label": heading.label,
            "random_weights": heading.column.is_random,
            "folders": [str(run.folder) for run in heading.column.runs],
        }
        for heading in report.headings
        if heading.match is None
    ]
    told = {"columns": columns, "records": records_of(report), "notes": list(report.notes)}
    return json.dumps({**told, "tolerance": report.tolerance}, indent=2) + "\n"
