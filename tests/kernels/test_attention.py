"""Our own kernels: what the plain way says, and the plain way where there is none."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unspeckle.kernels import attention as kernel
from unspeckle.kernels import compiling
from unspeckle.networks.layers import multi_head_attention


@pytest.fixture(autouse=True, params=["avx512", "amx"])
def _anew(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Either kernel, whatever this processor has: the one for AMX runs without it too."""
    monkeypatch.setattr(kernel, "cpu_features", lambda: frozenset({"amx_bf16"} if request.param == "amx" else ()))
    kernel._load_kernel.cache_clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kernel._load_kernel.cache_clear()


def exact(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    apart = [one.double().unflatten(2, (heads, -1)).transpose(1, 2) for one in (query, key, value)]
    score = apart[0] @ apart[1].transpose(2, 3) * apart[0].shape[3] ** -0.5
    return (score.softmax(3) @ apart[2]).transpose(1, 2).flatten(2)


def off(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other).norm() / other.norm())


def given(batch: int, queries: int, keys: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries + keys)
    sides = (queries, keys, keys)
    made = (torch.randn(batch, side, channels, generator=generator) for side in sides)
    query, key, value = (one.bfloat16() for one in made)
    return 3 * query, key, value


needs_kernel = pytest.mark.skipif(kernel._load_kernel() is None, reason="no compiler, or a processor without bfloat16")


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "heads", "width"),
    [(2, 300, 300, 8, 40), (1, 64, 256, 1, 512), (3, 70, 77, 2, 80), (2, 1, 1, 3, 2), (1, 5, 513, 2, 34),
     (2, 65, 17, 4, 160)],
)  # fmt: skip
def test_attention_is_as_near_the_truth_as_torchs(batch: int, queries: int, keys: int, heads: int, width: int) -> None:
    query, key, value = given(batch, queries, keys, heads * width)
    ours = kernel.attention_kernel(query, key, value, heads)
    assert ours is not None
    apart = (one.unflatten(2, (heads, -1)).transpose(1, 2) for one in (query, key, value))
    theirs = F.scaled_dot_product_attention(*apart).transpose(1, 2).flatten(2)
    truth = exact(query, key, value, heads)
    assert off(ours, truth) < max(1.2 * off(theirs, truth), 2e-3)


@needs_kernel
@torch.no_grad()
def test_attention_of_views() -> None:
    joined = torch.cat(given(2, 90, 90, 64), 2)
    views = joined.chunk(3, 2)
    apart = [one.contiguous() for one in views]
    ours, again = kernel.attention_kernel(*views, 4), kernel.attention_kernel(*apart, 4)
    assert ours is not None and again is not None and torch.equal(ours, again)


@needs_kernel
@torch.no_grad()
def test_attention_of_huge_scores_is_their_best() -> None:
    query, key, value = given(1, 70, 600, 32)
    ours = kernel.attention_kernel(1e4 * query, key, value, 1)
    assert ours is not None
    best = (query.double() @ key.double().transpose(1, 2)).argmax(2)[0]
    assert off(ours[0], value[0, best].double()) < 2e-3


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("rising", [True, False])
def test_scores_that_rise_from_key_to_key(rising: bool) -> None:
    """So that what they are told relative to is passed again and again."""
    query, key, value = given(1, 70, 700, 32)
    query, key = query.abs(), key.abs() * torch.linspace(0.1, 60, 700)[:, None].bfloat16()
    key = key if rising else key.flip(1)
    ours = kernel.attention_kernel(query, key, value, 1)
    assert ours is not None and off(ours, exact(query, key, value, 1)) < 4e-3


@needs_kernel
@torch.no_grad()
def test_a_query_that_is_no_number_is_alone() -> None:
    query, key, value = given(1, 70, 300, 32)
    query[0, 3, 7] = torch.nan
    ours = kernel.attention_kernel(query, key, value, 2)
    assert ours is not None and ours[0, 3, :16].isnan().all() and int(ours.isnan().sum()) == 16


@needs_kernel
@torch.no_grad()
def test_every_count_of_threads_says_the_same() -> None:
    query, key, value = given(2, 200, 300, 80)
    said = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        said.append(kernel.attention_kernel(query, key, value, 2))
    assert all(one is not None and torch.equal(one, said[0]) for one in said)


@needs_kernel
def test_gradients_and_other_precisions_are_left_to_torch() -> None:
    query, key, value = given(1, 4, 4, 8)
    assert kernel.attention_kernel(query, key, value, 2) is None  # gradients are wanted here
    with torch.no_grad():
        assert kernel.attention_kernel(query.float(), key.float(), value.float(), 2) is None
        assert kernel.attention_kernel(query, key, value, 8) is None  # heads of one channel make no pairs


@torch.no_grad()
@pytest.mark.parametrize("without", ["compiler", "cache", "home", "leave", "processor"])
def test_the_plain_way_where_there_is_no_kernel(without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if without == "compiler":
        monkeypatch.setenv("PATH", "")
    if without == "cache":
        (tmp_path / "unspeckle").write_text("in the way")
    if without == "home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("os.path.expanduser", str)  # as for a user whom the system does not know
    if without == "leave":
        monkeypatch.setenv("UNSPECKLE_KERNELS", "0")
    if without == "processor":
        monkeypatch.setattr(compiling, "cpu_features", lambda: frozenset({"sse2"}))
    query, key, value = given(2, 30, 300, 64)
    assert kernel.attention_kernel(query, key, value, 2) is None
    assert off(multi_head_attention(query, key, value, 2), exact(query, key, value, 2)) < 0.01


@needs_kernel
@torch.no_grad()
def test_a_kernel_that_disagrees_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel._load_kernel.cache_clear()
    right = kernel._run_kernel
    monkeypatch.setattr(kernel, "_run_kernel", lambda *given: 1.05 * right(*given))
    assert kernel._load_kernel() is None
