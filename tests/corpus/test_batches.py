"""Batches are a pure function of (seed, position)."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unspeckle.corpus import Split, batches, open_corpus, read_folder
from unspeckle.corpus.batches import (
    _random_integers,
    _splitmix64,
    epoch_permutation,
    random_bits,
    sampling_probabilities,
    weighted_epoch_order,
)
from unspeckle.errors import InputError

COUNT = 30


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Pictures whose red tells the column, whose green tells the row and whose blue tells which picture it is."""
    folder = tmp_path_factory.mktemp("in")
    for i in range(COUNT):
        tall, wide = [(8, 16), (16, 8), (8, 8)][i % 3]
        picture = np.zeros((tall, wide, 3), np.uint8)
        picture[..., 0], picture[..., 1] = np.arange(wide)[None, :], np.arange(tall)[:, None]
        picture[..., 2] = i
        Image.fromarray(picture).save(folder / f"{i}.png")
        words = [f"{i} number {n}" for n in range(1 + i % 4)]
        if i % 5 == 0:
            words[-1] += " on the Left-hand side"
        (folder / f"{i}.txt").write_text("\n".join(words))
    return open_corpus(read_folder(folder), 8, cache_dir=tmp_path_factory.mktemp("cache")).training


Example = tuple[int, bytes, str]


def examples(
    split: Split, size: int, count: int, *, seed: int = 5, start: int = 0, flips: bool = True
) -> list[Example]:
    taken: list[Example] = []
    for batch in islice(batches(split, size, seed=seed, start=start, flip=flips), -(-count // size)):
        assert batch.images.shape == (size, 3, 8, 8) and batch.images.dtype == torch.uint8
        rows = zip(batch.example_indices.tolist(), batch.images, batch.captions, strict=True)
        taken += [(index, picture.numpy().tobytes(), caption) for index, picture, caption in rows]
    return taken[:count]


def test_each_example_hangs_on_seed_and_position_alone(split: Split) -> None:
    whole = examples(split, 1, 200)
    assert [index for index, _, _ in whole] == list(range(200))
    for size, start in [(7, 0), (64, 0), (200, 0), (1, 133), (16, 48), (5, 31), (33, 200 - 33)]:
        count = 200 - start
        assert examples(split, size, count, start=start) == whole[start:]
    assert examples(split, 8, 200, seed=6) != whole
    assert examples(split, 3, 6, start=10**12) == examples(split, 6, 6, start=10**12)


def which(example: Example) -> int:
    return np.frombuffer(example[1], np.uint8)[2 * 64].item()


def test_every_epoch_shows_every_picture_once_in_its_own_order(split: Split) -> None:
    count = len(split)
    seen = [which(example) for example in examples(split, 16, 4 * count)]
    epochs = [seen[i * count : (i + 1) * count] for i in range(4)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == count for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_caption_belongs_to_the_picture_and_all_wordings_come(split: Split) -> None:
    taken = examples(split, 64, 6000)
    assert all(int(caption.split()[0]) == which((0, picture, "")) for _, picture, caption in taken)
    four = [caption.split()[2] for _, _, caption in taken if int(caption.split()[0]) % 4 == 3]
    for number in "0123":
        assert abs(four.count(number) - len(four) / 4) < 4 * (len(four) * 3 / 16) ** 0.5


def test_crops_spread_over_the_long_side_and_half_are_mirrored(split: Split) -> None:
    offsets = {0: [0] * 9, 1: [0] * 9}  # across for wide pictures, down for tall ones
    mirrored = straight = 0
    for _, raw, caption in examples(split, 64, 9000):
        i = int(caption.split()[0])
        picture = np.frombuffer(raw, np.uint8).reshape(3, 8, 8).astype(int)
        across = picture[0, 0]
        assert (np.diff(across) == 1).all() or (np.diff(across) == -1).all()
        assert (np.diff(picture[1, :, 0]) == 1).all()
        if i % 3 < 2:
            offsets[i % 3][min(across) if i % 3 == 0 else picture[1, 0, 0]] += 1
        if i % 5 == 0:
            assert across[0] < across[1]  # one of its wordings says left
        elif across[0] > across[1]:
            mirrored += 1
        else:
            straight += 1
    assert abs(mirrored - straight) < 4 * (mirrored + straight) ** 0.5
    for counts in offsets.values():
        mean = sum(counts) / 9
        assert sum((n - mean) ** 2 / mean for n in counts) < 27  # chi-squared with 8 degrees of freedom, p = 0.0007


def test_flips_can_be_off_and_change_nothing_else(split: Split) -> None:
    plain, mirrored = examples(split, 8, 300, flips=False), examples(split, 8, 300)
    for (_, a, words), (_, b, others) in zip(plain, mirrored, strict=True):
        still, turned = (np.frombuffer(raw, np.uint8).reshape(3, 8, 8) for raw in (a, b))
        assert words == others and (np.array_equal(still, turned) or np.array_equal(still, turned[..., ::-1]))
        assert still[0, 0, 0] < still[0, 0, 1]


def test_batches_larger_than_an_epoch(split: Split) -> None:
    assert examples(split, 10 * len(split) + 3, 300) == examples(split, 1, 300)


def test_the_hash_is_splitmix64() -> None:
    # the published first outputs of SplitMix64 from state 1234567
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + k * golden) % 2**64 for k in (1, 2, 3)], np.uint64)
    assert _splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_positions_and_seeds_are_told_apart() -> None:
    positions = np.arange(4096)
    drawn = [random_bits(seed, purpose, positions) for seed in (0, 1, 2**63, -1) for purpose in (1, 2)]
    assert len(np.unique(np.concatenate(drawn))) == 8 * 4096
    bits = np.unpackbits(np.concatenate(drawn).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 4 * 0.5 / len(bits) ** 0.5
    bounds = np.array([1, 2, 3, 1000] * 1024)
    low = _random_integers(bounds, 3, 1, positions)
    assert (low < bounds).all() and (low >= 0).all() and set(low[2::4]) == {0, 1, 2}


CLASSES = [("a hat",)] * 30 + [("a shirt", "a blouse")] * 60 + [("a shoe",)] * 210


@pytest.mark.parametrize(
    ("balance", "wanted"), [(0.0, [30, 60, 210]), (1.0, [100, 100, 100]), (0.5, [59.3, 83.9, 156.9])]
)
def test_rare_captions_are_shown_as_often_as_the_balance_says(balance: float, wanted: list[float]) -> None:
    shares = sampling_probabilities(CLASSES, balance)
    epochs = [weighted_epoch_order(shares, 3, epoch) for epoch in range(40)]
    assert {len(epoch) for epoch in epochs} == {300}
    often = np.stack([np.bincount(epoch, minlength=300) for epoch in epochs])  # (epochs, pictures)
    assert (np.abs(often - 300 * shares) < 1 + 1e-9).all()  # rounded up or down, never more
    assert [part.sum() / 40 for part in np.split(often, [30, 90], axis=1)] == pytest.approx(wanted, rel=0.01)
    if balance == 0:
        assert (often == 1).all() and len({tuple(epoch) for epoch in epochs}) == 40


def test_what_is_shown_twice_in_an_epoch_is_shown_apart() -> None:
    """30 hats, each three or four times in 300: twice in a row by chance alone, about 100 · 2.4 / 300 times."""
    rows = [weighted_epoch_order(sampling_probabilities(CLASSES, 1.0), 1, epoch) for epoch in range(50)]
    assert sum(int((row[1:] == row[:-1])[row[1:] < 30].sum()) for row in rows) / 50 == pytest.approx(0.8, abs=0.4)


def test_a_picture_alone_in_its_folder_is_not_shown_all_the_time() -> None:
    shares = sampling_probabilities([("one",), *[("many",)] * 9999], 0.5)
    assert 4 < 10_000 * shares[0] < 4.1 and shares.sum() == pytest.approx(1)


def test_balanced_batches_hang_on_seed_and_position_alone(split: Split) -> None:
    split = replace(split, wordings=tuple(("rare",) if i < 3 else (f"other {i % 2}",) for i in range(COUNT - 2)))

    def captions(size: int, start: int, count: int) -> list[str]:
        some = islice(batches(split, size, seed=2, start=start, balance=0.7), count // size)
        return [caption for batch in some for caption in batch.captions]

    whole = captions(1, 0, 120)
    assert captions(8, 40, 80) == whole[40:] and captions(30, 0, 120) == whole
    assert whole.count("rare") > 1.5 * 3 / len(split) * 120


def test_the_order_is_pinned() -> None:
    # A change here breaks the resuming of every run that was begun before it.
    assert epoch_permutation(10, seed=1, epoch=0).tolist() == [4, 6, 5, 9, 0, 8, 7, 3, 1, 2]
    assert epoch_permutation(10, seed=1, epoch=1).tolist() == [2, 5, 7, 3, 9, 6, 4, 8, 0, 1]
    assert weighted_epoch_order(sampling_probabilities(CLASSES[27:39], 1.0), seed=1, epoch=0).tolist() == [
        0,
        0,
        8,
        9,
        3,
        10,
        2,
        6,
        2,
        5,
        1,
        1,
    ]
    assert np.array_equal(np.sort(epoch_permutation(1000, seed=2**70, epoch=10**6)), np.arange(1000))


def test_bad_asks(split: Split, tmp_path: Path) -> None:
    empty = Split(split.store, split.record_indices[:0], (), split.size)
    for asked, size, start, balance in [(empty, 4, 0, 0), (split, 0, 0, 0), (split, 4, -1, 0), (split, 4, 0, 1.1)]:
        with pytest.raises(InputError):
            batches(asked, size, seed=0, start=start, balance=balance)
