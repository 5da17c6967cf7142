"""Memorisation: copies are found wherever they hide, and honest pictures are not accused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from unspeckle.corpus import Split, open_corpus, read_folder
from unspeckle.scoring import memorisation as module
from unspeckle.scoring.memorisation import NearestImages, find_nearest_images, make_thumbnails, measure_memorization


def scenes(count: int, seed: int, width: int = 32, height: int = 32) -> NDArray[np.uint8]:
    """Soft blots of colour: no two alike."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 255
    big = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).clamp(0, 255)
    return big.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def split_of(folder: Path, pictures: NDArray[np.uint8], size: int = 32) -> Split:
    folder.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:04d}.png")
        (folder / f"{i:04d}.txt").write_text("a blot")
    return open_corpus(read_folder(folder), size, cache_dir=folder / "cache").training


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return split_of(tmp_path_factory.mktemp("corpus") / "square", scenes(400, 0))


def as_tensor(pictures: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)


def test_nearest_is_brute_force(training: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE", 37)
    queries = torch.from_numpy(scenes(9, 1)).permute(0, 3, 1, 2)
    seen = training.center_crops(range(len(training)))
    told: list[int] = []
    found = find_nearest_images(queries, training, told.append)
    assert sum(told) == len(training)
    for i, query in enumerate(queries):
        distances = torch.stack([
            ((make_thumbnails(q[None]) - make_thumbnails(seen)).double().square().mean(1)).sqrt() for q in (query, query.flip(2))
        ])  # fmt: skip
        best = distances.min(0).values
        assert int(found.index[i]) == int(best.argmin())
        assert float(found.distance[i]) == pytest.approx(float(best.min()), abs=1e-2)


@pytest.mark.parametrize("how", ["itself", "mirrored", "blurred", "shaded", "noisy"])
def test_copies_are_found_however_they_are_disguised(training: Split, how: str) -> None:
    originals = training.center_crops(range(20))
    pictures = [Image.fromarray(p.permute(1, 2, 0).contiguous().numpy()) for p in originals]
    if how == "mirrored":
        pictures = [p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in pictures]
    if how == "blurred":
        pictures = [p.filter(ImageFilter.GaussianBlur(0.7)) for p in pictures]
    if how == "shaded":
        pictures = [p.point(lambda v: v * 0.985) for p in pictures]
    copies = as_tensor(pictures)
    if how == "noisy":
        copies = (
            (copies + torch.randn(copies.shape, generator=torch.Generator().manual_seed(3)) * 8).clamp(0, 255).byte()
        )
    found = find_nearest_images(copies, training)
    assert found.index.tolist() == list(range(20))
    held = find_nearest_images(torch.from_numpy(scenes(60, 7)).permute(0, 3, 1, 2), training)
    verdict = measure_memorization(found, held, len(training))
    assert verdict.copy_count == 20 and verdict.ratio < 0.3 and verdict.ratio_high < 1 and "repeats" in verdict.verdict


def test_a_copy_of_the_end_of_a_long_picture_is_found(tmp_path: Path) -> None:
    long = split_of(tmp_path / "long", scenes(40, 2, width=56))
    ends = long.crop_images(
        np.arange(10), np.zeros(10, np.int64), long.crop_margins(np.arange(10))[1], np.ones(10, np.bool_)
    )
    found = find_nearest_images(ends, long)
    assert found.index.tolist() == list(range(10))
    assert float(found.distance.max()) < 0.1


def test_pictures_from_where_training_pictures_come_from_are_not_accused(training: Split) -> None:
    one, other = (find_nearest_images(torch.from_numpy(scenes(400, s)).permute(0, 3, 1, 2), training) for s in (5, 6))
    verdict = measure_memorization(one, other, len(training))
    assert 0.85 < verdict.ratio < 1.18 and verdict.ratio_low < 1 < verdict.ratio_high
    assert (
        verdict.copy_count == 0
        and verdict.fraction_nearer < 0.04
        and "no" in verdict.verdict.lower()
        and not verdict.has_few_images
    )


def test_two_copies_among_hundreds_decide_the_first_percentile() -> None:
    generator = torch.Generator().manual_seed(0)
    held, drawn = 20 + torch.rand(400, generator=generator), 20 + torch.rand(400, generator=generator)
    nothing = torch.zeros(400, dtype=torch.int64)
    honest = measure_memorization(NearestImages(drawn, nothing), NearestImages(held, nothing), 9)
    assert honest.ratio == pytest.approx(1, abs=0.01)
    drawn[:8] = 1.0
    caught = measure_memorization(NearestImages(drawn, nothing), NearestImages(held, nothing), 9)
    assert caught.copy_count == 8 and caught.ratio == pytest.approx(1 / 20, abs=0.005)
    assert caught.generated_percentiles[0] == 1.0 and caught.validation_percentiles[100] == pytest.approx(
        float(held.max())
    )


def test_nearer_but_no_copies_is_said_to_be_so() -> None:
    generator = torch.Generator().manual_seed(0)
    held, drawn = 20 + torch.rand(400, generator=generator), 16 + torch.rand(400, generator=generator)
    nothing = torch.zeros(400, dtype=torch.int64)
    found = measure_memorization(NearestImages(drawn, nothing), NearestImages(held, nothing), 9)
    assert (
        found.copy_count == 0
        and found.ratio_high < 1
        and "Look at the pairs" in found.verdict
        and found.fraction_nearer == 1
    )
    few = measure_memorization(NearestImages(drawn[:50], nothing[:50]), NearestImages(held, nothing), 9)
    assert few.has_few_images
