"""The scores as one HTML file: no network, no script, readable in light and dark and on a phone."""

from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files

from torch import Tensor

from unspeckle.scoring import likelihood, memorisation
from unspeckle.scoring.charts import bits_curve, loss_curve, nearest_curve, scale_plots, steps_plots
from unspeckle.scoring.composition.questions import PROTOCOL
from unspeckle.scoring.images import figure, image, strip
from unspeckle.scoring.scores import Interval, Point, Scores
from unspeckle.scoring.task import Album

SAID = {  # of each distance: its name, a factor and decimals to show it with, what it says
    "kid": ("KID × 1000", 1000, 1, "how unlike as crowds; unbiased, so where there is no difference it is about 0"),
    "frechet": ("Fréchet distance", 1, 1, "the same of two Gaussians; few pictures raise it: read it by its floor"),
    "cmmd": ("CMMD", 1, 3, "the same of CLIP's embeddings, under a wide kernel"),
    "precision": ("precision", 1, 3, "drawn pictures that lie among real ones: are they good?"),
    "recall": ("recall", 1, 3, "real pictures that lie among drawn ones: is everything drawn?"),
    "density": ("density", 1, 3, "how thick the crowd of real pictures is where drawn ones lie"),
    "coverage": ("coverage", 1, 3, "real pictures with a drawn one near them"),
    "clip_score": ("CLIP score", 1, 2, "how well pictures fit their captions; that of real ones is the mark"),
}
MOST = 8  # pairs whose pictures are shown
SAME = "The same captions and seeds in every row. In bold the way in which all other numbers were measured."
SOURCES = (
    "KID: Bińkowski et al. 2018. Fréchet distance: Heusel et al. 2017. Precision and recall: Kynkäänniemi et al. 2019. "
    "Density and coverage: Naeem et al. 2020. Bits: Kingma et al. 2021. Scattering: Bruna & Mallat 2013. Numbers of "
    "other features, or of other counts of pictures, do not compare with these."
)


def page(scores: Scores, album: Album, command: str) -> str:
    """The whole file. command: how to make it again."""
    title = f"How well {scores.model} draws"
    parts = [
        _head(scores, title), _facts(scores), _warnings(scores), _gallery(album), _distances(scores), _words(scores),
        _hybrids(scores, album), _steps(scores, album), _scales(scores, album), _losses(scores),
        _copies(scores, album), _points(scores), _foot(scores, command),
    ]  # fmt: skip
    css = (files("unspeckle") / "scoring" / "report.css").read_text("utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{css}</style></head>\n<body><main>\n{''.join(parts)}</main></body></html>\n"
    )


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>\n{''.join(parts)}</section>\n"


def _prose(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>\n' if kind else f"<p>{escape(text)}</p>\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>\n{body}</table></div>\n'


def number(value: float, decimals: int) -> str:
    """With thin thousands and a true minus."""
    return f"{value:,.{decimals}f}".replace("-", "−")


def _ranged(value: Interval, factor: float, decimals: int) -> str:
    """The mean, and its interval where there is one."""
    mean = number(value.mean * factor, decimals)
    if value.low is None or value.high is None:
        return mean
    low, high = number(value.low * factor, decimals), number(value.high * factor, decimals)
    return f'{mean} <span class="soft">({low} to {high})</span>'


def _head(scores: Scores, title: str) -> str:
    width, height = scores.size
    said = (
        f"Model {scores.hash} at {width} × {height} pixels; sampler {scores.sampler}, {scores.steps} steps, "
        f"guidance scale {scores.scale:g}, in {scores.precision}"
    )
    if scores.corpus is not None and scores.compared:
        said += (
            f"; {scores.pictures:,} pictures for each of {len(scores.seeds)} seeds, against {scores.compared:,} "
            f"held-out pictures of “{scores.corpus.name}”"
        )
    said += f"; licence of the model: {scores.licence.rstrip('.')}" if scores.licence else ""
    return f"<h1>{escape(title)}</h1>\n{_prose(said + '.', 'soft')}"


def _facts(scores: Scores) -> str:
    facts = []
    if scores.words is not None:
        mean, low, high = (100 * float(scores.words[name]) for name in ("mean", "low", "high"))
        facts.append(("words", f"{mean:.0f} %", f"of pictures hold what was asked ({low:.0f} to {high:.0f})"))
    for name, decimals in (("kid", 1), ("precision", 2), ("recall", 2)):
        if (found := scores.distance(name)) is not None:
            said, factor, _, _ = SAID[name]
            drawn, floor = (number(factor * value.mean, decimals) for value in (found.drawn, found.floor))
            facts.append((said, drawn, f"real pictures: {floor}"))
    if (m := scores.memorisation) is not None:
        facts.append(("memorisation", f"{m.ratio:.2f} ×", "held-out pictures' distance: 1 or more is clean"))
    if (b := scores.bits) is not None:
        facts.append(("bits a dimension", number(b.total, 2), f"± {2 * b.error:.2f}, an upper bound"))
    if (loss := scores.loss) is not None:
        facts.append(("held-out loss", number(loss.total, 4), f"training pictures: {number(loss.training, 4)}"))
    facts.append(("speed", f"{1 / max(scores.seconds, 1e-9):.3g}/s", f"pictures in batches, {escape(scores.device)}"))
    cells = "".join(
        f'<div class="fact"><span class="what">{name}</span><b>{value}</b><span>{said}</span></div>\n'
        for name, value, said in facts
    )
    return f'<div class="facts">{cells}</div>\n'


def _warnings(scores: Scores) -> str:
    lines = [f"<li>{escape(line[:1].upper() + line[1:])}.</li>" for line in (*scores.missing, *scores.warnings)]
    return f'<div class="warn"><strong>Read with care</strong><ul>{"".join(lines)}</ul></div>\n' if lines else ""


def _gallery(album: Album) -> str:
    if album.drawn is None or album.held_out is None:
        return ""
    shown = [
        figure(f'<div class="pair">{image(drawn, caption)}{image(real, "held out")}</div>', caption)
        for drawn, real, caption in zip(album.drawn, album.held_out, album.captions, strict=True)
    ]
    return _section(
        "Drawn and real",
        _prose(
            "On the left drawn from the caption, on the right the held-out picture that has this caption. "
            "Not chosen, but spread evenly over the first seed's.",
            "soft",
        ),
        f'<div class="grid pairs">{"".join(shown)}</div>\n',
    )


def _distances(scores: Scores) -> str:
    if not scores.distances or scores.features is None:
        return ""
    rows = []
    for found in scores.distances:
        name, factor, decimals, said = SAID[found.name]
        drawn, floor = (_ranged(value, factor, decimals) for value in (found.drawn, found.floor))
        rows.append([f"{name}<small>{said}</small>", drawn, floor])
    f = scores.features
    return _section(
        "Distance from real pictures",
        _prose(
            f"Features: {f.name}, {f.width} numbers a picture, hash {f.hash}. {scores.pictures:,} drawn pictures "
            f"against {scores.compared:,} held-out ones, {len(scores.seeds)} times; the floor is "
            f"{scores.floor_pictures:,} training pictures against the same. In brackets the 95 % interval over seeds."
        ),
        _table(["", "drawn", "floor: real"], rows),
    )


def _words(scores: Scores) -> str:
    if scores.words is None:
        return ""
    rows, categories = [], scores.words["categories"]
    for c in categories:
        ceiling, floor = f"{100 * c['ceiling']:.0f} %", f"{100 * c['floor']:.0f} %"
        rows.append([escape(c["name"]), *_right(c["share"], c["low"], c["high"], c["ceiling"]), ceiling, floor])
    prompts = max((c["prompts"] for c in categories), default=0)
    seeds = max((c["pictures"] // max(1, c["prompts"]) for c in categories), default=0)
    return _section(
        "What the words say",
        _prose(
            "Prompts whose combinations were never trained on, judged by a detector. The mark is the ceiling, the "
            "share of real renders of the same prompts that the detector takes for right; the floor is that of other "
            "prompts'."
        ),
        _prose(
            f"Asked: {prompts} prompts of each kind, {seeds} pictures of each; the protocol has {PROTOCOL} by 4. "
            "Where there are fewer prompts they come again, with other seeds."
        ),
        _table(["", "right", "", "ceiling", "floor"], rows),
    )


def _right(share: float, low: float, high: float, mark: float | None = None) -> list[str]:
    """Two cells: a share with its interval, and the same as a bar."""
    said = f'{100 * share:.0f} % <span class="soft">({100 * low:.0f} to {100 * high:.0f})</span>'
    ceiling = "" if mark is None else f'<u style="left:{100 * mark:.1f}%"></u>'
    return [said, f'<span class="meter"><i style="width:{100 * share:.1f}%"></i>{ceiling}</span>']


def _hybrids(scores: Scores, album: Album) -> str:
    if (h := scores.hybrids) is None:
        return ""
    rows, strips = [], []
    for way, some in zip(h.ways, album.hybrids, strict=True):
        name = f"{escape(way.way)}<small>{escape(way.prompt)}</small>"
        rows.append([name, f"{way.right} of {way.pictures}", *_right(way.share, way.low, way.high)])
        strips.append(f"<span>{escape(way.way)}</span>{strip(some[:MOST], way.prompt)}\n")
    pairs = [" and ".join(pair) for pair in h.pairs]
    return _section(
        "Two in one",
        _prose(
            "Pairs whose hybrid was never trained on, asked for in every way that prompts have, and judged by the "
            "detector: is there one subject that is both? After “A AND B”: are both there, each by itself? "
            f"{len(pairs)} of {h.held_out} pairs, {h.seeds} pictures of each in every way."
        ),
        _table(["", "right", "share", ""], rows),
        _prose(f"From left to right, not chosen: {', '.join(pairs[:MOST])}.", "soft"),
        f'<div class="strips">{"".join(strips)}</div>\n',
    )


def _steps(scores: Scores, album: Album) -> str:
    own, others = list[tuple[Point, Tensor]](), list[tuple[Point, Tensor]]()
    for point, some in zip(scores.by_steps, album.by_steps, strict=True):
        (own if point.sampler == scores.sampler else others).append((point, some))
    shown, more = (_strips(scores, rows, lambda p: f"{p.sampler}, {p.steps}") for rows in (own, others))
    more = f"<details><summary>Other samplers</summary>{more}</details>\n" if others else ""
    return _section("Steps and time", steps_plots(scores), _prose(SAME, "soft"), shown, more)


def _scales(scores: Scores, album: Album) -> str:
    if not scores.by_scale:
        return ""
    rows = list(zip(scores.by_scale, album.by_scale, strict=True))
    strips = _strips(scores, rows, lambda p: f"scale {p.scale:g}")
    return _section("Guidance scale", scale_plots(scores), _prose(SAME, "soft"), strips)


def _strips(scores: Scores, shown: Sequence[tuple[Point, Tensor]], name: Callable[[Point], str]) -> str:
    rows = []
    for point, some in shown:
        own = (point.sampler, point.steps, point.scale) == (scores.sampler, scores.steps, scores.scale)
        said = escape(name(point))
        rows.append(f"<span{' class=own' if own else ''}>{said}</span>{strip(some, said)}\n")
    return f'<div class="strips">{"".join(rows)}</div>\n'


def _panel(drawn: str, note: str) -> str:
    return f'<div class="panel">{drawn}{_prose(note, "note")}</div>\n'


def _losses(scores: Scores) -> str:
    panels = []
    if (loss := scores.loss) is not None:
        note = (
            "Error of the estimated picture, as a share of the mean picture's. Where training pictures are guessed "
            f"much better than held-out ones, they are known by heart. {loss.pictures} pictures of each."
        )
        panels.append(_panel(loss_curve(loss), note))
    if (b := scores.bits) is not None:
        note = (
            f"{b.total:.3f} ± {2 * b.error:.3f} bits a dimension, given the caption, on {b.pictures} pictures: an "
            f"upper bound of {b.prior:.4f} for the prior, {b.diffusion:.3f} for the way through the noise and "
            f"{b.reconstruction:.3f} for telling 256 levels apart at its end, in noise of {likelihood.NARROW:g} levels."
        )
        panels.append(_panel(bits_curve(b), note))
    return _section("Losses and bits", f'<div class="plots">{"".join(panels)}</div>\n') if panels else ""


def _copies(scores: Scores, album: Album) -> str:
    if (m := scores.memorisation) is None:
        return ""
    pairs = [
        figure(
            f'<div class="pair">{image(p.drawn, "drawn")}{image(p.training, "training picture")}</div>',
            f"{p.distance:.1f}: {p.caption}",
        )
        for p in album.pairs
    ]
    return _section(
        "Memorisation",
        _prose(m.verdict, "verdict bad" if m.copies or m.high < 1 else "verdict"),
        _prose(
            f"Each of {m.drawn:,} drawn and {m.held_out:,} held-out pictures beside all {m.searched:,} training "
            f"pictures, shrunk to {memorisation.SIDE} × {memorisation.SIDE}, mirrored as well. {100 * m.share:.1f} % "
            "of the drawn ones lie nearer than the 1st percentile of held-out ones; 1 % would be chance."
        ),
        f'<div class="plots">{nearest_curve(m)}</div>\n<h3>The nearest pairs</h3>\n',
        _prose("Left drawn, right its nearest training picture; the distance is in levels of 255.", "soft"),
        f'<div class="grid pairs">{"".join(pairs)}</div>\n',
    )


def _points(scores: Scores) -> str:
    rows = []
    for p in dict.fromkeys((*scores.by_steps, *scores.by_scale)):
        measured = ((p.kid, 1000, 1), (p.kid_error, 1000, 1), (p.precision, 1, 3), (p.recall, 1, 3), (p.coverage, 1, 3))
        cells = ["–" if value is None else number(factor * value, places) for value, factor, places in measured]
        rows.append([escape(p.sampler), str(p.steps), f"{p.scale:g}", f"{1000 * p.seconds:.0f}", *cells])
    head = ["sampler", "steps", "scale", "ms a picture", "KID × 1000", "± (s.e.)", "precision", "recall", "coverage"]
    return f"<details><summary>All ways of drawing, as numbers</summary>{_table(head, rows)}</details>\n"


def _foot(scores: Scores, command: str) -> str:
    corpus = "" if scores.corpus is None else f" on the corpus <code>{scores.corpus.fingerprint}</code>"
    made = f"Made by unspeckle {escape(scores.version)}: <code>{escape(command)}</code>{corpus}."
    return f"<footer><p>{made}</p>{_prose(SOURCES)}</footer>\n"
