"""A corpus in the device's memory: the same batches, and so the same model, as from the host's."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import test_training
import torch
from PIL import Image
from test_training import equal, final, options

from unspeckle.corpus import Corpus, batches, open_corpus, read_folder
from unspeckle.corpus import device_images as module
from unspeckle.corpus.device_images import DeviceSplit, move_training_images_to_device
from unspeckle.training import command, memory

folder, whole, own_cache = test_training.folder, test_training.whole, test_training.own_cache  # fixtures


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """60 pictures of noise, tall, wide and square, some of whose words forbid mirroring."""
    place, rng = tmp_path_factory.mktemp("in"), np.random.default_rng(1)
    for i in range(60):
        tall, wide = [(12, 17), (19, 10), (10, 10)][i % 3]
        Image.fromarray(rng.integers(0, 256, (tall, wide, 3), dtype=np.uint8)).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"{i}\n{i} again" + " on the left" * (i % 4 == 0))
    return open_corpus(read_folder(place), (10, 8), cache_dir=tmp_path_factory.mktemp("cache"))


CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")])


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(("start", "flips"), [(0, True), (37, True), (0, False)])
def test_batches_are_the_same(
    corpus: Corpus, device: str, start: int, flips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 1000)  # bytes: many, and none that ends with a picture
    held = move_training_images_to_device(corpus, device)
    assert isinstance(held.training, DeviceSplit) and held.validation is corpus.validation
    assert held.fingerprint == corpus.fingerprint and list(held.training_captions()) == list(corpus.training_captions())
    pairs = zip(*(batches(one.training, 16, seed=9, start=start, flip=flips) for one in (corpus, held)), strict=True)
    for usual, same in islice(pairs, 12):  # over three epochs
        assert same.pictures.device.type == device and same.pictures.stride() == usual.pictures.stride()
        assert torch.equal(same.pictures.cpu(), usual.pictures)
        assert same.captions == usual.captions and torch.equal(same.indices, usual.indices)
    some = [3, 0, 11]
    assert torch.equal(held.training.center_crops(some).cpu(), corpus.training.center_crops(some))


def test_it_is_in_the_device_that_has_room_for_it(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    size, asked = corpus.training.store.pixels.nbytes, []
    monkeypatch.setattr(memory, "resident", lambda corpus, device: asked.append(device))
    for room in (None, size, round(size / memory.MAX_CORPUS_SHARE) - 4):
        monkeypatch.setattr(memory, "free", lambda device, room=room: room)
        assert memory.corpus_to_device(corpus, "cuda") is corpus
    monkeypatch.setattr(memory, "free", lambda device: round(size / memory.MAX_CORPUS_SHARE) + 4)
    assert memory.corpus_to_device(corpus, "cpu") is corpus and asked == []
    memory.corpus_to_device(corpus, "cuda:0")
    assert asked == ["cuda:0"]


def test_a_model_is_the_same_from_either(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def near(corpus: Corpus, device: str) -> Corpus:
        asked.append(device)
        return move_training_images_to_device(corpus, device)

    monkeypatch.setattr(memory, "near", near)
    assert command.run_training(options(folder, tmp_path / "run")) == 0
    assert asked == ["cpu"] and equal(final(tmp_path / "run"), final(whole))
