"""Batches are a pure function of seed and example index."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from unspeckle.corpus.batches import batches
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.epoch_order import epoch_permutation, sampling_probabilities, weighted_epoch_order
from unspeckle.corpus.random_bits import random_bits, random_integers, splitmix64
from unspeckle.corpus.splits import Split, open_corpus
from unspeckle.errors import InputError

IMAGE_COUNT = 30


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Images whose red is the column, whose green is the row and whose blue is the number of the image."""
    folder = tmp_path_factory.mktemp("in")
    for i in range(IMAGE_COUNT):
        height, width = [(8, 16), (16, 8), (8, 8)][i % 3]
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = np.arange(width)[None, :], np.arange(height)[:, None]
        pixels[..., 2] = i
        Image.fromarray(pixels).save(folder / f"{i}.png")
        captions = [f"{i} number {n}" for n in range(1 + i % 4)]
        if i % 5 == 0:
            captions[-1] += " on the Left-hand side"
        (folder / f"{i}.txt").write_text("\n".join(captions))
    return open_corpus(read_folder(folder), 8, cache_dir=tmp_path_factory.mktemp("cache")).training


Example = tuple[int, bytes, str]  # example index, pixels, caption


def take_examples(
    split: Split, batch_size: int, count: int, *, seed: int = 5, start: int = 0, flip: bool = True
) -> list[Example]:
    examples: list[Example] = []
    for batch in islice(batches(split, batch_size, seed=seed, start=start, flip=flip), -(-count // batch_size)):
        assert batch.images.shape == (batch_size, 3, 8, 8) and batch.images.dtype == torch.uint8
        rows = zip(batch.example_indices.tolist(), batch.images, batch.captions, strict=True)
        examples += [(index, image.numpy().tobytes(), caption) for index, image, caption in rows]
    return examples[:count]


def test_each_example_depends_only_on_seed_and_index(split: Split) -> None:
    whole = take_examples(split, 1, 200)
    assert [index for index, _, _ in whole] == list(range(200))
    for batch_size, start in [(7, 0), (64, 0), (200, 0), (1, 133), (16, 48), (5, 31), (33, 200 - 33)]:
        count = 200 - start
        assert take_examples(split, batch_size, count, start=start) == whole[start:]
    assert take_examples(split, 8, 200, seed=6) != whole
    assert take_examples(split, 3, 6, start=10**12) == take_examples(split, 6, 6, start=10**12)


def image_number(example: Example) -> int:
    """The blue of its first pixel."""
    return np.frombuffer(example[1], np.uint8)[2 * 64].item()


def test_every_epoch_shows_every_image_once_in_its_own_order(split: Split) -> None:
    count = len(split)
    seen = [image_number(example) for example in take_examples(split, 16, 4 * count)]
    epochs = [seen[i * count : (i + 1) * count] for i in range(4)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == count for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_caption_belongs_to_the_image_and_all_its_captions_occur(split: Split) -> None:
    examples = take_examples(split, 64, 6000)
    assert all(int(caption.split()[0]) == image_number((0, pixels, "")) for _, pixels, caption in examples)
    numbers = [caption.split()[2] for _, _, caption in examples if int(caption.split()[0]) % 4 == 3]
    for number in "0123":
        assert abs(numbers.count(number) - len(numbers) / 4) < 4 * (len(numbers) * 3 / 16) ** 0.5


def test_crops_are_uniform_along_the_long_side_and_half_are_flipped(split: Split) -> None:
    # Of wide images the columns at which crops begin, of tall ones the rows.
    offset_counts = {0: [0] * 9, 1: [0] * 9}
    flipped = unflipped = 0
    for _, raw, caption in take_examples(split, 64, 9000):
        i = int(caption.split()[0])
        crop = np.frombuffer(raw, np.uint8).reshape(3, 8, 8).astype(int)
        columns = crop[0, 0]
        assert (np.diff(columns) == 1).all() or (np.diff(columns) == -1).all()
        assert (np.diff(crop[1, :, 0]) == 1).all()
        if i % 3 < 2:
            offset_counts[i % 3][min(columns) if i % 3 == 0 else crop[1, 0, 0]] += 1
        if i % 5 == 0:
            assert columns[0] < columns[1]  # one of its captions says left
        elif columns[0] > columns[1]:
            flipped += 1
        else:
            unflipped += 1
    assert abs(flipped - unflipped) < 4 * (flipped + unflipped) ** 0.5
    for counts in offset_counts.values():
        mean = sum(counts) / 9
        # Chi-squared with 8 degrees of freedom, p = 0.0007.
        assert sum((n - mean) ** 2 / mean for n in counts) < 27


def test_flips_can_be_disabled_and_change_nothing_else(split: Split) -> None:
    unflipped, flipped = take_examples(split, 8, 300, flip=False), take_examples(split, 8, 300)
    for (_, pixels, caption), (_, other_pixels, other_caption) in zip(unflipped, flipped, strict=True):
        image, other = (np.frombuffer(raw, np.uint8).reshape(3, 8, 8) for raw in (pixels, other_pixels))
        assert caption == other_caption and (np.array_equal(image, other) or np.array_equal(image, other[..., ::-1]))
        assert image[0, 0, 0] < image[0, 0, 1]


def test_batches_larger_than_an_epoch(split: Split) -> None:
    assert take_examples(split, 10 * len(split) + 3, 300) == take_examples(split, 1, 300)


def test_the_hash_issplitmix64() -> None:
    # The published first outputs of SplitMix64 from state 1234567.
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + k * golden) % 2**64 for k in (1, 2, 3)], np.uint64)
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_counters_seeds_and_purposes_give_different_bits() -> None:
    counters = np.arange(4096)
    bits_by_key = [random_bits(seed, purpose, counters) for seed in (0, 1, 2**63, -1) for purpose in (1, 2)]
    assert len(np.unique(np.concatenate(bits_by_key))) == 8 * 4096
    bits = np.unpackbits(np.concatenate(bits_by_key).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 4 * 0.5 / len(bits) ** 0.5
    bounds = np.array([1, 2, 3, 1000] * 1024)
    integers = random_integers(bounds, 3, 1, counters)
    assert (integers < bounds).all() and (integers >= 0).all() and set(integers[2::4]) == {0, 1, 2}


CLASS_CAPTIONS = [("a hat",)] * 30 + [("a shirt", "a blouse")] * 60 + [("a shoe",)] * 210


@pytest.mark.parametrize(
    ("balance", "expected"), [(0.0, [30, 60, 210]), (1.0, [100, 100, 100]), (0.5, [59.3, 83.9, 156.9])]
)
def test_rare_captions_are_shown_as_often_as_the_balance_says(balance: float, expected: list[float]) -> None:
    probabilities = sampling_probabilities(CLASS_CAPTIONS, balance)
    epochs = [weighted_epoch_order(probabilities, 3, epoch) for epoch in range(40)]
    assert {len(epoch) for epoch in epochs} == {300}
    counts = np.stack([np.bincount(epoch, minlength=300) for epoch in epochs])  # (epochs, images)
    # Rounded up or down, never more.
    assert (np.abs(counts - 300 * probabilities) < 1 + 1e-9).all()
    assert [part.sum() / 40 for part in np.split(counts, [30, 90], axis=1)] == pytest.approx(expected, rel=0.01)
    if balance == 0:
        assert (counts == 1).all() and len({tuple(epoch) for epoch in epochs}) == 40


def test_repetitions_in_an_epoch_do_not_follow_each_other() -> None:
    """30 hats, each three or four times in 300, follow themselves only by chance: about 100 · 2.4 / 300 times."""
    epochs = [weighted_epoch_order(sampling_probabilities(CLASS_CAPTIONS, 1.0), 1, epoch) for epoch in range(50)]
    assert sum(int((epoch[1:] == epoch[:-1])[epoch[1:] < 30].sum()) for epoch in epochs) / 50 == pytest.approx(
        0.8, abs=0.4
    )


def test_the_only_image_of_a_caption_is_not_shown_all_the_time() -> None:
    probabilities = sampling_probabilities([("one",), *[("many",)] * 9999], 0.5)
    assert 4 < 10_000 * probabilities[0] < 4.1 and probabilities.sum() == pytest.approx(1)


def test_balanced_batches_depend_only_on_seed_and_index(split: Split) -> None:
    split = replace(split, captions=tuple(("rare",) if i < 3 else (f"other {i % 2}",) for i in range(IMAGE_COUNT - 2)))

    def take_captions(batch_size: int, start: int, count: int) -> list[str]:
        taken = islice(batches(split, batch_size, seed=2, start=start, balance=0.7), count // batch_size)
        return [caption for batch in taken for caption in batch.captions]

    whole = take_captions(1, 0, 120)
    assert take_captions(8, 40, 80) == whole[40:] and take_captions(30, 0, 120) == whole
    assert whole.count("rare") > 1.5 * 3 / len(split) * 120


def test_the_epoch_order_never_changes() -> None:
    # A change here would give every resumed run other images.
    assert epoch_permutation(10, seed=1, epoch=0).tolist() == [4, 6, 5, 9, 0, 8, 7, 3, 1, 2]
    assert epoch_permutation(10, seed=1, epoch=1).tolist() == [2, 5, 7, 3, 9, 6, 4, 8, 0, 1]
    expected = [0, 0, 8, 9, 3, 10, 2, 6, 2, 5, 1, 1]
    assert (
        weighted_epoch_order(sampling_probabilities(CLASS_CAPTIONS[27:39], 1.0), seed=1, epoch=0).tolist() == expected
    )
    assert np.array_equal(np.sort(epoch_permutation(1000, seed=2**70, epoch=10**6)), np.arange(1000))


def test_bad_arguments(split: Split) -> None:
    empty = Split(split.store, split.record_indices[:0], (), split.size)
    for bad_split, batch_size, start, balance in [
        (empty, 4, 0, 0),
        (split, 0, 0, 0),
        (split, 4, -1, 0),
        (split, 4, 0, 1.1),
    ]:
        with pytest.raises(InputError):
            batches(bad_split, batch_size, seed=0, start=start, balance=balance)
