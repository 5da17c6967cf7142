"""Between images and latents: tiles that meet without a seam, half precision that does not go black."""

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusers_drawings import pipeline_and_model
from sample_images import make_image
from tiny_models import random_model
from unspeckle.denoiser import Conditioning
from unspeckle.generation.codec import decode_latents, decode_to_images, encode_images
from unspeckle.generation.initial_latents import image_to_tensor
from unspeckle.generation.pipeline import draw, images_with_metadata, sample_steps
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.generation.tiling import map_tiles
from unspeckle.model_io.loading import load
from unspeckle.output.png import max_pixel_difference


@pytest.mark.parametrize(("high", "wide", "side"), [(64, 64, 32), (50, 90, 32), (33, 40, 32), (16, 100, 24)])
def test_tiles_of_convolutions_within_the_margin_are_the_whole(high: int, wide: int, side: int) -> None:
    """Convolutions that reach one latent (two pixels) see in the middle of a tile what they see in the whole image."""
    torch.manual_seed(0)
    first, second, narrow = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(3, 4, 2, stride=2)
    x, shapes = torch.randn(2, 3, high, wide), []

    def decode(x: torch.Tensor) -> torch.Tensor:
        shapes.append(x.shape[2:])
        return second(F.interpolate(first(x).tanh(), scale_factor=2.0))

    with torch.no_grad():
        whole = decode(x)
        assert torch.allclose(map_tiles(decode, x, side, 1, 2), whole, atol=1e-5)
        assert len(shapes) > 2 and max(max(shape) for shape in shapes[1:]) <= side
        pixels = torch.randn(1, 3, 2 * high, 2 * wide)
        assert torch.allclose(map_tiles(narrow, pixels, side, 2, 1), narrow(pixels), atol=1e-5)
    assert map_tiles(lambda x: x, x, 0, 1, 1) is x and map_tiles(lambda x: x, x, 128, 1, 1) is x


def test_tiles_of_the_embedded_autoencoder() -> None:
    """What `docs/stable-diffusion.md` says of them: under half a level of 255 where the image is smooth."""
    model, pixels = load(), image_to_tensor(make_image(256, 192))
    smooth = F.avg_pool2d(F.pad(pixels, (4, 4, 4, 4), "replicate"), 9, 1)
    x, tiled = encode_images(model, smooth, list), encode_images(model, smooth, list, 128)
    assert not torch.equal(x, tiled) and (x - tiled).norm() < 0.02 * x.norm()
    difference = (decode_latents(model, x, 128) - decode_latents(model, x)).abs() * 127.5
    assert 0 < difference.mean() < 0.5 and difference.max() < 8


def test_tiles_of_stable_diffusions_autoencoder_are_nearer_the_whole_than_the_peers(tmp_path_factory: Any) -> None:
    pipe, model = pipeline_and_model("1", tmp_path_factory)
    x = 0.5 * torch.randn(1, 4, 64, 96, generator=torch.Generator().manual_seed(0))
    whole = decode_latents(model, x)
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 64, 32
    with torch.no_grad():
        theirs = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    pipe.vae.disable_tiling()
    ours = decode_latents(model, x, 64)
    assert (ours - whole).norm() < (theirs - whole).norm() < 0.5 * whole.norm()


def test_a_drawing_in_tiles_is_the_drawing() -> None:
    request = Request("a frog", size=64, steps=2)
    assert (
        max_pixel_difference(
            *(draw(random_model(), Request(**{**vars(request), "tile_size": side}))[0] for side in (0, 16))
        )
        <= 1
    )


@pytest.mark.parametrize("function", ["decode", "encode"])
def test_float16_that_overflows_is_computed_again_in_float32_with_one_warning(
    function: str, tmp_path_factory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _, model = pipeline_and_model("1", tmp_path_factory)
    autoencoder, weights = model.autoencoder, {k: v.clone() for k, v in model.autoencoder.state_dict().items()}
    half = autoencoder.decoder if function == "decode" else autoencoder.encoder
    half.conv_in.weight.data *= 3e4  # the next norm takes it back, beyond what float16 holds
    half.conv_in.bias.data[:] = 6.4e4
    x, pixels = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), image_to_tensor(make_image())
    run = {
        "decode": lambda: decode_latents(model, x),
        "encode": lambda: encode_images(model, pixels, lambda: torch.zeros(())),
    }[function]
    try:
        with torch.no_grad():
            autoencoder.half().float()  # the weights that float16 can hold
            expected = run()
            black = autoencoder.half().decode(x) if function == "decode" else autoencoder.half().posterior(pixels)[0]
            assert not black.isfinite().all()
            with caplog.at_level(logging.WARNING):
                assert torch.equal(run(), expected) and torch.equal(run(), expected)
        assert [one.getMessage() for one in caplog.records if one.name == "unspeckle"] == [
            "the autoencoder overflows in float16; it runs again in float32"
        ]
        assert expected.std() > 0.05
    finally:
        autoencoder.float().load_state_dict(weights)


def test_the_blank_image_of_an_inpainting_network_does_not_overflow(tmp_path_factory: Any) -> None:
    """Without a mask its input is a gray image, which the same autoencoder encodes."""
    _, model = pipeline_and_model("1-inpaint", tmp_path_factory)
    autoencoder, weights = model.autoencoder, {k: v.clone() for k, v in model.autoencoder.state_dict().items()}
    autoencoder.encoder.conv_in.weight.data *= 3e4
    autoencoder.encoder.conv_in.bias.data[:] = 6.4e4
    try:
        conditioning = Conditioning(torch.zeros(2, 77, 64))
        expected = model.add_conditioning(conditioning, True, 7.5, (32, 32)).concat
        with torch.no_grad():
            assert not autoencoder.half().encode(torch.zeros(1, 3, 32, 32)).isfinite().all()
        found = model.add_conditioning(conditioning, True, 7.5, (32, 32)).concat
        assert found.shape == (2, 5, 16, 16) and found.isfinite().all()
        assert (found - expected).norm() < 0.02 * expected.norm() and (found[:, 1:] != 0).all()
    finally:
        autoencoder.float().load_state_dict(weights)


def test_bfloat16_that_overflows_is_computed_again_in_float32(tmp_path: Any, tmp_path_factory: Any) -> None:
    pipe, model = pipeline_and_model("1", tmp_path_factory)
    pipe.save_pretrained(tmp_path)
    low, x = load(tmp_path, precision="bfloat16"), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def overflow(layer: nn.Module, inputs: Any, out: torch.Tensor) -> torch.Tensor:
        return out * torch.inf if out.dtype == torch.bfloat16 else out

    low.autoencoder.decoder.mid_block[0].register_forward_hook(overflow)
    found, expected = decode_latents(low, x), decode_latents(model, x)
    assert 0 < (found - expected).norm() < 0.01 * expected.norm()


def test_a_network_that_overflows_is_reported(tmp_path_factory: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model()
    resolved = resolve(model, Request("a frog", size=64, steps=1))
    for step in sample_steps(resolved):
        last = step
    images_with_metadata(resolved, last)
    assert not caplog.records
    images_with_metadata(resolved, last._replace(x=last.x * torch.nan))
    assert [one.getMessage() for one in caplog.records if one.name == "unspeckle"] == [
        "the network overflows: parts of the image are gray"
    ]


def test_half_precision_without_overflow_stays(tmp_path_factory: Any) -> None:
    _, model = pipeline_and_model("1", tmp_path_factory)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, weights = decode_to_images(model, x)[0], {k: v.clone() for k, v in model.autoencoder.state_dict().items()}
    for dtype in (torch.float16, torch.bfloat16):
        model.autoencoder.to(dtype)
        assert 0 < max_pixel_difference(decode_to_images(model, x)[0], expected) < 40
        assert next(model.autoencoder.parameters()).dtype == dtype
        model.autoencoder.float().load_state_dict(weights)
