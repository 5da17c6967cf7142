"""What holds for each kind of network: what its output does and does not depend on."""

import pytest
import torch

from tiny_networks import OWN_UNET, TRANSFORMER, random_conditioning, randomize
from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.networks import NetworkConfig, build_network
from unspeckle.schedule import FlowSchedule

C_NOISE = torch.tensor([0.2, 0.9])
pytestmark = pytest.mark.parametrize("config", [OWN_UNET, TRANSFORMER], ids=["U-Net", "transformer"])


def test_preparing_the_conditioning_changes_nothing(config: NetworkConfig) -> None:
    network, conditioning = randomize(build_network(config)), random_conditioning()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        prepared = network.prepare(conditioning)
        assert torch.equal(network(x, C_NOISE, conditioning), network(x, C_NOISE, prepared))
        assert Denoiser(network, FlowSchedule(), "v").prepare(prepared) is prepared


def test_the_output_depends_on_time_vector_and_unmasked_tokens_only(config: NetworkConfig) -> None:
    network, conditioning = randomize(build_network(config)), random_conditioning()
    x = torch.randn(2, 3, 16, 16)
    masked, unmasked = conditioning.tokens.clone(), conditioning.tokens.clone()
    masked[0, 3] += 5
    unmasked[0, 2] += 5
    with torch.no_grad():
        out = network(x, C_NOISE, conditioning)
        assert torch.equal(out, network(x, C_NOISE, conditioning._replace(tokens=masked)))
        assert (out[0] - network(x, C_NOISE, conditioning._replace(tokens=unmasked))[0]).abs().max() > 1e-4
        assert (out - network(x, C_NOISE + 0.1, conditioning)).abs().max() > 1e-4
        other_vector = conditioning._replace(vector=conditioning.vector + 1)
        assert (out - network(x, C_NOISE, other_vector)).abs().max() > 1e-4


def test_images_of_a_batch_are_independent(config: NetworkConfig) -> None:
    network, (tokens, mask, vector, _) = randomize(build_network(config)), random_conditioning()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        both = network(x, C_NOISE, Conditioning(tokens, mask, vector))
        alone = network(x[1:], C_NOISE[1:], Conditioning(tokens[1:], mask[1:], vector[1:]))
    torch.testing.assert_close(both[1:], alone)


def test_the_output_of_an_untrained_network_is_zero(config: NetworkConfig) -> None:
    torch.manual_seed(0)
    assert build_network(config)(torch.randn(2, 3, 16, 16), torch.rand(2), random_conditioning()).abs().max() == 0


def test_a_missing_vector_is_an_error(config: NetworkConfig) -> None:
    with pytest.raises(ValueError, match=r"needs a conditioning.vector of 6 values per image"):
        build_network(config)(torch.randn(2, 3, 16, 16), C_NOISE, random_conditioning()._replace(vector=None))
