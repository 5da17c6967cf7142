"""The preview of latents without their decoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import unspeckle
from conftest import SDFolder
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


def test_for_a_linear_autoencoder_it_is_the_decoder() -> None:
    autoencoder = PixelAutoencoder(PixelAutoencoderConfig((0.1, -0.2, 0.3), (0.4, 0.5, 0.6)))
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(fit_latent_preview(autoencoder, CPU).decode(x), autoencoder.decode(x), atol=1e-5)


def test_for_the_embedded_autoencoder_it_is_nearly_the_downsampled_image() -> None:
    model = unspeckle.load()
    for step in steps(model, Request("a frog on a yellow background", steps=4, count=2)):
        latents = step.x
    downsampled = F.avg_pool2d(decode_latents(model, latents), model.autoencoder.downsampling_factor)
    preview = fit_latent_preview(model.autoencoder, CPU).decode(latents)
    correlation = torch.corrcoef(torch.stack([downsampled.flatten(), preview.flatten()]))[0, 1]
    assert preview.shape == downsampled.shape and correlation > 0.95


@pytest.mark.parametrize("has_preview", [True, False])
def test_stable_diffusion_decodes_once_an_image(
    has_preview: bool, sd_folder: SDFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded_latents, frame_sizes = list[torch.Tensor](), list[tuple[int, int]]()
    decode = VAE.decode

    class RecordingView(TerminalView):
        """Takes every frame, and records its size."""

        def __init__(self, **options: bool) -> None:
            super().__init__(**options)
            self.color_count = 256 if has_preview else 0

        def __enter__(self) -> "RecordingView":
            return self

        def __exit__(self, *error: object) -> None: ...

        def update(self, done: int, total: int, label: str, frame: Any) -> None:
            if has_preview:
                frame_sizes.extend(image.size for image in frame())

    def recording_decode(self: VAE, latents: torch.Tensor) -> torch.Tensor:
        decoded_latents.append(latents)
        return decode(self, latents)

    monkeypatch.setattr(VAE, "decode", recording_decode)
    monkeypatch.setattr(command, "TerminalView", RecordingView)
    model_options = ModelOptions(sd_folder("1"), device="cpu", precision="float32")
    options = command.DrawOptions(Request("a frog", steps=3, size=32), model_options, tmp_path)
    assert command.run_draw(options) == 0
    assert len(decoded_latents) == 1
    assert frame_sizes == ([(16, 16)] * 3 + [(32, 32)] if has_preview else [])
