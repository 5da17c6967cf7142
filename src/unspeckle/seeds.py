"""Randomness as a function: the same numbers for the same seed, on any device, in any batch, at any place in it."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unspeckle.errors import InputError

Noise = Callable[[int, int], Tensor]  # (step, draw) -> (B, C, H, W) standard normal; step -1 is the start of a drawing

_WORD = 0xFFFFFFFF


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox4x32-10, Salmon et al. 2011: four words of counter and two of key to four random words.

    Words are int64 tensors in [0, 2^32) whose shapes broadcast. Products wrap at 2^64, as the algorithm needs.
    """
    a, b, c, d = counter
    low, high = key
    for round in range(10):
        if round:
            low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) & _WORD ^ b ^ low, right & _WORD, (left >> 32) & _WORD ^ d ^ high, left & _WORD
    return [a, b, c, d]


def key(seed: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """A seed as Philox's key. InputError unless 0 <= seed < 2^64."""
    if not 0 <= seed < 2**64:
        raise InputError(f"seed {seed} is out of range; choose one from 0 to {2**64 - 1}")
    return torch.tensor(seed & _WORD, device=device), torch.tensor(seed >> 32, device=device)


def _uniform(word: Tensor, dtype: torch.dtype) -> Tensor:
    return (word.to(dtype) + 0.5) * 2.0**-32  # in (0, 1), though float32 may round up to 1


def _normal(words: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Box & Muller 1958: four words (B, blocks) to (B, 4 · blocks) standard normals, float32."""
    radius, angle = torch.stack(tuple(words[0::2]), -1), torch.stack(tuple(words[1::2]), -1)
    r, phi = (-2 * _uniform(radius, dtype).log()).sqrt(), 2 * math.pi * _uniform(angle, dtype)
    return torch.stack((r * phi.cos(), r * phi.sin()), -1).flatten(1).float()


def noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Noise:
    """Noise of a drawing, (len(seeds), *shape) float32: row i depends on seeds[i], step and draw alone."""
    low, high = (torch.stack(words).unsqueeze(1) for words in zip(*(key(seed, device) for seed in seeds), strict=True))
    size = math.prod(shape)
    block = torch.arange(-(-size // 4), device=device).unsqueeze(0)
    zero = torch.zeros_like(block)

    def draw(step: int, draw: int) -> Tensor:
        words = philox((block, zero + (step & _WORD), zero + draw, zero), (low, high))
        return _normal(words, torch.float64)[:, :size].reshape(len(seeds), *shape)

    return draw


def ecosystem_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Noise:
    """The noise that other programs draw: a CPU torch.Generator for each picture, asked in order, whatever the step."""
    for seed in seeds:
        key(seed)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda step, draw: torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]).to(device)


class Stream:
    """Training's randomness: a function of the seed, each example's global index (B,) int64 >= 0, and the purpose.

    A purpose is any small integer; other purposes are independent, and so is every drawing's noise.
    """

    def __init__(self, seed: int, indices: Tensor) -> None:
        self.indices, self._key = indices.unsqueeze(1), key(seed, indices.device)

    def _words(self, purpose: int, blocks: int) -> list[Tensor]:
        block = torch.arange(blocks, device=self.indices.device).unsqueeze(0)
        place = (self.indices & _WORD, torch.full_like(block, purpose), 1 + (self.indices >> 32))
        return philox((block, *place), self._key)

    def uniform(self, purpose: int) -> Tensor:
        """(B,) float32 in (0, 1]."""
        return _uniform(self._words(purpose, 1)[0][:, 0], torch.float32)

    def normal(self, purpose: int, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32 standard normal."""
        size = math.prod(shape)
        return _normal(self._words(purpose, -(-size // 4)), torch.float32)[:, :size].reshape(-1, *shape)
