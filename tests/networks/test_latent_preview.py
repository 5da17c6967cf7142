"""The view of latents without their decoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import stable_diffusion_files
import unspeckle
from unspeckle.cli import run_draw as command
from unspeckle.cli.options import ModelOptions
from unspeckle.generation.codec import decode_latents
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.networks.autoencoder import PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.networks.latent_preview import fit_latent_preview
from unspeckle.networks.vae import VAE
from unspeckle.output.terminal import TerminalView

CPU = torch.device("cpu")


def test_of_an_autoencoder_that_is_linear_it_is_the_decoder() -> None:
    coder = PixelAutoencoder(PixelAutoencoderConfig((0.1, -0.2, 0.3), (0.4, 0.5, 0.6)))
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(fit_latent_preview(coder, CPU).decode(x), coder.decode(x), atol=1e-5)


def test_of_the_embedded_autoencoder_it_is_nearly_the_picture_made_small() -> None:
    model = unspeckle.load()
    for step in steps(model, Request("a frog on a yellow background", steps=4, count=2)):
        last = step.x
    small = F.avg_pool2d(decode_latents(model, last), model.autoencoder.downsampling_factor)
    seen = fit_latent_preview(model.autoencoder, CPU).decode(last)
    both = torch.stack([small.flatten(), seen.flatten()])
    assert seen.shape == small.shape and torch.corrcoef(both)[0, 1] > 0.95


@pytest.mark.parametrize("watched", [True, False])
def test_stable_diffusion_is_decoded_once_a_drawing(
    watched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stable_diffusion_files.tiny_pipeline("1", tmp_path / "scratch").save_pretrained(tmp_path / "pipe")
    decodings, seen = list[Any](), list[tuple[int, int]]()
    decode = VAE.decode

    class Terminal(TerminalView):
        """That shows every step, and keeps the sizes of what it shows."""

        def __init__(self, **options: bool) -> None:
            super().__init__(**options)
            self.color_count = 256 if watched else 0

        def __enter__(self) -> "Terminal":
            return self

        def __exit__(self, *error: object) -> None: ...

        def update(self, done: int, total: int, label: str, frame: Any) -> None:
            seen.extend(one.size for one in frame()) if watched else None

    def counted(self: VAE, latents: torch.Tensor) -> torch.Tensor:
        decodings.append(latents)
        return decode(self, latents)

    monkeypatch.setattr(VAE, "decode", counted)
    monkeypatch.setattr(command, "TerminalView", Terminal)
    model_options = ModelOptions(tmp_path / "pipe", device="cpu", precision="float32")
    options = command.DrawOptions(Request("a frog", steps=3, size=32), model_options, tmp_path)
    assert command.run_draw(options) == 0
    assert len(decodings) == 1
    assert seen == ([(16, 16)] * 3 + [(32, 32)] if watched else [])
