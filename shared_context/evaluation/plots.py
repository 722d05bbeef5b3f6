"""Plots as inline SVG that reads in light and dark, by keyboard, and without telling colours apart.

Vega-Lite draws them, which comes with the extra ``plots``. Colours are variables of the page's style sheet (``--c0`` to
``--c7``); lines differ by dashes and by the shapes of their points as well, and the cells of a heat map bear their
numbers. Every point and cell can be focused and names itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from shared_context.evaluation.report import HeatMap, Lines, Point, text_of
from shared_context.plotting import svg

if TYPE_CHECKING:
    import altair

WIDTH, HEIGHT = 660, 320
COLOURS = 8
DASHES = ([1, 0], [7, 4], [2, 4], [10, 4, 2, 4], [14, 5], [4, 2, 1, 2, 1, 2], [1, 3], [16, 3, 3, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
LEGEND_CHARACTERS = 90
"""Of the names that have room side by side."""
DARK_FROM = 0.7
"""The value from which on a cell's shade is so dark that its number has the page's colour."""

_NUMBER = "format(datum.value, ',~g')"
_NAMED = "value"
"""What a mark is called that names itself."""
_SVG = "http://www.w3.org/2000/svg"


def lines_svg(plot: Lines) -> str:
    """A plot of lines; empty where there is no point.

    Raises:
        ImportError: the extra ``plots`` is not installed.
    """
    import altair as alt

    values = [
        {"name": series.name, "x": p.x, "y": p.y, "low": p.low, "high": p.high, "label": _label(series.name, p, plot)}
        for series in plot.series
        for p in series.points
    ]
    points = [point for series in plot.series for point in series.points]
    if not points:
        return ""
    places = sorted({point.x for point in points})
    heights = [height for p in points for height in (p.y, p.low, p.high) if height is not None]
    log_x, log_y = plot.log_x and places[0] > 0, plot.log_y and min(heights) > 0
    names = [series.name for series in plot.series]
    # Lines that share a colour share neither shape nor dashes.
    styles = [number + number // COLOURS for number in range(len(names))]
    columns = max(1, LEGEND_CHARACTERS // (8 + max(map(len, names))))
    scale = alt.Scale(domain=names, range=[f"var(--c{number % COLOURS})" for number in range(len(names))])
    colour = alt.Color(
        "name:N", title=None, scale=scale, legend=alt.Legend(orient="bottom", columns=columns, labelLimit=0)
    )
    dashes = alt.Scale(domain=names, range=[DASHES[style % len(DASHES)] for style in styles])
    shapes = alt.Scale(domain=names, range=[SHAPES[style % len(SHAPES)] for style in styles])
    x = alt.X(
        "x:Q",
        title=f"{plot.x}, log scale" if log_x else plot.x,
        scale=alt.Scale(type="log" if log_x else "linear", nice=False, zero=False, padding=16),
        axis=alt.Axis(values=places, labelExpr=_NUMBER, grid=False, labelOverlap="greedy"),
    )
    y = alt.Y("y:Q", title=f"{plot.y}, log scale" if log_y else plot.y, scale=_heights(heights, log_y),
              axis=alt.Axis(format=",~g") if log_y else alt.Axis(labelExpr=_NUMBER))  # fmt: skip
    chart = alt.Chart(alt.InlineData(values=values)).encode(x=x, color=colour)
    line = chart.mark_line(aria=False).encode(y=y, strokeDash=alt.StrokeDash("name:N", scale=dashes, legend=None))
    interval = chart.mark_rule(aria=False, opacity=0.45, strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
    point = chart.mark_point(filled=True, size=90, opacity=1, stroke="var(--page)", ariaRoleDescription=_NAMED).encode(
        y=y, shape=alt.Shape("name:N", title=None, scale=shapes), description="label:N"
    )
    bounded = interval.transform_filter("isValid(datum.low) && isValid(datum.high)")
    # Points come last, over all lines.
    return _inline((line + bounded + point).properties(width=WIDTH, height=HEIGHT), plot.title)


def heat_map_svg(plot: HeatMap) -> str:
    """A heat map; each cell bears its number, and its shade goes from the page's colour to full.

    Raises:
        ImportError: the extra ``plots`` is not installed.
    """
    import altair as alt

    cells = []
    for row, values in zip(plot.rows, plot.values, strict=True):
        for column, value in zip(plot.columns, values, strict=True):
            said = "-" if value is None else f"{value:.2f}"
            label = f"{plot.row} {row}, {plot.column} {column}: {said}"
            cells.append({"row": row, "column": column, "value": value or 0.0, "said": said, "label": label})
    across = alt.Axis(orient="top", labelAngle=0)
    down = alt.Axis(labelLimit=0)
    chart = alt.Chart(alt.InlineData(values=cells)).encode(
        x=alt.X("column:N", title=plot.column, sort=None, axis=across, scale=alt.Scale(paddingInner=0.03)),
        y=alt.Y("row:N", title=plot.row, sort=None, axis=down, scale=alt.Scale(paddingInner=0.06)),
    )
    shade = chart.mark_rect(cornerRadius=3, fill="var(--shade)", ariaRoleDescription=_NAMED).encode(
        fillOpacity=alt.FillOpacity("value:Q", scale=alt.Scale(domain=[0, 1], range=[0.05, 1]), legend=None),
        description="label:N",
    )
    over = alt.condition(f"datum.value > {DARK_FROM}", alt.value("var(--over)"), alt.value("var(--ink)"))
    number = chart.mark_text(aria=False, fontSize=12).encode(text="said:N", color=over)
    width = max(54, min(110, WIDTH // max(1, len(plot.columns))))
    return _inline((shade + number).properties(width=alt.Step(width), height=alt.Step(34)), plot.title)


def _label(name: str, point: Point, plot: Lines) -> str:
    interval = ""
    if point.low is not None and point.high is not None:
        interval = f" ({text_of(point.low)} to {text_of(point.high)})"
    return f"{name}, {point.x:,g} {plot.x}: {text_of(float(point.y))}{interval}"


def _heights(heights: list[float], log: bool) -> altair.Scale:
    """An axis that ends at round values, and begins at 0 where that is not far away."""
    import altair as alt

    low, high = min(heights), max(heights)
    if log:
        return alt.Scale(type="log", nice=True)
    if low == high == 0:
        return alt.Scale(domain=[0, 1])
    return alt.Scale(zero=0 <= low < 0.6 * high, nice=True)


def _inline(chart: altair.LayerChart, title: str) -> str:
    """What is drawn of a chart, to stand within a page."""
    font = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelColor": "var(--soft)"}
    chart = chart.configure(
        font="system-ui, sans-serif", background="transparent",
        axis={**font, "titleColor": "var(--ink)", "gridColor": "var(--rule)", "domain": False, "ticks": False,
              "labelPadding": 7, "titlePadding": 12},
        legend={"labelFontSize": 13, "labelColor": "var(--ink)", "symbolSize": 110, "symbolOpacity": 1,
                "symbolStrokeWidth": 0, "columnPadding": 18},
        view={"stroke": None},
    )  # fmt: skip
    root = ElementTree.fromstring(svg(chart))
    root.attrib |= {"class": "plot", "role": "group", "aria-label": title}
    root.set("style", f"max-width: {root.attrib.pop('width')}px")
    del root.attrib["height"]
    for mark in root.iter():
        mark.tag = mark.tag.removeprefix(f"{{{_SVG}}}")  # HTML knows it without
        if mark.get("aria-roledescription") == _NAMED:
            del mark.attrib["aria-roledescription"]
            mark.attrib |= {"role": "img", "tabindex": "0"}
            ElementTree.SubElement(mark, "title").text = mark.get("aria-label")
    return ElementTree.tostring(root, encoding="unicode")
