"""Pictures of the pages as plain numbers: where each box stands, what it says, how dark it is. Templates draw them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CELL = 22
"""Width and height of one cell of the heat map, in SVG units (CSS pixels at zoom 1)."""

ROW_LABEL = 190
"""Room for the names of the rows, in SVG units."""

# Cividis at eleven steps: even in lightness, and the same to the eyes of colour-blind readers.
CIVIDIS = (
    "#fee838", "#e8d54a", "#d0c259", "#b9b065", "#a39e6f", "#8e8d76",
    "#7b7c78", "#686c74", "#535d6d", "#3a4d6c", "#123570",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    x: int
    y: int
    colour: str
    label: str


@dataclass(frozen=True)
class Heatmap:
    """Rows are module types, columns are layers; darker is more. `unit` says what a value is."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[Cell, ...]
    table: tuple[tuple[str, str, float], ...]
    unit: str
    least: float
    most: float

    @property
    def width(self) -> int:
        """Width of the whole picture, in SVG units."""
        return ROW_LABEL + CELL * len(self.columns) + 10

    @property
    def height(self) -> int:
        """Height of the whole picture, in SVG units."""
        return CELL * (len(self.rows) + 1) + 6


def heatmap(sites: Sequence[Mapping[str, Any]], unit: str) -> Heatmap | None:
    """A heat map of `sites`, each {"layer", "module", "norm"}; None when there is nothing to draw.

    layer is a number or "-" for what lies outside the layers, which becomes the last column. Values are coloured on a
    square-root scale from 0 to the largest, since norms of one patch often span two orders of magnitude.
    """
    values: dict[tuple[str, str], float] = {}
    for site in sites:
        key = (str(site["module"]), str(site["layer"]))
        values[key] = math.hypot(values.get(key, 0.0), float(site["norm"]))
    if not values:
        return None
    rows = tuple(sorted({module for module, _ in values}))
    columns = tuple(sorted({layer for _, layer in values}, key=_layer_order))
    most = max(values.values())
    cells = tuple(
        Cell(
            x=ROW_LABEL + CELL * columns.index(layer),
            y=CELL * (rows.index(module) + 1),
            colour=_colour(value, most),
            label=f"{module}, {_layer_name(layer)}: {value:.4g} {unit}",
        )
        for (module, layer), value in sorted(values.items())
    )
    table = tuple((module, layer, value) for (module, layer), value in sorted(values.items()))
    return Heatmap(columns, rows, cells, table, unit, min(values.values()), most)


def _layer_order(layer: str) -> tuple[int, int, str]:
    return (0, int(layer), "") if layer.isdigit() else (1, 0, layer)


def _layer_name(layer: str) -> str:
    return f"layer {layer}" if layer.isdigit() else "outside the layers"


def _colour(value: float, most: float) -> str:
    share = math.sqrt(value / most) if most > 0 else 0.0
    return CIVIDIS[min(int(share * (len(CIVIDIS) - 1) + 0.5), len(CIVIDIS) - 1)]


BOX_WIDTH, BOX_HEIGHT, BOX_GAP, COLUMN_GAP = 208, 46, 14, 100


@dataclass(frozen=True)
class Box:
    x: int
    y: int
    title: str
    caption: str
    href: str | None
    is_self: bool = False


@dataclass(frozen=True)
class Arrow:
    path: str
    label: str
    x: int
    y: int
    anchor: str
    """Which end of the label is at x: labels stand at the relative's side, where arrows are apart."""


@dataclass(frozen=True)
class Lineage:
    """What a repository was made from (left), itself (middle), and what was made from it (right)."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    width: int
    height: int
    hidden: int
    """Relatives left out of the picture; the table under it has all."""


def lineage(
    repo_id: str, parents: Sequence[Mapping[str, Any]], children: Sequence[Mapping[str, Any]]
) -> Lineage | None:
    """The picture of a repository's nearest relatives; None when it has none. At most eight a side are drawn."""
    if not parents and not children:
        return None
    left, right = parents[:8], children[:8]
    rows = max(len(left), len(right), 1)
    height = rows * (BOX_HEIGHT + BOX_GAP) + BOX_GAP
    middle_x = (BOX_WIDTH + COLUMN_GAP) if left else 0
    self_y = (height - BOX_HEIGHT) // 2
    boxes = [Box(middle_x, self_y, repo_id, "this repository", None, is_self=True)]
    arrows = []
    for edge, y in zip(left, _column(len(left), height), strict=True):
        boxes.append(_relative(edge, 0, y))
        arrows.append(_arrow(BOX_WIDTH, y, middle_x, self_y, edge, BOX_WIDTH + 8, y, "start"))
    right_x = middle_x + BOX_WIDTH + COLUMN_GAP
    for edge, y in zip(right, _column(len(right), height), strict=True):
        boxes.append(_relative(edge, right_x, y))
        arrows.append(_arrow(middle_x + BOX_WIDTH, self_y, right_x, y, edge, right_x - 12, y, "end"))
    width = (right_x if right else middle_x) + BOX_WIDTH
    hidden = len(parents) + len(children) - len(left) - len(right)
    return Lineage(tuple(boxes), tuple(arrows), width + 4, height, hidden)


def _column(count: int, height: int) -> list[int]:
    used = count * (BOX_HEIGHT + BOX_GAP) - BOX_GAP
    top = (height - used) // 2
    return [top + i * (BOX_HEIGHT + BOX_GAP) for i in range(count)]


def _relative(edge: Mapping[str, Any], x: int, y: int) -> Box:
    commit = edge.get("commit")
    known = edge.get("repository")
    caption = f"at {commit[:10]}" if commit else "not on this hub"
    return Box(x, y, str(edge["name"]), caption, f"/{edge['name']}" if known else None)


def _arrow(
    x1: int, y1: int, x2: int, y2: int, edge: Mapping[str, Any], label_x: int, label_y: int, anchor: str
) -> Arrow:
    start, end = y1 + BOX_HEIGHT // 2, y2 + BOX_HEIGHT // 2
    middle = (x1 + x2) // 2
    weight = edge.get("weight")
    label = str(edge["relation"]) if weight is None else f"{edge['relation']} × {weight:g}"
    curve = f"M{x1},{start} C{middle},{start} {middle},{end} {x2 - 6},{end}"
    return Arrow(curve, label, label_x, label_y + BOX_HEIGHT // 2 - 5, anchor)
