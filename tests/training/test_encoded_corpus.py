"""Cached latents: those of whole images, cut where the images would be, the same after a run was stopped."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tiny_models import make_plan
from unspeckle.corpus import Corpus, batches, open_corpus, read_folder
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.training import encoded_corpus, memory
from unspeckle.training.cost import ImageCost, StepCost

SIZES = [(32, 32), (32, 47), (61, 32), (32, 40)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """24 images, square, tall and wide, for crops of 32 × 32."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(24):
        wide, tall = SIZES[i % len(SIZES)]
        Image.fromarray(rng.integers(0, 256, (tall, wide, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return open_corpus(read_folder(root, caption="noise"), 32, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def autoencoder() -> LatentAutoencoder:
    torch.manual_seed(0)
    return LatentAutoencoder(LatentAutoencoderConfig(widths=(8, 16), blocks_per_level=1)).eval().requires_grad_(False)


def batch_images(split: encoded_corpus.EncodedSplit, start: int, count: int) -> Tensor:
    """The images of `count` batches."""
    return torch.cat([batch.images for batch in islice(batches(split, 8, seed=3, start=start), count)])


def test_crops_are_cut_from_the_latents_of_whole_images(corpus: Corpus, autoencoder: LatentAutoencoder) -> None:
    split = encoded_corpus.encode_split(corpus.training, autoencoder)
    indices = np.arange(len(split))
    tops, lefts = split.crop_margins(indices)
    for flip in (False, True):
        crops = split.crop_images(indices, tops, lefts, np.full(len(split), flip))
        assert crops.shape == (len(split), 8, 8, 8) and crops.dtype == torch.float32
        for i, crop in enumerate(crops):
            record = split.store.records[split.record_indices[i]]
            begin, shape = int(record["offset"]), (int(record["height"]), int(record["width"]), 3)
            pixels = np.array(split.store.pixels[begin : begin + np.prod(shape)]).reshape(shape)
            pixels = pixels[: shape[0] // 4 * 4, : shape[1] // 4 * 4]
            image = torch.from_numpy(pixels[:, ::-1].copy() if flip else pixels).permute(2, 0, 1)[None]
            latents = autoencoder.encode(image.float() / 127.5 - 1)[0]
            assert torch.equal(crop, latents[:, -8:, -8:])
    assert {tuple(latents.shape[1:]) for latents in split.latent_cache.values()} == {(8, 8), (11, 8), (8, 15), (10, 8)}


def test_each_image_and_its_mirror_image_are_encoded_once(
    corpus: Corpus, autoencoder: LatentAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, encode_images = [0], autoencoder.encode

    def encode(images: Tensor) -> Tensor:
        encoded[0] += len(images)
        return encode_images(images)

    monkeypatch.setattr(autoencoder, "encode", encode)
    batch_images(encoded_corpus.encode_split(corpus.training, autoencoder), 0, 40)
    assert encoded[0] == 2 * len(corpus.training)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_latents_do_not_depend_on_what_was_encoded_before(
    corpus: Corpus, autoencoder: LatentAutoencoder, precision: torch.dtype
) -> None:
    lower = autoencoder.with_dtype(precision)
    images = batch_images(encoded_corpus.encode_split(corpus.training, lower), 0, 10)
    assert torch.equal(images[32:], batch_images(encoded_corpus.encode_split(corpus.training, lower), 32, 6))


def test_their_memory_is_estimated(corpus: Corpus, autoencoder: LatentAutoencoder) -> None:
    split = encoded_corpus.encode_split(corpus.training, autoencoder)
    batch_images(split, 0, 40)
    used_bytes = sum(latents.nbytes for latents in split.latent_cache.values())
    assert used_bytes <= 2 * encoded_corpus.latent_cache_bytes(corpus.training, autoencoder) <= 1.1 * used_bytes


def test_latents_are_cached_where_images_are_seen_often_and_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan("nano", batch_size=10).with_changes(work={"steps": 80})
    step_bytes = memory.training_step_bytes(plan)

    def fits(
        distinct_images: int = 200, cache_bytes: int = 1000, free: int | None = 10 * step_bytes, device: str = "cpu"
    ) -> bool:
        monkeypatch.setattr(memory, "free_memory_bytes", lambda device: free)
        device_plan = plan.with_changes(compute={"device": device})
        return encoded_corpus.latent_cache_fits(device_plan, distinct_images, cache_bytes)

    assert fits() and fits(free=None) and fits(cache_bytes=1 << 30)
    assert not fits(distinct_images=201) and not fits(cache_bytes=(1 << 30) + 1, free=None) and not fits(device="cuda")
    assert fits(free=math.ceil((step_bytes + 1000) / 0.8)) and not fits(free=int(step_bytes / 0.8))


def test_latents_are_cached_where_that_saves_more_time_than_it_takes() -> None:
    assert encoded_corpus.latent_cache_pays(1000, 100, encode_seconds=3.0, saved_seconds=0.4)
    assert not encoded_corpus.latent_cache_pays(1000, 100, encode_seconds=3.0, saved_seconds=0.2)


def test_the_cost_of_steps_follows_from_that_of_an_image() -> None:
    """An image takes 4 s, in the text stage 2 s, and the autoencoder 1 s."""
    cost = ImageCost(4.0, 2.0, 1.0)
    assert cost.to_step_cost() == StepCost(1.25, 0.5)
    assert ImageCost(4.0).to_step_cost() == StepCost(1.0, 0.0)
    assert ImageCost(2.0, 3.0).to_step_cost() == StepCost(1.0, 0.0)
