"""Everything that is measured of a model but its composition, with a corpus or without one."""

from collections.abc import Sequence
from dataclasses import replace

from unspeckle.corpus.splits import Corpus
from unspeckle.generation.few_step import select_network
from unspeckle.generation.resolve import ResolvedRequest, resolve
from unspeckle.model import Model
from unspeckle.scoring.corpus_measurements import (
    MIN_VALIDATION_IMAGES,
    count_corpus_network_calls,
    has_enough_images,
    measure_with_corpus,
)
from unspeckle.scoring.progress import Progress
from unspeckle.scoring.scores import CorpusInfo, Scores, SweepPoint, find_warnings
from unspeckle.scoring.scoring_run import ReportImages, ScoreSettings, ScoringRun, pick_captions
from unspeckle.scoring.sweeps import (
    ReferenceFeatures,
    SweepSetup,
    guidance_scale_variants,
    run_sweep,
    step_count_variants,
)
from unspeckle.version import installed_version

SWEEP_IMAGES = 128  # images of each sampling setup of a sweep, at most


def count_network_calls(model: Model, corpus: Corpus | None, settings: ScoreSettings) -> int:
    """All units of work that measure_scores reports to its progress."""
    setup = SweepSetup.of_request(resolve(model, settings.request))
    variants = [*step_count_variants(model, setup), *guidance_scale_variants(model, setup)]
    total = sum(variant.network_calls_per_image for variant in variants) * _sweep_image_count(settings)
    return total + (count_corpus_network_calls(model, corpus, settings, setup) if has_enough_images(corpus) else 0)


def measure_scores(
    model: Model, corpus: Corpus | None, corpus_name: str, settings: ScoreSettings, progress: Progress
) -> tuple[Scores, ReportImages]:
    """All scores but composition and hybrids, and the images for the report.

    corpus_name is shown in the report. InputError if the model or the features do not allow the settings.
    """
    run = ScoringRun(model, settings, resolve(model, settings.request), progress, ReportImages())
    scores = replace(_empty_scores(run), corpus=None if corpus is None else _corpus_info(model, corpus, corpus_name))
    count = _sweep_image_count(settings)
    if corpus is not None and has_enough_images(corpus):
        scores, reference = measure_with_corpus(scores, run, corpus)
        scores = _measure_sweeps(scores, run, pick_captions(corpus.validation, count, 0), reference)
    else:
        prompts = list(model.card.vocabulary) or [""]
        scores = _measure_sweeps(scores, run, [prompts[7 * i % len(prompts)] for i in range(count)], None)
        scores = replace(scores, missing=(_why_no_comparison(corpus),))
    messages = find_warnings(scores)
    if _is_drawn_by_student(model, run.resolved) and scores.loss is not None:
        messages = (
            "the images are drawn by the distilled student, but loss and bits per dimension are its teacher's: only "
            "the teacher is a denoiser",
            *messages,
        )
    return replace(scores, warnings=messages), run.report_images


def _sweep_image_count(settings: ScoreSettings) -> int:
    return min(SWEEP_IMAGES, settings.images_per_seed)


def _is_drawn_by_student(model: Model, resolved: ResolvedRequest) -> bool:
    return select_network(model, resolved) is not model


def _empty_scores(run: ScoringRun) -> Scores:
    """The scores before anything is measured."""
    model, resolved, settings = run.model, run.resolved, run.settings
    return Scores(
        model=model.card.name,
        hash=model.hash,
        version=installed_version(),
        device=str(model.device),
        sampler=resolved.sampler,
        timestep_spacing=resolved.timestep_spacing,
        steps=resolved.steps,
        guidance_scale=resolved.guidance_scale,
        size=resolved.final_size,
        images_per_seed=settings.images_per_seed,
        seeds=tuple(range(settings.seed_count)),
        license=model.card.license,
        precision=model.precision,
    )


def _why_no_comparison(corpus: Corpus | None) -> str:
    if corpus is None:
        return "without --corpus, distances, loss, bits per dimension, memorization and composition are not measured"
    return (
        f"the corpus has {len(corpus.validation)} validation images, and at least {MIN_VALIDATION_IMAGES} are needed "
        "to measure distances, loss, bits per dimension and memorization"
    )


def _measure_sweeps(
    scores: Scores, run: ScoringRun, captions: Sequence[str], reference: ReferenceFeatures | None
) -> Scores:
    """The scores with both sweeps; their images go into the run's report_images."""
    model, setup, report_images = run.model, run.setup, run.report_images
    points_by_sweep: dict[str, tuple[SweepPoint, ...]] = {}
    for name, variants, sweep_images in (
        ("step counts", step_count_variants(model, setup), report_images.by_steps),
        ("guidance scales", guidance_scale_variants(model, setup), report_images.by_guidance_scale),
    ):
        if not variants:
            continue
        run.progress.start_stage(f"generating with other {name}")
        seeds, points = run.image_seeds(len(captions)), []
        sweep = run_sweep(model, variants, captions, seeds, reference=reference, advance=run.progress.advance)
        for point, images in sweep:
            points.append(point)
            sweep_images.append(images)
        points_by_sweep[name] = tuple(points)
    by_steps = points_by_sweep["step counts"]
    own_point = next(p for p in by_steps if (p.sampler, p.steps) == (setup.sampler, setup.steps))
    return replace(
        scores,
        by_steps=by_steps,
        by_guidance_scale=points_by_sweep.get("guidance scales", ()),
        seconds_per_image=scores.seconds_per_image or own_point.seconds_per_image,
    )


def _corpus_info(model: Model, corpus: Corpus, corpus_name: str) -> CorpusInfo:
    is_training_corpus = model.card.corpus.get("fingerprint") == corpus.fingerprint
    return CorpusInfo(corpus_name, corpus.fingerprint, len(corpus.training), len(corpus.validation), is_training_corpus)
