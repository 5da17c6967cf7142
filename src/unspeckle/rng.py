"""Randomness as a function of seed, step and purpose: the same numbers on any device, and at any place in any batch."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unspeckle.errors import InputError

# (step, draw) -> (B, C, H, W) standard normal; step -1 is before the first step, draw counts the noises of a step
NoiseFunction = Callable[[int, int], Tensor]
_WORD = 0xFFFFFFFF


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al. 2011): from four words of a counter and two of a key to four random words.

    All words are int64 tensors in [0, 2^32) whose shapes broadcast. Products wrap at 2^64, as the algorithm needs."""
    a, b, c, d = counter
    low, high = key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) & _WORD ^ b ^ low, right & _WORD, (left >> 32) & _WORD ^ d ^ high, left & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return [a, b, c, d]


def seed_keys(seeds: Sequence[int], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The two words of each seed, (B, 1) each, as a key of Philox. InputError where a seed is not in [0, 2^64)."""
    if bad := [seed for seed in seeds if not 0 <= seed < 2**64]:
        raise InputError(f"seed {bad[0]} is out of range; choose one from 0 to {2**64 - 1}")
    words = torch.tensor([[seed & _WORD, seed >> 32] for seed in seeds], device=device)
    return words[:, :1], words[:, 1:]


def box_muller(words: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """(B, 4 · blocks) float32 standard normals from four words (B, blocks), computed in dtype (Box & Muller 1958)."""
    radius, angle = ((torch.stack(tuple(pair), -1).to(dtype) + 0.5) * 2.0**-32 for pair in (words[0::2], words[1::2]))
    r, phi = (-2 * radius.log()).sqrt(), 2 * math.pi * angle
    return torch.stack((r * phi.cos(), r * phi.sin()), -1).flatten(1).float()


def noise_from_seeds(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> NoiseFunction:
    """The noise of a drawing, (B, *shape) float32 for B seeds: row i depends on seeds[i], step and draw alone."""
    compute = "cpu" if torch.device(device).type == "mps" else device  # mps has no float64
    key, size = seed_keys(seeds, compute), math.prod(shape)
    block = torch.arange(-(-size // 4), device=compute).unsqueeze(0)

    def noise(step: int, draw: int) -> Tensor:
        words = philox((block, block * 0 + (step & _WORD), block * 0 + draw, block * 0), key)
        return box_muller(words, torch.float64)[:, :size].reshape(len(seeds), *shape).to(device)

    return noise


class ExampleRNG:
    """The randomness of training: a function of the seed, the global index of each example, and a purpose, which is any
    small integer. It does not depend on batches or devices, and is independent of the noise of drawings.

    indices: (B,) int64, at least 0."""

    def __init__(self, seed: int, indices: Tensor) -> None:
        self.indices, self._key = indices.unsqueeze(1), seed_keys([seed], indices.device)

    def _words(self, purpose: int, blocks: int, indices: Tensor) -> list[Tensor]:
        block = torch.arange(blocks, device=indices.device).unsqueeze(0)
        return philox((block, indices & _WORD, block * 0 + purpose, 1 + (indices >> 32)), self._key)

    def uniform(self, purpose: int) -> Tensor:
        """(B,) float32 in (0, 1]."""
        return (self._words(purpose, 1, self.indices)[0][:, 0].float() + 0.5) * 2.0**-32

    def normal(self, purpose: int, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32 standard normal."""
        size, rows = math.prod(shape), len(self.indices)
        # In parts that fit in the cache: twice as fast
        at_once = max(1, 2**17 // size) if self.indices.is_cpu else rows
        parts = (self.indices[i : i + at_once] for i in range(0, rows, at_once))
        words = (self._words(purpose, -(-size // 4), part) for part in parts)
        return torch.cat([box_muller(word, torch.float32)[:, :size] for word in words]).reshape(-1, *shape)
