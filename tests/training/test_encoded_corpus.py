"""Latents that are kept: the encoder's own, of whole pictures, cut where pictures would be, the same after a stop."""

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tiny_models import make_plan
from unspeckle.corpus import Corpus, batches, open_corpus, read_folder
from unspeckle.networks import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.training import encoded_corpus, memory
from unspeckle.training.cost import ImageCost, StepCost

SIZES = [(32, 32), (32, 47), (61, 32), (32, 40)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """24 pictures, square, tall and wide, for crops of 32 × 32."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(24):
        wide, tall = SIZES[i % len(SIZES)]
        Image.fromarray(rng.integers(0, 256, (tall, wide, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return open_corpus(read_folder(root, caption="noise"), 32, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def autoencoder() -> LatentAutoencoder:
    torch.manual_seed(0)
    return LatentAutoencoder(LatentAutoencoderConfig(widths=(8, 16), blocks_per_level=1)).eval().requires_grad_(False)


def some(split: encoded_corpus.EncodedSplit, start: int, count: int) -> Tensor:
    return torch.cat([batch.images for batch in islice(batches(split, 8, seed=3, start=start), count)])


def test_crops_are_cut_from_the_latents_of_whole_pictures(corpus: Corpus, autoencoder: LatentAutoencoder) -> None:
    split = encoded_corpus.encode_split(corpus.training, autoencoder)
    every = np.arange(len(split))
    tall, wide = split.crop_margins(every)
    for mirror in (False, True):
        crops = split.crop_images(every, tall, wide, np.full(len(split), mirror))
        assert crops.shape == (len(split), 8, 8, 8) and crops.dtype == torch.float32
        for i, crop in enumerate(crops):
            record = split.store.records[split.record_indices[i]]
            begin, shape = int(record["offset"]), (int(record["height"]), int(record["width"]), 3)
            pixels = np.array(split.store.pixels[begin : begin + np.prod(shape)]).reshape(shape)
            pixels = pixels[: shape[0] // 4 * 4, : shape[1] // 4 * 4]
            picture = torch.from_numpy(pixels[:, ::-1].copy() if mirror else pixels).permute(2, 0, 1)[None]
            whole = autoencoder.encode(picture.float() / 127.5 - 1)[0]
            assert torch.equal(crop, whole[:, -8:, -8:])
    assert {tuple(latents.shape[1:]) for latents in split.latent_cache.values()} == {(8, 8), (11, 8), (8, 15), (10, 8)}


def test_each_picture_is_encoded_once_either_way_round(
    corpus: Corpus, autoencoder: LatentAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = [0], autoencoder.encode

    def encode(pictures: Tensor) -> Tensor:
        asked[0] += len(pictures)
        return real(pictures)

    monkeypatch.setattr(autoencoder, "encode", encode)
    some(encoded_corpus.encode_split(corpus.training, autoencoder), 0, 40)
    assert asked[0] == 2 * len(corpus.training)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_what_was_seen_before_does_not_show(
    corpus: Corpus, autoencoder: LatentAutoencoder, precision: torch.dtype
) -> None:
    lower = autoencoder.with_dtype(precision)
    whole = some(encoded_corpus.encode_split(corpus.training, lower), 0, 10)
    assert torch.equal(whole[32:], some(encoded_corpus.encode_split(corpus.training, lower), 32, 6))


def test_the_memory_that_they_take_is_foreseen(corpus: Corpus, autoencoder: LatentAutoencoder) -> None:
    split = encoded_corpus.encode_split(corpus.training, autoencoder)
    some(split, 0, 40)
    taken = sum(latents.nbytes for latents in split.latent_cache.values())
    assert taken <= 2 * encoded_corpus.latent_cache_bytes(corpus.training, autoencoder) <= 1.1 * taken


def test_they_are_kept_where_pictures_are_seen_often_and_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    made = replace(make_plan("nano", batch_size=10), steps=80)
    wanted = memory.training_step_bytes(made)

    def fits(once: int = 200, held: int = 1000, room: int | None = 10 * wanted, device: str = "cpu") -> bool:
        monkeypatch.setattr(memory, "free", lambda device: room)
        return encoded_corpus.latent_cache_fits(replace(made, device=device), once, held)

    assert fits() and fits(room=None) and fits(held=1 << 30)
    assert not fits(once=201) and not fits(held=(1 << 30) + 1, room=None) and not fits(device="cuda")
    assert fits(held=1000, room=math.ceil((wanted + 1000) / 0.8)) and not fits(held=1000, room=int(wanted / 0.8))


def test_they_are_kept_where_more_is_spared_than_spent() -> None:
    assert encoded_corpus.latent_cache_pays(
        1000, 100, encode_seconds=3.0, saved_seconds=0.4
    ) and not encoded_corpus.latent_cache_pays(1000, 100, encode_seconds=3.0, saved_seconds=0.2)


def test_what_a_picture_takes_makes_the_cost_of_steps() -> None:
    """A picture takes 4 s; where words learn alone, 2 s; the autoencoder's share is 1 s."""
    cost = ImageCost(4.0, 2.0, 1.0)
    assert cost.to_step_cost() == StepCost(1.25, 0.5)
    assert ImageCost(4.0).to_step_cost() == StepCost(1.0, 0.0)
    assert ImageCost(2.0, 3.0).to_step_cost() == StepCost(1.0, 0.0)
