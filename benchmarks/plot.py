"""Charts of lines as SVG text, for light and dark pages: a linear axis upwards from 0, a logarithmic one across."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT, GAP = 380, 240, 80
LEFT, TOP, BOTTOM = 64, 92, 60

STYLE = """
text { font-size: 12px; font-family: "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.panel { font-size: 13px; font-weight: 600 }
.quiet { fill: #59636e }
.page { fill: #ffffff }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round }
.s0 { stroke: #0969da } .d0 { fill: #0969da }
.s1 { stroke: #bc4c00; stroke-dasharray: 7 4 } .d1 { fill: #bc4c00 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .quiet { fill: #9198a1 }
  .page { fill: #0d1117 }
  .grid { stroke: #3d444d }
  .s0 { stroke: #4493f8 } .d0 { fill: #4493f8 }
  .s1 { stroke: #f0883e } .d1 { fill: #f0883e }
}
"""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart: lines by name, each with `(x, y)` points of positive numbers. All panels have the same names."""

    title: str
    x_title: str
    y_title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    x_labels: Mapping[float, str]


def draw(title: str, subtitle: str, panels: Sequence[Panel]) -> str:
    """The panels side by side, below one title and one legend."""
    width = LEFT + len(panels) * WIDTH + (len(panels) - 1) * GAP + 24
    height = TOP + HEIGHT + BOTTOM
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title">',
        f'<title id="title">{escape(title)}. {escape(subtitle)}</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}" rx="6"/>',
        _text(LEFT, 28, title, "title"),
        _text(LEFT, 47, subtitle, "quiet"),
    ]
    for number, name in enumerate(panels[0].lines):
        x = width - 24 - 110 * (len(panels[0].lines) - number)
        parts += [f'<path class="line s{number}" d="M{x} 24h28"/>', _dot(x + 14, 24, number), _text(x + 36, 28, name)]
    for number, panel in enumerate(panels):
        parts += _panel(panel, LEFT + number * (WIDTH + GAP))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, left: float) -> list[str]:
    points = [point for line in panel.lines.values() for point in line]
    step = nice_step(max(y for _, y in points))
    highest = step * math.ceil(max(y for _, y in points) / step)
    low, high = (math.log(edge(x for x, _ in points)) for edge in (min, max))
    bottom = TOP + HEIGHT

    def across(x: float) -> float:
        return left + 16 + (WIDTH - 32) * ((math.log(x) - low) / (high - low) if high > low else 0.5)

    def up(y: float) -> float:
        return bottom - HEIGHT * y / highest

    parts = [_text(left, TOP - 14, panel.title, "panel")]
    for number in range(round(highest / step) + 1):
        y = up(number * step)
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}h{WIDTH}"/>')
        parts.append(_text(left - 8, y + 4, f"{number * step:.3g}", "quiet", "end"))
    parts += [_text(across(x), bottom + 18, label, "quiet", "middle") for x, label in panel.x_labels.items()]
    parts.append(_text(left + WIDTH / 2, bottom + 40, panel.x_title, "", "middle"))
    middle = TOP + HEIGHT / 2
    turned = f' transform="rotate(-90 {left - 44:.1f} {middle:.1f})"'
    parts.append(_text(left - 44, middle, panel.y_title, "", "middle", turned))
    for number, line in enumerate(panel.lines.values()):
        way = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in line)
        parts.append(f'<path class="line s{number}" d="M{way}"/>')
        parts += [_dot(across(x), up(y), number) for x, y in line]
    return parts


def nice_step(highest: float) -> float:
    """Between the lines of a grid: 1, 2 or 5 times a power of ten, so that there are three to seven of them."""
    power = 10.0 ** math.floor(math.log10(highest))
    return next(power * part for part in (0.2, 0.5, 1.0, 2.0) if highest / (power * part) <= 6)


def _dot(x: float, y: float, number: int) -> str:
    """Round for the first line, square for the next: told apart without colours too."""
    if number == 0:
        return f'<circle class="d0" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    return f'<rect class="d{number}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start", more: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named} text-anchor="{anchor}"{more}>{escape(text)}</text>'
