"""The drawn figures of the documentation: `python docs/images/draw.py` writes the SVG files beside this one.

Their numbers come from the presets; a test compares the files. Each carries colours for light and dark pages.
To add one: a function that returns an `Svg`, and a line in `FIGURES`.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import NormalDist

from mpdit_core.config import ModelConfig
from mpdit_core.presets import load_preset

STYLE = """
text { font: 16px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink); }
.small { font-size: 14px; fill: var(--soft); } .middle { text-anchor: middle; } .end { text-anchor: end; }
.line { stroke: var(--soft); fill: none; stroke-width: 1.6; } .dashed { stroke-dasharray: 5 4; }
.box { fill: var(--box); stroke: var(--soft); stroke-width: 1.4; } .head { fill: var(--soft); }
.coarse { fill: var(--coarse); } .fine { fill: var(--fine); } .class { fill: var(--class); }
.noise { fill: var(--soft); }
.path-0 { stroke: var(--coarse); fill: none; stroke-width: 2; }
.path-1 { stroke: var(--fine); fill: none; stroke-width: 2; }
.path-2 { stroke: var(--class); fill: none; stroke-width: 2; } .faint { opacity: 0.55; stroke-width: 1.2; }
svg { --ink: #1f2430; --soft: #667085; --box: #f2f4f8; --coarse: #4f6bd8; --fine: #159a80; --class: #d97a1c; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6e9f0; --soft: #98a2b8; --box: #2a3040; --coarse: #8ea4ff; --fine: #4fd0b4; --class: #f2a75c; }
}
"""


class Svg:
    """A drawing of `width` × `height` that grows by one element per call."""

    def __init__(self, width: int, height: int, title: str):
        self.head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        self.elements = [f"<title>{title}</title>", f"<style>{STYLE}</style>"]

    def __str__(self) -> str:
        return "\n".join([self.head, *self.elements, "</svg>", ""])

    def text(self, x: float, y: float, text: str, kind: str = "middle") -> None:
        self.elements.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{text}</text>')

    def rectangle(self, x: float, y: float, width: float, height: float, kind: str, *, round: float = 0) -> None:
        size = f'width="{width:g}" height="{height:g}" rx="{round:g}"'
        self.elements.append(f'<rect x="{x:g}" y="{y:g}" {size} class="{kind}"/>')

    def line(self, points: list[tuple[float, float]], kind: str = "line") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.elements.append(f'<polyline points="{path}" class="{kind}"/>')

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line along `points` with a head at its end."""
        (x0, y0), (x, y) = points[-2:]
        length = math.hypot(x - x0, y - y0)
        dx, dy = (x - x0) / length, (y - y0) / length
        self.line([*points[:-1], (x - 6 * dx, y - 6 * dy)])
        corners = [
            (x, y),
            (x - 9 * dx - 4.5 * dy, y - 9 * dy + 4.5 * dx),
            (x - 9 * dx + 4.5 * dy, y - 9 * dy - 4.5 * dx),
        ]
        self.elements.append(f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}" class="head"/>')

    def dot(self, x: float, y: float, kind: str) -> None:
        self.elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="{kind}"/>')


def tokens_of(config: ModelConfig) -> list[tuple[int, int]]:
    """(tokens of the image along a side, tokens with those of the class), for each stage of a square model."""
    sides = [config.input_size.height // stage.patch_size for stage in config.stages]
    return [(side, side * side + config.class_tokens) for side in sides]


def multi_patch() -> Svg:
    """The network of `xl-256` from left to right, and below it the tokens that each block works on."""
    config = load_preset("xl-256").model
    (coarse, fine), stages = tokens_of(config), config.stages
    svg = Svg(960, 536, "MPDiT-XL: 22 blocks on 80 tokens, then 6 blocks on 272 tokens")
    top, side, middle = 130, 112, 186
    _noise(svg, 14, top, side)
    svg.text(70, top + side + 24, "x_t")
    svg.text(
        70,
        top + side + 43,
        f"{config.channels} × {config.input_size.height} × {config.input_size.width}",
        "middle small",
    )
    for x, (count, _), stage, kind in ((216, coarse, stages[0], "coarse"), (560, fine, stages[1], "fine")):
        _class_tokens(svg, x - 22, top, config.class_tokens)
        _grid(svg, x, top, side, count, kind)
        svg.text(x + side / 2, top + side + 24, f"{count * count} + {config.class_tokens} tokens")
        stack = x + side + 34
        svg.arrow((x + side + 4, middle), (stack - 3, middle))
        for offset in (12, 6, 0):
            svg.rectangle(stack + offset, top + 12 - offset, 84, 88, "box", round=6)
        svg.text(stack + 42, middle - 2, str(stage.depth))
        svg.text(stack + 42, middle + 18, "blocks")
        svg.arrow((stack + 48, 30), (stack + 48, top - 2))
        end = stack + 96
        svg.arrow((end + 2, middle), (end + (72 if kind == "coarse" else 30), middle))
    svg.arrow((130, middle), (190, middle))
    svg.text(160, middle - 10, f"patch {stages[0].patch_size}", "middle small")
    svg.text(495, middle - 10, "1 → 2 × 2", "middle small")
    svg.arrow((70, top + side + 50), (70, 318), (616, 318), (616, top + side + 32))
    svg.text(340, 311, f"skip: x_t in patches of {stages[1].patch_size}", "middle small")
    _noise(svg, 836, top, side, kind="fine")
    svg.text(892, top + side + 24, "velocity")
    svg.text(80, 35, "t")
    svg.arrow((92, 30), (226, 30))
    svg.rectangle(226, 10, 150, 40, "box", round=6)
    svg.text(301, 35, "time embedding")
    svg.line([(376, 30), (754, 30)])
    svg.text(566, 20, "one modulation, shared by all blocks", "middle small")
    svg.text(72, 87, "label")
    svg.arrow((96, 82), (201, 82), (201, top - 4))
    svg.text(212, 87, f"{config.class_tokens} class tokens", "small")
    _bars(svg, config, base=506)
    return svg


def _noise(svg: Svg, x: float, y: float, side: float, kind: str = "noise") -> None:
    shades, cell = random.Random(7), side / 16
    for row in range(16):
        for column in range(16):
            svg.elements.append(
                f'<rect x="{x + column * cell:g}" y="{y + row * cell:g}" width="{cell:g}" height="{cell:g}" '
                f'class="{kind}" opacity="{shades.uniform(0.05, 0.8):.2f}"/>'
            )


def _grid(svg: Svg, x: float, y: float, side: float, count: int, kind: str) -> None:
    cell = side / count
    for row in range(count):
        for column in range(count):
            svg.rectangle(x + column * cell, y + row * cell, cell - 1.5, cell - 1.5, kind, round=1)


def _class_tokens(svg: Svg, x: float, y: float, count: int) -> None:
    for n in range(count):
        svg.rectangle(x + n % 2 * 8, y + n // 2 * 14, 6.5, 12, "class", round=1)


def _bars(svg: Svg, config: ModelConfig, *, base: float) -> None:
    """One bar per block, as high as its tokens; the dense DiT's number as a line."""
    (_, few), (side, many) = tokens_of(config)
    left, step, scale = 70.0, 30.0, 0.5
    x = left
    for stage, tokens, kind in zip(config.stages, (few, many), ("coarse", "fine"), strict=True):
        for _ in range(stage.depth):
            svg.rectangle(x, base - tokens * scale, step - 4, tokens * scale, kind, round=2)
            x += step
        svg.text(
            x - stage.depth * step / 2, base + 22, f"{stage.depth} blocks on {tokens} tokens, patch {stage.patch_size}"
        )
    dense = base - side * side * scale
    svg.line([(left, dense), (x - 4, dense)], "line dashed")
    svg.text(left, dense - 8, f"the dense DiT: {config.depth} blocks on {side * side} tokens", "small")
    svg.text(left - 8, base, "0", "end small")
    svg.text(left - 8, dense + 5, str(side * side), "end small")
    svg.text(left - 8, base - few * scale + 5, str(few), "end small")


DATA = (-1.5, 0.3, 1.6)


def velocity(x_t: float, t: float) -> float:
    """The mean of `noise - latents` over all lines through x_t at time t; all of `DATA` are equally likely."""
    noises = [(x_t - (1 - t) * latents) / t for latents in DATA]
    weights = [math.exp(-noise * noise / 2) for noise in noises]
    pairs = zip(weights, noises, DATA, strict=True)
    return sum(weight * (noise - latents) for weight, noise, latents in pairs) / sum(weights)


def flow() -> Svg:
    """Trajectories of one latent value from noise at t = 1 to one of three data at t = 0."""
    svg = Svg(960, 396, "Trajectories from noise at t = 1 to three data points at t = 0")
    left, right, centre, scale, steps = 110, 850, 190, 62, 200

    def place(t: float, x: float) -> tuple[float, float]:
        return left + (1 - t) * (right - left), centre - x * scale

    for n in range(18):
        x = NormalDist().inv_cdf((n + 0.5) / 18)
        points = [place(1, x)]
        for step in range(steps):
            x -= velocity(x, 1 - step / steps) / steps
            points.append(place(1 - (step + 1) / steps, x))
        nearest = min(range(len(DATA)), key=lambda index: abs(x - DATA[index]))
        svg.line(points, f"path-{nearest}")
    for index, (noise, latents) in enumerate(((1.9, DATA[0]), (-1.9, DATA[1]), (-0.6, DATA[2]))):
        svg.line([place(1, noise), place(0, latents)], f"path-{index} faint dashed")
    for latents, kind in zip(DATA, ("coarse", "fine", "class"), strict=True):
        svg.dot(*place(0, latents), kind)
    density = [(left - 12 - 150 * NormalDist().pdf(x / 20), centre - x / 20 * scale) for x in range(-56, 57)]
    svg.line(density)
    svg.text(left - 62, 24, "noise")
    svg.text(right, 24, "data")
    for t in (1.0, 0.5, 0.0):
        svg.text(place(t, 0)[0], 392, f"t = {t:g}", "middle small")
    return svg


FIGURES = {"multi-patch.svg": multi_patch, "flow.svg": flow}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (Path(__file__).parent / name).write_text(str(draw()), encoding="utf-8")
