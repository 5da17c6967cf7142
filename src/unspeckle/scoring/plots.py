"""Line plots as inline SVG, coloured by the page's style so that they suit light and dark alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 270
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 52, 16, 14, 44


@dataclass(frozen=True)
class PlotLine:
    """ys over xs, rising; error: half the length of each point's bar; names: what each point says when pointed at."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    error_bars: Sequence[float] = ()
    point_labels: Sequence[str] = ()
    has_dots: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    label: str
    log: bool = False
    low: float | None = None  # where it begins and ends, if not with the data
    high: float | None = None
    ticks: Sequence[float] = ()


class _AxisScale:
    """From data to pixels, along one axis."""

    def __init__(self, axis: Axis, values: Sequence[float], pixel_start: float, pixel_end: float, tight: bool) -> None:
        """tight: end with the data, not at the next round number."""
        self.log, self.pixel_start, self.pixel_end = axis.log, pixel_start, pixel_end
        low = min(values) if axis.low is None else axis.low
        high = max(values) if axis.high is None else axis.high
        if high <= low:
            low, high = (low / 2, low * 2) if self.log and low > 0 else (low - 0.5, low + 0.5)
        self.low, self.high = low, high
        self.ticks = list(axis.ticks) or (_log_ticks(low, high) if self.log else _round_ticks(low, high))
        if tight:
            self.ticks = [tick for tick in self.ticks if low <= tick <= high]
        elif not axis.ticks and not self.log:
            self.low = min(low, self.ticks[0]) if axis.low is None else low
            self.high = max(high, self.ticks[-1]) if axis.high is None else high

    def __call__(self, value: float) -> float:
        position, low, high = (math.log(v) if self.log else v for v in (value, self.low, self.high))
        return self.pixel_start + (position - low) / (high - low) * (self.pixel_end - self.pixel_start)


def render_plot(
    lines: Sequence[PlotLine], x: Axis, y: Axis, title: str, reference_y: float | None = None, reference_name: str = ""
) -> str:
    """One plot under its title. mark: a level of y to draw across, with its name."""
    lines = [line for line in lines if len(line.xs)]
    if not lines:
        return ""
    x_scale = _AxisScale(x, [v for line in lines for v in line.xs], MARGIN_LEFT, WIDTH - MARGIN_RIGHT, tight=True)
    y_values = [v for line in lines for i, v in enumerate(line.ys) for v in (v, *_error_bar_ends(line, i))]
    y_scale = _AxisScale(
        y, y_values + ([] if reference_y is None else [reference_y]), HEIGHT - MARGIN_BOTTOM, MARGIN_TOP, tight=False
    )
    elements = [*_axis_elements(x_scale, y_scale, x, y)]
    if reference_y is not None:
        elements.append(
            f'<line class="mark" x1="{MARGIN_LEFT}" x2="{WIDTH - MARGIN_RIGHT}" y1="{y_scale(reference_y):.1f}" y2="{y_scale(reference_y):.1f}"/>'
        )
        elements.append(
            f'<text class="mark" x="{WIDTH - MARGIN_RIGHT}" y="{y_scale(reference_y) - 4:.1f}">{escape(reference_name)}</text>'
        )
    for number, line in enumerate(lines, 1):
        elements += _line_elements(line, number, x_scale, y_scale)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(elements)}</svg>'
    caption = f"<figcaption><b>{escape(title)}</b>{_legend(lines) if len(lines) > 1 else ''}</figcaption>"
    return f'<figure class="plot">{caption}{svg}</figure>'


def _legend(lines: Sequence[PlotLine]) -> str:
    entries = "".join(
        f'<span class="key s{number}{" dashed" if line.dashed else ""}">{escape(line.name)}</span>'
        for number, line in enumerate(lines, 1)
    )
    return f'<span class="legend">{entries}</span>'


def _axis_elements(x_scale: _AxisScale, y_scale: _AxisScale, x: Axis, y: Axis) -> list[str]:
    bottom = HEIGHT - MARGIN_BOTTOM
    elements = []
    for tick in y_scale.ticks:
        elements.append(
            f'<line class="grid" x1="{MARGIN_LEFT}" x2="{WIDTH - MARGIN_RIGHT}" y1="{y_scale(tick):.1f}" y2="{y_scale(tick):.1f}"/>'
        )
        elements.append(
            f'<text class="tick y" x="{MARGIN_LEFT - 7}" y="{y_scale(tick) + 4:.1f}">{_format_tick(tick)}</text>'
        )
    last_label_x = -math.inf
    for tick in x_scale.ticks:
        if x_scale(tick) - last_label_x >= 26:  # else the words would touch
            last_label_x = x_scale(tick)
            elements.append(
                f'<text class="tick x" x="{x_scale(tick):.1f}" y="{bottom + 17}">{_format_tick(tick)}</text>'
            )
    elements.append(f'<line class="axis" x1="{MARGIN_LEFT}" x2="{WIDTH - MARGIN_RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    elements.append(
        f'<text class="label x" x="{(MARGIN_LEFT + WIDTH - MARGIN_RIGHT) / 2:.0f}" y="{HEIGHT - 6}">{escape(x.label)}</text>'
    )
    middle = (MARGIN_TOP + bottom) / 2
    elements.append(
        f'<text class="label y" transform="translate(12 {middle:.0f}) rotate(-90)">{escape(y.label)}</text>'
    )
    return elements


def _line_elements(line: PlotLine, number: int, x_scale: _AxisScale, y_scale: _AxisScale) -> list[str]:
    points = [(x_scale(a), y_scale(b)) for a, b in zip(line.xs, line.ys, strict=True)]
    polyline = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    elements = [f'<polyline class="line s{number}{" dashed" if line.dashed else ""}" points="{polyline}"/>']
    for i, (a, b) in enumerate(points):
        for low, high in [_error_bar_ends(line, i)] if line.error_bars else []:
            elements.append(
                f'<line class="bar s{number}" x1="{a:.1f}" x2="{a:.1f}" y1="{y_scale(low):.1f}" y2="{y_scale(high):.1f}"/>'
            )
        if line.has_dots:
            tooltip = f"<title>{escape(line.point_labels[i])}</title>" if line.point_labels else ""
            elements.append(f'<circle class="dot s{number}" cx="{a:.1f}" cy="{b:.1f}" r="4">{tooltip}</circle>')
    return elements


def _error_bar_ends(line: PlotLine, i: int) -> tuple[float, ...]:
    return (line.ys[i] - line.error_bars[i], line.ys[i] + line.error_bars[i]) if line.error_bars else ()


def _round_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that enclose the range."""
    raw_step = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw_step))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw_step * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten within the range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [v for p in powers for v in (10.0**p, 2 * 10.0**p, 5 * 10.0**p) if low * 0.999 <= v <= high * 1.001]


def _format_tick(value: float) -> str:
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:.4g}".replace("-", "−")
