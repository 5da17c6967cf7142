"""Models small enough for tests: one with learnable parts and random weights, and one whose answer is known."""

from pathlib import Path

import torch
from torch import Tensor, nn

from unspeckle.denoiser import Conditioning, Denoiser
from unspeckle.model import Model, ModelCard
from unspeckle.model_io.model_file import save
from unspeckle.networks import PixelAutoencoder, PixelAutoencoderConfig, UNet, UNetConfig
from unspeckle.presets import get_preset
from unspeckle.schedule import Flow
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.plan import Plan

CAPTIONS = ("a frog on stilts", "a blue rabbit left of a pizza", "two red frogs")


def random_model(steps: int = 4) -> Model:
    """A U-Net with random weights everywhere, 16 px, so that every part of it matters to the picture."""
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=120)
    torch.manual_seed(0)
    config = UNetConfig(patch_size=2, base_channels=16, blocks_per_level=1, head_width=16, text_width=32, norm_groups=8)
    network, text = (
        UNet(config),
        TextEncoder(TextEncoderConfig(tokenizer.vocab_size, tokenizer.context_length, 32, layers=1)),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    identity = PixelAutoencoder(PixelAutoencoderConfig((0.1, 0.0, -0.1), (0.5, 0.4, 0.6)))
    card = ModelCard(
        name="tiny", license="CC0", steps=steps, size=(16, 16), vocabulary=("frog",), corpus={"pictures": 3}
    )
    return Model(Denoiser(network, Flow(), "v"), tokenizer, text, identity, card)


def saved(folder: Path, dtype: str = "float32") -> Path:
    path = folder / "tiny.safetensors"
    save(random_model(), path, dtype)
    return path


def plan(name: str = "micro", batch: int = 64, precision: str = "float32") -> Plan:
    """A plan at 64 px that nobody measured."""
    network = get_preset(name).for_size((64, 64))
    return Plan(
        options={}, corpus_fingerprint="", size=(64, 64), preset=name, network_config=network, text_config=TextEncoderConfig(500, 8, network.text_width),
        steps=1, batch_size=batch, seed=0, device="cpu", precision=precision, compile=False, threads=1,
        parameter_count=1_500_000, images_per_second=0, total_seconds=0, memory_bytes=0, disk_bytes=0, autoencoder_config=PixelAutoencoderConfig(),
    )  # fmt: skip


class Told(nn.Module):
    """A network that predicts x to be one grey, the first number of the first token; counts how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.config = UNetConfig(patch_size=1, channel_multipliers=(1, 2))  # its factor is 2
        self.one = nn.Parameter(torch.ones(()))
        self.rows: list[int] = []
        self.prepared = 0

    def prepare(self, given: Conditioning) -> Conditioning:
        self.prepared += 1
        return given._replace(prepared=True)

    def forward(self, x: Tensor, clock: Tensor, given: Conditioning) -> Tensor:
        self.rows.append(len(x))
        return self.one * given.tokens[:, 0, 0].view(-1, 1, 1, 1).expand_as(x)


class Words(nn.Module):
    """Captions are numbers: "0.25" becomes the token 0.25, the empty one 0."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, ids: Tensor) -> Conditioning:
        self.calls += 1
        return Conditioning(ids[:, :, None].double().div(1000).float())


class Numbers:
    def encode(self, captions: list[str]) -> Tensor:
        return torch.tensor([[round(1000 * float(words or 0))] for words in captions])

    def unknown_words(self, prompt: str) -> list[str]:
        return []


def told_model() -> Model:
    """Draws a picture that is one grey, whose x is the number that is its prompt."""
    card = ModelCard(name="told", steps=5, size=(16, 16), guidance_scale=1.0)
    return Model(Denoiser(Told(), Flow(), "x"), Numbers(), Words(), PixelAutoencoder(PixelAutoencoderConfig()), card)  # type: ignore[arg-type]
