"""Models small enough for tests: one with learnable parts and random weights, and one whose answer is known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unspeckle.denoiser import AnyConditioning, Conditioning, Denoiser, PreparedConditioning
from unspeckle.model import Model, ModelCard
from unspeckle.model_io.model_file import save
from unspeckle.networks import PixelAutoencoder, PixelAutoencoderConfig, UNet, UNetConfig
from unspeckle.presets import get_preset
from unspeckle.schedule import FlowSchedule
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.plan import (
    ComputePlan,
    DistillationPlan,
    DistillationSettings,
    Measurements,
    ModelPlan,
    Plan,
    WorkPlan,
)
from unspeckle.training.student_updater import init_student

CAPTIONS = ("a frog on stilts", "a blue rabbit left of a pizza", "two red frogs")


def random_model(steps: int = 4) -> Model:
    """A U-Net with random weights everywhere, 16 px, so that every part of it matters to the image."""
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=120)
    torch.manual_seed(0)
    config = UNetConfig(patch_size=2, base_channels=16, blocks_per_level=1, head_width=16, text_width=32, norm_groups=8)
    network = UNet(config)
    text_encoder = TextEncoder(TextEncoderConfig(tokenizer.vocab_size, tokenizer.context_length, 32, layers=1))
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    autoencoder = PixelAutoencoder(PixelAutoencoderConfig((0.1, 0.0, -0.1), (0.5, 0.4, 0.6)))
    card = ModelCard(name="tiny", license="CC0", steps=steps, size=(16, 16), vocabulary=("frog",), corpus={"images": 3})
    return Model(Denoiser(network, FlowSchedule(), "v"), tokenizer, text_encoder, autoencoder, card)


def model_with_student() -> Model:
    """A random teacher with a few-step student, a little different, for 1, 2 and 4 steps."""
    teacher = random_model()
    network = init_student(teacher)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    card = replace(
        teacher.card, steps=4, sampler="ddim", timestep_spacing="shifted", guidance_scale=1.0, step_counts=(1, 2, 4)
    )
    teacher.student = teacher.with_network(network.eval(), card)
    return teacher


def save_random_model(folder: Path, dtype: str = "float32") -> Path:
    """The random model as a file in the folder; its path."""
    path = folder / "tiny.safetensors"
    save(random_model(), path, dtype)
    return path


def make_plan(name: str = "micro", batch_size: int = 64, precision: str = "float32") -> Plan:
    """A plan at 64 px of which nothing was measured."""
    network = get_preset(name).for_size((64, 64))
    model = ModelPlan(
        size=(64, 64),
        preset=name,
        network=network,
        text_encoder=TextEncoderConfig(500, 8, network.text_width),
        autoencoder=PixelAutoencoderConfig(),
    )
    return Plan(
        options={},
        corpus_fingerprint="",
        model=model,
        work=WorkPlan(steps=1, batch_size=batch_size),
        compute=ComputePlan(device="cpu", precision=precision),
        measured=Measurements(parameter_count=1_500_000),
    )


def make_student_plan(**settings: Any) -> DistillationPlan:
    """A plan to distil the random model, with these settings of the distillation."""
    teacher = random_model()
    model = ModelPlan(
        size=(16, 16),
        preset="",
        network=teacher.network.config,
        text_encoder=teacher.text_encoder.config,
        autoencoder=teacher.autoencoder.config,
    )
    return DistillationPlan(
        options={},
        corpus_fingerprint="",
        model=model,
        work=WorkPlan(steps=1, batch_size=4),
        compute=ComputePlan(device="cpu", precision="float32"),
        distillation=DistillationSettings(teacher_hash="", **settings),
    )


class GrayNetwork(nn.Module):
    """Predicts x to be one shade of gray, the first number of the first token; counts how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.config = UNetConfig(patch_size=1, channel_multipliers=(1, 2))  # its size_multiple is 2
        self.one = nn.Parameter(torch.ones(()))
        self.batch_sizes: list[int] = []  # of each call
        self.prepare_calls = 0

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        self.prepare_calls += 1
        return PreparedConditioning(conditioning.tokens, conditioning.mask, conditioning.vector, conditioning.concat)

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: AnyConditioning) -> Tensor:
        self.batch_sizes.append(len(x))
        return self.one * conditioning[0][:, 0, 0].view(-1, 1, 1, 1).expand_as(x)


class NumberTokenizer:
    """Reads a caption as a number: "0.25" becomes the id 250, the empty one 0."""

    def encode(self, captions: list[str]) -> Tensor:
        return torch.tensor([[round(1000 * float(caption or 0))] for caption in captions])

    def unknown_words(self, prompt: str) -> list[str]:
        return []


class NumberTextEncoder(nn.Module):
    """The id 250 becomes a token whose only value is 0.25."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, ids: Tensor) -> Conditioning:
        self.calls += 1
        return Conditioning(ids[:, :, None].double().div(1000).float())


def gray_model() -> Model:
    """Draws an image of one shade of gray, whose x is the number that is its prompt."""
    card = ModelCard(name="gray", steps=5, size=(16, 16), guidance_scale=1.0)
    denoiser = Denoiser(GrayNetwork(), FlowSchedule(), "x")
    autoencoder = PixelAutoencoder(PixelAutoencoderConfig())
    return Model(denoiser, NumberTokenizer(), NumberTextEncoder(), autoencoder, card)  # type: ignore[arg-type]
