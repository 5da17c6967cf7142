"""Our own entry of a gated feed-forward: what torch's says, nearer the truth."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from closeness import random_tensor, relative_error, reload_kernel
from unspeckle.kernels import gated
from unspeckle.kernels.packed_layers import PackedFeedForward, can_pack
from unspeckle.networks.layers import GatedFeedForward

LOW = torch.bfloat16
needs_kernel = pytest.mark.skipif(gated._load_kernel() is None, reason="no compiler, or a processor without bfloat16")


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from reload_kernel(gated, monkeypatch)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize(
    ("shape", "leave"), [((1, 2), 64), ((2, 70, 34), 128), ((130, 320), 64), ((3, 1, 64), 192), ((0, 32), 64)]
)
def test_it_is_nearer_the_truth_than_torchs(shape: tuple[int, ...], leave: int) -> None:
    x, bias = random_tensor(*shape).to(LOW), random_tensor(2 * leave, seed=2)
    weight = random_tensor(2 * leave, shape[-1], seed=1) * shape[-1] ** -0.5
    exact = plain(x.double(), weight.double(), bias.double())
    ours = gated.geglu(x, gated.pack_geglu_weight(weight), bias)
    assert ours.shape == exact.shape
    assert not shape[0] or relative_error(ours, exact) < relative_error(plain(x, weight.to(LOW), bias.to(LOW)), exact)


@needs_kernel
@torch.no_grad()
def test_every_count_of_threads_and_every_view_says_the_same() -> None:
    whole, weight, bias = (
        random_tensor(3, 90, 64).to(LOW),
        gated.pack_geglu_weight(random_tensor(256, 32)),
        random_tensor(256, seed=1),
    )
    x, said = whole[:, :, :32], []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        said.append(gated.geglu(x, weight, bias))
    assert all(torch.equal(one, said[0]) for one in said)
    assert torch.equal(gated.geglu(x[1].contiguous(), weight, bias), said[0][1])


@torch.no_grad()
def test_weights_come_back() -> None:
    weight = random_tensor(256, 34).to(LOW)
    assert torch.equal(gated.unpack_geglu_weight(gated.pack_geglu_weight(weight)), weight)


@needs_kernel
@pytest.mark.skipif(not can_pack(), reason="torch without oneDNN's packed layers")
@torch.no_grad()
@pytest.mark.parametrize("width", [32, 20])
def test_of_float32_it_answers_in_float32(width: int) -> None:
    """Whether the kernel has that width or not."""
    feed = GatedFeedForward(width).requires_grad_(False)
    for place, one in enumerate(feed.parameters()):
        one.copy_(random_tensor(*one.shape, seed=place).to(LOW) / 4)
    packed, x, beside = (
        PackedFeedForward(feed, LOW),
        random_tensor(2, 7, width, seed=9),
        random_tensor(2, 7, width, seed=8),
    )
    assert packed.uses_kernel == (width == 32)
    assert (
        relative_error(packed.float()(x), feed(x)) < 1e-6
        and relative_error(packed.float()(x, beside), beside + feed(x)) < 1e-6
    )


@needs_kernel
def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="30 channels, of 32"):
        gated.geglu(random_tensor(4, 30).to(LOW), gated.pack_geglu_weight(random_tensor(128, 32)), random_tensor(128))


@torch.no_grad()
@pytest.mark.parametrize("without", ["kernel", "products", "need"])
def test_the_plain_way_where_it_does_not_pay(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if without == "kernel":
        monkeypatch.setenv("UNSPECKLE_KERNELS", "0")
    elif without == "products":
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    else:
        monkeypatch.setattr(gated, "cpu_features", lambda: frozenset({"amx_bf16"}))
    assert not gated.has_geglu_kernel()
    if can_pack():
        assert not PackedFeedForward(GatedFeedForward(32), LOW).uses_kernel


@needs_kernel
def test_a_kernel_that_disagrees_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gated._run_kernel
    monkeypatch.setattr(gated, "_run_kernel", lambda *given: 1.05 * right(*given))
    assert gated._load_kernel() is None and not gated.has_geglu_kernel()
