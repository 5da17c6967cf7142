import math

import pytest
import torch

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.noise import torch_generator_noise
from unspeckle.rng import ExampleRNG, noise_from_seeds, philox

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [  # Random123, kat_vectors
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, answer):
    words = philox([torch.tensor(word) for word in counter], [torch.tensor(word) for word in key])
    assert tuple(int(word) for word in words) == answer


def normals_by_hand(words):
    for radius, angle in (words[:2], words[2:]):
        r, phi = math.sqrt(-2 * math.log((radius + 0.5) / 2**32)), 2 * math.pi * (angle + 0.5) / 2**32
        yield from (r * math.cos(phi), r * math.sin(phi))


def test_noise_is_box_muller_of_the_known_answer():
    expected = torch.tensor(list(normals_by_hand((0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8))))
    assert torch.equal(noise_from_seeds([0], (1, 2, 2))(0, 0).flatten(), expected)


@pytest.mark.parametrize("seed", [0, 7, 2**32, 2**63, 2**64 - 1])
def test_a_images_noise_is_its_own(seed):
    shape = (3, 5, 7)  # 105 values: not a multiple of 4
    alone = noise_from_seeds([seed], shape)(3, 1)[0]
    for place in range(4):
        seeds = [11, 12, 13]
        seeds.insert(place, seed)
        assert torch.equal(noise_from_seeds(seeds, shape)(3, 1)[place], alone)


def test_every_seed_step_and_draw_has_other_noise():
    seeds = [0, 1, 2**32, 2**64 - 1]
    rows = [row for step in (-1, 0, 1) for draw in (0, 1) for row in noise_from_seeds(seeds, (1, 8, 8))(step, draw)]
    correlation = torch.corrcoef(torch.stack(rows).flatten(1)) - torch.eye(len(rows))
    assert correlation.abs().max() < 5 / 8  # 64 values: 5 standard errors


@pytest.mark.parametrize("seed", [-1, 2**64])
@pytest.mark.parametrize("source", [noise_from_seeds, torch_generator_noise])
def test_seeds_out_of_range(seed, source):
    with pytest.raises(InputError, match="out of range"):
        source([seed], (1, 1, 1))
    with pytest.raises(InputError, match="out of range"):
        ExampleRNG(seed, torch.arange(2))


def assert_standard_normal(z):
    z, n = z.double().flatten().sort().values, z.numel()
    cdf = torch.special.ndtr(z)
    gap = (cdf - (torch.arange(n) + 0.5) / n).abs().max() + 0.5 / n
    assert gap < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, one in a thousand
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)


def test_noise_and_streams_are_standard_normal():
    assert_standard_normal(noise_from_seeds([5, 6], (3, 128, 128))(-1, 0))
    assert_standard_normal(ExampleRNG(5, torch.arange(40)).normal(1, (3, 64, 64)))


def test_the_ecosystems_noise_is_the_ecosystems():
    source = torch_generator_noise([3, 4], (4, 8, 8))
    generator = torch.Generator().manual_seed(4)
    for step in (-1, 0, 1):
        assert torch.equal(source(step, 0)[1], torch.randn((1, 4, 8, 8), generator=generator)[0])


def test_a_stream_is_the_same_however_the_batch_is_split():
    indices = torch.tensor([0, 1, 99, 2**32 - 1, 2**32, 2**40 + 3])
    whole = ExampleRNG(9, indices)
    for i in range(len(indices)):
        part = ExampleRNG(9, indices[i : i + 1])
        assert torch.equal(whole.normal(1, (3, 4, 5))[i], part.normal(1, (3, 4, 5))[0])
        assert whole.uniform(0)[i] == part.uniform(0)[0]
        assert whole.normal(4)[i] == part.normal(4)[0]


def test_streams_differ_by_seed_index_and_purpose_and_from_drawings():
    indices = torch.tensor([0, 1, 2**32, 2**32 + 1])
    rows = [ExampleRNG(seed, indices).normal(purpose, (64,)) for seed in (0, 1) for purpose in (0, 1)]
    rows.append(noise_from_seeds([0, 1], (1, 8, 8))(0, 0).flatten(1))
    rows = torch.cat(rows)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 5 / 8


def test_uniform_is_uniform():
    u = ExampleRNG(3, torch.arange(20000)).uniform(2).double().sort().values
    assert u[0] > 0 and u[-1] <= 1
    assert (u - (torch.arange(20000) + 0.5) / 20000).abs().max() < 1.95 / math.sqrt(20000)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_noise_is_the_same_on_a_gpu():
    seeds = [0, 2**64 - 1]
    here, there = noise_from_seeds(seeds, (3, 64, 64))(-1, 0), noise_from_seeds(seeds, (3, 64, 64), "cuda")(-1, 0).cpu()
    assert (here != there).float().mean() < 1e-4 and torch.allclose(here, there, rtol=3e-7, atol=1e-7)
    indices = torch.arange(64)
    on_gpu = ExampleRNG(5, indices.cuda()).normal(1, (3, 8, 8)).cpu()
    torch.testing.assert_close(on_gpu, ExampleRNG(5, indices).normal(1, (3, 8, 8)), rtol=1e-5, atol=1e-5)
