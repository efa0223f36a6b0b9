"""Charts as SVG: axes with ticks and a grid, lines, dots with error bars.

A line holds its numbers (`data-values`), which page.js.j2 shows at the pointer. page.css.j2 gives runs their colours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from markupsafe import Markup

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 50, WIDTH - 16, 8, HEIGHT - 22  # edges of the plot
T = TypeVar("T")

MAX_POINTS = 500  # of a line
MIN_LOG = 1e-200  # the values of a logarithmic axis are larger
COLOURS = 6  # in page.css.j2; further runs have the same colours, dashed
BEHIND = ("band", "faint")  # looks that are drawn first
OF_OTHERS = ("band", "published")  # looks in grey, of what a run is compared with


@dataclass(frozen=True, kw_only=True)
class Line:
    """The values of a quantity in one run."""

    name: str
    run: int  # its number, which is its colour
    points: Sequence[tuple[float, float]]  # (step, value), in order of step
    look: Literal["line", "faint", "dots", "band", "published"] = "line"
    intervals: dict[float, tuple[float, float]] = field(default_factory=dict)  # by step, of error bars or the band


@dataclass(frozen=True)
class Axis:
    """The values from one edge of a plot to the other."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], *, log: bool = False, margin: float = 0.0) -> Axis:
        """The axis for `values`, with a margin as a fraction of their range; logarithmic only if all are positive."""
        values = list(values)
        low, high = min(values), max(values)
        if log and low > MIN_LOG:
            factor = (high / low) ** margin if high > low else 1.1
            return cls(low / factor, high * factor, log=True)
        room = (high - low) * margin if high > low else abs(high) / 10 or 1.0
        return cls(max(0.0, low - room) if low >= 0 else low - room, high + room)

    def share(self, value: float) -> float:
        """Where `value` is: 0 at the low edge, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values in the axis, about `count`; on a logarithmic one 1, 2 and 5 times powers of ten."""
        if self.log:
            powers = [10.0**n for n in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)]
            fine = self._inside(factor * power for power in powers for factor in (1, 2, 5))
            if len(fine) > 2:
                decades = self._inside(powers)
                return fine if len(fine) <= 7 else decades[:: 1 + len(decades) // 7]
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(self.low / step)
        return self._inside((first + n) * step for n in range(2 * count))

    def _inside(self, values: Iterable[float]) -> list[float]:
        return [value for value in values if self.low <= value <= self.high]


def chart(lines: Sequence[Line], *, steps: Axis, log: bool = False, label: str = "") -> Markup:
    """An SVG of `lines` over training steps.

    Args:
        steps: the horizontal axis.
        log: whether the vertical axis is logarithmic, if all values are positive.
        label: what the chart shows, for screen readers.
    """
    ends = [end for line in lines for interval in line.intervals.values() for end in interval]
    values = Axis.around([*(value for line in lines for _, value in line.points), *ends], log=log, margin=0.06)

    def x(step: float) -> float:
        return LEFT + (RIGHT - LEFT) * steps.share(step)

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * values.share(value)

    horizontal = Markup('<path class="grid" d="M{},{:.1f}H{}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>')
    vertical = Markup('<path class="grid" d="M{:.1f},{}V{}"/><text x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
    parts = [horizontal.format(LEFT, y(tick), RIGHT, LEFT - 6, y(tick) + 4, short(tick)) for tick in values.ticks()]
    parts.append(Markup('<path class="axis" d="M{},{}H{}"/>').format(LEFT, BOTTOM, RIGHT))
    parts += [vertical.format(x(tick), TOP, BOTTOM, x(tick), HEIGHT - 6, short(tick)) for tick in steps.ticks()]
    for line in sorted(lines, key=lambda line: line.look not in BEHIND):
        parts += _drawn(line, x, y)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(parts)
    )


def _drawn(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> Iterator[Markup]:
    """The band or the error bars, the line itself, and its dots. `x` places a step, `y` a value."""
    colour = f"r{line.run % COLOURS}" + (" dashed" if line.run >= COLOURS else "")
    if line.look in OF_OTHERS:
        colour = "known"
    if line.look == "band":
        lows = [(step, low) for step, (low, _) in line.intervals.items()]
        highs = [(step, high) for step, (_, high) in line.intervals.items()]
        corners = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in [*lows, *reversed(highs)])
        yield Markup('<polygon class="known" data-run="{}" points="{}"/>').format(line.run, corners)
    else:
        for step, (low, high) in line.intervals.items():
            left, middle, bottom, top = x(step) - 4, x(step), y(low), y(high)
            path = f"M{left:.1f},{bottom:.1f}h8M{left:.1f},{top:.1f}h8M{middle:.1f},{top:.1f}V{bottom:.1f}"
            yield Markup('<path class="bar {}" data-run="{}" d="{}"/>').format(colour, line.run, path)
    points = line.points if line.look == "dots" else thinned(line.points, MAX_POINTS)
    numbers = [[step, value, *line.intervals.get(step, ())] for step, value in points]
    yield Markup('<polyline class="{} {}" data-run="{}" data-name="{}" data-values="{}" points="{}"/>').format(
        line.look,
        colour,
        line.run,
        line.name,
        json.dumps(numbers, separators=(",", ":")),
        " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points),
    )
    if line.look in ("dots", "published"):
        dot = Markup('<circle class="{}" data-run="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>')
        for step, value in points:
            yield dot.format(colour, line.run, x(step), y(value))


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced, the first and the last among them."""
    number = min(len(items), most)
    return [items[round(i * (len(items) - 1) / max(1, number - 1))] for i in range(number)]


def short(value: float) -> str:
    """A number at a tick: `0.0005`, `250`, `20k`, `1.5M`."""
    for least, divisor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / divisor:.4g}{unit}"
    return f"{value:.4g}"
