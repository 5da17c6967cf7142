"""Which numbers of a report are drawn against which."""

import math
from collections.abc import Callable, Sequence

from unspeckle.scoring.likelihood import Bits
from unspeckle.scoring.memorisation import Memorisation
from unspeckle.scoring.plots import Axis, Line, plot
from unspeckle.scoring.scores import Loss, Point, Scores
from unspeckle.scoring.sweeps import TWICE

MOST_LINES = 3


def steps_plots(scores: Scores) -> str:
    """KID against calls of the network and against time, a line for each sampler; time alone without a corpus."""
    points = scores.by_steps
    names = list(dict.fromkeys(p.sampler for p in points))[:MOST_LINES]
    by_name = {name: sorted((p for p in points if p.sampler == name), key=lambda p: p.steps) for name in names}
    calls, times = sorted({_calls(p) for p in points}), [1000 * p.seconds for p in points]
    across = Axis("steps (calls of the network, guidance apart)", log=True, ticks=calls)
    if any(p.kid is None for p in points):
        lines = [_line(name, some, _calls, lambda p: 1000 * p.seconds) for name, some in by_name.items()]
        return _plots(plot(lines, across, Axis("ms a picture", low=0), "Time against steps"))
    floor, name = _floor(scores)
    high = Axis("KID × 1000, lower is better", low=min(0.0, *(1000 * (p.kid or 0) for p in points)))
    beside = [_line(n, some, _calls, _kid, _error) for n, some in by_name.items()]
    timed = [_line(n, some, lambda p: 1000 * p.seconds, _kid, _error) for n, some in by_name.items()]
    span = Axis("milliseconds a picture", log=True, low=min(times), high=max(times))
    return _plots(
        plot(beside, across, high, "Quality against steps", floor, name),
        plot(timed, span, high, "Quality against time", floor, name),
    )


def scale_plots(scores: Scores) -> str:
    """KID, and precision with recall, against the guidance scale. Nothing without a corpus."""
    points = scores.by_scale
    if any(p.kid is None for p in points):
        return ""
    floor, name = _floor(scores)
    across = Axis("guidance scale", ticks=sorted({p.scale for p in points}))
    high = Axis("KID × 1000, lower is better", low=min(0.0, *(1000 * (p.kid or 0) for p in points)))
    shares = [
        _line("precision", points, lambda p: p.scale, lambda p: p.precision or 0),
        _line("recall", points, lambda p: p.scale, lambda p: p.recall or 0),
        _line("coverage", points, lambda p: p.scale, lambda p: p.coverage or 0),
    ]
    return _plots(
        plot(
            [_line("KID", points, lambda p: p.scale, _kid, _error)],
            across,
            high,
            "Quality against guidance scale",
            floor,
            name,
        ),
        plot(shares, across, Axis("share", low=0, high=1), "Precision, recall, coverage"),
    )


def loss_curve(loss: Loss) -> str:
    lines = [
        Line(
            "held out", loss.times, loss.shares, names=[f"t {t:.2f}: {s:.4f}" for t, s in _zip(loss.times, loss.shares)]
        ),
        Line("training", loss.times, loss.training_shares, dashed=True, dots=False),
    ]
    return plot(
        lines,
        Axis("time: 0 is the picture, 1 is noise", low=0, high=1),
        Axis("share", low=0),
        "Held-out loss by level of noise",
    )


def bits_curve(bits: Bits) -> str:
    names = [f"log-SNR {x:.1f}: {y:.3f}" for x, y in _zip(bits.log_snr, bits.curve)]
    line = Line("bits", bits.log_snr, bits.curve, names=names)
    noise = 0.5 / math.log(2)
    return plot(
        [line], Axis("log-SNR: noise on the left, the picture on the right"), Axis("bits a dimension and unit", low=0),
        "Where the bits go", noise, "white noise",
    )  # fmt: skip


def nearest_curve(found: Memorisation) -> str:
    percent = [i / 100 for i in range(101)]
    lines = [
        Line("drawn", found.drawn_percentiles, percent, dots=False),
        Line("held out", found.held_out_percentiles, percent, dots=False, dashed=True),
    ]
    across = Axis("levels of 255, at 16 × 16 pixels", low=0)
    return plot(
        lines, across, Axis("share of pictures nearer", low=0, high=1), "Distance to the nearest training picture"
    )


def _calls(point: Point) -> float:
    return point.steps * (2 if point.sampler in TWICE else 1)


def _kid(point: Point) -> float:
    return 1000 * (point.kid or 0)


def _error(point: Point) -> float:
    return 2000 * (point.kid_error or 0)  # two standard errors


def _line(
    name: str, points: Sequence[Point], x: Callable[[Point], float], y: Callable[[Point], float],
    error: Callable[[Point], float] | None = None,
) -> Line:  # fmt: skip
    said = [f"{p.sampler}, {p.steps} steps, scale {p.scale:g}: {y(p):.3g}" for p in points]
    return Line(name, [x(p) for p in points], [y(p) for p in points], [error(p) for p in points] if error else (), said)


def _floor(scores: Scores) -> tuple[float | None, str]:
    kid = scores.distance("kid")
    return (None, "") if kid is None else (1000 * kid.floor.mean, "real pictures")


def _plots(*some: str) -> str:
    return f"<div class='plots'>{''.join(some)}</div>" if any(some) else ""


def _zip(a: Sequence[float], b: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(a, b, strict=True))
