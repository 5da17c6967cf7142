"""Everything that can be found out about a model, with a corpus or without one."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unspeckle import guidance
from unspeckle.corpus import Corpus, Split
from unspeckle.denoiser import Denoise
from unspeckle.generation.few_step import select_network
from unspeckle.generation.pipeline import resolve
from unspeckle.model import Model
from unspeckle.networks.autoencoder import Identity
from unspeckle.scoring import likelihood
from unspeckle.scoring.distances import cmmd, frechet, kid, neighbours
from unspeckle.scoring.features import Features, Scattering, Whitened
from unspeckle.scoring.likelihood import Bits, bits
from unspeckle.scoring.memorisation import Memorisation, memorisation, nearest
from unspeckle.scoring.pretrained import Clip, pretrained
from unspeckle.scoring.scores import CorpusFacts, Distance, FeatureFacts, Loss, Point, Scores, interval, warnings
from unspeckle.scoring.sweeps import Real, calls, scales_of, steps_of, sweep
from unspeckle.scoring.task import Album, Drawn, Pair, Task, Watch, Wishes, captions_of, spread
from unspeckle.training.validation import LEVELS, HeldOut
from unspeckle.version import installed_version

LEAST = 20  # held-out pictures, below which nothing is compared with them
SWEPT = 128  # pictures of each way of drawing
LOSSES = 256  # held-out pictures whose loss is measured
COUNTED = 128  # held-out pictures whose bits are counted
COMPARED = 1000  # held-out pictures that drawn ones are compared with
SCALED_BY = 2000  # training pictures that set the scale of the features
HELD_AT_ONCE = 1 << 28  # bytes of pictures: fewer are taken where they are large
SHOWN = 40  # pictures of the grid
PAIRS = 24
BOUNDS = {"precision": (0.0, 1.0), "recall": (0.0, 1.0), "coverage": (0.0, 1.0), "frechet": (0.0,), "density": (0.0,)}


def units(model: Model, corpus: Corpus | None, wishes: Wishes) -> int:
    """How much there is to do, as a Watch hears it."""
    order = resolve(model, wishes.ask)
    total = min(SWEPT, wishes.pictures) * sum(calls(o) for o in [*steps_of(model, order), *scales_of(model, order)])
    if corpus is not None and len(corpus.heldout) >= LEAST:
        held = len(corpus.heldout)
        total += wishes.pictures * wishes.seeds * calls(order)
        total += 0 if model.card.step_counts else 2 * LEVELS * min(LOSSES, held)
        if isinstance(model.autoencoder, Identity) and not model.card.step_counts:
            total += likelihood.LEVELS * min(COUNTED, held)
    return total


def measure(model: Model, corpus: Corpus | None, name: str, wishes: Wishes, watch: Watch) -> tuple[Scores, Album]:
    """All scores but those of words. name: the corpus's, for the report. InputError where the wishes cannot be met."""
    task = Task(model, wishes, resolve(model, wishes.ask), watch, Album())
    order = task.order
    scores = Scores(
        model=model.card.name, hash=model.hash, version=installed_version(), device=str(model.device), sampler=order.sampler,
        grid=order.timestep_spacing, steps=order.steps, scale=order.guidance_scale, size=order.size, pictures=wishes.pictures,
        seeds=tuple(range(wishes.seeds)), licence=model.card.license, precision=model.precision,
        corpus=None if corpus is None else _facts(model, corpus, name),
    )  # fmt: skip
    count = min(SWEPT, wishes.pictures)
    if corpus is not None and len(corpus.heldout) >= LEAST:
        scores, real = _with_corpus(scores, task, corpus)
        scores = _with_sweeps(scores, task, captions_of(corpus.heldout, count, 0), real)
    else:
        prompts = list(model.card.vocabulary) or [""]  # the words that the card suggests
        scores = _with_sweeps(scores, task, [prompts[7 * i % len(prompts)] for i in range(count)], None)
        scores = replace(scores, missing=(_why(corpus),))
    said = warnings(scores)
    if select_network(model, order) is not model and scores.loss is not None:
        said = ("a student draws, but held-out loss and bits are its teacher's: only the teacher is a denoiser", *said)
    return replace(scores, warnings=said), task.album


def _why(corpus: Corpus | None) -> str:
    if corpus is None:
        return "without --corpus there are no distances, no held-out loss, no bits, no memorisation and no words"
    return (
        f"the corpus holds out {len(corpus.heldout)} pictures, and {LEAST} are the least that anything is compared "
        "with: no distances, no held-out loss, no bits, no memorisation"
    )


def _with_corpus(scores: Scores, task: Task, corpus: Corpus) -> tuple[Scores, Real]:
    watch, wishes = task.watch, task.wishes
    watch.stage("features of real pictures")
    held = corpus.heldout.pictures(spread(len(corpus.heldout), _most(corpus.heldout, COMPARED)))
    features, floors = _features(task, corpus.training)
    real = Real(features, features(held))
    sets, seconds = [], 0.0
    for seed in range(wishes.seeds):
        watch.stage(f"drawing, seed {seed + 1} of {wishes.seeds}")
        some, took = task.draw(corpus.heldout, seed)
        sets.append(some)
        seconds += took / wishes.seeds
    _show(task.album, sets[0], corpus.heldout)
    watch.stage("distances")
    distances = _distances(real, sets, corpus.training, floors)
    watch.stage("nearest training pictures")
    copied = _memorised(sets, held, corpus.training, task.album)
    loss, counted, missing = None, None, list[str]()
    if task.model.card.step_counts:
        missing += ["a student's estimates are not those of a denoiser: no held-out loss and no bits per dimension"]
    else:
        watch.stage("held-out loss")
        loss = _loss(task, corpus)
        watch.stage("bits per dimension")
        counted = _bits(task, corpus.heldout)
        missing += [] if counted else ["the model draws latents: no bits per dimension of pictures"]
    facts = FeatureFacts(features.name, features.hash, real.held_out.shape[1])
    scores = replace(
        scores, seconds=seconds, features=facts, compared=len(held), floor_pictures=len(floors[0]), distances=distances,
        loss=loss, memorisation=copied, bits=counted, missing=tuple(missing),
    )  # fmt: skip
    return scores, real


def _with_sweeps(scores: Scores, task: Task, captions: Sequence[str], real: Real | None) -> Scores:
    found: dict[str, tuple[Point, ...]] = {}
    order, album = task.order, task.album
    for name, orders, shown in (
        ("steps", steps_of(task.model, order), album.by_steps),
        ("guidance scales", scales_of(task.model, order), album.by_scale),
    ):
        if not orders:
            continue
        task.watch.stage(f"drawing with other {name}")
        points = []
        for point, some in sweep(task.model, orders, captions, task.numbers(len(captions)), real, task.watch.tell):
            points.append(point)
            shown.append(some)
        found[name] = tuple(points)
    own = next(p.seconds for p in found["steps"] if (p.sampler, p.steps) == (order.sampler, order.steps))
    return replace(
        scores, by_steps=found["steps"], by_scale=found.get("guidance scales", ()), seconds=scores.seconds or own
    )


def _features(task: Task, training: Split) -> tuple[Features, list[Tensor]]:
    """The features, and for each seed which training pictures make a floor; where there are enough, none of those
    that set the features' scale."""
    kind, _, where = task.wishes.features.partition(":")
    pictures, seeds = task.wishes.pictures, task.wishes.seeds
    rest = torch.arange(len(training))  # in the order of hashes, which is none
    if kind == "scattering":
        count = min(_most(training, SCALED_BY), max(len(training) - pictures * seeds, len(training) // 2))
        features: Features = Whitened(Scattering(), training.pictures(rest[:count]))
        rest = rest[count:]
    else:
        features = pretrained(kind, where, str(task.model.device))
    each = min(pictures, len(rest))
    starts = [(len(rest) - each) * i // max(1, seeds - 1) for i in range(seeds)]  # they overlap where there are too few
    return features, [rest[start : start + each] for start in starts]


def _most(split: Split, wanted: int) -> int:
    """So many pictures of the split as memory should hold."""
    width, height = split.size
    return min(len(split), wanted, HELD_AT_ONCE // (3 * width * height))


def _show(album: Album, some: Drawn, split: Split) -> None:
    count = len(some.captions)
    chosen = spread(count, min(SHOWN, count))
    album.drawn, album.captions = some.pictures[chosen], [some.captions[i] for i in chosen.tolist()]
    album.held_out = split.pictures(spread(len(split), count)[chosen])


def _distances(real: Real, sets: Sequence[Drawn], training: Split, floors: Sequence[Tensor]) -> tuple[Distance, ...]:
    found = [_compared(real, *some) for some in sets]
    floor = [_compared(real, training.pictures(places), training.captions(places)) for places in floors]
    return tuple(
        Distance(name, *(interval([values[name] for values in some], *BOUNDS.get(name, ())) for some in (found, floor)))
        for name in found[0]
    )


def _compared(real: Real, pictures: Tensor, captions: list[str]) -> dict[str, float]:
    a, b = real.held_out, real.features(pictures)
    found = {"kid": kid(a, b), "frechet": frechet(a, b), **neighbours(a, b)._asdict()}
    if isinstance(real.features, Clip):
        found |= {"cmmd": cmmd(a, b), "clip_score": Clip.score(b, real.features.captions(captions))}
    return found


def _memorised(sets: Sequence[Drawn], held: Tensor, training: Split, album: Album) -> Memorisation:
    pictures = torch.cat([some.pictures for some in sets])
    captions = [caption for some in sets for caption in some.captions]
    near = nearest(pictures, training)
    for place in near.distance.argsort()[:PAIRS].tolist():
        twin = training.pictures([int(near.which[place])])[0]
        album.pairs.append(Pair(pictures[place], twin, captions[place], float(near.distance[place])))
    return memorisation(near, nearest(held, training), len(training))


def _loss(task: Task, corpus: Corpus) -> Loss:
    """Of held-out pictures, and of as many training pictures."""
    found, model, count = [], task.model, min(LOSSES, len(corpus.heldout))
    for split in (corpus.heldout, corpus.training):
        objective, schedule = task.wishes.objective, model.denoiser.schedule
        held = HeldOut(split, model.tokenizer, model.autoencoder, objective, model.device, count, schedule)
        found.append(held(model.denoiser, model.text_encoder, task.complete))
        task.watch.tell(LEVELS * count)
    out, seen = found
    return Loss(out.total, seen.total, out.times, out.shares, seen.shares, count)


def _bits(task: Task, split: Split) -> Bits | None:
    """None where the network draws latents: their density is not the pictures'."""
    model, places = task.model, spread(len(split), min(COUNTED, len(split)))
    if not isinstance(model.autoencoder, Identity):
        return None
    captions, bounds = split.captions(places), model.autoencoder.bounds

    def rows(first: int, last: int) -> Denoise:
        given = model.denoiser.prepare(model.text_encoder(model.tokenizer.encode(captions[first:last]).to(model.device)))
        given = task.complete(given)
        return guidance.clamp_denoised(lambda x_t, t: model.denoiser(x_t, t, given), *bounds)  # type: ignore[arg-type]

    return bits(split.pictures(places), model.autoencoder, model.denoiser.schedule, rows, task.watch.tell)


def _facts(model: Model, corpus: Corpus, name: str) -> CorpusFacts:
    same = model.card.corpus.get("fingerprint") == corpus.fingerprint
    return CorpusFacts(name, corpus.fingerprint, len(corpus.training), len(corpus.heldout), same)
