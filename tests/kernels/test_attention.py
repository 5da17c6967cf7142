"""The attention kernels: as accurate as PyTorch's attention, and replaced by it where they cannot be used."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from closeness import module_types, relative_error
from unspeckle.kernels import attention, compiling
from unspeckle.kernels.attention import KernelAttention, attention_kernel, use_attention_kernel
from unspeckle.networks.layers import Attention, ScaledDotProductAttention

needs_kernel = pytest.mark.skipif(
    attention._load_kernel() is None, reason="needs a C++ compiler and a processor with bfloat16"
)


@pytest.fixture(autouse=True, params=["avx512", "amx"])
def reload_either_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each of both kernels, whatever this processor has: the one for AMX runs without it, too."""
    features = frozenset({"amx_bf16"} if request.param == "amx" else ())
    monkeypatch.setattr(attention, "cpu_features", lambda: features)
    attention._load_kernel.cache_clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    attention._load_kernel.cache_clear()


def exact_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """In float64."""
    query, key, value = (x.double().unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    return (scores.softmax(3) @ value).transpose(1, 2).flatten(2)


def random_qkv(batch_size: int, num_queries: int, num_keys: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value in bfloat16, with scores that are not nearly equal."""
    generator = torch.Generator().manual_seed(num_queries + num_keys)
    counts = (num_queries, num_keys, num_keys)
    query, key, value = (torch.randn(batch_size, n, channels, generator=generator).bfloat16() for n in counts)
    return 3 * query, key, value


def run_kernel(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    out = attention_kernel(query, key, value, heads)
    assert out is not None
    return out


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize(
    ("batch_size", "num_queries", "num_keys", "heads", "width"),
    [
        (2, 300, 300, 8, 40),
        (1, 64, 256, 1, 512),
        (3, 70, 77, 2, 80),
        (2, 1, 1, 3, 2),
        (1, 5, 513, 2, 34),
        (2, 65, 17, 4, 160),
    ],
)
def test_it_is_as_accurate_as_pytorchs(
    batch_size: int, num_queries: int, num_keys: int, heads: int, width: int
) -> None:
    query, key, value = random_qkv(batch_size, num_queries, num_keys, heads * width)
    ours = run_kernel(query, key, value, heads)
    split_heads = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    theirs = F.scaled_dot_product_attention(*split_heads).transpose(1, 2).flatten(2)
    exact = exact_attention(query, key, value, heads)
    assert relative_error(ours, exact) < max(1.2 * relative_error(theirs, exact), 2e-3)


@needs_kernel
@torch.no_grad()
def test_views_give_the_same_bits() -> None:
    views = torch.cat(random_qkv(2, 90, 90, 64), 2).chunk(3, 2)
    copies = [view.contiguous() for view in views]
    assert torch.equal(run_kernel(*views, 4), run_kernel(*copies, 4))


@needs_kernel
@torch.no_grad()
def test_with_huge_scores_it_selects_the_best_value() -> None:
    query, key, value = random_qkv(1, 70, 600, 32)
    best = (query.double() @ key.double().transpose(1, 2)).argmax(2)[0]
    assert relative_error(run_kernel(1e4 * query, key, value, 1)[0], value[0, best]) < 2e-3


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("is_rising", [True, False])
def test_scores_that_rise_from_key_to_key(is_rising: bool) -> None:
    """So that the reference of the softmax must be raised again and again."""
    query, key, value = random_qkv(1, 70, 700, 32)
    query, key = query.abs(), key.abs() * torch.linspace(0.1, 60, 700)[:, None].bfloat16()
    key = key if is_rising else key.flip(1)
    assert relative_error(run_kernel(query, key, value, 1), exact_attention(query, key, value, 1)) < 4e-3


@needs_kernel
@torch.no_grad()
def test_a_query_with_a_nan_affects_only_its_own_head() -> None:
    query, key, value = random_qkv(1, 70, 300, 32)
    query[0, 3, 7] = torch.nan
    out = run_kernel(query, key, value, 2)
    assert out[0, 3, :16].isnan().all() and int(out.isnan().sum()) == 16


@needs_kernel
@torch.no_grad()
def test_any_number_of_threads_gives_the_same_bits() -> None:
    query, key, value = random_qkv(2, 200, 300, 80)
    outputs = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        outputs.append(run_kernel(query, key, value, 2))
    assert all(torch.equal(out, outputs[0]) for out in outputs)


@needs_kernel
def test_gradients_and_other_dtypes_are_left_to_pytorch() -> None:
    query, key, value = random_qkv(1, 4, 4, 8)
    assert attention_kernel(query, key, value, 2) is None  # gradients are enabled here
    with torch.no_grad():
        assert attention_kernel(query.float(), key.float(), value.float(), 2) is None
        assert attention_kernel(query, key, value, 8) is None  # heads with an odd number of channels


@needs_kernel
@torch.no_grad()
def test_it_takes_the_place_of_plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    network, calls = nn.Sequential(Attention(64, 2)), list[int]()
    use_attention_kernel(network)
    assert KernelAttention in module_types(network) and ScaledDotProductAttention not in module_types(network)
    monkeypatch.setattr(attention, "attention_kernel", lambda *qkv_and_heads: calls.append(qkv_and_heads[3]))
    query, key, value = random_qkv(1, 128, 128, 64)
    attend = network[0].sdpa
    assert torch.equal(attend(query, key, value), ScaledDotProductAttention(2)(query, key, value)) and calls == [2]
    attend(query[:, :127], key, value)  # too few scores
    attend(query, key, value, torch.ones(1, 128, dtype=torch.bool))  # a mask
    assert calls == [2]


@torch.no_grad()
@pytest.mark.parametrize("obstacle", ["no compiler", "no cache", "no home", "switched off", "old processor"])
def test_without_a_kernel_attention_is_pytorchs(obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if obstacle == "no compiler":
        monkeypatch.setenv("PATH", "")
    if obstacle == "no cache":
        (tmp_path / "unspeckle").write_text("a file where the folder would be")
    if obstacle == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("os.path.expanduser", str)  # as for a user that the system does not know
    if obstacle == "switched off":
        monkeypatch.setenv("UNSPECKLE_KERNELS", "0")
    if obstacle == "old processor":
        monkeypatch.setattr(compiling, "cpu_features", lambda: frozenset({"sse2"}))
    query, key, value = random_qkv(2, 130, 300, 64)
    assert attention_kernel(query, key, value, 2) is None
    assert relative_error(KernelAttention(2)(query, key, value), exact_attention(query, key, value, 2)) < 0.01


@needs_kernel
@torch.no_grad()
def test_a_kernel_that_disagrees_with_pytorch_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    attention._load_kernel.cache_clear()
    right = attention._run_kernel
    monkeypatch.setattr(attention, "_run_kernel", lambda *arguments: 1.05 * right(*arguments))
    assert attention._load_kernel() is None
