"""The coarse image predictor: it predicts the mean image, and learns the order of the words."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import tiny_networks
from tiny_networks import OWN_UNET, randomize
from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.networks import NetworkConfig, build_network
from unspeckle.networks.coarse_predictor import COARSE_SIZE, CoarseImagePredictor
from unspeckle.networks.transformer import Transformer
from unspeckle.networks.unet import UNet
from unspeckle.objective import Objective
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import FlowSchedule
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig

UNET = replace(OWN_UNET, channels=2, patch_size=1, text_width=32, vector_width=32, coarse_predictor_layers=1)
TRANSFORMER = replace(
    tiny_networks.TRANSFORMER,
    channels=2,
    patch_size=1,
    widths=(8, 16),
    depths=(1, 1),
    text_width=32,
    vector_width=32,
    coarse_predictor_layers=1,
)
BOTH_NETWORKS = pytest.mark.parametrize("config", [UNET, TRANSFORMER], ids=["U-Net", "transformer"])
TEXT_CONFIG = TextEncoderConfig(vocab_size=9, context_length=3, width=32, layers=2, head_width=16)
NUM_NOUNS, LEFT, RIGHT = 6, 7, 8  # ids: 1 … 6 are nouns, 0 is padding
NOISE_STD = 0.3


def random_scenes(generator: torch.Generator, batch_size: int) -> tuple[Tensor, Tensor]:
    """Captions (B, 3) of the form "NOUN left NOUN" or "NOUN right NOUN", and noisy images (B, 2, 16, 16) with the
    colors of the nouns in their halves."""
    colors = torch.randn(NUM_NOUNS + 1, 2, generator=torch.Generator().manual_seed(5))
    pairs = torch.stack([torch.randperm(NUM_NOUNS, generator=generator)[:2] + 1 for _ in range(batch_size)])
    is_right = torch.rand(batch_size, generator=generator) < 0.5
    left_nouns = torch.where(is_right, pairs[:, 1], pairs[:, 0])
    right_nouns = torch.where(is_right, pairs[:, 0], pairs[:, 1])
    halves = [colors[nouns][:, :, None, None].expand(-1, -1, 16, 8) for nouns in (left_nouns, right_nouns)]
    x = torch.cat(halves, dim=3) + NOISE_STD * torch.randn(batch_size, 2, 16, 16, generator=generator)
    return torch.stack([pairs[:, 0], torch.where(is_right, RIGHT, LEFT), pairs[:, 1]], dim=1), x


def test_it_learns_the_order_of_the_words() -> None:
    torch.manual_seed(0)
    text_encoder, predictor = TextEncoder(TEXT_CONFIG), CoarseImagePredictor(2, 32, 1, 16)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([*text_encoder.parameters(), *predictor.parameters()], 4e-3)
    for _ in range(300):
        ids, x = random_scenes(generator, 32)
        optimizer.zero_grad()
        predictor.loss(predictor(text_encoder(ids)), x).mean().backward()
        optimizer.step()
    ids, x = random_scenes(generator, 200)
    with torch.no_grad():
        loss = float(predictor.loss(predictor(text_encoder(ids)), x).mean())
        loss_of_swapped_nouns = float(predictor.loss(predictor(text_encoder(ids.flip(1))), x).mean())
    least_loss = NOISE_STD**2 * COARSE_SIZE**2 / 16**2  # the variance of the noise's mean over a part of the image
    assert loss < 1.5 * least_loss and loss_of_swapped_nouns > 20 * loss


def test_the_best_prediction_is_the_mean_image() -> None:
    predictor, conditioning = CoarseImagePredictor(2, 32, 1, 16), Conditioning(torch.randn(1, 3, 32))
    for parameter in predictor.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(40, 2, 24, 16)  # its size does not matter
    optimizer = torch.optim.LBFGS([predictor.proj_out.bias], line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = predictor.loss(predictor(conditioning).expand(40, -1, -1, -1), x).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(closure)
    torch.testing.assert_close(predictor.proj_out.bias, x.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)


def random_network(config: NetworkConfig) -> UNet | Transformer:
    network = randomize(build_network(config), std=0.2)
    assert isinstance(network, UNet | Transformer)
    return network


@BOTH_NETWORKS
def test_it_is_computed_once_an_image_and_serves_any_size(config: NetworkConfig) -> None:
    network, conditioning = random_network(config), Conditioning(torch.randn(2, 3, 32), None, torch.randn(2, 32))
    prepared = network.prepare(conditioning)
    assert network.coarse_predictor is not None and prepared.coarse_image is not None
    torch.testing.assert_close(prepared.coarse_image, network.coarse_predictor(conditioning))
    for height, width in ((16, 16), (8, 24)):
        x, c_noise = torch.randn(2, 2, height, width), torch.rand(2)
        torch.testing.assert_close(network(x, c_noise, prepared), network(x, c_noise, conditioning))
        other = prepared._replace(coarse_image=prepared.coarse_image + 1)
        assert not torch.allclose(network(x, c_noise, other), network(x, c_noise, prepared), atol=1e-3)


@BOTH_NETWORKS
def test_only_its_own_loss_has_gradients_with_respect_to_it(config: NetworkConfig) -> None:
    network, text_encoder = random_network(config), TextEncoder(TEXT_CONFIG)
    ids, x = random_scenes(torch.Generator().manual_seed(0), 4)
    denoiser = Denoiser(network, FlowSchedule(), "v")
    prepared = denoiser.prepare(text_encoder(ids))
    predictor = network.coarse_predictor
    assert predictor is not None and prepared.coarse_image is not None
    Objective()(denoiser, x, prepared, ExampleRNG(0, torch.arange(4))).mean().backward(retain_graph=True)
    assert all(p.grad is None for p in predictor.parameters())
    predictor.loss(prepared.coarse_image, x).mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) for p in predictor.parameters())


@BOTH_NETWORKS
@pytest.mark.parametrize("num_layers", [0, 1])
def test_without_it_the_network_has_no_channels_for_it(num_layers: int, config: NetworkConfig) -> None:
    network = random_network(replace(config, coarse_predictor_layers=num_layers))
    assert network.conv_in.in_channels == (4 if num_layers else 2)
    assert any(name.startswith("coarse_predictor.") for name in network.state_dict()) == bool(num_layers)


@BOTH_NETWORKS
def test_it_excludes_other_concatenated_channels(config: NetworkConfig) -> None:
    with pytest.raises(ValueError, match="either coarse_predictor_layers or concat_channels"):
        build_network(replace(config, concat_channels=4))
