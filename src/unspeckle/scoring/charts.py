"""Which numbers of a report are drawn against which."""

import math
from collections.abc import Callable, Sequence

from unspeckle.scoring.likelihood import BitsPerDim
from unspeckle.scoring.memorisation import MemorizationScore
from unspeckle.scoring.plots import Axis, PlotLine, render_plot
from unspeckle.scoring.scores import LossScore, Scores, SweepPoint
from unspeckle.scoring.sweeps import TWO_CALL_SAMPLERS

MAX_LINES = 3


def plot_steps(scores: Scores) -> str:
    """KID against calls of the network and against time, a line for each sampler; time alone without a corpus."""
    points = scores.by_steps
    samplers = list(dict.fromkeys(p.sampler for p in points))[:MAX_LINES]
    points_by_sampler = {
        sampler: sorted((p for p in points if p.sampler == sampler), key=lambda p: p.steps) for sampler in samplers
    }
    network_calls, ms_per_image = (
        sorted({_network_calls(p) for p in points}),
        [1000 * p.seconds_per_image for p in points],
    )
    x_axis = Axis("steps (calls of the network, guidance apart)", log=True, ticks=network_calls)
    if any(p.kid is None for p in points):
        lines = [
            _make_line(sampler, sampler_points, _network_calls, lambda p: 1000 * p.seconds_per_image)
            for sampler, sampler_points in points_by_sampler.items()
        ]
        return _plots_container(render_plot(lines, x_axis, Axis("ms a picture", low=0), "Time against steps"))
    floor, floor_name = _kid_floor(scores)
    y_axis = Axis("KID × 1000, lower is better", low=min(0.0, *(1000 * (p.kid or 0) for p in points)))
    lines_by_steps = [
        _make_line(sampler, sampler_points, _network_calls, _kid_times_1000, _kid_error_bar)
        for sampler, sampler_points in points_by_sampler.items()
    ]
    lines_by_time = [
        _make_line(sampler, sampler_points, lambda p: 1000 * p.seconds_per_image, _kid_times_1000, _kid_error_bar)
        for sampler, sampler_points in points_by_sampler.items()
    ]
    time_axis = Axis("milliseconds a picture", log=True, low=min(ms_per_image), high=max(ms_per_image))
    return _plots_container(
        render_plot(lines_by_steps, x_axis, y_axis, "Quality against steps", floor, floor_name),
        render_plot(lines_by_time, time_axis, y_axis, "Quality against time", floor, floor_name),
    )


def plot_guidance_scales(scores: Scores) -> str:
    """KID, and precision with recall, against the guidance scale. Nothing without a corpus."""
    points = scores.by_guidance_scale
    if any(p.kid is None for p in points):
        return ""
    floor, floor_name = _kid_floor(scores)
    x_axis = Axis("guidance scale", ticks=sorted({p.guidance_scale for p in points}))
    y_axis = Axis("KID × 1000, lower is better", low=min(0.0, *(1000 * (p.kid or 0) for p in points)))
    share_lines = [
        _make_line("precision", points, lambda p: p.guidance_scale, lambda p: p.precision or 0),
        _make_line("recall", points, lambda p: p.guidance_scale, lambda p: p.recall or 0),
        _make_line("coverage", points, lambda p: p.guidance_scale, lambda p: p.coverage or 0),
    ]
    return _plots_container(
        render_plot(
            [_make_line("KID", points, lambda p: p.guidance_scale, _kid_times_1000, _kid_error_bar)],
            x_axis,
            y_axis,
            "Quality against guidance scale",
            floor,
            floor_name,
        ),
        render_plot(share_lines, x_axis, Axis("share", low=0, high=1), "Precision, recall, coverage"),
    )


def plot_loss(loss: LossScore) -> str:
    lines = [
        PlotLine(
            "held out",
            loss.times,
            loss.relative_errors,
            point_labels=[f"t {t:.2f}: {s:.4f}" for t, s in _zip_strict(loss.times, loss.relative_errors)],
        ),
        PlotLine("training", loss.times, loss.training_relative_errors, dashed=True, has_dots=False),
    ]
    return render_plot(
        lines,
        Axis("time: 0 is the picture, 1 is noise", low=0, high=1),
        Axis("share", low=0),
        "Held-out loss by level of noise",
    )


def plot_bits_per_dim(bits: BitsPerDim) -> str:
    point_labels = [f"log-SNR {x:.1f}: {y:.3f}" for x, y in _zip_strict(bits.log_snr, bits.bits_by_log_snr)]
    line = PlotLine("bits", bits.log_snr, bits.bits_by_log_snr, point_labels=point_labels)
    white_noise_bits = 0.5 / math.log(2)
    return render_plot(
        [line], Axis("log-SNR: noise on the left, the picture on the right"), Axis("bits a dimension and unit", low=0),
        "Where the bits go", white_noise_bits, "white noise",
    )  # fmt: skip


def plot_nearest_distances(memorization: MemorizationScore) -> str:
    fractions = [i / 100 for i in range(101)]
    lines = [
        PlotLine("drawn", memorization.generated_percentiles, fractions, has_dots=False),
        PlotLine("held out", memorization.validation_percentiles, fractions, has_dots=False, dashed=True),
    ]
    x_axis = Axis("levels of 255, at 16 × 16 pixels", low=0)
    return render_plot(
        lines, x_axis, Axis("share of pictures nearer", low=0, high=1), "Distance to the nearest training picture"
    )


def _network_calls(point: SweepPoint) -> float:
    return point.steps * (2 if point.sampler in TWO_CALL_SAMPLERS else 1)


def _kid_times_1000(point: SweepPoint) -> float:
    return 1000 * (point.kid or 0)


def _kid_error_bar(point: SweepPoint) -> float:
    return 2000 * (point.kid_standard_error or 0)  # two standard errors


def _make_line(
    name: str, points: Sequence[SweepPoint], x: Callable[[SweepPoint], float], y: Callable[[SweepPoint], float],
    error: Callable[[SweepPoint], float] | None = None,
) -> PlotLine:  # fmt: skip
    point_labels = [f"{p.sampler}, {p.steps} steps, scale {p.guidance_scale:g}: {y(p):.3g}" for p in points]
    return PlotLine(
        name, [x(p) for p in points], [y(p) for p in points], [error(p) for p in points] if error else (), point_labels
    )


def _kid_floor(scores: Scores) -> tuple[float | None, str]:
    kid = scores.find_distance("kid")
    return (None, "") if kid is None else (1000 * kid.floor.mean, "real pictures")


def _plots_container(*plots: str) -> str:
    return f"<div class='plots'>{''.join(plots)}</div>" if any(plots) else ""


def _zip_strict(a: Sequence[float], b: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(a, b, strict=True))
