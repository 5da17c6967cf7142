"""The floating-point operations of a training step, counted on the meta device."""

from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from unspeckle.denoiser import Conditioning
from unspeckle.networks import NetworkConfig, build_network
from unspeckle.networks.gan import Discriminator, Generator, GeneratorConfig
from unspeckle.training.plan import CLIPPlan, DistillationPlan, GANPlan, Plan


@cache
def count_training_flops(config: NetworkConfig, input_size: tuple[int, int], token_count: int) -> float:
    """Floating-point operations of a network for one training image: three times those of the forward pass.

    input_size: width and height of x."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build_network(config)(*_network_inputs(config, input_size, token_count))
    return 3.0 * float(counter.get_total_flops())


def count_flops_per_image(plan: Plan) -> float:
    """Floating-point operations of the plan's network for one training image, forward and backward; those of text
    encoder, autoencoder and optimizer are not counted. When distilling, also those of the teacher."""
    if isinstance(plan, GANPlan):
        return count_gan_flops_per_image(plan)
    with torch.device("meta"):
        network, token_count = plan.build_network(), plan.model.text_encoder.context_length
        inputs: tuple[Any, ...] = _network_inputs(plan.model.network, plan.model.input_size, token_count)
        if isinstance(plan, CLIPPlan):
            inputs = inputs[:1]  # an image encoder sees images alone
        with FlopCounterMode(display=False) as forward_counter:
            out = network(*inputs)
        with FlopCounterMode(display=False) as backward_counter:
            out.sum().backward()
    forward_flops = forward_counter.get_total_flops()
    total_flops = forward_flops + backward_counter.get_total_flops()
    if not isinstance(plan, DistillationPlan):
        return float(total_flops)
    settings = plan.distillation
    calls_per_step = 1 if settings.guidance_scale == 1 else 2
    return float(sum(settings.step_counts) * total_flops + settings.teacher_steps * calls_per_step * forward_flops)


def count_gan_flops_per_image(plan: GANPlan) -> float:
    """The same of both of a GAN's updates, in forward passes.

    A gradient takes as much again as its forward pass, one that also reaches the weights twice as much, and that of a
    gradient about four times as much. So the discriminator's update is 2 · (1 + 1 + 4) of its own passes, of a real and
    a drawn image, and one of the generator; the generator's is 3 of its own and 1 + (1 + 1) of the discriminator."""
    config = plan.model.network
    assert isinstance(config, GeneratorConfig)
    with torch.device("meta"), torch.no_grad():
        x, c_noise, conditioning = _network_inputs(config, plan.model.input_size, 1)
        with FlopCounterMode(display=False) as generator_counter:
            image = Generator(config)(x, c_noise, conditioning)
        with FlopCounterMode(display=False) as discriminator_counter:
            Discriminator(config)(image, conditioning.vector)
    return 4.0 * float(generator_counter.get_total_flops()) + 15.0 * float(discriminator_counter.get_total_flops())


def _network_inputs(
    config: NetworkConfig, input_size: tuple[int, int], token_count: int
) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    """x, c_noise and conditioning of one image."""
    width, height = input_size
    tokens, vector = torch.empty(1, token_count, config.text_width), torch.empty(1, config.vector_width)
    concat = torch.empty(1, config.concat_channels, height, width) if config.concat_channels else None
    return torch.empty(1, config.channels, height, width), torch.empty(1), Conditioning(tokens, None, vector, concat)
