"""A report as one HTML page that needs nothing else."""

from html import escape

from oddpatch.report.formats import legend, section_of
from oddpatch.report.table import Cell, Grid, Heading, Report

# From pale to deep blue, even in lightness, which the colour-blind see as well.
_PALE, _DEEP = (247, 251, 255), (8, 69, 148)

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: #fff; color: #1a1a1a;
  font: 16px/1.45 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.35rem; margin: .2rem 0 .6rem; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
.scroll { overflow-x: auto; border: 1px solid #d0d0d0; border-radius: 4px; }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
thead th { vertical-align: bottom; background: #f4f4f4; border-bottom: 2px solid #9a9a9a; }
thead small { display: block; font-weight: normal; white-space: normal; min-width: 5.5rem; max-width: 11rem;
  overflow-wrap: break-word; }
tbody th, thead th:first-child { position: sticky; left: 0; background: #fff; text-align: left; font-weight: normal; }
tr.average > * { font-weight: bold; border-top: 1px solid #9a9a9a; }
tr.section th { color: #555; font-size: .8rem; }
td.beyond { outline: 2px solid #b3261e; outline-offset: -3px; }
td.random, thead th.random { background-image: repeating-linear-gradient(45deg, #eee 0 4px, #fff 4px 8px); }
.random small { color: #b3261e; font-weight: bold; }
ul { padding-left: 1.2rem; font-size: .875rem; overflow-wrap: anywhere; }
@media (max-width: 700px) {
  .scroll { max-width: 100%; }
  table { font-size: .78rem; }
  th, td { padding: .3rem .35rem; }
  thead small { min-width: 4rem; max-width: 5.5rem; overflow-wrap: anywhere; }
  tbody th, thead th:first-child { min-width: 5.6rem; max-width: 6.5rem; white-space: normal; overflow-wrap: anywhere; }
}
.scale { display: inline-block; width: 6rem; height: .7rem; vertical-align: middle; border: 1px solid #9a9a9a; }
"""


def to_html(report: Report, title: str = "oddpatch: results") -> str:
    """The page; colours go from each table's lowest to its highest value."""
    grids = "\n".join(_grid(grid) for grid in report.grids)
    lines = "\n".join(f"<li>{escape(line)}</li>" for line in legend(report))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{grids}
<h2>Columns and notes</h2>
<ul>
{lines}
</ul>
</body>
</html>
"""


def _grid(grid: Grid) -> str:
    headings = grid.headings
    values = [
        cell.value
        for row in grid.rows
        for cell, heading in zip(row.cells, headings, strict=True)
        if cell.value is not None and heading.match is None and not heading.column.is_random
    ] or [0.0, 1.0]
    low, high = min(values), max(values)
    head = "".join(_head(heading) for heading in headings)
    body, section = [], ""
    for row in grid.rows:
        if row.dataset != section:
            section = row.dataset
            empty = f'<td colspan="{len(headings)}"></td>'
            body.append(f'<tr class="section"><th scope="rowgroup">{escape(section_of(section))}</th>{empty}</tr>')
        cells = "".join(_cell(cell, h, low, high) for cell, h in zip(row.cells, headings, strict=True))
        kind = ' class="average"' if row.is_average else ""
        body.append(f'<tr{kind}><th scope="row">{escape(row.label)}</th>{cells}</tr>')
    ramp = f"background: linear-gradient(90deg, {_css(_PALE)}, {_css(_DEEP)})"
    return f"""<h2>{escape(grid.title)}</h2>
<p>{low:.4f} <span class="scale" style="{ramp}"></span> {high:.4f}</p>
<div class="scroll" tabindex="0" role="region" aria-label="{escape(grid.title)}"><table>
<thead><tr><th scope="col">category</th>{head}</tr></thead>
<tbody>
{chr(10).join(body)}
</tbody>
</table></div>"""


def _head(heading: Heading) -> str:
    random = heading.column.is_random and heading.match is None
    kind = ' class="random"' if random else ""
    told = f"{escape(heading.label)}{'<br>random weights' if random else ''}"
    return f'<th scope="col"{kind} title="{escape("; ".join(heading.notes))}">{heading.key}<small>{told}</small></th>'


def _cell(cell: Cell, heading: Heading, low: float, high: float) -> str:
    kinds, style = [], ""
    if heading.column.is_random and heading.match is None:
        kinds.append("random")
    elif cell.value is not None and heading.match is None:
        share = (cell.value - low) / (high - low) if high > low else 0.5
        style = heat_style(share)
    if cell.within is False:
        kinds.append("beyond")
    attributes = f' class="{" ".join(kinds)}"' if kinds else ""
    attributes += f' style="{style}"' if style else ""
    attributes += f' title="{escape(cell.note)}"' if cell.note else ""
    return f"<td{attributes}>{escape(cell.text)}</td>"


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
