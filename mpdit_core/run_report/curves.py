"""Curves as SVG, with nothing to load."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

MOST_POINTS = 1000
WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 460, 200, 62, 24, 8
RIGHT, LOWEST = WIDTH - EDGE, HEIGHT - BOTTOM - EDGE  # edges of the plot
LIGHT, MIDDLE, DARK = "#9cc3e6", "#1f6fb4", "#0b3d6b"


def curve(points: Sequence[tuple[float, float]], *, smooth: bool = False) -> Markup:
    """An SVG line through `(step, value)` points, with the extremes written at the axes.

    Args:
        smooth: whether a running mean is drawn over the line.
    """
    points = points[:: max(1, len(points) // MOST_POINTS)]
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)

    def line(shown: Sequence[float], colour: str) -> str:
        x_scale = (RIGHT - LEFT) / ((steps[-1] - steps[0]) or 1)
        y_scale = (LOWEST - EDGE) / ((high - low) or 1)
        places = (
            f"{LEFT + (step - steps[0]) * x_scale:.1f},{EDGE + (high - value) * y_scale:.1f}"
            for step, value in zip(steps, shown, strict=True)
        )
        return f'<polyline points="{" ".join(places)}" stroke="{colour}"/>'

    lines = line(values, LIGHT) + line(running_mean(values), DARK) if smooth else line(values, MIDDLE)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="11" fill="#555">'
        f'<rect x="{LEFT}" y="{EDGE}" width="{RIGHT - LEFT}" height="{LOWEST - EDGE}" fill="#fafafa"/>'
        f'<g fill="none" stroke-width="1.5">{lines}</g>'
        + _text(LEFT - 6, 16, f"{high:.4g}", "end")
        + _text(LEFT - 6, LOWEST, f"{low:.4g}", "end")
        + _text(LEFT, HEIGHT - 12, f"step {steps[0]:,}", "start")
        + _text(RIGHT, HEIGHT - 12, f"{steps[-1]:,}", "end")
        + "</svg>"
    )


def running_mean(values: Sequence[float]) -> list[float]:
    """The exponential mean of `values`, whose time constant is a thirtieth of their number."""
    weight = math.exp(-1 / max(1, len(values) / 30))
    mean, means = values[0], []
    for value in values:
        mean = weight * mean + (1 - weight) * value
        means.append(mean)
    return means


def _text(x: int, y: int, words: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'
