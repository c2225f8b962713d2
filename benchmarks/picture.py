"""The picture: how many times better than celery-batches, as bars on a logarithmic axis.

Plain SVG, with a background of its own: a page may be light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from benchmarks.values import Values, middle, number

WIDTH, LEFT, RIGHT, TOP, STEP, BAR = 960, 430, 150, 98, 26, 16
INK, FAINT, OURS, WORSE, PAPER = "#1f2328", "#d1d9e0", "#2da44e", "#bc4c00", "#ffffff"
FONT = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
TITLE = "redis_batches: times better than celery-batches"
CAPTION = (
    "Rates: so many times more. Memory and times: so many times less."
    " Median, least and most of all rounds."
)


class Bar(NamedTuple):
    """How many times better one row is: in the median, least and most of all rounds."""

    title: str
    median: float
    least: float
    most: float


def bars_of(values: Values) -> list[Bar]:
    """Returns a bar per row of the comparison in which one side is better than the other."""
    ratios = {row: values.of(row, "ours_to_theirs") for row in values}
    return [Bar(row.title, *middle(found)) for row, found in ratios.items() if found]


def draw(bars: Sequence[Bar], machine: str) -> str:
    """Returns an SVG picture.

    Args:
        bars: From top to bottom.
        machine: On which they were measured.
    """
    height = TOP + STEP * len(bars) + 40
    size = {"width": str(WIDTH), "height": str(height), "viewBox": f"0 0 {WIDTH} {height}"}
    svg = ElementTree.Element(
        "svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "font-family": FONT, **size}
    )
    ElementTree.SubElement(svg, "title").text = TITLE
    _rect(svg, 0, 0, WIDTH, height, PAPER)
    _text(svg, 20, 30, TITLE, size=18, weight="bold")
    for y, caption in ((52, CAPTION), (69, machine)):
        _text(svg, 20, y, caption, size=12)
    low = min(1.0, *(bar.least for bar in bars)) if bars else 1.0
    high = max(10.0, *(bar.most for bar in bars)) if bars else 10.0
    axis = _Axis(10.0 ** math.floor(math.log10(low)), high)
    for tick in axis.ticks():
        _rect(svg, axis.x(tick) - 0.5, TOP - 6, 1, STEP * len(bars) + 10, FAINT)
        _text(svg, axis.x(tick), height - 18, f"{tick:g}x", size=12, anchor="middle")
    for index, bar in enumerate(bars):
        _bar(svg, axis, TOP + STEP * index, bar)
    _rect(svg, axis.x(1) - 1, TOP - 6, 2, STEP * len(bars) + 10, INK)
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


class _Axis:
    """A logarithmic axis, so that 2 times and a half lie equally far from 1."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high
        self._unit = (WIDTH - LEFT - RIGHT) / math.log(high / low)

    def x(self, value: float) -> float:
        return LEFT + self._unit * math.log(value / self._low)

    def ticks(self) -> list[float]:
        first, last = (math.log10(value) for value in (self._low, self._high))
        return [10.0**power for power in range(round(first), math.floor(last) + 1)]


def _bar(svg: ElementTree.Element, axis: _Axis, top: float, bar: Bar) -> None:
    middle_y, one, end = top + BAR / 2, axis.x(1), axis.x(bar.median)
    _text(svg, LEFT - 12, middle_y + 4, bar.title, size=13, anchor="end")
    color = OURS if bar.median >= 1 else WORSE
    _rect(svg, min(one, end), top, abs(end - one), BAR, color, {"class": "bar"})
    least, most = axis.x(bar.least), axis.x(bar.most)
    _rect(svg, least, middle_y - 0.75, most - least, 1.5, INK)
    for x in (least, most):
        _rect(svg, x - 0.75, middle_y - 4, 1.5, 8, INK)
    label = f"{number(bar.median)}x"
    _text(svg, max(end, most, one) + 8, middle_y + 5, label, size=13, weight="bold")


def _rect(
    parent: ElementTree.Element,
    x: float,
    y: float,
    width: float,
    height: float,
    fill: str,
    more: dict[str, str] | None = None,
) -> None:
    box = {"x": x, "y": y, "width": width, "height": height}
    numbers = {name: f"{value:.1f}" for name, value in box.items()}
    ElementTree.SubElement(parent, "rect", {**numbers, "fill": fill, **(more or {})})


def _text(
    parent: ElementTree.Element,
    x: float,
    y: float,
    text: str,
    *,
    size: int,
    anchor: str = "start",
    weight: str = "normal",
) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "font-size": str(size), "text-anchor": anchor}
    ElementTree.SubElement(
        parent, "text", {**place, "font-weight": weight, "fill": INK}
    ).text = text
