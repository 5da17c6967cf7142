"""What is measured against a corpus: distances, memorization, loss and bits per dimension."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor

from unspeckle import guidance
from unspeckle.corpus.shrunk_split import shrink_split
from unspeckle.corpus.splits import Corpus, Split
from unspeckle.denoiser import Denoise, PreparedConditioning
from unspeckle.model import Model
from unspeckle.networks.autoencoder import PixelAutoencoder
from unspeckle.scoring import bits_per_dim, class_wording
from unspeckle.scoring.bits_per_dim import BitsPerDim, measure_bits_per_dim
from unspeckle.scoring.class_wording import measure_class_wording
from unspeckle.scoring.distances import cmmd, compute_prdc, frechet_distance, kid
from unspeckle.scoring.features import FeatureExtractor, ScatteringFeatures, WhitenedFeatures
from unspeckle.scoring.intervals import confidence_interval
from unspeckle.scoring.memorization import MemorizationScore, find_nearest_images, measure_memorization
from unspeckle.scoring.pretrained import PRETRAINED_FEATURES, ClipFeatures, load_pretrained_features
from unspeckle.scoring.scores import Distance, FeatureInfo, LossScore, Scores
from unspeckle.scoring.scoring_run import (
    GeneratedSet,
    NearestPair,
    ReportImages,
    ScoreSettings,
    ScoringRun,
    evenly_spaced_indices,
)
from unspeckle.scoring.sweeps import ReferenceFeatures, SweepSetup
from unspeckle.training.validation import NOISE_LEVELS, ValidationLoss

MIN_VALIDATION_IMAGES = 20  # with fewer validation images nothing is compared with them
LOSS_IMAGES = 256  # validation images whose loss is measured, at most
BITS_IMAGES = 128  # validation images whose bits per dimension are measured, at most
MAX_VALIDATION_IMAGES = 1000  # validation images that generated ones are compared with, at most
WHITENING_IMAGES = 2000  # training images that set the scale of the features, at most
MAX_IMAGE_BYTES = 1 << 28  # bytes of validation or of whitening images in memory; large images are fewer
GALLERY_IMAGES = 40  # generated images that the report shows next to real ones
NEAREST_PAIRS = 24  # generated images that the report shows next to their nearest training image
# The least and the greatest value that a distance can have.
DISTANCE_BOUNDS = {
    "precision": (0.0, 1.0),
    "recall": (0.0, 1.0),
    "coverage": (0.0, 1.0),
    "frechet": (0.0,),
    "density": (0.0,),
}


def has_enough_images(corpus: Corpus | None) -> TypeGuard[Corpus]:
    """Whether the corpus has enough validation images to compare anything with them."""
    return corpus is not None and len(corpus.validation) >= MIN_VALIDATION_IMAGES


def count_corpus_network_calls(model: Model, corpus: Corpus, settings: ScoreSettings, setup: SweepSetup) -> int:
    """All units of work that measure_with_corpus reports to its progress."""
    validation_count = len(corpus.validation)
    drawn_count = settings.images_per_seed * settings.seed_count + class_wording.count_images(corpus)
    total = drawn_count * setup.network_calls_per_image
    if not model.card.step_counts:
        total += 2 * NOISE_LEVELS * min(LOSS_IMAGES, validation_count)
        if isinstance(model.autoencoder, PixelAutoencoder):
            total += bits_per_dim.NOISE_LEVELS * min(BITS_IMAGES, validation_count)
    return total


def measure_with_corpus(scores: Scores, run: ScoringRun, corpus: Corpus) -> tuple[Scores, ReferenceFeatures]:
    """The scores with all that a corpus allows, and the features of its validation images."""
    is_downloaded = run.settings.features in PRETRAINED_FEATURES
    run.progress.start_stage("features of real images" + " (downloaded if not in the cache)" * is_downloaded)
    validation_count = _max_images(corpus.validation, MAX_VALIDATION_IMAGES)
    validation_images = corpus.validation.center_crops(evenly_spaced_indices(len(corpus.validation), validation_count))
    extractor, floor_indices = _build_features(run, corpus.training)
    reference = ReferenceFeatures(extractor, extractor(validation_images))
    generated_sets, seconds_per_image = _generate_sets(run, corpus.validation)
    _fill_gallery(run.report_images, generated_sets[0], corpus.validation)
    scores = replace(
        scores,
        seconds_per_image=seconds_per_image,
        features=FeatureInfo(extractor.name, extractor.hash, reference.features.shape[1]),
        validation_count=len(validation_images),
        images_per_floor=len(floor_indices[0]),
        distances=_measure_distances(run, reference, generated_sets, corpus.training, floor_indices),
        memorization=_measure_memorization(run, generated_sets, validation_images, corpus.training),
        class_wording=measure_class_wording(run, corpus, extractor),
    )
    if run.model.card.step_counts:
        reason = "a distilled student is not a denoiser: loss and bits per dimension are not measured"
        return replace(scores, missing=(reason,)), reference
    scores = replace(scores, loss=_measure_loss(run, corpus), bits_per_dim=_measure_bits(run, corpus.validation))
    if scores.bits_per_dim is None:
        reason = "the model draws latents, so bits per dimension of its images are not measured"
        scores = replace(scores, missing=(reason,))
    return scores, reference


def _generate_sets(run: ScoringRun, validation: Split) -> tuple[list[GeneratedSet], float]:
    """The images of every seed, and the seconds that one image took."""
    generated_sets, seconds_per_image, seed_count = [], 0.0, run.settings.seed_count
    for seed_index in range(seed_count):
        run.progress.start_stage(f"generating, seed {seed_index + 1} of {seed_count}")
        generated, seconds = run.generate_set(validation, seed_index)
        generated_sets.append(generated)
        seconds_per_image += seconds / seed_count
    return generated_sets, seconds_per_image


def _build_features(run: ScoringRun, training: Split) -> tuple[FeatureExtractor, list[Tensor]]:
    """The features, and for each seed the indices of the training images that make a floor.

    If there are enough training images, none of these has set the features' scale.
    """
    extractor_name, _, source = run.settings.features.partition(":")
    images_per_seed, seed_count = run.settings.images_per_seed, run.settings.seed_count
    remaining = torch.arange(len(training))  # a split is sorted by hashes, so any part of it is a random sample
    if extractor_name == "scattering":
        spare_count = max(len(training) - images_per_seed * seed_count, len(training) // 2)
        count = min(_max_images(training, WHITENING_IMAGES), spare_count)
        extractor: FeatureExtractor = WhitenedFeatures(ScatteringFeatures(), training.center_crops(remaining[:count]))
        remaining = remaining[count:]
    else:
        extractor = load_pretrained_features(extractor_name, source, str(run.model.device))
    floor_size = min(images_per_seed, len(remaining))
    # The floors overlap if there are too few images
    starts = [(len(remaining) - floor_size) * i // max(1, seed_count - 1) for i in range(seed_count)]
    return extractor, [remaining[start : start + floor_size] for start in starts]


def _max_images(split: Split, limit: int) -> int:
    """At most `limit` images of the split, and no more than MAX_IMAGE_BYTES."""
    width, height = split.size
    return min(len(split), limit, MAX_IMAGE_BYTES // (3 * width * height))


def _fill_gallery(report_images: ReportImages, generated: GeneratedSet, split: Split) -> None:
    """Some generated images, and the real images that have their captions."""
    count = len(generated.captions)
    indices = evenly_spaced_indices(count, min(GALLERY_IMAGES, count))
    report_images.generated_images = generated.images[indices]
    report_images.captions = [generated.captions[i] for i in indices.tolist()]
    report_images.validation_images = split.center_crops(evenly_spaced_indices(len(split), count)[indices])


def _measure_distances(
    run: ScoringRun,
    reference: ReferenceFeatures,
    generated_sets: Sequence[GeneratedSet],
    training: Split,
    floor_indices: Sequence[Tensor],
) -> tuple[Distance, ...]:
    run.progress.start_stage("distances")
    generated_values, floor_values = list[dict[str, float]](), list[dict[str, float]]()
    for number, (generated, indices) in enumerate(zip(generated_sets, floor_indices, strict=True), 1):
        generated_values.append(_compute_distances(reference, *generated))
        floor_set = training.center_crops(indices), training.first_captions(indices)
        floor_values.append(_compute_distances(reference, *floor_set))
        run.progress.show_fraction(number / len(generated_sets))
    distances = []
    for name in generated_values[0]:
        generated_interval, floor_interval = (
            confidence_interval([values[name] for values in values_by_seed], *DISTANCE_BOUNDS.get(name, ()))
            for values_by_seed in (generated_values, floor_values)
        )
        distances.append(Distance(name, generated_interval, floor_interval))
    return tuple(distances)


def _compute_distances(reference: ReferenceFeatures, images: Tensor, captions: list[str]) -> dict[str, float]:
    """All distances of one set of images from the validation images, by their names."""
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


def _measure_memorization(
    run: ScoringRun, generated_sets: Sequence[GeneratedSet], validation_images: Tensor, training: Split
) -> MemorizationScore:
    """The score; the nearest pairs go into the run's report_images."""
    run.progress.start_stage("nearest training images")
    images = torch.cat([generated.images for generated in generated_sets])
    captions = [caption for generated in generated_sets for caption in generated.captions]
    searched_count = 0

    def advance(training_image_count: int) -> None:
        nonlocal searched_count
        searched_count += training_image_count
        run.progress.show_fraction(searched_count / (2 * len(training)))

    nearest_images = find_nearest_images(images, training, advance)
    for index in nearest_images.distance.argsort()[:NEAREST_PAIRS].tolist():
        training_image = training.center_crops([int(nearest_images.index[index])])[0]
        run.report_images.nearest_pairs.append(
            NearestPair(images[index], training_image, captions[index], float(nearest_images.distance[index]))
        )
    nearest_to_validation = find_nearest_images(validation_images, training, advance)
    return measure_memorization(nearest_images, nearest_to_validation, len(training))


def _measure_loss(run: ScoringRun, corpus: Corpus) -> LossScore:
    """Of validation images, and of as many training images."""
    run.progress.start_stage("validation loss")
    results, model, count = [], run.model, min(LOSS_IMAGES, len(corpus.validation))
    for split in (shrink_split(corpus.validation, run.factor), shrink_split(corpus.training, run.factor)):
        evaluate_loss = ValidationLoss(
            split,
            model.tokenizer,
            model.autoencoder,
            run.settings.objective,
            device=model.device,
            max_images=count,
            schedule=model.denoiser.schedule,
        )
        images = split.center_crops(evenly_spaced_indices(len(split), count))

        def complete(conditioning: PreparedConditioning, rows: slice, images: Tensor = images) -> PreparedConditioning:
            return run.complete_conditioning(conditioning, images[rows])

        results.append(evaluate_loss(model.denoiser, model.text_encoder, complete))
        run.progress.advance(NOISE_LEVELS * count)
    validation, training = results
    return LossScore(
        total=validation.total,
        training_total=training.total,
        times=validation.times,
        relative_errors=validation.relative_errors,
        training_relative_errors=training.relative_errors,
        image_count=count,
    )


def _measure_bits(run: ScoringRun, split: Split) -> BitsPerDim | None:
    """None if the network draws latents: their density is not that of the images."""
    split = shrink_split(split, run.factor)
    model, indices = run.model, evenly_spaced_indices(len(split), min(BITS_IMAGES, len(split)))
    if not isinstance(model.autoencoder, PixelAutoencoder):
        return None
    run.progress.start_stage("bits per dimension")
    captions, bounds = split.first_captions(indices), model.autoencoder.latent_bounds
    images = split.center_crops(indices)

    def bind_denoiser(first: int, last: int) -> Denoise:
        tokens = model.tokenizer.encode(captions[first:last]).to(model.device)
        prepared = model.denoiser.prepare(model.text_encoder(tokens))
        conditioning = run.complete_conditioning(prepared, images[first:last])
        return guidance.clamp_denoised(lambda x_t, t: model.denoiser(x_t, t, conditioning), *bounds)

    return measure_bits_per_dim(images, model.autoencoder, model.denoiser.schedule, bind_denoiser, run.progress.advance)
