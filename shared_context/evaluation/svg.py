"""Plots as inline SVG that reads in light and dark, by keyboard, and without telling colours apart.

Colours come from the page's style sheet (classes ``c0`` to ``c7``); lines differ by dashes and by the shapes of their
points as well, and the cells of a heat map bear their numbers. Every point can be focused and names itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from shared_context.evaluation.report import HeatMap, Lines, Point, Series, text_of

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 46

COLOURS = 8
DASHES = ("", "7 4", "2 4", "10 4 2 4", "14 5", "4 2 1 2 1 2", "1 3", "16 3 3 3")
SHAPES = 8


def lines_svg(plot: Lines) -> str:
    """A plot of lines."""
    points = [point for series in plot.series for point in series.points]
    if not points:
        return ""
    x = _Axis([p.x for p in points], plot.log_x, LEFT, WIDTH - RIGHT, tight=True)
    heights = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    y = _Axis(heights, plot.log_y, HEIGHT - BOTTOM, TOP)
    body = [
        *(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{_short(v)}</text>'
            for v in y.ticks()
        ),
        *(
            f'<text class="tick" x="{x(v):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_short(v)}</text>'
            for v in x.places()
        ),
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(plot.x)}{', log scale' if plot.log_x else ''}</text>",
        f'<text class="axis" transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(plot.y)}{", log scale" if plot.log_y else ""}</text>',
        *(_line(number, series, x, y) for number, series in enumerate(plot.series)),
        # Points come last, over all lines; what is focused is drawn over what stands before it.
        *(_points(number, series, plot, x, y) for number, series in enumerate(plot.series)),
    ]
    return _svg(WIDTH, HEIGHT, plot.title, body)


def legend(plot: Lines) -> str:
    """The names of the lines, each beside a piece of its line."""
    items = (
        f'<li><svg class="key" viewBox="0 0 44 14" aria-hidden="true">'
        f'<line class="line c{number % COLOURS}" x1="1" x2="43" y1="7" y2="7" {_dash(number)}/>'
        f"{_shape(number, 22, 7)}</svg> {escape(series.name)}</li>"
        for number, series in enumerate(plot.series)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def heat_map_svg(plot: HeatMap) -> str:
    """A heat map; each cell bears its number, and its shade goes from the page's colour to full."""
    left = 20 + 7 * max([len(name) for name in plot.rows], default=0)
    cell_width = max(54, min(110, (WIDTH - left) // max(1, len(plot.columns))))
    cell_height, top = 34, 40
    width = left + cell_width * len(plot.columns) + RIGHT
    height = top + cell_height * len(plot.rows) + 8
    body = [
        f'<text class="axis" x="{left}" y="14">{escape(plot.column)}</text>',
        f'<text class="axis" x="8" y="{top - 8}">{escape(plot.row)}</text>',
        *(
            f'<text class="tick" x="{left + (i + 0.5) * cell_width}" y="{top - 8}" text-anchor="middle">'
            f"{escape(name)}</text>"
            for i, name in enumerate(plot.columns)
        ),
    ]
    for r, (name, values) in enumerate(zip(plot.rows, plot.values, strict=True)):
        y = top + r * cell_height
        body.append(f'<text class="tick" x="{left - 8}" y="{y + 22}" text-anchor="end">{escape(name)}</text>')
        for c, value in enumerate(values):
            x = left + c * cell_width
            label = "-" if value is None else f"{value:.2f}"
            of = f"{plot.row} {name}, {plot.column} {plot.columns[c]}: {label}"
            dark = "over" if value is not None and value > 0.7 else ""
            body.append(
                f'<g class="cell" tabindex="0" role="img" aria-label="{escape(of)}"><title>{escape(of)}</title>'
                f'<rect class="shade" x="{x}" y="{y}" width="{cell_width - 2}" height="{cell_height - 2}" rx="3" '
                f'fill-opacity="{0.05 + 0.95 * (value or 0.0):.2f}"/>'
                f'<text class="value {dark}" x="{x + cell_width / 2 - 1}" y="{y + 21}" text-anchor="middle">'
                f"{label}</text></g>"
            )
    return _svg(width, height, plot.title, body)


def _svg(width: float, height: float, title: str, body: Sequence[str]) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" role="group" '
        f'aria-label="{escape(title)}">{"".join(body)}</svg>'
    )


class _Axis:
    """Places values between two pixels.

    Args:
        values: what has to fit.
        log: whether the axis is logarithmic.
        begin, end: pixels.
        tight: end at the outermost values; otherwise at round ones.
    """

    def __init__(self, values: Sequence[float], log: bool, begin: float, end: float, *, tight: bool = False):
        self._log = log and min(values) > 0
        self._values = sorted(set(values))
        low, high = self._values[0], self._values[-1]
        if self._log:
            low, high = math.log10(low), math.log10(high)
        elif not tight and 0 <= low < 0.6 * high:
            low = 0.0
        if low == high:
            low, high = (0.0, 1.0) if low == 0 else (low - 0.5, high + 0.5)
        self._step = 1.0 if self._log else _round_step(high - low)
        if not tight:
            low = math.floor(low / self._step + 1e-9) * self._step
            high = math.ceil(high / self._step - 1e-9) * self._step
        self._low, self._high = low, high
        inset = 16 if tight else 0
        self._begin, self._end = begin + inset, end - inset

    def __call__(self, value: float) -> float:
        at = math.log10(value) if self._log else value
        return self._begin + (at - self._low) / (self._high - self._low) * (self._end - self._begin)

    def ticks(self) -> list[float]:
        """Round values."""
        count = round((self._high - self._low) / self._step)
        values = [self._low + i * self._step for i in range(count + 1)]
        return [10.0**value for value in values] if self._log else values

    def places(self) -> list[float]:
        """The values themselves, less those that would be written over another one."""
        kept: list[float] = []
        for value in self._values:
            if not kept or self(value) - self(kept[-1]) >= 44:
                kept.append(value)
        return kept


def _round_step(range_: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that cuts a range into about five."""
    raw = max(range_, 1e-9) / 5
    power = 10 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * 0.999)


def _line(number: int, series: Series, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    path = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in series.points)
    return f'<polyline class="line c{number % COLOURS}" points="{path}" {_dash(number)}/>'


def _points(number: int, series: Series, plot: Lines, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return "".join(_point(number, series.name, point, plot, x(point.x), y) for point in series.points)


def _point(number: int, name: str, point: Point, plot: Lines, at_x: float, y: Callable[[float], float]) -> str:
    at_y = y(point.y)
    interval, bar = "", ""
    if point.low is not None and point.high is not None:
        interval = f" ({text_of(point.low)} to {text_of(point.high)})"
        bar = f'<line class="bar c{number % COLOURS}" x1="{at_x:.1f}" x2="{at_x:.1f}" y1="{y(point.low):.1f}" '
        bar += f'y2="{y(point.high):.1f}"/>'
    label = f"{name}, {_short(point.x)} {plot.x}: {text_of(float(point.y))}{interval}"
    anchor = "start" if at_x < WIDTH / 2 else "end"
    shift, above = (10 if anchor == "start" else -10), (at_y - 10 if at_y > 40 else at_y + 20)
    return (
        f'<g class="point" tabindex="0" role="img" aria-label="{escape(label)}">{bar}'
        f'<circle class="reach" cx="{at_x:.1f}" cy="{at_y:.1f}" r="11"/>{_shape(number, at_x, at_y)}'
        f'<text class="tip" x="{at_x + shift:.1f}" y="{above:.1f}" text-anchor="{anchor}">{escape(label)}</text></g>'
    )


def _shape(number: int, x: float, y: float) -> str:
    # Lines that share a colour share neither shape nor dashes.
    kind, css = (number + number // COLOURS) % SHAPES, f'class="mark c{number % COLOURS}"'
    if kind == 0:
        return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    shapes: dict[int, list[tuple[float, float]]] = {
        1: [(-4, -4), (4, -4), (4, 4), (-4, 4)],
        2: [(0, -5.5), (5, 4), (-5, 4)],
        3: [(0, -6), (6, 0), (0, 6), (-6, 0)],
        4: [(0, 5.5), (5, -4), (-5, -4)],
        5: [(-1.6, -5), (1.6, -5), (1.6, -1.6), (5, -1.6), (5, 1.6), (1.6, 1.6), (1.6, 5), (-1.6, 5), (-1.6, 1.6),
            (-5, 1.6), (-5, -1.6), (-1.6, -1.6)],
        6: [(0, -6), (5.7, -1.9), (3.5, 4.9), (-3.5, 4.9), (-5.7, -1.9)],
        7: [(-6, 0), (-3, -5), (3, -5), (6, 0), (3, 5), (-3, 5)],
    }  # fmt: skip
    return f'<polygon {css} points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[kind])}"/>'


def _dash(number: int) -> str:
    dash = DASHES[(number + number // COLOURS) % len(DASHES)]
    return f'stroke-dasharray="{dash}"' if dash else ""


def _short(value: float) -> str:
    if value and (abs(value) < 0.01 or abs(value) >= 1e6):
        return f"{value:.0e}"
    return f"{value:,.0f}" if abs(value) >= 10 or float(value).is_integer() else f"{value:.2f}".rstrip("0").rstrip(".")
