"""A report as one HTML page that needs nothing else."""

from oddpatch.report.formats import legend, section_of
from oddpatch.report.table import Grid, Report
from oddpatch.report.templates import render

# From pale to deep blue, even in lightness, which the colour-blind see as well.
_PALE, _DEEP = (247, 251, 255), (8, 69, 148)
# Share of the way up to which black has more contrast with the colour than white, as WCAG 2 defines contrast.
_BLACK_UP_TO = 0.7225


def to_html(report: Report, title: str = "oddpatch: results") -> str:
    """The page; colours go from each table's lowest to its highest value."""
    return render(
        "table.html",
        title=title,
        grids=[(grid, *_ends(grid)) for grid in report.grids],
        lines=legend(report),
        section_of=section_of,
        heat_style=heat_style,
        pale=_css(_PALE),
        deep=_css(_DEEP),
    )


def _ends(grid: Grid) -> tuple[float, float]:
    """The lowest and the highest value that is coloured."""
    values = [
        cell.value
        for row in grid.rows
        for cell, heading in zip(row.cells, grid.headings, strict=True)
        if cell.value is not None and heading.match is None and not heading.column.is_random
    ] or [0.0, 1.0]
    return min(values), max(values)


def heat_style(share: float) -> str:
    """Background for a share of the way from pale to deep, and black or white on it, whichever reads better."""
    color = tuple(round(pale + share * (deep - pale)) for pale, deep in zip(_PALE, _DEEP, strict=True))
    return f"background: {_css(color)}; color: {'#000' if share <= _BLACK_UP_TO else '#fff'}"


def _css(color: tuple[int, ...]) -> str:
    return f"rgb({', '.join(map(str, color))})"
