"""Line plots as inline SVG, coloured by the page's style so that they suit light and dark alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 44


@dataclass(frozen=True)
class Line:
    """ys over xs, rising; error: half the length of each point's bar; names: what each point says when pointed at."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    error: Sequence[float] = ()
    names: Sequence[str] = ()
    dots: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    label: str
    log: bool = False
    low: float | None = None  # where it begins and ends, if not with the data
    high: float | None = None
    ticks: Sequence[float] = ()


class _Scale:
    """From data to pixels, along one axis."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float, tight: bool) -> None:
        """tight: end with the data, not at the next round number."""
        self.log, self.start, self.end = axis.log, start, end
        low = min(values) if axis.low is None else axis.low
        high = max(values) if axis.high is None else axis.high
        if high <= low:
            low, high = (low / 2, low * 2) if self.log and low > 0 else (low - 0.5, low + 0.5)
        self.low, self.high = low, high
        self.ticks = list(axis.ticks) or (_decades(low, high) if self.log else _round(low, high))
        if tight:
            self.ticks = [tick for tick in self.ticks if low <= tick <= high]
        elif not axis.ticks and not self.log:
            self.low = min(low, self.ticks[0]) if axis.low is None else low
            self.high = max(high, self.ticks[-1]) if axis.high is None else high

    def __call__(self, value: float) -> float:
        place, low, high = (math.log(v) if self.log else v for v in (value, self.low, self.high))
        return self.start + (place - low) / (high - low) * (self.end - self.start)


def plot(lines: Sequence[Line], x: Axis, y: Axis, title: str, mark: float | None = None, mark_name: str = "") -> str:
    """One plot under its title. mark: a level of y to draw across, with its name."""
    lines = [line for line in lines if len(line.xs)]
    if not lines:
        return ""
    across = _Scale(x, [v for line in lines for v in line.xs], LEFT, WIDTH - RIGHT, tight=True)
    reach = [v for line in lines for i, v in enumerate(line.ys) for v in (v, *_ends(line, i))]
    up = _Scale(y, reach + ([] if mark is None else [mark]), HEIGHT - BOTTOM, TOP, tight=False)
    parts = [*_frame(across, up, x, y)]
    if mark is not None:
        parts.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(mark):.1f}" y2="{up(mark):.1f}"/>')
        parts.append(f'<text class="mark" x="{WIDTH - RIGHT}" y="{up(mark) - 4:.1f}">{escape(mark_name)}</text>')
    for number, line in enumerate(lines, 1):
        parts += _drawn(line, number, across, up)
    drawn = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    head = f"<figcaption><b>{escape(title)}</b>{_legend(lines) if len(lines) > 1 else ''}</figcaption>"
    return f'<figure class="plot">{head}{drawn}</figure>'


def _legend(lines: Sequence[Line]) -> str:
    keys = "".join(
        f'<span class="key s{number}{" dashed" if line.dashed else ""}">{escape(line.name)}</span>'
        for number, line in enumerate(lines, 1)
    )
    return f'<span class="legend">{keys}</span>'


def _frame(across: _Scale, up: _Scale, x: Axis, y: Axis) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in up.ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        parts.append(f'<text class="tick y" x="{LEFT - 7}" y="{up(tick) + 4:.1f}">{_said(tick)}</text>')
    beyond = -math.inf
    for tick in across.ticks:
        if across(tick) - beyond >= 26:  # else the words would touch
            beyond = across(tick)
            parts.append(f'<text class="tick x" x="{across(tick):.1f}" y="{bottom + 17}">{_said(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text class="label x" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}">{escape(x.label)}</text>'
    )
    middle = (TOP + bottom) / 2
    parts.append(f'<text class="label y" transform="translate(12 {middle:.0f}) rotate(-90)">{escape(y.label)}</text>')
    return parts


def _drawn(line: Line, number: int, across: _Scale, up: _Scale) -> list[str]:
    places = [(across(a), up(b)) for a, b in zip(line.xs, line.ys, strict=True)]
    way = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    parts = [f'<polyline class="line s{number}{" dashed" if line.dashed else ""}" points="{way}"/>']
    for i, (a, b) in enumerate(places):
        for low, high in [_ends(line, i)] if line.error else []:
            parts.append(
                f'<line class="bar s{number}" x1="{a:.1f}" x2="{a:.1f}" y1="{up(low):.1f}" y2="{up(high):.1f}"/>'
            )
        if line.dots:
            said = f"<title>{escape(line.names[i])}</title>" if line.names else ""
            parts.append(f'<circle class="dot s{number}" cx="{a:.1f}" cy="{b:.1f}" r="4">{said}</circle>')
    return parts


def _ends(line: Line, i: int) -> tuple[float, ...]:
    return (line.ys[i] - line.error[i], line.ys[i] + line.error[i]) if line.error else ()


def _round(low: float, high: float) -> list[float]:
    """Four to eight round numbers that enclose the range."""
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten within the range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [v for p in powers for v in (10.0**p, 2 * 10.0**p, 5 * 10.0**p) if low * 0.999 <= v <= high * 1.001]


def _said(value: float) -> str:
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:.4g}".replace("-", "−")
