"""Images in the device's memory give the same batches as those on the host, and so the same model."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from corpus_images import write_noise

from training_runs import final_tensors, tensors_equal, train_options
from unspeckle.corpus import device_images
from unspeckle.corpus.batches import batches
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.device_images import DeviceSplit, move_training_images_to_device
from unspeckle.corpus.splits import Corpus, open_corpus
from unspeckle.training import memory
from unspeckle.training.train_command import run_training


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """60 images of noise, tall, wide and square, some with captions that forbid a flip."""
    folder = tmp_path_factory.mktemp("in")
    for i in range(60):
        height, width = [(12, 17), (19, 10), (10, 10)][i % 3]
        write_noise(folder / f"{i}.png", width, height, seed=i)
        (folder / f"{i}.txt").write_text(f"{i}\n{i} again" + " on the left" * (i % 4 == 0))
    return open_corpus(read_folder(folder), (10, 8), cache_dir=tmp_path_factory.mktemp("cache"))


CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")])


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(("start", "flip"), [(0, True), (37, True), (0, False)])
def test_batches_are_the_same(
    corpus: Corpus, device: str, start: int, flip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many chunks, none of which ends with an image.
    monkeypatch.setattr(device_images, "COPY_CHUNK_BYTES", 1000)
    moved = move_training_images_to_device(corpus, device)
    assert isinstance(moved.training, DeviceSplit) and moved.validation is corpus.validation
    assert moved.fingerprint == corpus.fingerprint
    assert list(moved.training_captions()) == list(corpus.training_captions())
    host_batches = batches(corpus.training, 16, seed=9, start=start, flip=flip)
    device_batches = batches(moved.training, 16, seed=9, start=start, flip=flip)
    # Over three epochs.
    for expected, batch in islice(zip(host_batches, device_batches, strict=True), 12):
        assert batch.images.device.type == device and batch.images.stride() == expected.images.stride()
        assert torch.equal(batch.images.cpu(), expected.images) and batch.captions == expected.captions
        assert torch.equal(batch.example_indices, expected.example_indices)
    indices = [3, 0, 11]
    assert torch.equal(moved.training.center_crops(indices).cpu(), corpus.training.center_crops(indices))


def test_images_are_moved_to_a_device_with_room_for_them(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_count, devices = corpus.training.store.pixels.nbytes, []
    needed_bytes = round(byte_count / memory.MAX_CORPUS_SHARE)
    monkeypatch.setattr(memory, "move_training_images_to_device", lambda corpus, device: devices.append(device))
    for free_bytes in (None, byte_count, needed_bytes - 4):
        monkeypatch.setattr(memory, "free_memory_bytes", lambda device, free_bytes=free_bytes: free_bytes)
        assert memory.corpus_to_device(corpus, "cuda") is corpus
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: needed_bytes + 4)
    assert memory.corpus_to_device(corpus, "cpu") is corpus and devices == []
    memory.corpus_to_device(corpus, "cuda:0")
    assert devices == ["cuda:0"]


@pytest.mark.usefixtures("training_environment")
def test_a_model_is_the_same_with_images_on_host_and_device(
    color_folder: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []

    def move_to_device(corpus: Corpus, device: str) -> Corpus:
        devices.append(device)
        return move_training_images_to_device(corpus, device)

    monkeypatch.setattr(memory, "corpus_to_device", move_to_device)
    assert run_training(train_options(color_folder, tmp_path / "run")) == 0
    assert devices == ["cpu"] and tensors_equal(final_tensors(tmp_path / "run"), final_tensors(finished_run))
