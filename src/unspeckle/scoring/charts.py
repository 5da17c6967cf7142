"""Which numbers of a report are plotted against which."""

import math
from collections.abc import Callable, Sequence

from unspeckle.scoring.bits_per_dim import BitsPerDim
from unspeckle.scoring.memorization import THUMBNAIL_SIDE, MemorizationScore
from unspeckle.scoring.plots import LINE_COLORS, Axis, Plot, PlotLine
from unspeckle.scoring.scores import LossScore, Scores, SweepPoint
from unspeckle.scoring.sweeps import TWO_CALL_SAMPLERS

WHITE_NOISE_BITS = 0.5 / math.log(2)  # bits per dimension and unit of log(1 + SNR)
Value = Callable[[SweepPoint], float]


def steps_plots(scores: Scores) -> list[Plot]:
    """KID against calls of the network and against time, one line for each sampler; without a corpus, the time only."""
    points = scores.by_steps
    points_by_sampler: dict[str, list[SweepPoint]] = {}
    for point in sorted(points, key=lambda p: p.steps):
        points_by_sampler.setdefault(point.sampler, []).append(point)
    samplers = list(dict.fromkeys(p.sampler for p in points))[: len(LINE_COLORS)]

    def lines(x: Value, y: Value, error: Value | None = None) -> list[PlotLine]:
        return [_make_line(sampler, points_by_sampler[sampler], x, y, error) for sampler in samplers]

    calls = sorted({_calls_without_guidance(p) for p in points})
    calls_axis = Axis("steps (two for samplers with two calls a step)", log=True, ticks=calls)
    if any(p.kid is None for p in points):
        time_lines = lines(_calls_without_guidance, _milliseconds)
        return [Plot("Time against steps", time_lines, calls_axis, Axis("ms per image", low=0))]
    floor, floor_name = _kid_floor(scores)
    by_steps = lines(_calls_without_guidance, _kid_times_1000, _kid_error_bar)
    by_time = lines(_milliseconds, _kid_times_1000, _kid_error_bar)
    time_axis = Axis("milliseconds per image", log=True)
    return [
        Plot("Quality against steps", by_steps, calls_axis, _kid_axis(points), floor, floor_name),
        Plot("Quality against time", by_time, time_axis, _kid_axis(points), floor, floor_name),
    ]


def guidance_scale_plots(scores: Scores) -> list[Plot]:
    """KID, and precision with recall and coverage, against the guidance scale; nothing without a corpus or a sweep."""
    points = scores.by_guidance_scale
    if not points or any(p.kid is None for p in points):
        return []

    def guidance_scale(point: SweepPoint) -> float:
        return point.guidance_scale

    floor, floor_name = _kid_floor(scores)
    axis = Axis("guidance scale", ticks=sorted({p.guidance_scale for p in points}))
    kid_line = _make_line("KID", points, guidance_scale, _kid_times_1000, _kid_error_bar)
    fraction_lines = [
        _make_line("precision", points, guidance_scale, lambda p: p.precision or 0),
        _make_line("recall", points, guidance_scale, lambda p: p.recall or 0),
        _make_line("coverage", points, guidance_scale, lambda p: p.coverage or 0),
    ]
    return [
        Plot("Quality against guidance scale", [kid_line], axis, _kid_axis(points), floor, floor_name),
        Plot("Precision, recall, coverage", fraction_lines, axis, Axis("fraction of images", low=0, high=1)),
    ]


def loss_plot(loss: LossScore) -> Plot:
    """The relative error of validation and of training images against time."""
    labels = [f"t {t:.2f}: {error:.4f}" for t, error in zip(loss.times, loss.relative_errors, strict=True)]
    lines = [
        PlotLine("validation", loss.times, loss.relative_errors, point_labels=labels),
        PlotLine("training", loss.times, loss.training_relative_errors, dashed=True, has_dots=False),
    ]
    x_axis = Axis("time t: 0 is the image, 1 is noise", low=0, high=1)
    return Plot("Validation loss by noise level", lines, x_axis, Axis("relative error", low=0))


def bits_plot(bits: BitsPerDim) -> Plot:
    """Bits per dimension against the log-SNR."""
    labels = [f"log-SNR {x:.1f}: {y:.3f}" for x, y in zip(bits.log_snr, bits.bits_by_log_snr, strict=True)]
    line = PlotLine("bits", bits.log_snr, bits.bits_by_log_snr, point_labels=labels)
    x_axis, y_axis = Axis("log-SNR: noise left, the image right"), Axis("bits per dimension and unit", low=0)
    return Plot("Where the bits are spent", [line], x_axis, y_axis, WHITE_NOISE_BITS, "white noise")


def nearest_distances_plot(memorization: MemorizationScore) -> Plot:
    """The distribution of distances to the nearest training image."""
    fractions = [i / 100 for i in range(101)]
    lines = [
        PlotLine("generated", memorization.generated_percentiles, fractions, has_dots=False),
        PlotLine("validation", memorization.validation_percentiles, fractions, has_dots=False, dashed=True),
    ]
    x_axis = Axis(f"distance in color levels, at {THUMBNAIL_SIDE} × {THUMBNAIL_SIDE} pixels", low=0)
    y_axis = Axis("fraction of images nearer", low=0, high=1)
    return Plot("Distance to the nearest training image", lines, x_axis, y_axis)


def _calls_without_guidance(point: SweepPoint) -> float:
    return point.steps * (2 if point.sampler in TWO_CALL_SAMPLERS else 1)


def _milliseconds(point: SweepPoint) -> float:
    return 1000 * point.seconds_per_image


def _kid_times_1000(point: SweepPoint) -> float:
    return 1000 * (point.kid or 0)


def _kid_error_bar(point: SweepPoint) -> float:
    """Two standard errors."""
    return 2000 * (point.kid_standard_error or 0)


def _kid_axis(points: Sequence[SweepPoint]) -> Axis:
    return Axis("KID × 1000, lower is better", low=min(0.0, *map(_kid_times_1000, points)))


def _make_line(name: str, points: Sequence[SweepPoint], x: Value, y: Value, error: Value | None = None) -> PlotLine:
    labels = [f"{p.sampler}, {p.steps} steps, scale {p.guidance_scale:g}: {y(p):.3g}" for p in points]
    error_bars = [error(p) for p in points] if error else ()
    return PlotLine(name, [x(p) for p in points], [y(p) for p in points], error_bars, labels)


def _kid_floor(scores: Scores) -> tuple[float | None, str]:
    kid = scores.find_distance("kid")
    return (None, "") if kid is None else (1000 * kid.floor.mean, "real images")
