"""How much classes suffer when they are asked for loosely: "skirts" for a model that learnt "a photo of a skirt".

For corpora whose images have one caption each, of few different ones, as folders of classes have. A linear classifier
of the features of training images says which class a drawn image is of; what it says of real validation images is the
ceiling.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unspeckle.corpus.caption_augmentation import without_opening
from unspeckle.corpus.english import is_plural, pluralize, with_article
from unspeckle.corpus.splits import Corpus, Split
from unspeckle.scoring.features import FeatureExtractor
from unspeckle.scoring.image_generation import generate_images
from unspeckle.scoring.scores import ClassAccuracy, ClassWordingScore
from unspeckle.scoring.scoring_run import ScoringRun

MAX_CLASSES, MIN_CLASS_IMAGES = 50, 16  # classes of a corpus, and training images of each of them
IMAGES_PER_CLASS = 10  # drawn by the caption, and as many by other wordings
CLASSIFIER_IMAGES = 200  # training images of a class, at most
RIDGE = 0.1  # of the classifier, relative to the mean square of the whitened features


def loose_wordings(caption: str) -> list[str]:
    """The caption as people would ask for it, in five ways."""
    bare = without_opening(caption)
    several = bare if is_plural(bare) else pluralize(bare)
    one = bare if is_plural(bare) else with_article(bare)
    return [bare, f"some {several}", f"{bare}, photo", f"please draw me {one}", f"{several}!"]


def find_classes(corpus: Corpus) -> list[str]:
    """The captions of a corpus that are its classes; empty if it has none."""
    split = corpus.training
    if any(len(captions) != 1 for captions in split.captions):
        return []
    counts: dict[str, int] = {}
    for (caption,) in split.captions:
        counts[caption] = counts.get(caption, 0) + 1
        if len(counts) > MAX_CLASSES:
            return []
    validated = {captions[0] for captions in corpus.validation.captions}
    classes = sorted(caption for caption, count in counts.items() if count >= MIN_CLASS_IMAGES and caption in validated)
    return classes if len(classes) > 1 else []


def count_images(corpus: Corpus) -> int:
    """How many images measure_class_wording draws."""
    return 2 * IMAGES_PER_CLASS * len(find_classes(corpus))


def measure_class_wording(run: ScoringRun, corpus: Corpus, extractor: FeatureExtractor) -> ClassWordingScore | None:
    """None if the corpus has no classes."""
    classes = find_classes(corpus)
    if not classes:
        return None
    run.progress.start_stage("classes asked for loosely")
    indices = _indices_by_class(corpus.training, classes)
    classifier = _train_classifier([extractor(corpus.training.center_crops(i)) for i in indices])
    accuracies = []
    for number, caption in enumerate(classes):
        wordings = loose_wordings(caption)
        loose = [wordings[i % len(wordings)] for i in range(IMAGES_PER_CLASS)]
        real_images = corpus.validation.center_crops(_indices_by_class(corpus.validation, [caption])[0])
        fixed_share, loose_share, real_share = (
            float((_classify(classifier, extractor(images)) == number).float().mean())
            for images in (_draw(run, [caption] * IMAGES_PER_CLASS), _draw(run, loose), real_images)
        )
        accuracies.append(ClassAccuracy(caption, fixed=fixed_share, loose=loose_share, real=real_share))
    count = len(accuracies)
    return ClassWordingScore(
        fixed=sum(one.fixed for one in accuracies) / count,
        loose=sum(one.loose for one in accuracies) / count,
        real=sum(one.real for one in accuracies) / count,
        wordings=tuple(loose_wordings(classes[0])),
        images_per_class=IMAGES_PER_CLASS,
        classes=tuple(sorted(accuracies, key=lambda one: one.loose - one.fixed)),
    )


def _draw(run: ScoringRun, captions: Sequence[str]) -> Tensor:
    """uint8 (N, 3, H, W): an image of each caption; the same seeds for fixed and for loose wording."""
    calls_per_image = run.setup.network_calls_per_image
    seeds = run.image_seeds(len(captions))
    generated = generate_images(
        run.model, captions, seeds, run.settings.request, lambda count: run.progress.advance(count * calls_per_image)
    )
    return generated.images


def _indices_by_class(split: Split, classes: Sequence[str]) -> list[Tensor]:
    """For each class, the indices of its images, CLASSIFIER_IMAGES at most."""
    return [
        torch.tensor([i for i, captions in enumerate(split.captions) if captions[0] == caption][:CLASSIFIER_IMAGES])
        for caption in classes
    ]


def _train_classifier(features: Sequence[Tensor]) -> Tensor:
    """Weights (D + 1, C) of a ridge regression from the features (N, D) of each class's images to the classes, in which
    every class counts as much."""
    x = torch.cat([_with_constant(f).double() / len(f) ** 0.5 for f in features])
    rows = [torch.full((len(f),), number) for number, f in enumerate(features)]
    y = torch.eye(len(features), dtype=torch.float64)[torch.cat(rows)]
    y = y * torch.cat([torch.full((len(f), 1), len(f) ** -0.5, dtype=torch.float64) for f in features])
    gram = x.T @ x
    ridge = RIDGE * gram.diagonal()[:-1].mean() * torch.eye(len(gram), dtype=torch.float64)
    weights: Tensor = torch.linalg.solve(gram + ridge, x.T @ y)
    return weights


def _classify(weights: Tensor, features: Tensor) -> Tensor:
    """The class (N,) of each row of features."""
    return (_with_constant(features).double() @ weights).argmax(1)


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones(len(features), 1)], dim=1)
