"""The U-shaped transformer: to the parameter, its attention against complex numbers, and what must not matter."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tiny_models import make_plan, random_model
from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import save
from unspeckle.networks import UNetConfig
from unspeckle.networks.layers import pad_tokens
from unspeckle.networks.transformer import (
    AttentionContext,
    ConvFeedForward,
    JointAttention,
    Transformer,
    TransformerConfig,
    apply_rotary,
    rotary_cos_sin,
)
from unspeckle.presets import PRESETS
from unspeckle.schedule import FlowSchedule
from unspeckle.training import plan as plans

SMALL = TransformerConfig(patch_size=2, widths=(12, 16), depths=(1, 2), head_width=8, text_width=12, vector_width=6)
CLOCK = torch.tensor([0.2, 0.9])


def awake(config: TransformerConfig = SMALL) -> Transformer:
    """A network whose silenced branches speak."""
    torch.manual_seed(0)
    network = Transformer(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network.eval()


def given(rows: int = 2) -> Conditioning:
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])[:rows]
    return Conditioning(torch.randn(rows, 4, 12), mask, torch.randn(rows, 6))


@pytest.mark.parametrize(
    ("name", "parameters"), [("t-tiny", 7_980_339), ("t-small", 10_877_235)]
)  # fmt: skip
def test_presets_to_the_parameter(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = Transformer(PRESETS[name].for_size((64, 64)))
    assert sum(p.numel() for p in network.parameters()) == parameters


def places(high: int, wide: int, width: int) -> tuple[Tensor, Tensor]:
    return rotary_cos_sin(high, wide, width, torch.zeros((), dtype=torch.float64))


def test_a_score_knows_two_places_only_by_the_way_between_them() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 16, dtype=torch.float64)
    everywhere = [apply_rotary(a.expand(1, 30, 1, 1, 16), *places(5, 6, 16)).view(5, 6, 16) for a in (query, key)]
    scores = torch.einsum("hwc,ijc->hwij", *everywhere)
    ways: dict[tuple[int, int], float] = {}
    for h, w, i, j in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
        assert scores[h, w, i, j].item() == pytest.approx(
            ways.setdefault((i - h, j - w), scores[h, w, i, j].item()), abs=1e-5
        )
    assert len({round(score, 4) for score in ways.values()}) == len(ways) == 9 * 11  # and tells all ways apart
    assert ways[0, 0] == pytest.approx(float(query @ key), abs=1e-5)


def attention_by_complex_numbers(layer: JointAttention, x: Tensor, words: Tensor, mask: Tensor, row: int) -> Tensor:
    """One picture's attention, head by head and place by place, the rotations as products of complex numbers."""
    _, high, wide, width = x.shape
    size, count = layer.head_width, layer.head_width // 4
    speed = 100.0 ** -(torch.arange(count, dtype=x.dtype) / count)
    query, key, value = layer.to_qkv(x[row].reshape(-1, width)).chunk(3, dim=1)
    word_key, word_value = layer.text_to_kv(words[row][mask[row]]).chunk(2, dim=1)
    out = torch.empty_like(query)
    for head in range(layer.heads):
        mine = slice(head * size, (head + 1) * size)
        sides = []
        for side in (query, key):
            a = side[:, mine]
            a = (a - a.mean(1, keepdim=True)) / (a.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            pairs = torch.complex(a[:, : size // 2], a[:, size // 2 :])
            for place in range(len(a)):
                angles = torch.cat([place // wide * speed, place % wide * speed])
                pairs[place] *= torch.polar(torch.ones_like(angles), angles)
            sides.append(torch.cat([pairs.real, pairs.imag], dim=1))
        a = word_key[:, mine]
        a = (a - a.mean(1, keepdim=True)) / (a.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        scores = sides[0] @ torch.cat([sides[1], a]).T / size**0.5
        out[:, mine] = scores.softmax(1) @ torch.cat([value[:, mine], word_value[:, mine]])
    return layer.to_out(out).view(high, wide, width)


def test_attention_is_what_complex_numbers_say() -> None:
    torch.manual_seed(0)
    layer = JointAttention(16, SMALL).double()
    nn.init.normal_(layer.to_out.weight)
    x, words = torch.randn(2, 3, 5, 16, dtype=torch.float64), torch.randn(2, 4, 12, dtype=torch.float64)
    mask = given().mask
    seen = AttentionContext(
        layer.project_keys_values(words),
        torch.cat([torch.ones(2, 15, dtype=torch.bool), mask], dim=1),
        *places(3, 5, 8),
    )
    expected = torch.stack([attention_by_complex_numbers(layer, x, words, mask, row) for row in range(2)])
    torch.testing.assert_close(layer(x, seen), expected)  # explicit products, as in training
    with torch.no_grad():
        torch.testing.assert_close(layer(x, seen), expected)  # the fused kernel


def test_a_new_feed_forward_layer_looks_only_at_its_own_place() -> None:
    torch.manual_seed(0)
    layer = ConvFeedForward(12, SMALL)
    nn.init.normal_(layer.proj_out.weight)
    x = torch.randn(2, 4, 5, 12)
    gate, value = layer.proj_in(x).chunk(2, dim=3)
    torch.testing.assert_close(layer(x), layer.proj_out(nn.functional.silu(gate) * value))


def test_prepared_keys_and_values_change_nothing() -> None:
    network, words = awake(), given()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        prepared = network.prepare(words)
        assert torch.equal(network(x, CLOCK, words), network(x, CLOCK, prepared))
        assert Denoiser(network, FlowSchedule(), "v").prepare(prepared) is prepared


def test_words_behind_the_mask_are_not_seen_and_those_before_it_are() -> None:
    network, words = awake(), given()
    x = torch.randn(2, 3, 16, 16)
    hidden, seen = words.tokens.clone(), words.tokens.clone()
    hidden[0, 3] += 5
    seen[0, 2] += 5
    with torch.no_grad():
        before = network(x, CLOCK, words)
        assert torch.equal(before, network(x, CLOCK, words._replace(tokens=hidden)))
        assert (before[0] - network(x, CLOCK, words._replace(tokens=seen))[0]).abs().max() > 1e-4
        assert (before - network(x, CLOCK + 0.1, words)).abs().max() > 1e-4
        assert (before - network(x, CLOCK, words._replace(vector=words.vector + 1))).abs().max() > 1e-4


@pytest.mark.parametrize("count", [1, 4, 32, 33])
def test_no_mask_means_that_every_word_is_seen(count: int) -> None:
    network, x = awake(), torch.randn(2, 3, 16, 16)
    words = Conditioning(torch.randn(2, count, 12), None, torch.randn(2, 6))
    masked = words._replace(mask=torch.ones(2, count, dtype=torch.bool))
    with torch.no_grad():
        torch.testing.assert_close(network(x, CLOCK, words), network(x, CLOCK, masked))


def test_words_are_padded_to_whole_vectors_and_what_is_added_is_masked() -> None:
    words = given()
    more = pad_tokens(words)
    assert more.tokens.shape == (2, 32, 12) and more.mask.sum(1).tolist() == [3, 1]
    assert torch.equal(more.tokens[:, :4], words.tokens) and pad_tokens(more) is more


def test_rows_of_a_batch_do_not_meet() -> None:
    network, words = awake(), given()
    x = torch.randn(2, 3, 16, 16)
    alone = Conditioning(words.tokens[1:], words.mask[1:], words.vector[1:])
    with torch.no_grad():
        torch.testing.assert_close(network(x, CLOCK, words)[1:], network(x[1:], CLOCK[1:], alone))


def test_untrained_network_says_nothing() -> None:
    torch.manual_seed(0)
    assert Transformer(SMALL)(torch.randn(2, 3, 16, 16), CLOCK, given()).abs().max() == 0


@pytest.mark.parametrize("widths", [(16,), (12, 16), (8, 12, 16)])
@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_every_place_sees_every_pixel_and_its_own_most(widths: tuple[int, ...], size: tuple[int, int]) -> None:
    network = awake(replace(SMALL, widths=widths, depths=(1,) * len(widths)))
    high, wide = size
    assert high % network.config.size_multiple == wide % network.config.size_multiple == 0
    x = torch.randn(1, 3, high, wide, requires_grad=True)
    network(x, CLOCK[:1], given(1))[0, 0, 9, 12].backward()
    reach = x.grad[0].abs().amax(0)
    assert reach.min() > 0
    assert reach[9, 12] > reach.mean()


def test_without_attention_a_larger_picture_is_the_smaller_one_and_more() -> None:
    network = awake()
    for reader in network.text_attention_layers():
        nn.init.zeros_(reader.to_out.weight)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        whole = network(x, CLOCK[:1], given(1))
        part = network(x[..., 8:56, 16:72], CLOCK[:1], given(1))
    torch.testing.assert_close(part[..., 20:28, 20:36], whole[..., 28:36, 36:52])


def transformer_model():  # type: ignore[no-untyped-def]
    model = random_model()
    model.denoiser = Denoiser(awake(replace(SMALL, text_width=32, vector_width=32)), FlowSchedule(), "v")
    return model


def test_a_model_file_brings_it_back(tmp_path: Path) -> None:
    model = transformer_model()
    save(model, tmp_path / "t.safetensors")
    again = load(tmp_path / "t.safetensors")
    assert again.hash == model.hash and again.network.config == model.network.config
    ask = Request("a frog", seed=3, count=2, size=(24, 16))
    assert [a.tobytes() for a in draw(model, ask)] == [b.tobytes() for b in draw(again, ask)]
    assert draw(model, replace(ask, seed=4))[0].tobytes() == draw(model, ask)[1].tobytes()


def test_plans_hold_either_kind_and_those_from_before_are_u_nets(tmp_path: Path) -> None:
    for name in ("micro", "t-tiny"):
        made = make_plan(name)
        made.save(tmp_path)
        assert plans.load_plan(tmp_path) == made
    assert isinstance(make_plan("micro").network_config, UNetConfig)
    values = json.loads((tmp_path / "plan.json").read_text())
    values["network"]["wings"] = 2
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="'network': unknown field 'wings'"):
        plans.load_plan(tmp_path)
