"""A report as one HTML page that needs nothing else."""

from oddpatch.report.formats import legend, section_of
from oddpatch.report.table import Grid, Report
from oddpatch.report.templates import render

# From pale to deep blue, even in lightness, which the colour-blind see as well.
_PALE, _DEEP = (247, 251, 255), (8, 69, 148)


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
    color = (round(pale + share * (deep - pale)) for pale, deep in zip(_PALE, _DEEP, strict=True))
    background = tuple(color)
    text = "#000" if contrast(background, (0, 0, 0)) >= contrast(background, (255, 255, 255)) else "#fff"
    return f"background: {_css(background)}; color: {text}"


def contrast(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """Contrast ratio of two sRGB colours as WCAG 2 defines it, from 1 to 21."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: tuple[int, ...]) -> float:
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _css(color: tuple[int, ...]) -> str:
    return f"rgb({', '.join(map(str, color))})"
