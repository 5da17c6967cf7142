"""The GEGLU kernel: closer to the exact result than PyTorch, and replaced by it where it cannot be used."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from closeness import random_tensor, relative_error, reload_kernel
from unspeckle.kernels import geglu
from unspeckle.kernels.packed_layers import PackedFeedForward, can_pack
from unspeckle.networks.layers import GatedFeedForward

BF16 = torch.bfloat16
needs_kernel = pytest.mark.skipif(
    geglu._load_kernel() is None, reason="needs a C++ compiler and a processor with bfloat16"
)


@pytest.fixture(autouse=True)
def reload_geglu_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from reload_kernel(geglu, monkeypatch)


def plain_geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize(
    ("shape", "out_features"), [((1, 2), 64), ((2, 70, 34), 128), ((130, 320), 64), ((3, 1, 64), 192), ((0, 32), 64)]
)
def test_it_is_more_accurate_than_pytorch(shape: tuple[int, ...], out_features: int) -> None:
    x, bias = random_tensor(*shape).to(BF16), random_tensor(2 * out_features, seed=2)
    weight = random_tensor(2 * out_features, shape[-1], seed=1) * shape[-1] ** -0.5
    exact = plain_geglu(x.double(), weight.double(), bias.double())
    ours = geglu.geglu(x, geglu.pack_geglu_weight(weight), bias)
    assert ours.shape == exact.shape
    if shape[0]:
        plain = plain_geglu(x, weight.to(BF16), bias.to(BF16))
        assert relative_error(ours, exact) < relative_error(plain, exact)


@needs_kernel
@torch.no_grad()
def test_any_number_of_threads_and_any_view_give_the_same_bits() -> None:
    weight, bias = geglu.pack_geglu_weight(random_tensor(256, 32)), random_tensor(256, seed=1)
    x, outputs = random_tensor(3, 90, 64).to(BF16)[:, :, :32], []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        outputs.append(geglu.geglu(x, weight, bias))
    assert all(torch.equal(out, outputs[0]) for out in outputs)
    assert torch.equal(geglu.geglu(x[1].contiguous(), weight, bias), outputs[0][1])


@torch.no_grad()
def test_unpacking_restores_the_weight() -> None:
    weight = random_tensor(256, 34).to(BF16)
    assert torch.equal(geglu.unpack_geglu_weight(geglu.pack_geglu_weight(weight)), weight)


@needs_kernel
@pytest.mark.skipif(not can_pack(), reason="needs oneDNN's packed layers in PyTorch")
@torch.no_grad()
@pytest.mark.parametrize(("width", "uses_kernel"), [(32, True), (20, False)])
def test_for_float32_input_the_layer_computes_in_float32(width: int, uses_kernel: bool) -> None:
    layer = GatedFeedForward(width).requires_grad_(False)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.copy_(random_tensor(*parameter.shape, seed=seed).to(BF16) / 4)
    packed = PackedFeedForward(layer, BF16)
    assert packed.uses_kernel == uses_kernel
    x, residual = random_tensor(2, 7, width, seed=9), random_tensor(2, 7, width, seed=8)
    assert relative_error(packed.float()(x), layer(x)) < 1e-6
    assert relative_error(packed.float()(x, residual), residual + layer(x)) < 1e-6


@needs_kernel
def test_a_wrong_number_of_channels_is_an_error() -> None:
    weight = geglu.pack_geglu_weight(random_tensor(128, 32))
    with pytest.raises(ValueError, match="x has 30 channels, but the weight is for 32"):
        geglu.geglu(random_tensor(4, 30).to(BF16), weight, random_tensor(128))


@torch.no_grad()
@pytest.mark.parametrize("obstacle", ["switched off", "restricted oneDNN", "AMX"])
def test_where_it_cannot_or_need_not_be_used_the_layer_does_without(
    obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "switched off":
        monkeypatch.setenv("UNSPECKLE_KERNELS", "0")
    elif obstacle == "restricted oneDNN":
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    else:
        monkeypatch.setattr(geglu, "cpu_features", lambda: frozenset({"amx_bf16"}))
    assert not geglu.has_geglu_kernel()
    if can_pack():
        assert not PackedFeedForward(GatedFeedForward(32), BF16).uses_kernel


@needs_kernel
def test_a_kernel_that_disagrees_with_pytorch_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = geglu._run_kernel
    monkeypatch.setattr(geglu, "_run_kernel", lambda *arguments: 1.05 * right(*arguments))
    assert geglu._load_kernel() is None and not geglu.has_geglu_kernel()
