"""The mean picture of the words: it is one, it reads their order, and what it is for."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.networks import NetworkConfig, build_network
from unspeckle.networks.coarse_predictor import COARSE_SIZE, CoarseImagePredictor
from unspeckle.networks.transformer import Transformer, TransformerConfig
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.objective import Objective
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import FlowSchedule
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig

SMALL = UNetConfig(
    channels=2, base_channels=16, blocks_per_level=1, transformer_depths=(1, 1), self_attention=(False, True), head_width=8, text_width=32,
    vector_width=32, norm_groups=0, coarse_predictor_layers=1,
)  # fmt: skip
TRANSFORMER = TransformerConfig(
    channels=2,
    patch_size=1,
    widths=(8, 16),
    depths=(1, 1),
    head_width=8,
    text_width=32,
    vector_width=32,
    coarse_predictor_layers=1,
)
BOTH = pytest.mark.parametrize("config", [SMALL, TRANSFORMER], ids=["U-Net", "transformer"])
NOUNS, LEFT, RIGHT = 6, 7, 8  # ids: 1 … 6 are nouns, 0 is no word


def scene(generator: torch.Generator, rows: int) -> tuple[Tensor, Tensor]:
    """Captions "NOUN left NOUN" or "NOUN right NOUN" (B, 3), and pictures (B, 2, 16, 16) of the nouns' colours where
    they belong, under noise."""
    colours = torch.randn(NOUNS + 1, 2, generator=torch.Generator().manual_seed(5))
    pair = torch.stack([torch.randperm(NOUNS, generator=generator)[:2] + 1 for _ in range(rows)])
    turned = torch.rand(rows, generator=generator) < 0.5
    place = torch.where(turned, RIGHT, LEFT)
    left, right = (torch.where(turned, *pair.T[order]) for order in ([1, 0], [0, 1]))
    halves = [colours[noun][:, :, None, None].expand(-1, -1, 16, 8) for noun in (left, right)]
    x = torch.cat(halves, dim=3) + 0.3 * torch.randn(rows, 2, 16, 16, generator=generator)
    return torch.stack([pair[:, 0], place, pair[:, 1]], dim=1), x


def test_it_learns_the_order_of_the_words() -> None:
    torch.manual_seed(0)
    text, draft = TextEncoder(TextEncoderConfig(9, 3, 32, 2, 16)), CoarseImagePredictor(2, 32, 1, 16)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([*text.parameters(), *draft.parameters()], 2e-3)
    for _ in range(500):
        ids, x = scene(generator, 64)
        optimizer.zero_grad()
        draft.loss(draft(text(ids)), x).mean().backward()
        optimizer.step()
    ids, x = scene(generator, 200)
    with torch.no_grad():
        loss, turned = (float(draft.loss(draft(text(said)), x).mean()) for said in (ids, ids.flip(1)))
    least = 0.3**2 * COARSE_SIZE**2 / 16**2  # the noise's own, as its means are
    assert loss < 2 * least and turned > 20 * loss


def test_the_best_draft_is_the_mean_picture() -> None:
    draft, words = CoarseImagePredictor(2, 32, 1, 16), Conditioning(torch.randn(1, 3, 32))
    for parameter in draft.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(40, 2, 24, 16)  # of any shape
    optimizer = torch.optim.LBFGS([draft.proj_out.bias], line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = draft.loss(draft(words).expand(40, -1, -1, -1), x).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss)

    optimizer.step(closure)
    torch.testing.assert_close(draft.proj_out.bias, x.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)


def awake(config: NetworkConfig) -> UNet | Transformer:
    torch.manual_seed(0)
    network = build_network(config)
    assert isinstance(network, UNet | Transformer)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


@BOTH
def test_it_is_made_once_a_drawing_and_for_any_size(config: NetworkConfig) -> None:
    network, words = awake(config).eval(), Conditioning(torch.randn(2, 3, 32), None, torch.randn(2, 32))
    prepared = network.prepare(words)
    assert network.coarse_predictor is not None and prepared.concat is not None
    torch.testing.assert_close(prepared.concat, network.coarse_predictor(words))
    for high, wide in ((16, 16), (8, 24)):
        x, clock = torch.randn(2, 2, high, wide), torch.rand(2)
        torch.testing.assert_close(network(x, clock, prepared), network(x, clock, words))
        other = prepared._replace(beside=prepared.concat + 1)
        assert not torch.allclose(network(x, clock, other), network(x, clock, prepared), atol=1e-3)


@BOTH
def test_denoising_does_not_move_it(config: NetworkConfig) -> None:
    """It stays the mean picture: only its own loss teaches it."""
    network, text = awake(config), TextEncoder(TextEncoderConfig(9, 3, 32, 2, 16))
    ids, x = scene(torch.Generator().manual_seed(0), 4)
    denoiser = Denoiser(network, FlowSchedule(), "v")
    given = denoiser.prepare(text(ids))
    assert network.coarse_predictor is not None and given.concat is not None
    Objective()(denoiser, x, given, ExampleRNG(0, torch.arange(4))).mean().backward(retain_graph=True)
    assert all(p.grad is None for p in network.coarse_predictor.parameters())
    network.coarse_predictor.loss(given.concat, x).mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) for p in network.coarse_predictor.parameters())


@BOTH
@pytest.mark.parametrize("draft", [0, 1])
def test_without_it_the_network_is_as_it_was(draft: int, config: NetworkConfig) -> None:
    network = awake(replace(config, coarse_predictor_layers=draft))
    assert network.conv_in.in_channels == (4 if draft else 2)
    assert any(name.startswith("coarse_predictor.") for name in network.state_dict()) == bool(draft)


@BOTH
def test_it_takes_the_place_of_other_channels_beside(config: NetworkConfig) -> None:
    with pytest.raises(ValueError, match="one of the two"):
        build_network(replace(config, concat_channels=4))
