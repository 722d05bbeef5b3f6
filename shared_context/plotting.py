"""Charts as SVG, which Vega-Lite draws without a network; it comes with the extra ``plots``."""

from __future__ import annotations

from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import altair


def can_draw() -> bool:
    """Whether what draws is installed."""
    return all(find_spec(name) is not None for name in ("altair", "vl_convert"))


def svg(chart: altair.LayerChart) -> str:
    """A chart as an SVG document."""
    drawn = StringIO()
    chart.save(drawn, format="svg")
    return drawn.getvalue()
