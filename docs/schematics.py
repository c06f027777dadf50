# ruff: noqa: E501
"""Draws the schematics of `docs/methods`: `python docs/schematics.py` writes `docs/images/methods/*.svg`.

Four panels for each method, in the order of its page: feature, fit, score, map. Blue is good, orange is odd.
"""

import math
import random
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

OUT = Path(__file__).parent / "images/methods"
WIDTH, HEIGHT, GAP = 250, 218, 12  # of a panel
STYLE = """
svg { --ink: #16202a; --faint: #56616d; --line: #aab3bd; --paper: #ffffff; --tile: #f4f6f8; --good: #0072b2; --odd: #c2500a; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e8eaed; --faint: #a9b2bb; --line: #58626c; --paper: #17181a; --tile: #22262a; --good: #5cb3ec; --odd: #ff9a56; }
}
text { font: 12.5px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--faint); }
.title { font-size: 14.5px; font-weight: 600; fill: var(--ink); }
.small { font-size: 11px; }
.paper { fill: var(--paper); } .tile { fill: var(--tile); stroke: var(--line); }
.good { fill: var(--good); } .odd { fill: var(--odd); } .none { fill: none; }
.ink { stroke: var(--ink); } .faint { stroke: var(--line); } .by { stroke: var(--good); } .to { stroke: var(--odd); }
line, path, ellipse, .none { stroke-width: 1.6; }
"""
Glyph = Callable[[], str]
Panel = tuple[str, Glyph, Sequence[str]]  # title, drawing of 226 by 112, lines of text


# -- pieces -----------------------------------------------------------------------------------------------------------


def rect(x: float, y: float, w: float, h: float, style: str, opacity: float = 1) -> str:
    """A rectangle."""
    faded = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" class="{style}"{faded}/>'


def dot(x: float, y: float, style: str, r: float = 4, opacity: float = 1) -> str:
    """A point."""
    faded = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:g}" class="{style}"{faded}/>'


def line(x1: float, y1: float, x2: float, y2: float, style: str = "ink", dashed: bool = False) -> str:
    """A line."""
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"{dash}/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a head."""
    turn, long = math.atan2(y2 - y1, x2 - x1), 7
    ends = [(x2 - long * math.cos(turn + side), y2 - long * math.sin(turn + side)) for side in (0.45, -0.45)]
    return line(x1, y1, x2, y2) + "".join(line(x2, y2, *end) for end in ends)


def note(x: float, y: float, text: str, anchor: str = "middle") -> str:
    """Small text."""
    return f'<text x="{x:g}" y="{y:g}" class="small" text-anchor="{anchor}">{escape(text)}</text>'


def grid(x: float, y: float, side: int, cell: float, opacity: Callable[[int, int], float], style: str = "good") -> str:
    """Square cells of a map."""
    shades: dict[float, str] = {}  # few, so that a path draws many cells
    for row in range(side):
        for column in range(side):
            left, top, wide = x + column * cell, y + row * cell, cell - 1
            shade = round(opacity(row, column) * 8) / 8
            shades[shade] = shades.get(shade, "") + f"M{left:.4g} {top:.4g}h{wide:.3g}v{wide:.3g}h-{wide:.3g}z"
    cells = "".join(f'<path d="{d}" class="{style}" fill-opacity="{shade:g}"/>' for shade, d in shades.items() if shade)
    return cells + rect(x - 1, y - 1, side * cell + 1, side * cell + 1, "none faint")


def drawn(seed: int) -> Callable[[int, int], float]:
    """Shades that look like a feature map."""
    return lambda row, column: 0.15 + 0.6 * random.Random(f"{seed} {row} {column}").random()


def heat(row: float, column: float) -> float:
    """A map with one hot place."""
    return min(1, 0.07 + math.exp(-((row - 3.2) ** 2 + (column - 4.6) ** 2) / 2.2))


def cloud(x: float, y: float, count: int, wide: float, high: float, seed: int) -> list[tuple[float, float]]:
    """Points about a place, within the panel."""
    source = random.Random(seed)
    near = [(source.gauss(0, 1), source.gauss(0, 1)) for _ in range(count)]
    limit = lambda value, most: max(-most, min(value, most))  # noqa: E731
    return [(min(max(x + wide * limit(a, 1.9), 4), 222), min(max(y + high * limit(b, 1.9), 4), 104)) for a, b in near]


def dots(points: Sequence[tuple[float, float]], style: str = "good", r: float = 3.4, opacity: float = 0.75) -> str:
    """Several points."""
    return "".join(dot(*point, style, r, opacity) for point in points)


def cross(x: float, y: float) -> str:
    """The patch that is looked at."""
    return dot(x, y, "odd", 5)


def photo(x: float, y: float, side: float, odd: bool = False) -> str:
    """An image of a part, perhaps with a defect."""
    part = rect(x, y, side, side, "tile") + dot(x + side / 2, y + side / 2, "good", side * 0.32, 0.45)
    return part + (dot(x + side * 0.62, y + side * 0.4, "odd", side * 0.09) if odd else "")


def bars(x: float, y: float, heights: Sequence[float], style: str = "good") -> str:
    """A vector."""
    return "".join(rect(x + 8 * i, y - h, 6, h, style, 0.8) for i, h in enumerate(heights))


def nearest(bank: Sequence[tuple[float, float]], x: float, y: float, k: int = 1) -> str:
    """A patch with lines to its nearest of the bank."""
    near = sorted(bank, key=lambda p: math.dist(p, (x, y)))[:k]
    return dots(bank) + "".join(line(x, y, *p, "to") for p in near) + cross(x, y)


# -- drawings ---------------------------------------------------------------------------------------------------------


def layers(apart: bool = False) -> str:
    """Maps of a backbone, joined or kept apart."""
    maps = grid(66, 8, 8, 7, drawn(1)) + grid(66, 76, 4, 8, drawn(2))
    if apart:
        ends = [grid(150, 8, 8, 7, drawn(1)), grid(150, 72, 8, 4.6, drawn(2))]
        return (
            photo(4, 34, 44)
            + maps
            + arrow(50, 50, 63, 40)
            + arrow(50, 62, 63, 88)
            + arrow(126, 36, 146, 36)
            + arrow(102, 92, 146, 92)
            + "".join(ends)
        )
    joined = "".join(grid(150 + 5 * i, 30 - 5 * i, 8, 7, drawn(3 - i)) for i in (2, 1, 0))
    return (
        photo(4, 34, 44)
        + maps
        + arrow(50, 50, 63, 40)
        + arrow(50, 62, 63, 88)
        + joined
        + arrow(126, 36, 146, 48)
        + arrow(102, 92, 146, 70)
    )


def windows() -> str:
    """A neighbourhood of each patch."""
    frame = rect(91, 27, 31, 31, "none to")
    return (
        photo(4, 34, 44)
        + arrow(50, 56, 66, 56)
        + grid(70, 16, 8, 10.4, drawn(1))
        + frame
        + arrow(156, 42, 176, 42)
        + bars(180, 64, [20, 34, 12, 27, 18])
        + note(200, 80, "one patch")
    )


def pooled(apart: bool = False) -> str:
    """A mean over the image, of the last map or of each."""
    found = photo(4, 34, 44) + arrow(50, 56, 66, 56)
    for i in range(3 if apart else 1):
        top = 6 + 36 * i if apart else 26
        found += grid(72, top, 6, 5.2 if apart else 10, drawn(i)) + arrow(
            108 if apart else 136, top + 15, 146 if apart else 158, top + 15
        )
        found += bars(152 if apart else 164, top + 30, [8 + 20 * drawn(i + 5)(j, 0) for j in range(6)])
    return found


def class_token() -> str:
    """Patches, and a token of the whole image."""
    return (
        photo(4, 34, 44)
        + arrow(50, 56, 66, 56)
        + grid(72, 10, 8, 9, drawn(1))
        + dot(108, 98, "odd", 6)
        + note(120, 102, "class token", "start")
        + note(152, 48, "patches", "start")
    )


def gaussians() -> str:
    """One at each position."""
    found = ""
    for i, (x, y) in enumerate([(40, 30), (112, 30), (184, 30), (40, 84), (112, 84), (184, 84)]):
        found += f'<ellipse cx="{x}" cy="{y}" rx="{26 - 3 * (i % 3)}" ry="{10 + 4 * (i % 2)}" class="none by" transform="rotate({25 * i - 40} {x} {y})"/>'
        found += dots(cloud(x, y, 8, 9, 6, i), r=2.4)
    return found


def mahalanobis() -> str:
    """A distance in the shape of a Gaussian."""
    found = dots(cloud(96, 60, 30, 26, 8, 4), r=2.8)
    for size in (1, 1.7, 2.4):
        found += f'<ellipse cx="96" cy="60" rx="{34 * size}" ry="{12 * size}" class="none by"/>'
    return found + line(96, 60, 150, 20, "to") + cross(150, 20)


def coreset() -> str:
    """Few of many."""
    points = [p for i, (x, y) in enumerate([(60, 40), (150, 34), (110, 84)]) for p in cloud(x, y, 16, 17, 12, i + 3)]
    chosen = points[::7]
    return dots(points, opacity=0.25, r=3) + "".join(dot(*p, "none ink", 6) + dot(*p, "good", 3.2) for p in chosen)


def bank_search(k: int = 1) -> str:
    """The nearest good patch."""
    points = [p for i, (x, y) in enumerate([(60, 40), (150, 34), (110, 90)]) for p in cloud(x, y, 9, 15, 9, i + 3)]
    return nearest(points, 186, 84, k)


def every_patch() -> str:
    """The patches of all good images, side by side."""
    return "".join(photo(8 + 44 * i, 8, 36) + grid(8 + 44 * i, 60, 5, 7.2, drawn(i)) for i in range(5))


def own_bank_each_layer() -> str:
    """Banks side by side."""
    found = ""
    for i in range(3):
        found += rect(6 + 74 * i, 8, 66, 84, "tile") + dots(cloud(39 + 74 * i, 50, 14, 14, 16, i + 7), r=3)
        found += note(39 + 74 * i, 106, f"layer {i + 1}")
    return found


def five_banks() -> str:
    """Several banks of each layer."""
    return "".join(
        rect(4 + 44 * i, 12, 38, 78, "tile") + dots(cloud(23 + 44 * i, 51, 8, 8, 16, i + 20), r=3) for i in range(5)
    ) + note(113, 106, "five selections")


def projection() -> str:
    """What a mean of the neighbours leaves."""
    bank = cloud(84, 62, 12, 30, 12, 12)
    near = sorted(bank, key=lambda p: math.dist(p, (160, 22)))[:5]
    mean = (sum(x for x, _ in near) / 5, sum(y for _, y in near) / 5)
    return (
        dots(bank)
        + "".join(line(*mean, *p, "by", True) for p in near)
        + dot(*mean, "none ink", 6)
        + line(160, 22, *mean, "to")
        + cross(160, 22)
    )


def thinned() -> str:
    """Fewer where many are close together."""
    thick, thin = cloud(66, 56, 40, 20, 16, 5), cloud(160, 50, 8, 22, 24, 6)
    kept = thick[::5] + thin
    return dots(thick + thin, opacity=0.2, r=3) + dots(kept, opacity=1, r=3.6)


def subspace() -> str:
    """Principal components, and the residual."""
    points = [(30 + 15 * i, 92 - 6 * i + dy) for i, (_, dy) in enumerate(cloud(0, 0, 11, 0, 4, 9))]
    return line(10, 100, 210, 20, "by") + dots(points) + note(196, 46, "E", "start")


def residual() -> str:
    """The part that the components leave."""
    return (
        line(10, 100, 210, 20, "by")
        + line(10, 100, 92, 22, "faint")
        + line(92, 22, 117, 57, "to")
        + cross(92, 22)
        + note(116, 34, "residual", "start")
        + dot(117, 57, "good", 4)
    )


def retrieval() -> str:
    """The images most alike."""
    found = photo(4, 36, 40, odd=True)
    for i in range(4):
        near = i in (0, 2)
        found += photo(92, 0 + 28 * i, 24) + (line(46, 56, 90, 12 + 28 * i, "to") if near else "")
        found += note(122, 16 + 28 * i, "retrieved" if near else "", "start")
    return found


def correspondence() -> str:
    """A patch among all patches of the images retrieved."""
    return (
        photo(4, 34, 44, odd=True)
        + grid(92, 4, 6, 8, drawn(1))
        + grid(92, 60, 6, 8, drawn(2))
        + rect(92 + 24, 4 + 16, 7, 7, "none to")
        + line(31, 52, 116, 24, "to")
        + note(150, 34, "at any", "start")
        + note(150, 50, "place", "start")
    )


def window_search() -> str:
    """A patch near its own place."""
    return (
        grid(4, 14, 8, 10, drawn(4))
        + rect(44, 44, 9, 9, "odd")
        + grid(124, 14, 8, 10, drawn(5))
        + rect(153, 33, 31, 31, "none to")
        + line(54, 48, 152, 48, "to")
    )


def mutual() -> str:
    """Images judge each other."""
    places = [(38, 26), (112, 12), (186, 26), (168, 84), (62, 84)]
    found = "".join(line(*a, *b, "faint") for i, a in enumerate(places) for b in places[i + 1 :])
    return found + "".join(photo(x - 16, y - 14, 32, odd=i == 3) for i, (x, y) in enumerate(places))


def smallest_share() -> str:
    """The mean of the smallest distances."""
    heights = sorted(12 + 70 * drawn(8)(i, 0) for i in range(16))
    return (
        "".join(
            rect(20 + 12 * i, 96 - h, 9, h, "good" if i < 5 else "tile", 0.85 if i < 5 else 1)
            for i, h in enumerate(heights)
        )
        + line(14, 96, 214, 96, "faint")
        + note(46, 110, "smallest 30 %")
    )


def network(inputs: int = 5, outputs: int = 1) -> str:
    """A small network."""
    left = [(40, 10 + 92 * (i + 0.5) / inputs) for i in range(inputs)]
    middle = [(112, 10 + 92 * (i + 0.5) / 6) for i in range(6)]
    right = [(184, 10 + 92 * (i + 0.5) / outputs) for i in range(outputs)]
    wires = [line(*a, *b, "faint") for one, two in ((left, middle), (middle, right)) for a in one for b in two]
    return "".join(wires) + dots(left, r=5, opacity=1) + dots(middle, r=5, opacity=0.5) + dots(right, "odd", 6, 1)


def negatives() -> str:
    """Good patches and made-up ones."""
    good, bad = cloud(110, 56, 26, 26, 13, 2), cloud(112, 56, 20, 62, 32, 31)
    return dots(bad, "odd", 3, 0.7) + dots(good)


def tails() -> str:
    """How rare a value is, in each dimension."""
    found = ""
    for row in range(3):
        y = 30 + 36 * row
        curve = " ".join(f"L{14 + 2 * i},{y - 24 * math.exp(-(((i - 44 - 5 * row) / 17) ** 2)):.1f}" for i in range(98))
        found += f'<path d="M14,{y}{curve}" class="none by"/>' + line(14, y, 210, y, "faint")
        found += dot(176 - 40 * row, y, "odd", 4.5)
    return found


def tree() -> str:
    """Merge and reduce."""
    found = ""
    for level, count in enumerate((4, 2, 1)):
        for i in range(count):
            x, y = 113 + (i - (count - 1) / 2) * 200 / count, 14 + 38 * level
            found += rect(x - 18, y - 10, 36, 20, "tile") + dots(cloud(x, y, 5, 8, 4, 9 * level + i), r=2.4)
            if level:
                for side in (-1, 1):
                    found += line(x + side * 50 / count, y - 28, x, y - 11, "ink")
    return found


def whitened() -> str:
    """An ellipse becomes a circle."""
    first, second = cloud(52, 56, 26, 24, 7, 3), cloud(170, 56, 26, 14, 14, 3)
    return (
        dots(first, r=2.8)
        + arrow(96, 56, 122, 56)
        + dots(second, r=2.8)
        + '<circle cx="170" cy="56" r="34" class="none by"/>'
    )


def classifier() -> str:
    """Max-pooling, mean, one dense layer."""
    ends = [(190, 34, "good"), (190, 78, "anomaly")]
    return (
        grid(4, 20, 8, 9, drawn(1))
        + arrow(80, 56, 96, 56)
        + bars(100, 72, [12, 30, 20, 34, 16])
        + "".join(
            line(144, 56, x - 6, y, "faint")
            + dot(x, y, "odd" if name == "anomaly" else "good", 6)
            + note(x, y + 20, name)
            for x, y, name in ends
        )
    )


def weighted_maps() -> str:
    """Maps of channels, weighted and added."""
    maps = "".join(grid(4 + 56 * i, 30, 6, 7.4, drawn(i + 2)) + note(26 + 56 * i, 20, f"w{i + 1}") for i in range(3))
    return (
        maps
        + note(52, 56, "+")
        + note(108, 56, "+")
        + arrow(168, 52, 182, 52)
        + grid(188, 33, 6, 6, lambda r, c: heat(r, c + 1), "odd")
    )


def training() -> str:
    """Good and defective images, and what learns."""
    parts = "".join(photo(4 + 34 * i, 10, 28) for i in range(3)) + "".join(
        photo(4 + 34 * i, 56, 28, True) for i in range(3)
    )
    blocks = "".join(rect(118 + 22 * i, 26, 17, 50, "odd" if i > 2 else "tile", 0.8) for i in range(5))
    return parts + arrow(106, 50, 116, 50) + blocks + note(150, 94, "frozen") + note(206, 94, "learns")


def to_map(score: str) -> Glyph:
    """A grid of scores becomes a map, and a score."""

    def glyph() -> str:
        smooth = grid(90, 16, 16, 4.5, lambda row, column: heat(row / 2 - 0.25, column / 2 - 0.25), "odd")
        told = note(170, 50, "score:", "start") + note(170, 66, score, "start")
        return grid(0, 16, 8, 9, heat, "odd") + arrow(74, 52, 88, 52) + smooth + told

    return glyph


def no_map() -> str:
    """A number for the whole image."""
    return (
        photo(40, 26, 60, odd=True)
        + arrow(104, 56, 130, 56)
        + note(140, 60, "one score, no map", "start").replace("small", "title").replace("one score, no map", "score")
    )


# -- methods ----------------------------------------------------------------------------------------------------------

METHODS: dict[str, tuple[str, list[Panel]]] = {
    "padim": ("PaDiM", [
        ("1 Embedding", layers, ("layers joined on one grid,", "some channels of them kept")),
        ("2 Fit", gaussians, ("a Gaussian at each position,", "over the good images")),
        ("3 Score", mahalanobis, ("Mahalanobis distance of a patch", "from the Gaussian of its position")),
        ("4 Map", to_map("maximum"), ("resized and smoothed",)),
    ]),
    "patchcore": ("PatchCore", [
        ("1 Embedding", windows, ("each patch with its neighbourhood,", "layers joined")),
        ("2 Fit", coreset, ("a coreset of all good patches:", "the memory bank")),
        ("3 Score", bank_search, ("distance of a patch to the nearest", "entry of the bank, at any position")),
        ("4 Map", to_map("maximum"), ("resized and smoothed",)),
    ]),
    "spade": ("SPADE", [
        ("1 Feature", pooled, ("the mean of a deep map of the", "image, and patches of finer maps")),
        ("2 Retrieval", retrieval, ("the k good images most alike;", "their distance is the image score")),
        ("3 Correspondence", correspondence, ("each patch to the nearest", "of all patches of those images")),
        ("4 Map", to_map("of step 2"), ("summed over layers, smoothed",)),
    ]),
    "gaussian": ("Gaussian-AD", [
        ("1 Feature", lambda: pooled(True), ("each stage, averaged over the", "image: one vector for each")),
        ("2 Fit", mahalanobis, ("one Gaussian for each stage,", "over the good images")),
        ("3 Score", lambda: bars(60, 84, [30, 52, 24, 66, 40, 58], "odd") + line(50, 84, 120, 84, "faint") + arrow(124, 56, 146, 56) + note(170, 60, "sum"),
         ("the sum of the Mahalanobis", "distances of all stages")),
        ("4 Decision", no_map, ("of the whole image:", "there is no anomaly map")),
    ]),
    "subspacead": ("SubspaceAD", [
        ("1 Feature", layers, ("the mean of the chosen layers", "at each patch")),
        ("2 Fit", subspace, ("principal components E: 99 % of", "the variance of good patches")),
        ("3 Score", residual, ("squared length of what the", "components leave of a patch")),
        ("4 Map", to_map("top 1 %"), ("resized and smoothed",)),
    ]),
    "anomalydino": ("AnomalyDINO", [
        ("1 Feature", class_token, ("patches of a transformer,", "each of length 1")),
        ("2 Bank", every_patch, ("every patch of few good images,", "turned as well")),
        ("3 Score", bank_search, ("1 minus cosine to the nearest patch;", "the background may be masked")),
        ("4 Map", to_map("top 1 %"), ("resized and smoothed",)),
    ]),
    "rad": ("RAD", [
        ("1 Feature", class_token, ("patches of several layers,", "and the class token")),
        ("2 Retrieval", retrieval, ("the k good images whose", "class tokens are most similar")),
        ("3 Score", window_search, ("1 minus largest cosine to patches", "of these near the same place")),
        ("4 Map", to_map("top 1 %"), ("mean over layers, smoothed",)),
    ]),
    "procon": ("ProCon", [
        ("1 Feature", lambda: layers(True), ("layers kept apart, patches of", "length 1, in a random projection")),
        ("2 Banks", five_banks, ("for each layer five coresets", "of 1 % of the good patches")),
        ("3 Score", projection, ("what a soft mean of neighbours", "leaves of a patch; median of banks")),
        ("4 Map", to_map("top 0.5 %"), ("mean over layers, smoothed",)),
    ]),
    "superadd": ("SuperADD", [
        ("1 Feature", lambda: layers(True), ("patches of each layer by itself,", "as the network gives them")),
        ("2 Bank", thinned, ("thinned by density: of patches", "close together fewer are kept")),
        ("3 Score", own_bank_each_layer, ("distance to the nearest of the", "layer's bank; mean over layers")),
        ("4 Map", to_map("top 1 %"), ("resized and smoothed",)),
    ]),
    "mh_patchcore": ("MH-PatchCore", [
        ("1 Feature", whitened, ("PatchCore's patches, whitened", "in their principal components")),
        ("2 Bank", tree, ("merge and reduce: blocks of images", "are thinned, two and two")),
        ("3 Score", bank_search, ("squared distance to the nearest", "entry: a Mahalanobis distance")),
        ("4 Map", to_map("weighted"), ("resized and smoothed",)),
    ]),
    "dfm": ("DFM", [
        ("1 Feature", pooled, ("the deepest map, averaged over", "windows of 4 by 4: one vector")),
        ("2 Fit", subspace, ("principal components that hold", "97 % of the variance")),
        ("3 Score", residual, ("what they leave of the vector,", "or its likelihood in them")),
        ("4 Map", to_map("sum"), ("squared error at each", "pooled position, resized")),
    ]),
    "musc": ("MuSc", [
        ("1 Feature", windows, ("patches of each layer, averaged", "over windows of 1, 3 and 5")),
        ("2 No fit", mutual, ("the test images judge each other;", "none is known to be good")),
        ("3 Score", smallest_share, ("distances to the nearest patch of", "each other image: smallest 30 %")),
        ("4 Map", to_map("highest"), ("mean over windows and layers;", "scores of like images averaged")),
    ]),
    "lunar": ("LUNAR", [
        ("1 Feature", windows, ("layers joined, averaged", "over 3 by 3 positions")),
        ("2 Negatives", negatives, ("good patches, drawn at random,", "and made-up ones around them")),
        ("3 Score", network, ("a network rates the distances", "to the five nearest of the bank")),
        ("4 Map", to_map("maximum"), ("resized and smoothed",)),
    ]),
    "pyod": ("PyOD", [
        ("1 Feature", windows, ("layers joined, averaged", "over 3 by 3 positions")),
        ("2 Fit", coreset, ("good patches drawn at random, for", "any outlier detector of PyOD")),
        ("3 Score", tails, ("ECOD, the default: how far out", "in the tail of each dimension")),
        ("4 Map", to_map("maximum"), ("resized and smoothed",)),
    ]),
    "cam": ("CAM", [
        ("1 Classifier", classifier, ("the last map pooled and averaged;", "one dense layer: good or anomaly")),
        ("2 Training", training, ("on good and defective images:", "the last convolutions learn")),
        ("3 Score", lambda: bars(70, 90, [14], "good") + bars(110, 90, [70], "odd") + line(50, 90, 150, 90, "faint") + note(73, 104, "good") + note(116, 104, "anomaly") + note(160, 30, "above 0.5", "start"),
         ("the probability of anomaly", "is the score of the image")),
        ("4 Map", weighted_maps, ("channels weighted by what they", "add to anomaly, resized")),
    ]),
}  # fmt: skip


def draw(name: str) -> str:
    """The SVG of a method."""
    title, panels = METHODS[name]
    wide, high = 2 * WIDTH + 3 * GAP, 2 * HEIGHT + 3 * GAP
    steps = ". ".join(f"{head}: {' '.join(lines)}" for head, _, lines in panels)
    parts = []
    for number, (head, glyph, lines) in enumerate(panels):
        x, y = GAP + number % 2 * (WIDTH + GAP), GAP + number // 2 * (HEIGHT + GAP)
        told = "".join(f'<text x="12" y="{182 + 17 * i}">{escape(text)}</text>' for i, text in enumerate(lines))
        parts.append(
            f'<g transform="translate({x} {y})"><rect width="{WIDTH}" height="{HEIGHT}" rx="8" class="tile"/>'
            f'<text x="12" y="25" class="title">{escape(head)}</text><g transform="translate(12 46)">{glyph()}</g>{told}</g>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" role="img" '
        f'aria-labelledby="t d"><title id="t">{escape(title)}</title><desc id="d">{escape(steps)}.</desc>'
        f'<style>{STYLE}</style><rect width="{wide}" height="{high}" class="paper"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for method in METHODS:
        (OUT / f"{method}.svg").write_text(draw(method), encoding="utf-8")
