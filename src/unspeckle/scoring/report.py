"""The scores as one HTML file that needs no network and no script, for light and dark mode and for phones."""

from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from unspeckle.scoring import bits_per_dim, charts, memorization, plots
from unspeckle.scoring.composition.free_wording import FREE_CATEGORIES
from unspeckle.scoring.composition.prompts import PROTOCOL_PROMPTS
from unspeckle.scoring.html_images import encode_image, encode_image_strip
from unspeckle.scoring.intervals import ConfidenceInterval
from unspeckle.scoring.plots import Plot
from unspeckle.scoring.scores import Scores, SweepPoint
from unspeckle.scoring.scoring_run import ReportImages

MAX_HYBRID_PAIRS = 8  # pairs whose images are shown


class DistanceText(NamedTuple):
    """How a distance is shown."""

    label: str
    factor: float  # the value is multiplied by
    decimals: int
    description: str


DISTANCE_TEXTS = {
    "kid": DistanceText(
        "KID × 1000", 1000, 1, "difference of the distributions; unbiased, so it is about 0 if there is none"
    ),
    "frechet": DistanceText(
        "Fréchet distance",
        1,
        1,
        "the same for Gaussians fitted to them; few images raise it, so compare it to its floor",
    ),
    "cmmd": DistanceText("CMMD", 1, 3, "the same for CLIP embeddings, with a wide kernel"),
    "precision": DistanceText("precision", 1, 3, "fraction of generated images that are like real ones (quality)"),
    "recall": DistanceText("recall", 1, 3, "fraction of real images that are like generated ones (diversity)"),
    "density": DistanceText("density", 1, 3, "how many real images are near a generated one, about 1 for real images"),
    "coverage": DistanceText("coverage", 1, 3, "fraction of real images that have a generated one near them"),
    "clip_score": DistanceText("CLIP score", 1, 2, "how well images match their captions; higher is better"),
}


class KeyFigure(NamedTuple):
    """One of the numbers at the top of the report."""

    label: str
    value: str
    note: str


class SweepRow(NamedTuple):
    """A row of images that were generated with the same sampling setup."""

    point: SweepPoint
    images: Tensor  # uint8 (N, 3, H, W)
    is_own: bool  # whether all other numbers were measured with this setup


def render_report(scores: Scores, images: ReportImages, command: str) -> str:
    """The HTML file; command is the command line that measures the same."""
    steps_rows = _sweep_rows(scores, scores.by_steps, images.by_steps)
    template = _environment().get_template("report.html")
    return template.render(
        scores=scores,
        images=images,
        command=command,
        key_figures=_key_figures(scores),
        distance_texts=DISTANCE_TEXTS,
        protocol_prompts=PROTOCOL_PROMPTS,
        max_hybrid_pairs=MAX_HYBRID_PAIRS,
        final_noise_std=bits_per_dim.FINAL_NOISE_STD,
        thumbnail_side=memorization.THUMBNAIL_SIDE,
        own_sampler_rows=[row for row in steps_rows if row.point.sampler == scores.sampler],
        other_sampler_rows=[row for row in steps_rows if row.point.sampler != scores.sampler],
        guidance_rows=_sweep_rows(scores, scores.by_guidance_scale, images.by_guidance_scale),
        sweep_points=list(dict.fromkeys((*scores.by_steps, *scores.by_guidance_scale))),
        steps_plots=charts.steps_plots(scores),
        guidance_scale_plots=charts.guidance_scale_plots(scores),
        loss_plot=charts.loss_plot,
        bits_plot=charts.bits_plot,
        nearest_distances_plot=charts.nearest_distances_plot,
        can_plot=plots.can_plot(),
    )


def _environment() -> Environment:
    """Jinja2 with the package's templates and their filters; everything is escaped that is not Markup."""
    environment = Environment(
        loader=PackageLoader("unspeckle.scoring"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "number": format_number,
        "interval": _format_interval,
        "percent": _format_percent,
        "image": encode_image,
        "image_strip": encode_image_strip,
        "svg": _render_svg,
        "as_sentence": _as_sentence,
    }
    return environment


def format_number(value: float, decimals: int = 0) -> str:
    """With commas between thousands and a true minus sign."""
    return f"{value:,.{decimals}f}".replace("-", "−")


def _format_percent(fraction: float, decimals: int = 0) -> str:
    return f"{100 * fraction:.{decimals}f} %"


def _format_interval(interval: ConfidenceInterval, text: DistanceText) -> Markup:
    """The mean, and the ends of the interval if there is one."""
    mean, low, high = (
        None if value is None else format_number(text.factor * value, text.decimals)
        for value in (interval.mean, interval.low, interval.high)
    )
    if low is None or high is None:
        return Markup("{}").format(mean)
    return Markup('{} <span class="soft">({} to {})</span>').format(mean, low, high)


def _render_svg(plot: Plot) -> Markup:
    return Markup(plots.render_svg(plot))


def _as_sentence(line: str) -> str:
    return f"{line[:1].upper()}{line[1:]}."


def _key_figures(scores: Scores) -> list[KeyFigure]:
    """The numbers at the top of the report."""
    figures = []
    if (c := scores.composition) is not None:
        note = f"of images show what the prompt says ({100 * c.low:.0f} to {100 * c.high:.0f})"
        figures.append(KeyFigure("composition", _format_percent(c.mean), note))
        if free := [category.accuracy for category in c.categories if category.name in FREE_CATEGORIES]:
            note = "of images show what prompts say that are worded as people write them"
            figures.append(KeyFigure("free wording", _format_percent(sum(free) / len(free)), note))
    for name, decimals in (("kid", 1), ("precision", 2), ("recall", 2)):
        if (distance := scores.find_distance(name)) is not None:
            text = DISTANCE_TEXTS[name]
            generated, floor = (
                format_number(text.factor * value.mean, decimals) for value in (distance.generated, distance.floor)
            )
            figures.append(KeyFigure(text.label, generated, f"real images: {floor}"))
    if (m := scores.memorization) is not None:
        note = "the distance of validation images: 1 or more is good"
        figures.append(KeyFigure("memorization", f"{m.ratio:.2f} ×", note))
    if (b := scores.bits_per_dim) is not None:
        note = f"± {2 * b.standard_error:.2f}, an upper bound"
        figures.append(KeyFigure("bits per dimension", format_number(b.total, 2), note))
    if (loss := scores.loss) is not None:
        note = f"training images: {format_number(loss.training_total, 4)}"
        figures.append(KeyFigure("validation loss", format_number(loss.total, 4), note))
    speed = f"{1 / max(scores.seconds_per_image, 1e-9):.3g}/s"
    figures.append(KeyFigure("speed", speed, f"images in batches, {scores.device}"))
    return figures


def _sweep_rows(scores: Scores, points: Sequence[SweepPoint], images: Sequence[Tensor]) -> list[SweepRow]:
    own = (scores.sampler, scores.steps, scores.guidance_scale)
    return [
        SweepRow(point, point_images, (point.sampler, point.steps, point.guidance_scale) == own)
        for point, point_images in zip(points, images, strict=True)
    ]
