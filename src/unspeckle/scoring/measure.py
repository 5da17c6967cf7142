"""Everything that can be found out about a model, with a corpus or without one."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unspeckle import guidance
from unspeckle.corpus import Corpus, Split
from unspeckle.denoiser import Denoise
from unspeckle.generation.few_step import select_network
from unspeckle.generation.resolve import resolve
from unspeckle.model import Model
from unspeckle.networks.autoencoder import PixelAutoencoder
from unspeckle.scoring import likelihood
from unspeckle.scoring.distances import cmmd, compute_prdc, frechet_distance, kid
from unspeckle.scoring.features import FeatureExtractor, ScatteringFeatures, WhitenedFeatures
from unspeckle.scoring.likelihood import BitsPerDim, measure_bits_per_dim
from unspeckle.scoring.memorisation import MemorizationScore, find_nearest_images, measure_memorization
from unspeckle.scoring.pretrained import ClipFeatures, load_pretrained_features
from unspeckle.scoring.scores import (
    CorpusInfo,
    Distance,
    FeatureInfo,
    LossScore,
    Scores,
    SweepPoint,
    confidence_interval,
    find_warnings,
)
from unspeckle.scoring.sweeps import (
    ReferenceFeatures,
    guidance_scale_variants,
    network_calls_per_image,
    run_sweep,
    step_count_variants,
)
from unspeckle.scoring.task import (
    GeneratedSet,
    NearestPair,
    Progress,
    ReportImages,
    ScoreSettings,
    ScoringRun,
    evenly_spaced_indices,
    pick_captions,
)
from unspeckle.training.validation import NOISE_LEVELS, ValidationLoss
from unspeckle.version import installed_version

MIN_VALIDATION_IMAGES = 20  # held-out pictures, below which nothing is compared with them
SWEEP_IMAGES = 128  # pictures of each way of drawing
LOSS_IMAGES = 256  # held-out pictures whose loss is measured
BITS_IMAGES = 128  # held-out pictures whose bits are counted
MAX_VALIDATION_IMAGES = 1000  # held-out pictures that drawn ones are compared with
WHITENING_IMAGES = 2000  # training pictures that set the scale of the features
MAX_IMAGE_BYTES = 1 << 28  # bytes of pictures: fewer are taken where they are large
GALLERY_IMAGES = 40  # pictures of the grid
NEAREST_PAIRS = 24
DISTANCE_BOUNDS = {
    "precision": (0.0, 1.0),
    "recall": (0.0, 1.0),
    "coverage": (0.0, 1.0),
    "frechet": (0.0,),
    "density": (0.0,),
}


def count_network_calls(model: Model, corpus: Corpus | None, settings: ScoreSettings) -> int:
    """How much there is to do, as a Watch hears it."""
    resolved = resolve(model, settings.request)
    total = min(SWEEP_IMAGES, settings.images_per_seed) * sum(
        network_calls_per_image(variant)
        for variant in [*step_count_variants(model, resolved), *guidance_scale_variants(model, resolved)]
    )
    if corpus is not None and len(corpus.validation) >= MIN_VALIDATION_IMAGES:
        validation_count = len(corpus.validation)
        total += settings.images_per_seed * settings.seed_count * network_calls_per_image(resolved)
        total += 0 if model.card.step_counts else 2 * NOISE_LEVELS * min(LOSS_IMAGES, validation_count)
        if isinstance(model.autoencoder, PixelAutoencoder) and not model.card.step_counts:
            total += likelihood.NOISE_LEVELS * min(BITS_IMAGES, validation_count)
    return total


def measure_scores(
    model: Model, corpus: Corpus | None, corpus_name: str, settings: ScoreSettings, progress: Progress
) -> tuple[Scores, ReportImages]:
    """All scores but those of words. name: the corpus's, for the report. InputError where the wishes cannot be met."""
    run = ScoringRun(model, settings, resolve(model, settings.request), progress, ReportImages())
    resolved = run.resolved
    scores = Scores(
        model=model.card.name, hash=model.hash, version=installed_version(), device=str(model.device), sampler=resolved.sampler,
        timestep_spacing=resolved.timestep_spacing, steps=resolved.steps, guidance_scale=resolved.guidance_scale, size=resolved.size, images_per_seed=settings.images_per_seed,
        seeds=tuple(range(settings.seed_count)), license=model.card.license, precision=model.precision,
        corpus=None if corpus is None else _corpus_info(model, corpus, corpus_name),
    )  # fmt: skip
    count = min(SWEEP_IMAGES, settings.images_per_seed)
    if corpus is not None and len(corpus.validation) >= MIN_VALIDATION_IMAGES:
        scores, reference = _measure_with_corpus(scores, run, corpus)
        scores = _measure_sweeps(scores, run, pick_captions(corpus.validation, count, 0), reference)
    else:
        prompts = list(model.card.vocabulary) or [""]  # the words that the card suggests
        scores = _measure_sweeps(scores, run, [prompts[7 * i % len(prompts)] for i in range(count)], None)
        scores = replace(scores, missing=(_missing_reason(corpus),))
    messages = find_warnings(scores)
    if select_network(model, resolved) is not model and scores.loss is not None:
        messages = (
            "a student draws, but held-out loss and bits are its teacher's: only the teacher is a denoiser",
            *messages,
        )
    return replace(scores, warnings=messages), run.report_images


def _missing_reason(corpus: Corpus | None) -> str:
    if corpus is None:
        return "without --corpus there are no distances, no held-out loss, no bits, no memorisation and no words"
    return (
        f"the corpus holds out {len(corpus.validation)} pictures, and {MIN_VALIDATION_IMAGES} are the least that anything is compared "
        "with: no distances, no held-out loss, no bits, no memorisation"
    )


def _measure_with_corpus(scores: Scores, run: ScoringRun, corpus: Corpus) -> tuple[Scores, ReferenceFeatures]:
    progress, settings = run.progress, run.settings
    progress.start_stage("features of real pictures")
    validation_images = corpus.validation.center_crops(
        evenly_spaced_indices(len(corpus.validation), _max_images(corpus.validation, MAX_VALIDATION_IMAGES))
    )
    features, floor_indices = _build_features(run, corpus.training)
    reference = ReferenceFeatures(features, features(validation_images))
    generated_sets, seconds_per_image = [], 0.0
    for seed_index in range(settings.seed_count):
        progress.start_stage(f"drawing, seed {seed_index + 1} of {settings.seed_count}")
        generated, seconds = run.generate_set(corpus.validation, seed_index)
        generated_sets.append(generated)
        seconds_per_image += seconds / settings.seed_count
    _fill_gallery(run.report_images, generated_sets[0], corpus.validation)
    progress.start_stage("distances")
    distances = _measure_distances(reference, generated_sets, corpus.training, floor_indices)
    progress.start_stage("nearest training pictures")
    memorization = _measure_copies(generated_sets, validation_images, corpus.training, run.report_images)
    loss, bits_per_dim, missing = None, None, list[str]()
    if run.model.card.step_counts:
        missing += ["a student's estimates are not those of a denoiser: no held-out loss and no bits per dimension"]
    else:
        progress.start_stage("held-out loss")
        loss = _measure_loss(run, corpus)
        progress.start_stage("bits per dimension")
        bits_per_dim = _measure_bits(run, corpus.validation)
        missing += [] if bits_per_dim else ["the model draws latents: no bits per dimension of pictures"]
    feature_info = FeatureInfo(features.name, features.hash, reference.features.shape[1])
    scores = replace(
        scores, seconds_per_image=seconds_per_image, features=feature_info, validation_count=len(validation_images), images_per_floor=len(floor_indices[0]), distances=distances,
        loss=loss, memorization=memorization, bits_per_dim=bits_per_dim, missing=tuple(missing),
    )  # fmt: skip
    return scores, reference


def _measure_sweeps(
    scores: Scores, run: ScoringRun, captions: Sequence[str], reference: ReferenceFeatures | None
) -> Scores:
    points_by_sweep: dict[str, tuple[SweepPoint, ...]] = {}
    resolved, report_images = run.resolved, run.report_images
    for name, variants, sweep_images in (
        ("steps", step_count_variants(run.model, resolved), report_images.by_steps),
        ("guidance scales", guidance_scale_variants(run.model, resolved), report_images.by_guidance_scale),
    ):
        if not variants:
            continue
        run.progress.start_stage(f"drawing with other {name}")
        points = []
        for point, images in run_sweep(
            run.model, variants, captions, run.image_seeds(len(captions)), reference, run.progress.advance
        ):
            points.append(point)
            sweep_images.append(images)
        points_by_sweep[name] = tuple(points)
    own_seconds = next(
        p.seconds_per_image
        for p in points_by_sweep["steps"]
        if (p.sampler, p.steps) == (resolved.sampler, resolved.steps)
    )
    return replace(
        scores,
        by_steps=points_by_sweep["steps"],
        by_guidance_scale=points_by_sweep.get("guidance scales", ()),
        seconds_per_image=scores.seconds_per_image or own_seconds,
    )


def _build_features(run: ScoringRun, training: Split) -> tuple[FeatureExtractor, list[Tensor]]:
    """The features, and for each seed which training pictures make a floor; where there are enough, none of those
    that set the features' scale."""
    extractor_name, _, source = run.settings.features.partition(":")
    images_per_seed, seed_count = run.settings.images_per_seed, run.settings.seed_count
    remaining = torch.arange(len(training))  # in the order of hashes, which is none
    if extractor_name == "scattering":
        count = min(
            _max_images(training, WHITENING_IMAGES),
            max(len(training) - images_per_seed * seed_count, len(training) // 2),
        )
        features: FeatureExtractor = WhitenedFeatures(ScatteringFeatures(), training.center_crops(remaining[:count]))
        remaining = remaining[count:]
    else:
        features = load_pretrained_features(extractor_name, source, str(run.model.device))
    floor_size = min(images_per_seed, len(remaining))
    starts = [
        (len(remaining) - floor_size) * i // max(1, seed_count - 1) for i in range(seed_count)
    ]  # they overlap where there are too few
    return features, [remaining[start : start + floor_size] for start in starts]


def _max_images(split: Split, limit: int) -> int:
    """So many pictures of the split as memory should hold."""
    width, height = split.size
    return min(len(split), limit, MAX_IMAGE_BYTES // (3 * width * height))


def _fill_gallery(report_images: ReportImages, generated: GeneratedSet, split: Split) -> None:
    count = len(generated.captions)
    indices = evenly_spaced_indices(count, min(GALLERY_IMAGES, count))
    report_images.generated_images, report_images.captions = (
        generated.images[indices],
        [generated.captions[i] for i in indices.tolist()],
    )
    report_images.validation_images = split.center_crops(evenly_spaced_indices(len(split), count)[indices])


def _measure_distances(
    reference: ReferenceFeatures,
    generated_sets: Sequence[GeneratedSet],
    training: Split,
    floor_indices: Sequence[Tensor],
) -> tuple[Distance, ...]:
    generated_values = [_compute_distances(reference, *generated) for generated in generated_sets]
    floor_values = [
        _compute_distances(reference, training.center_crops(indices), training.first_captions(indices))
        for indices in floor_indices
    ]
    return tuple(
        Distance(
            name,
            *(
                confidence_interval([values[name] for values in set_values], *DISTANCE_BOUNDS.get(name, ()))
                for set_values in (generated_values, floor_values)
            ),
        )
        for name in generated_values[0]
    )


def _compute_distances(reference: ReferenceFeatures, images: Tensor, captions: list[str]) -> dict[str, float]:
    real_features, image_features = reference.features, reference.extractor(images)
    distances = {
        "kid": kid(real_features, image_features),
        "frechet": frechet_distance(real_features, image_features),
        **compute_prdc(real_features, image_features)._asdict(),
    }
    if isinstance(reference.extractor, ClipFeatures):
        distances |= {
            "cmmd": cmmd(real_features, image_features),
            "clip_score": ClipFeatures.clip_score(image_features, reference.extractor.embed_captions(captions)),
        }
    return distances


def _measure_copies(
    generated_sets: Sequence[GeneratedSet], validation_images: Tensor, training: Split, report_images: ReportImages
) -> MemorizationScore:
    images = torch.cat([generated.images for generated in generated_sets])
    captions = [caption for generated in generated_sets for caption in generated.captions]
    nearest_images = find_nearest_images(images, training)
    for index in nearest_images.distance.argsort()[:NEAREST_PAIRS].tolist():
        training_image = training.center_crops([int(nearest_images.index[index])])[0]
        report_images.nearest_pairs.append(
            NearestPair(images[index], training_image, captions[index], float(nearest_images.distance[index]))
        )
    return measure_memorization(nearest_images, find_nearest_images(validation_images, training), len(training))


def _measure_loss(run: ScoringRun, corpus: Corpus) -> LossScore:
    """Of held-out pictures, and of as many training pictures."""
    results, model, count = [], run.model, min(LOSS_IMAGES, len(corpus.validation))
    for split in (corpus.validation, corpus.training):
        objective, schedule = run.settings.objective, model.denoiser.schedule
        evaluate_loss = ValidationLoss(
            split, model.tokenizer, model.autoencoder, objective, model.device, count, schedule
        )
        results.append(evaluate_loss(model.denoiser, model.text_encoder, run.complete_conditioning))
        run.progress.advance(NOISE_LEVELS * count)
    validation_result, training_result = results
    return LossScore(
        validation_result.total,
        training_result.total,
        validation_result.times,
        validation_result.relative_errors,
        training_result.relative_errors,
        count,
    )


def _measure_bits(run: ScoringRun, split: Split) -> BitsPerDim | None:
    """None where the network draws latents: their density is not the pictures'."""
    model, indices = run.model, evenly_spaced_indices(len(split), min(BITS_IMAGES, len(split)))
    if not isinstance(model.autoencoder, PixelAutoencoder):
        return None
    captions, bounds = split.first_captions(indices), model.autoencoder.latent_bounds

    def bind_denoiser(first: int, last: int) -> Denoise:
        conditioning = model.denoiser.prepare(
            model.text_encoder(model.tokenizer.encode(captions[first:last]).to(model.device))
        )
        conditioning = run.complete_conditioning(conditioning)
        return guidance.clamp_denoised(lambda x_t, t: model.denoiser(x_t, t, conditioning), *bounds)

    return measure_bits_per_dim(
        split.center_crops(indices), model.autoencoder, model.denoiser.schedule, bind_denoiser, run.progress.advance
    )


def _corpus_info(model: Model, corpus: Corpus, corpus_name: str) -> CorpusInfo:
    is_training_corpus = model.card.corpus.get("fingerprint") == corpus.fingerprint
    return CorpusInfo(corpus_name, corpus.fingerprint, len(corpus.training), len(corpus.validation), is_training_corpus)
