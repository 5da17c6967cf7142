"""Memorization: copies are nearest however they are changed, and new images are not called copies."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import Split, open_corpus
from unspeckle.scoring import memorization
from unspeckle.scoring.memorization import NearestImages, find_nearest_images, make_thumbnails, measure_memorization


def random_blobs(count: int, seed: int, width: int = 32, height: int = 32) -> NDArray[np.uint8]:
    """Soft blobs of color, no two alike."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 255
    big = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).clamp(0, 255)
    return big.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def make_split(folder: Path, images: NDArray[np.uint8], size: int = 32) -> Split:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04d}.png")
        (folder / f"{i:04d}.txt").write_text("a blob")
    return open_corpus(read_folder(folder), size, cache_dir=folder / "cache").training


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_split(tmp_path_factory.mktemp("corpus") / "square", random_blobs(400, 0))


def stack_images(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(p) for p in images])).permute(0, 3, 1, 2)


def test_the_nearest_image_is_that_of_brute_force(training: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorization, "BATCH_SIZE", 37)
    queries = torch.from_numpy(random_blobs(9, 1)).permute(0, 3, 1, 2)
    training_images = training.center_crops(range(len(training)))
    advances: list[int] = []
    nearest = find_nearest_images(queries, training, advances.append)
    assert sum(advances) == len(training)
    for i, query in enumerate(queries):
        differences = [make_thumbnails(q[None]) - make_thumbnails(training_images) for q in (query, query.flip(2))]
        distances = torch.stack([difference.double().square().mean(1).sqrt() for difference in differences])
        best = distances.min(0).values
        assert int(nearest.index[i]) == int(best.argmin())
        assert float(nearest.distance[i]) == pytest.approx(float(best.min()), abs=1e-2)


@pytest.mark.parametrize("change", ["unchanged", "mirrored", "blurred", "shaded", "noisy"])
def test_copies_are_found_however_they_are_changed(training: Split, change: str) -> None:
    originals = training.center_crops(range(20))
    images = [Image.fromarray(p.permute(1, 2, 0).contiguous().numpy()) for p in originals]
    if change == "mirrored":
        images = [p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in images]
    if change == "blurred":
        images = [p.filter(ImageFilter.GaussianBlur(0.7)) for p in images]
    if change == "shaded":
        images = [p.point(lambda v: v * 0.985) for p in images]
    copies = stack_images(images)
    if change == "noisy":
        noise = torch.randn(copies.shape, generator=torch.Generator().manual_seed(3)) * 8
        copies = (copies + noise).clamp(0, 255).byte()
    nearest = find_nearest_images(copies, training)
    assert nearest.index.tolist() == list(range(20))
    validation = find_nearest_images(torch.from_numpy(random_blobs(60, 7)).permute(0, 3, 1, 2), training)
    score = measure_memorization(nearest, validation, len(training))
    assert score.copy_count == 20 and score.ratio < 0.3 and score.ratio_high < 1 and "memorizes" in score.verdict


def test_a_copy_of_the_end_of_a_long_image_is_found(tmp_path: Path) -> None:
    split = make_split(tmp_path / "split", random_blobs(40, 2, width=56))
    ends = split.crop_images(
        np.arange(10), np.zeros(10, np.int64), split.crop_margins(np.arange(10))[1], np.ones(10, np.bool_)
    )
    nearest = find_nearest_images(ends, split)
    assert nearest.index.tolist() == list(range(10))
    assert float(nearest.distance.max()) < 1e-4


def test_images_from_the_source_of_the_training_images_are_not_called_copies(training: Split) -> None:
    one, other = (
        find_nearest_images(torch.from_numpy(random_blobs(400, s)).permute(0, 3, 1, 2), training) for s in (5, 6)
    )
    score = measure_memorization(one, other, len(training))
    assert 0.85 < score.ratio < 1.18 and score.ratio_low < 1 < score.ratio_high
    assert score.copy_count == 0 and score.fraction_nearer < 0.04 and not score.has_few_images
    assert "no" in score.verdict.lower()


def test_two_copies_among_hundreds_decide_the_first_percentile() -> None:
    generator = torch.Generator().manual_seed(0)
    validation, generated = 20 + torch.rand(400, generator=generator), 20 + torch.rand(400, generator=generator)
    zeros = torch.zeros(400, dtype=torch.int64)
    without_copies = measure_memorization(NearestImages(generated, zeros), NearestImages(validation, zeros), 9)
    assert without_copies.ratio == pytest.approx(1, abs=0.01)
    generated[:8] = 1.0
    score = measure_memorization(NearestImages(generated, zeros), NearestImages(validation, zeros), 9)
    assert score.copy_count == 8 and score.ratio == pytest.approx(1 / 20, abs=0.005)
    assert score.generated_percentiles[0] == 1.0
    assert score.validation_percentiles[100] == pytest.approx(float(validation.max()))


def test_images_that_are_nearer_but_no_copies_have_their_own_verdict() -> None:
    generator = torch.Generator().manual_seed(0)
    validation, generated = 20 + torch.rand(400, generator=generator), 16 + torch.rand(400, generator=generator)
    zeros = torch.zeros(400, dtype=torch.int64)
    score = measure_memorization(NearestImages(generated, zeros), NearestImages(validation, zeros), 9)
    assert score.copy_count == 0 and score.ratio_high < 1 and score.fraction_nearer == 1
    assert "Look at the pairs" in score.verdict
    score_of_few = measure_memorization(NearestImages(generated[:50], zeros[:50]), NearestImages(validation, zeros), 9)
    assert score_of_few.has_few_images
