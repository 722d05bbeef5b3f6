"""The curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared_context.plotting import svg

SERIES = {
    "nll": ("training examples", "#9aa5b1"),
    "eval_wrong": ("held out, a wrong context of the same length", "#c2410c"),
    "eval_right": ("held out, right context", "#1d4ed8"),
}


def curves(history: Sequence[Mapping[str, float]], title: str) -> str:
    """An SVG of a run's negative log-likelihoods over its steps.

    Args:
        history: what was logged, each entry with its ``step``.
        title: stands above the picture.

    Raises:
        ImportError: the extra ``plots`` is not installed.
    """
    import altair as alt

    points = [
        {"step": entry["step"], "nll": entry[name], "of": label}
        for name, (label, _) in SERIES.items()
        for entry in history
        if name in entry
    ]
    labels, colours = zip(*SERIES.values(), strict=True)
    chart = alt.Chart(alt.InlineData(values=points)).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, grid=False)),
        y=alt.Y("nll:Q", title="nats per answer token", scale=alt.Scale(zero=False)),
        color=alt.Color("of:N", title=None, scale=alt.Scale(domain=labels, range=colours)),
    )
    both = (chart.mark_line() + chart.mark_point(filled=True, size=20, opacity=1)).properties(
        title=title, width=640, height=300
    )
    return svg(both.configure(background="white").configure_legend(orient="top", labelLimit=0, columnPadding=40))
