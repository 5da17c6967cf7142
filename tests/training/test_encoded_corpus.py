"""Cached latents: the encoder's own of whole images, cut where images would be cut, the same after an interruption."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tiny_models import make_plan
from unspeckle.corpus.batches import batches
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import Corpus, open_corpus
from unspeckle.networks import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.training import encoded_corpus, memory

SIZES = [(32, 32), (32, 47), (61, 32), (32, 40)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """24 images, square, tall and wide, for crops of 32 × 32."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(24):
        width, height = SIZES[i % len(SIZES)]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return open_corpus(read_folder(root, caption="noise"), 32, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def autoencoder() -> LatentAutoencoder:
    torch.manual_seed(0)
    return LatentAutoencoder(LatentAutoencoderConfig(widths=(8, 16), blocks_per_level=1)).eval().requires_grad_(False)


def read_batches(split: encoded_corpus.EncodedSplit, start: int, count: int) -> Tensor:
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
            offset, shape = int(record["offset"]), (int(record["height"]), int(record["width"]), 3)
            pixels = np.array(split.store.pixels[offset : offset + np.prod(shape)]).reshape(shape)
            pixels = pixels[: shape[0] // 4 * 4, : shape[1] // 4 * 4]
            image = torch.from_numpy(pixels[:, ::-1].copy() if flip else pixels).permute(2, 0, 1)[None]
            latents = autoencoder.encode(image.float() / 127.5 - 1)[0]
            assert torch.equal(crop, latents[:, -8:, -8:])
    assert {tuple(latents.shape[1:]) for latents in split.latent_cache.values()} == {(8, 8), (11, 8), (8, 15), (10, 8)}


def test_each_image_is_encoded_once_as_it_is_and_once_mirrored(
    corpus: Corpus, autoencoder: LatentAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded_count, encode = [0], autoencoder.encode

    def count_and_encode(images: Tensor) -> Tensor:
        encoded_count[0] += len(images)
        return encode(images)

    monkeypatch.setattr(autoencoder, "encode", count_and_encode)
    read_batches(encoded_corpus.encode_split(corpus.training, autoencoder), 0, 40)
    assert encoded_count[0] == 2 * len(corpus.training)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_do_not_depend_on_what_was_cached_before(
    corpus: Corpus, autoencoder: LatentAutoencoder, dtype: torch.dtype
) -> None:
    autoencoder = autoencoder.with_dtype(dtype)
    from_start = read_batches(encoded_corpus.encode_split(corpus.training, autoencoder), 0, 10)
    from_later = read_batches(encoded_corpus.encode_split(corpus.training, autoencoder), 32, 6)
    assert torch.equal(from_start[32:], from_later)


def test_the_memory_of_the_cache_is_foreseen(corpus: Corpus, autoencoder: LatentAutoencoder) -> None:
    split = encoded_corpus.encode_split(corpus.training, autoencoder)
    read_batches(split, 0, 40)
    cached_bytes = sum(latents.nbytes for latents in split.latent_cache.values())
    expected = 2 * encoded_corpus.latent_cache_bytes(corpus.training, autoencoder)
    assert cached_bytes <= expected <= 1.1 * cached_bytes


def test_latents_are_cached_if_images_are_seen_often_and_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan("nano", batch_size=10).with_changes(work={"steps": 80})
    step_bytes = memory.training_step_bytes(plan)

    def fits(
        distinct_images: int = 200, cache_bytes: int = 1000, free_bytes: int | None = 10 * step_bytes,
        device: str = "cpu",
    ) -> bool:  # fmt: skip
        monkeypatch.setattr(memory, "free_memory_bytes", lambda device: free_bytes)
        device_plan = plan.with_changes(compute={"device": device})
        return encoded_corpus.latent_cache_fits(device_plan, distinct_images, cache_bytes)

    assert fits() and fits(free_bytes=None) and fits(cache_bytes=1 << 30)
    assert not fits(distinct_images=201) and not fits(device="cuda")
    assert not fits(cache_bytes=(1 << 30) + 1, free_bytes=None)
    assert fits(free_bytes=math.ceil((step_bytes + 1000) / 0.8)) and not fits(free_bytes=int(step_bytes / 0.8))


def test_latents_are_cached_if_that_saves_time() -> None:
    assert encoded_corpus.latent_cache_pays(1000, 100, encode_seconds=3.0, saved_seconds=0.4)
    assert not encoded_corpus.latent_cache_pays(1000, 100, encode_seconds=3.0, saved_seconds=0.2)
