"""The scores as one HTML file: no network, no script, readable in light and dark and on a phone."""

from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files

from torch import Tensor

from unspeckle.scoring import likelihood, memorisation
from unspeckle.scoring.charts import (
    plot_bits_per_dim,
    plot_guidance_scales,
    plot_loss,
    plot_nearest_distances,
    plot_steps,
)
from unspeckle.scoring.composition.questions import PROTOCOL_PROMPTS
from unspeckle.scoring.images import figure_tag, image_strip_tag, image_tag
from unspeckle.scoring.scores import ConfidenceInterval, Scores, SweepPoint
from unspeckle.scoring.task import ReportImages

DISTANCE_TEXTS = {  # of each distance: its name, a factor and decimals to show it with, what it says
    "kid": ("KID × 1000", 1000, 1, "how unlike as crowds; unbiased, so where there is no difference it is about 0"),
    "frechet": ("Fréchet distance", 1, 1, "the same of two Gaussians; few pictures raise it: read it by its floor"),
    "cmmd": ("CMMD", 1, 3, "the same of CLIP's embeddings, under a wide kernel"),
    "precision": ("precision", 1, 3, "drawn pictures that lie among real ones: are they good?"),
    "recall": ("recall", 1, 3, "real pictures that lie among drawn ones: is everything drawn?"),
    "density": ("density", 1, 3, "how thick the crowd of real pictures is where drawn ones lie"),
    "coverage": ("coverage", 1, 3, "real pictures with a drawn one near them"),
    "clip_score": ("CLIP score", 1, 2, "how well pictures fit their captions; that of real ones is the mark"),
}
MAX_HYBRID_PAIRS = 8  # pairs whose pictures are shown
SWEEP_NOTE = "The same captions and seeds in every row. In bold the way in which all other numbers were measured."
REFERENCES = (
    "KID: Bińkowski et al. 2018. Fréchet distance: Heusel et al. 2017. Precision and recall: Kynkäänniemi et al. 2019. "
    "Density and coverage: Naeem et al. 2020. Bits: Kingma et al. 2021. Scattering: Bruna & Mallat 2013. Numbers of "
    "other features, or of other counts of pictures, do not compare with these."
)


def render_report(scores: Scores, images: ReportImages, command: str) -> str:
    """The whole file. command: how to make it again."""
    title = f"How well {scores.model} draws"
    sections = [
        _header(scores, title), _key_figures(scores), _warnings_section(scores), _gallery_section(images), _distances_section(scores), _composition_section(scores),
        _hybrids_section(scores, images), _steps_section(scores, images), _guidance_section(scores, images), _losses_section(scores),
        _memorization_section(scores, images), _sweep_table(scores), _footer(scores, command),
    ]  # fmt: skip
    css = (files("unspeckle") / "scoring" / "report.css").read_text("utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{css}</style></head>\n<body><main>\n{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>\n{''.join(parts)}</section>\n"


def _paragraph(text: str, css_class: str = "") -> str:
    return f'<p class="{css_class}">{escape(text)}</p>\n' if css_class else f"<p>{escape(text)}</p>\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML."""
    header_html = "".join(f"<th>{cell}</th>" for cell in header)
    body_html = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><tr>{header_html}</tr>\n{body_html}</table></div>\n'


def format_number(value: float, decimals: int) -> str:
    """With thin thousands and a true minus."""
    return f"{value:,.{decimals}f}".replace("-", "−")


def _format_interval(value: ConfidenceInterval, factor: float, decimals: int) -> str:
    """The mean, and its interval where there is one."""
    mean = format_number(value.mean * factor, decimals)
    if value.low is None or value.high is None:
        return mean
    low, high = format_number(value.low * factor, decimals), format_number(value.high * factor, decimals)
    return f'{mean} <span class="soft">({low} to {high})</span>'


def _header(scores: Scores, title: str) -> str:
    width, height = scores.size
    summary = (
        f"Model {scores.hash} at {width} × {height} pixels; sampler {scores.sampler}, {scores.steps} steps, "
        f"guidance scale {scores.guidance_scale:g}, in {scores.precision}"
    )
    if scores.corpus is not None and scores.validation_count:
        summary += (
            f"; {scores.images_per_seed:,} pictures for each of {len(scores.seeds)} seeds, against {scores.validation_count:,} "
            f"held-out pictures of “{scores.corpus.name}”"
        )
    summary += f"; licence of the model: {scores.license.rstrip('.')}" if scores.license else ""
    return f"<h1>{escape(title)}</h1>\n{_paragraph(summary + '.', 'soft')}"


def _key_figures(scores: Scores) -> str:
    figures = []
    if scores.composition is not None:
        mean, low, high = (100 * float(scores.composition[name]) for name in ("mean", "low", "high"))
        figures.append(("words", f"{mean:.0f} %", f"of pictures hold what was asked ({low:.0f} to {high:.0f})"))
    for name, decimals in (("kid", 1), ("precision", 2), ("recall", 2)):
        if (distance := scores.find_distance(name)) is not None:
            label, factor, _, _ = DISTANCE_TEXTS[name]
            generated, floor = (
                format_number(factor * value.mean, decimals) for value in (distance.generated, distance.floor)
            )
            figures.append((label, generated, f"real pictures: {floor}"))
    if (m := scores.memorization) is not None:
        figures.append(("memorisation", f"{m.ratio:.2f} ×", "held-out pictures' distance: 1 or more is clean"))
    if (b := scores.bits_per_dim) is not None:
        figures.append(("bits a dimension", format_number(b.total, 2), f"± {2 * b.standard_error:.2f}, an upper bound"))
    if (loss := scores.loss) is not None:
        figures.append(
            (
                "held-out loss",
                format_number(loss.total, 4),
                f"training pictures: {format_number(loss.training_total, 4)}",
            )
        )
    figures.append(
        ("speed", f"{1 / max(scores.seconds_per_image, 1e-9):.3g}/s", f"pictures in batches, {escape(scores.device)}")
    )
    cells = "".join(
        f'<div class="fact"><span class="what">{name}</span><b>{value}</b><span>{note}</span></div>\n'
        for name, value, note in figures
    )
    return f'<div class="facts">{cells}</div>\n'


def _warnings_section(scores: Scores) -> str:
    lines = [f"<li>{escape(line[:1].upper() + line[1:])}.</li>" for line in (*scores.missing, *scores.warnings)]
    return f'<div class="warn"><strong>Read with care</strong><ul>{"".join(lines)}</ul></div>\n' if lines else ""


def _gallery_section(images: ReportImages) -> str:
    if images.generated_images is None or images.validation_images is None:
        return ""
    figures = [
        figure_tag(
            f'<div class="pair">{image_tag(generated, caption)}{image_tag(validation, "held out")}</div>', caption
        )
        for generated, validation, caption in zip(
            images.generated_images, images.validation_images, images.captions, strict=True
        )
    ]
    return _section(
        "Drawn and real",
        _paragraph(
            "On the left drawn from the caption, on the right the held-out picture that has this caption. "
            "Not chosen, but spread evenly over the first seed's.",
            "soft",
        ),
        f'<div class="grid pairs">{"".join(figures)}</div>\n',
    )


def _distances_section(scores: Scores) -> str:
    if not scores.distances or scores.features is None:
        return ""
    rows = []
    for distance in scores.distances:
        name, factor, decimals, description = DISTANCE_TEXTS[distance.name]
        generated, floor = (_format_interval(value, factor, decimals) for value in (distance.generated, distance.floor))
        rows.append([f"{name}<small>{description}</small>", generated, floor])
    f = scores.features
    return _section(
        "Distance from real pictures",
        _paragraph(
            f"Features: {f.name}, {f.dimension} numbers a picture, hash {f.hash}. {scores.images_per_seed:,} drawn pictures "
            f"against {scores.validation_count:,} held-out ones, {len(scores.seeds)} times; the floor is "
            f"{scores.images_per_floor:,} training pictures against the same. In brackets the 95 % interval over seeds."
        ),
        _table(["", "drawn", "floor: real"], rows),
    )


def _composition_section(scores: Scores) -> str:
    if scores.composition is None:
        return ""
    rows, categories = [], scores.composition["categories"]
    for c in categories:
        ceiling, floor = f"{100 * c['ceiling']:.0f} %", f"{100 * c['floor']:.0f} %"
        rows.append(
            [escape(c["name"]), *_accuracy_cells(c["share"], c["low"], c["high"], c["ceiling"]), ceiling, floor]
        )
    prompt_count = max((c["prompts"] for c in categories), default=0)
    seed_count = max((c["pictures"] // max(1, c["prompts"]) for c in categories), default=0)
    return _section(
        "What the words say",
        _paragraph(
            "Prompts whose combinations were never trained on, judged by a detector. The mark is the ceiling, the "
            "share of real renders of the same prompts that the detector takes for right; the floor is that of other "
            "prompts'."
        ),
        _paragraph(
            f"Asked: {prompt_count} prompts of each kind, {seed_count} pictures of each; the protocol has {PROTOCOL_PROMPTS} by 4. "
            "Where there are fewer prompts they come again, with other seeds."
        ),
        _table(["", "right", "", "ceiling", "floor"], rows),
    )


def _accuracy_cells(share: float, low: float, high: float, ceiling: float | None = None) -> list[str]:
    """Two cells: a share with its interval, and the same as a bar."""
    text = f'{100 * share:.0f} % <span class="soft">({100 * low:.0f} to {100 * high:.0f})</span>'
    ceiling_html = "" if ceiling is None else f'<u style="left:{100 * ceiling:.1f}%"></u>'
    return [text, f'<span class="meter"><i style="width:{100 * share:.1f}%"></i>{ceiling_html}</span>']


def _hybrids_section(scores: Scores, images: ReportImages) -> str:
    if (h := scores.hybrids) is None:
        return ""
    rows, strips = [], []
    for method, method_images in zip(h.methods, images.hybrids, strict=True):
        name = f"{escape(method.method)}<small>{escape(method.prompt)}</small>"
        rows.append(
            [
                name,
                f"{method.correct_count} of {method.image_count}",
                *_accuracy_cells(method.accuracy, method.low, method.high),
            ]
        )
        strips.append(
            f"<span>{escape(method.method)}</span>{image_strip_tag(method_images[:MAX_HYBRID_PAIRS], method.prompt)}\n"
        )
    pairs = [" and ".join(pair) for pair in h.pairs]
    return _section(
        "Two in one",
        _paragraph(
            "Pairs whose hybrid was never trained on, asked for in every way that prompts have, and judged by the "
            "detector: is there one subject that is both? After “A AND B”: are both there, each by itself? "
            f"{len(pairs)} of {h.held_out_count} pairs, {h.seed_count} pictures of each in every way."
        ),
        _table(["", "right", "share", ""], rows),
        _paragraph(f"From left to right, not chosen: {', '.join(pairs[:MAX_HYBRID_PAIRS])}.", "soft"),
        f'<div class="strips">{"".join(strips)}</div>\n',
    )


def _steps_section(scores: Scores, images: ReportImages) -> str:
    own_sampler, other_samplers = list[tuple[SweepPoint, Tensor]](), list[tuple[SweepPoint, Tensor]]()
    for point, point_images in zip(scores.by_steps, images.by_steps, strict=True):
        (own_sampler if point.sampler == scores.sampler else other_samplers).append((point, point_images))
    own_strips, other_strips = (
        _labeled_strips(scores, rows, lambda p: f"{p.sampler}, {p.steps}") for rows in (own_sampler, other_samplers)
    )
    other_strips = f"<details><summary>Other samplers</summary>{other_strips}</details>\n" if other_samplers else ""
    return _section("Steps and time", plot_steps(scores), _paragraph(SWEEP_NOTE, "soft"), own_strips, other_strips)


def _guidance_section(scores: Scores, images: ReportImages) -> str:
    if not scores.by_guidance_scale:
        return ""
    rows = list(zip(scores.by_guidance_scale, images.by_guidance_scale, strict=True))
    strips = _labeled_strips(scores, rows, lambda p: f"scale {p.guidance_scale:g}")
    return _section("Guidance scale", plot_guidance_scales(scores), _paragraph(SWEEP_NOTE, "soft"), strips)


def _labeled_strips(
    scores: Scores, sweep: Sequence[tuple[SweepPoint, Tensor]], label_of: Callable[[SweepPoint], str]
) -> str:
    rows = []
    for point, point_images in sweep:
        is_own = (point.sampler, point.steps, point.guidance_scale) == (
            scores.sampler,
            scores.steps,
            scores.guidance_scale,
        )
        label = escape(label_of(point))
        rows.append(f"<span{' class=own' if is_own else ''}>{label}</span>{image_strip_tag(point_images, label)}\n")
    return f'<div class="strips">{"".join(rows)}</div>\n'


def _panel(plot_html: str, note: str) -> str:
    return f'<div class="panel">{plot_html}{_paragraph(note, "note")}</div>\n'


def _losses_section(scores: Scores) -> str:
    panels = []
    if (loss := scores.loss) is not None:
        note = (
            "Error of the estimated picture, as a share of the mean picture's. Where training pictures are guessed "
            f"much better than held-out ones, they are known by heart. {loss.image_count} pictures of each."
        )
        panels.append(_panel(plot_loss(loss), note))
    if (b := scores.bits_per_dim) is not None:
        note = (
            f"{b.total:.3f} ± {2 * b.standard_error:.3f} bits a dimension, given the caption, on {b.image_count} pictures: an "
            f"upper bound of {b.prior:.4f} for the prior, {b.diffusion:.3f} for the way through the noise and "
            f"{b.reconstruction:.3f} for telling 256 levels apart at its end, in noise of {likelihood.FINAL_NOISE_STD:g} levels."
        )
        panels.append(_panel(plot_bits_per_dim(b), note))
    return _section("Losses and bits", f'<div class="plots">{"".join(panels)}</div>\n') if panels else ""


def _memorization_section(scores: Scores, images: ReportImages) -> str:
    if (m := scores.memorization) is None:
        return ""
    pair_figures = [
        figure_tag(
            f'<div class="pair">{image_tag(p.generated_image, "drawn")}{image_tag(p.training_image, "training picture")}</div>',
            f"{p.distance:.1f}: {p.caption}",
        )
        for p in images.nearest_pairs
    ]
    return _section(
        "Memorisation",
        _paragraph(m.verdict, "verdict bad" if m.copy_count or m.ratio_high < 1 else "verdict"),
        _paragraph(
            f"Each of {m.generated_count:,} drawn and {m.validation_count:,} held-out pictures beside all {m.training_count:,} training "
            f"pictures, shrunk to {memorisation.THUMBNAIL_SIDE} × {memorisation.THUMBNAIL_SIDE}, mirrored as well. {100 * m.fraction_nearer:.1f} % "
            "of the drawn ones lie nearer than the 1st percentile of held-out ones; 1 % would be chance."
        ),
        f'<div class="plots">{plot_nearest_distances(m)}</div>\n<h3>The nearest pairs</h3>\n',
        _paragraph("Left drawn, right its nearest training picture; the distance is in levels of 255.", "soft"),
        f'<div class="grid pairs">{"".join(pair_figures)}</div>\n',
    )


def _sweep_table(scores: Scores) -> str:
    rows = []
    for p in dict.fromkeys((*scores.by_steps, *scores.by_guidance_scale)):
        values = (
            (p.kid, 1000, 1),
            (p.kid_standard_error, 1000, 1),
            (p.precision, 1, 3),
            (p.recall, 1, 3),
            (p.coverage, 1, 3),
        )
        cells = [
            "–" if value is None else format_number(factor * value, decimals) for value, factor, decimals in values
        ]
        rows.append(
            [escape(p.sampler), str(p.steps), f"{p.guidance_scale:g}", f"{1000 * p.seconds_per_image:.0f}", *cells]
        )
    header = ["sampler", "steps", "scale", "ms a picture", "KID × 1000", "± (s.e.)", "precision", "recall", "coverage"]
    return f"<details><summary>All ways of drawing, as numbers</summary>{_table(header, rows)}</details>\n"


def _footer(scores: Scores, command: str) -> str:
    corpus = "" if scores.corpus is None else f" on the corpus <code>{scores.corpus.fingerprint}</code>"
    text = f"Made by unspeckle {escape(scores.version)}: <code>{escape(command)}</code>{corpus}."
    return f"<footer><p>{text}</p>{_paragraph(REFERENCES)}</footer>\n"
