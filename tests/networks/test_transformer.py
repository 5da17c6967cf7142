"""The U-shaped transformer: its number of parameters, its attention against complex numbers, and what its output does
and does not depend on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tiny_models import make_plan, random_model
from tiny_networks import TRANSFORMER, random_conditioning
from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model import Model
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import save
from unspeckle.networks import UNetConfig
from unspeckle.networks.joint_attention import AttentionContext, JointAttention, apply_rotary, rotary_cos_sin
from unspeckle.networks.transformer import ConvFeedForward, Transformer, TransformerConfig, pad_tokens
from unspeckle.presets import PRESETS
from unspeckle.schedule import FlowSchedule
from unspeckle.training.plan import Plan
from unspeckle.training.plan_file import load_plan, save_plan

C_NOISE = torch.tensor([0.2, 0.9])


def random_network(config: TransformerConfig = TRANSFORMER) -> Transformer:
    """A network without layers that are zero."""
    torch.manual_seed(0)
    network = Transformer(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network.eval()


@pytest.mark.parametrize(("name", "parameters"), [("t-tiny", 7_980_339), ("t-small", 10_877_235)])
def test_presets_to_the_parameter(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = Transformer(PRESETS[name].for_size((64, 64)))
    assert sum(p.numel() for p in network.parameters()) == parameters


def exact_cos_sin(height: int, width: int, head_width: int) -> tuple[Tensor, Tensor]:
    return rotary_cos_sin(height, width, head_width, torch.zeros((), dtype=torch.float64))


def test_attention_scores_depend_on_positions_only_by_their_difference() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 16, dtype=torch.float64)
    rotated = [apply_rotary(x.expand(1, 30, 1, 1, 16), *exact_cos_sin(5, 6, 16)).view(5, 6, 16) for x in (query, key)]
    scores = torch.einsum("hwc,ijc->hwij", *rotated)
    by_difference: dict[tuple[int, int], float] = {}
    for h, w, i, j in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
        score = scores[h, w, i, j].item()
        assert score == pytest.approx(by_difference.setdefault((i - h, j - w), score), abs=1e-5)
    distinct_scores = {round(score, 4) for score in by_difference.values()}
    assert len(distinct_scores) == len(by_difference) == 9 * 11
    assert by_difference[0, 0] == pytest.approx(float(query @ key), abs=1e-5)


def normalized(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def rotated_by_complex_numbers(x: Tensor, width: int) -> Tensor:
    """One head of image tokens (N, head_width) in rows of that width, rotated by products of complex numbers."""
    half, num_angles = x.shape[1] // 2, x.shape[1] // 4
    frequencies = 100.0 ** -(torch.arange(num_angles, dtype=x.dtype) / num_angles)
    pairs = torch.complex(x[:, :half], x[:, half:])
    for position in range(len(x)):
        angles = torch.cat([position // width * frequencies, position % width * frequencies])
        pairs[position] *= torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag], dim=1)


def attention_by_complex_numbers(layer: JointAttention, x: Tensor, tokens: Tensor) -> Tensor:
    """The attention of one image x (H, W, C) to itself and to text tokens (L, D), head by head."""
    height, width, channels = x.shape
    query, key, value = layer.to_qkv(x.reshape(-1, channels)).chunk(3, dim=1)
    text_key, text_value = layer.text_to_kv(tokens).chunk(2, dim=1)
    out = torch.empty_like(query)
    for head in range(layer.heads):
        columns = slice(head * layer.head_width, (head + 1) * layer.head_width)
        queries = rotated_by_complex_numbers(normalized(query[:, columns]), width)
        keys = rotated_by_complex_numbers(normalized(key[:, columns]), width)
        scores = queries @ torch.cat([keys, normalized(text_key[:, columns])]).T / layer.head_width**0.5
        out[:, columns] = scores.softmax(1) @ torch.cat([value[:, columns], text_value[:, columns]])
    return layer.to_out(out).view(height, width, channels)


def test_joint_attention_is_that_of_complex_numbers() -> None:
    torch.manual_seed(0)
    layer = JointAttention(16, head_width=8, text_width=12).double()
    nn.init.normal_(layer.to_out.weight)
    x, tokens = torch.randn(2, 3, 5, 16, dtype=torch.float64), torch.randn(2, 4, 12, dtype=torch.float64)
    mask = random_conditioning().mask
    assert mask is not None
    joint_mask = torch.cat([torch.ones(2, 15, dtype=torch.bool), mask], dim=1)
    context = AttentionContext(layer.project_keys_values(tokens), joint_mask, *exact_cos_sin(3, 5, 8))
    expected = torch.stack([attention_by_complex_numbers(layer, x[i], tokens[i][mask[i]]) for i in range(2)])
    torch.testing.assert_close(layer(x, context), expected)  # by explicit products, as in training
    with torch.no_grad():
        torch.testing.assert_close(layer(x, context), expected)  # by PyTorch's fused attention


def test_an_untrained_feed_forward_layer_does_not_see_neighbors() -> None:
    torch.manual_seed(0)
    layer = ConvFeedForward(12, mlp_ratio=2)
    nn.init.normal_(layer.proj_out.weight)
    x = torch.randn(2, 4, 5, 12)
    gate, value = layer.proj_in(x).chunk(2, dim=3)
    torch.testing.assert_close(layer(x), layer.proj_out(nn.functional.silu(gate) * value))


@pytest.mark.parametrize("num_tokens", [1, 4, 32, 33])
def test_no_mask_means_that_all_tokens_are_attended_to(num_tokens: int) -> None:
    network, x = random_network(), torch.randn(2, 3, 16, 16)
    conditioning = Conditioning(torch.randn(2, num_tokens, 12), None, torch.randn(2, 6))
    masked = conditioning._replace(mask=torch.ones(2, num_tokens, dtype=torch.bool))
    with torch.no_grad():
        torch.testing.assert_close(network(x, C_NOISE, conditioning), network(x, C_NOISE, masked))


def test_tokens_are_padded_to_a_multiple_of_32_and_the_padding_is_masked() -> None:
    conditioning = random_conditioning()
    padded = pad_tokens(conditioning)
    assert padded.tokens.shape == (2, 32, 12) and padded.mask.sum(1).tolist() == [3, 1]
    assert torch.equal(padded.tokens[:, :4], conditioning.tokens) and pad_tokens(padded) is padded


@pytest.mark.parametrize("widths", [(16,), (12, 16), (8, 12, 16)])
@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_the_output_depends_on_all_pixels_and_most_on_the_one_at_its_position(
    widths: tuple[int, ...], size: tuple[int, int]
) -> None:
    network = random_network(replace(TRANSFORMER, widths=widths, depths=(1,) * len(widths)))
    assert all(side % network.config.size_multiple == 0 for side in size)
    x = torch.randn(1, 3, *size, requires_grad=True)
    network(x, C_NOISE[:1], random_conditioning(1))[0, 0, 9, 12].backward()
    sensitivity = x.grad[0].abs().amax(0)
    assert sensitivity.min() > 0
    assert sensitivity[9, 12] > sensitivity.mean()


def test_without_attention_a_crop_is_computed_as_within_the_larger_image() -> None:
    network = random_network()
    for layer in network.text_attention_layers():
        nn.init.zeros_(layer.to_out.weight)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        whole = network(x, C_NOISE[:1], random_conditioning(1))
        crop = network(x[..., 8:56, 16:72], C_NOISE[:1], random_conditioning(1))
    torch.testing.assert_close(crop[..., 20:28, 20:36], whole[..., 28:36, 36:52])


def transformer_model() -> Model:
    model = random_model()
    network = random_network(replace(TRANSFORMER, text_width=32, vector_width=32))
    model.denoiser = Denoiser(network, FlowSchedule(), "v")
    return model


def test_a_model_with_a_transformer_survives_its_file(tmp_path: Path) -> None:
    model = transformer_model()
    save(model, tmp_path / "t.safetensors")
    loaded = load(tmp_path / "t.safetensors")
    assert loaded.hash == model.hash and loaded.network.config == model.network.config
    request = Request("a frog", seed=3, count=2, size=(24, 16))
    images = [image.tobytes() for image in draw(model, request)]
    assert images == [image.tobytes() for image in draw(loaded, request)]
    assert draw(model, replace(request, seed=4))[0].tobytes() == images[1]


def test_plans_hold_either_kind_of_network(tmp_path: Path) -> None:
    for name in ("micro", "t-tiny"):
        plan = make_plan(name)
        save_plan(plan, tmp_path)
        assert load_plan(tmp_path, Plan) == plan
    assert isinstance(make_plan("micro").model.network, UNetConfig)
    values = json.loads((tmp_path / "plan.json").read_text())
    values["model"]["network"]["wings"] = 2
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="unknown field 'wings'"):
        load_plan(tmp_path, Plan)
