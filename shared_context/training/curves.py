"""The curves of a run as a picture, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 54, 44
CHARACTER = 6.6
"""Pixels of a letter of the legend, about."""
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
    """
    points = {name: [(entry["step"], entry[name]) for entry in history if name in entry] for name in SERIES}
    every = [point for series in points.values() for point in series]
    last = max((step for step, _ in every), default=1)
    values = [value for _, value in every] or [0.0]
    low, high = math.floor(min(values) * 2) / 2, math.ceil(max(values) * 2 + 0.01) / 2

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{title}</text>',
    ]
    for tick in range(round((high - low) * 2) + 1):
        value = low + tick / 2
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#e5e7eb"/>',
            f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>',
        ]
    step_size = _round_step(last / 8)
    for step in range(0, int(last) + 1, step_size):
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">step; nats per answer token</text>')
    at = float(LEFT)
    for name, (label, colour) in SERIES.items():
        for (a, b), (c, d) in pairwise(points[name]):
            parts.append(
                f'<line x1="{x(a):.1f}" y1="{y(b):.1f}" x2="{x(c):.1f}" y2="{y(d):.1f}" stroke="{colour}" '
                'stroke-width="2"/>'
            )
        parts += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5" fill="{colour}"/>' for a, b in points[name]]
        parts += [
            f'<circle cx="{at + 4:.1f}" cy="36" r="4" fill="{colour}"/>',
            f'<text x="{at + 14:.1f}" y="40">{label}</text>',
        ]
        at += 34 + CHARACTER * len(label)
    return "\n".join([*parts, "</svg>", ""])


def _round_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is not below ``least``."""
    size = 1
    while True:
        for factor in (1, 2, 5):
            if factor * size >= least:
                return factor * size
        size *= 10
