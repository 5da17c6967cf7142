"""Drawings that start later than at noise: from an image, under a mask, toward another seed, at a larger size."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from sample_images import make_image, make_mask
from tiny_models import gray_model, random_model
from unspeckle.errors import InputError
from unspeckle.generation import pipeline
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.metadata import image_fingerprint, image_metadata, request_from_metadata
from unspeckle.generation.pipeline import draw, draw_prompts, split_into_batches, steps
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.model import Model
from unspeckle.networks import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.output.png import max_pixel_difference
from unspeckle.rng import noise_from_seeds
from unspeckle.samplers import SAMPLERS, Step
from unspeckle.schedule import VESchedule


def all_steps(model: Model, request: Request) -> list[Step]:
    return list(steps(model, request))


def encode(model: Model, image: Image.Image) -> Tensor:
    data = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return model.autoencoder.encode(data)


def latent_model() -> Model:
    """A random model with a random autoencoder whose latents stand for 4 × 4 pixels each."""
    model = random_model()
    torch.manual_seed(1)
    model.autoencoder = LatentAutoencoder(
        LatentAutoencoderConfig(latent_channels=3, downsampling_factor=4, widths=(16, 16), blocks_per_level=1)
    ).eval()
    model.card = replace(model.card, clamp_denoised=False, size=(32, 32))
    return model


@pytest.mark.parametrize("strength", [0.05, 0.3, 0.55, 0.8, 0.999, 1.0])
def test_the_strength_says_how_many_of_the_steps_are_taken(strength: float) -> None:
    model = gray_model()
    request = Request("0.5", image=make_image(), strength=strength, steps=20)
    times = [float(step.t) for step in all_steps(model, request)]
    whole = [float(step.t) for step in all_steps(model, replace(request, image=None, strength=None))]
    assert len(times) == int(20 * strength) + 1 == resolve(model, request).total_steps + 1
    assert times == whole[-len(times) :]


@pytest.mark.parametrize("schedule", ["flow", "ve"])
def test_a_later_start_is_the_image_with_its_noise(schedule: str) -> None:
    model, image = gray_model(), make_image()
    if schedule == "ve":
        model.denoiser.schedule = VESchedule(sigma_max=40.0)
    first = all_steps(model, Request("0.5", seed=9, count=2, image=image, strength=0.6))[0]
    alpha, sigma = model.denoiser.schedule(first.t)
    expected = alpha.float() * encode(model, image) + sigma.float() * noise_from_seeds([9, 10], (3, 16, 16))(-1, 0)
    assert torch.allclose(first.x, expected, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_mask_bounds_what_is_painted(sampler: str, strength: float) -> None:
    """A denoiser that always says one gray: that gray under the mask, elsewhere the image, exactly; and the network
    sees the rest of the image with one and the same noise at all steps."""
    model, image, seen = gray_model(), make_image(), []
    network = model.denoiser.network
    real = network.forward
    network.forward = lambda x, c_noise, conditioning: (
        seen.append((x, c_noise[0].double())) or real(x, c_noise, conditioning)
    )
    request = Request("0.375", seed=5, count=2, sampler=sampler, image=image, mask=make_mask(), strength=strength)
    last = all_steps(model, request)[-1]
    assert torch.allclose(last.x[..., 8:], torch.full_like(last.x[..., 8:], 0.375), atol=1e-6)
    assert torch.equal(last.x[..., :8], encode(model, image)[..., :8].expand(2, -1, -1, -1))
    fresh = noise_from_seeds([5, 6], (3, 16, 16))(-1, 0)
    for place, (x, t) in enumerate(seen):
        alpha, sigma = (1 - t, t) if place or strength < 1 else (0, 1)
        shown = (alpha * encode(model, image) + sigma * fresh)[..., :8].float()
        assert torch.allclose(x[..., :8], shown, atol=1e-5)


def test_pixels_outside_the_mask_are_those_of_the_image() -> None:
    model, image = latent_model(), make_image(32, 32)
    request = Request("a frog", seed=1, count=2, image=image, mask=make_mask(32, 32))
    before = np.asarray(image, dtype=int)
    for drawn in draw(model, request):
        after = np.asarray(drawn, dtype=int)
        assert (after[:, :16] == before[:, :16]).all() and np.abs(after - before)[:, 16:].mean() > 10
    plain, pasted = draw(model, replace(request, paste_original=False))[0], draw(model, request)[0]
    assert max_pixel_difference(plain.crop((16, 0, 32, 32)), pasted.crop((16, 0, 32, 32))) == 0
    assert max_pixel_difference(plain.crop((0, 0, 16, 32)), pasted.crop((0, 0, 16, 32))) > 0
    soft = Image.fromarray(np.linspace(0, 255, 32).astype(np.uint8)[None].repeat(32, 0))
    mixed = np.asarray(draw(model, replace(request, mask=soft))[0], dtype=float)
    alone = np.asarray(draw(model, replace(request, mask=soft, paste_original=False))[0], dtype=float)
    share = np.asarray(soft, dtype=float)[..., None] / 255
    assert np.abs(mixed - (share * alone + (1 - share) * before)).max() <= 1


def test_a_image_is_drawn_at_its_own_size_or_shrunk_to_the_models() -> None:
    model = random_model()  # of 16 px, multiples of 4
    for sides, size in (((16, 16), (16, 16)), ((30, 33), (28, 32)), ((320, 80), (32, 16)), ((5, 16), (16, 16))):
        assert resolve(model, Request(image=make_image(*sides))).size == size
    wide = Request("a frog", image=make_image(48, 24), size=(16, 16), strength=0.01, steps=100)
    assert resolve(model, wide).size == (16, 16)
    middle = ImageOps.fit(make_image(48, 24), (16, 16), Image.Resampling.LANCZOS)
    drawn = draw(model, replace(wide, guidance_scale=1.0))[0]
    assert np.abs(np.asarray(drawn, dtype=int) - np.asarray(middle, dtype=int)).mean() < 12


def test_variations_lead_from_one_seed_to_another() -> None:
    model = random_model()
    base = Request("a frog", seed=3, variation_seed=20)
    here, there = (draw(model, Request("a frog", seed=seed))[0] for seed in (3, 20))
    assert max_pixel_difference(draw(model, replace(base, variation_strength=0.0))[0], here) == 0
    assert max_pixel_difference(draw(model, replace(base, variation_strength=1.0))[0], there) <= 1
    x = [all_steps(model, replace(base, variation_strength=share))[0].x.flatten() for share in (0.0, 0.25, 0.5, 1.0)]
    angles = [math.acos(float(F.cosine_similarity(x[0], other, dim=0))) for other in x[1:]]
    assert angles[0] == pytest.approx(angles[2] / 4, rel=0.05) and angles[1] == pytest.approx(angles[2] / 2, rel=0.05)
    assert all(0.9 < float(one.std()) < 1.1 for one in x)
    row = draw(model, replace(base, count=3))
    for i, drawn in enumerate(row):
        assert max_pixel_difference(drawn, draw(model, replace(base, variation_seed=20 + i))[0]) <= 8
        assert (image_metadata(drawn)["seed"], image_metadata(drawn)["variation_seed"]) == (3, 20 + i)
    assert max_pixel_difference(row[0], row[1]) > 30
    assert max_pixel_difference(draw(model, replace(base, variation_seed=3))[0], here) <= 1  # toward itself


@pytest.mark.parametrize("upscaler", ["lanczos", "latent"])
def test_hires_goes_on_from_the_enlarged_image(upscaler: str) -> None:
    model = random_model()
    request = Request("a frog", seed=3, count=2, hires_size=(32, 24), upscaler=upscaler, strength=0.5)
    plain, both = all_steps(model, replace(request, hires_size=None, strength=None)), all_steps(model, request)
    assert len(both) == 5 + 3 == resolve(model, request).total_steps + 1
    assert all(torch.equal(one.x, other.x) for one, other in zip(plain, both, strict=False))
    if upscaler == "latent":
        large = F.interpolate(plain[-1].x, (32, 32), mode="bilinear")[:, :, 4:28]
    else:
        small = decode_to_images(model, plain[-1].x)
        large = torch.cat([encode(model, ImageOps.fit(one, (32, 24), Image.Resampling.LANCZOS)) for one in small])
    expected = 0.5 * large + 0.5 * noise_from_seeds([3, 4], (3, 24, 32))(-1, 0)
    assert torch.allclose(both[5].x, expected, atol=1e-5)
    assert [one.size for one in draw(model, request)] == [(32, 24)] * 2
    assert [resolved.count for resolved in split_into_batches(resolve(model, replace(request, hires_size=256)))] == [
        1,
        1,
    ]


def test_many_go_on_from_a_image_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BATCH_PIXELS", {"cpu": 3 * 16 * 16})
    model, request = (
        random_model(steps=12),
        Request(image=make_image(), mask=make_mask(), strength=0.5, sampler="euler_ancestral", variation_seed=9),
    )
    prompts = ["a [frog:rabbit:0.5]", "two red frogs", "a frog AND a pizza", "a frog", "[a|b]"]
    for drawn, text, seed in zip(draw_prompts(model, prompts, range(5), request), prompts, range(5), strict=True):
        alone = draw(model, replace(request, prompt=text, seed=seed, paste_original=False))[0]
        apart = np.abs(np.asarray(alone, dtype=int) - np.asarray(drawn, dtype=int))
        assert apart.mean() <= 0.5 and apart.max() <= 8


@pytest.mark.parametrize(
    "changes",
    [
        {"image": make_image(), "strength": 0.7},
        {"image": make_image(), "mask": make_mask(), "paste_original": False},
        {"variation_seed": 2**63, "variation_strength": 0.3, "count": 3},
        {"hires_size": 32, "upscaler": "latent", "tile_size": 64},
    ],
)
def test_a_record_gives_its_request_again(changes: dict[str, Any]) -> None:
    model, request = random_model(steps=2), Request("a frog", seed=7, **changes)
    for place, image in enumerate(draw(model, request)):
        metadata = image_metadata(image)
        again, found = request_from_metadata(metadata)
        assert ("image" in metadata, "mask" in metadata) == ("image" in changes, "mask" in changes)
        if "image" in changes:
            assert metadata["image"] == image_fingerprint(make_image()) != image_fingerprint(make_image(16, 32))
            again = replace(again, image=request.image, mask=request.mask)
        assert (resolve(model, again), found) == (resolve(model, request), place)
    assert not {"paste_original", "strength", "upscaler", "clip_skip", "tiles"} & set(
        image_metadata(draw(model, Request())[0])
    )


@pytest.mark.parametrize(
    ("bad_request", "message"),
    [
        (Request(strength=0.5), "give `image` or `hires_size` too"),
        (Request(image=make_image(), strength=0), "strength 0: must be over 0"),
        (Request(image=make_image(), strength=1.5), "strength 1.5"),
        (Request(image=make_image(), strength="much"), "strength 'much'"),  # type: ignore[arg-type]
        (Request(image=make_image(), strength=0.1, steps=5), "leaves none of 5 steps"),
        (Request(image="photo.png"), "image: must be a PIL image"),  # type: ignore[arg-type]
        (Request(mask=make_mask()), "mask: there is no image to redraw"),
        (Request(image=make_image(32, 32), mask=make_mask()), "mask: is 16x16, the image 32x32"),
        (Request(image=make_image(), mask=Image.new("L", (16, 16))), "nothing in it is white"),
        (Request(image=make_image(), hires_size=32), "hires_size: does not go with an image"),
        (Request(hires_size=16), "hires_size 16x16: is not larger than the size 16x16"),
        (Request(hires_size=(32, 8)), "the nearest that fits is 32x16"),
        (Request(hires_size=31), "hires_size 31x31"),
        (Request(upscaler="magic"), "choose one of lanczos, latent"),
        (Request(variation_seed=-1), "variation_seed -1"),
        (Request(variation_seed=2**64 - 1, count=2), "variation_seed 18446744073709551615 with count 2"),
        (Request(variation_seed=1, variation_strength=2), "variation_strength 2"),
        (Request(clip_skip=2), "has no CLIP text encoder"),
        (Request(clip_skip=0), "clip_skip 0"),
        (Request(tile_size=8), "tile_size 8: must be a side of at least 16"),
        (Request(tile_size=True), "tile_size True"),
    ],
)
def test_requests_that_cannot_be_drawn(bad_request: Request, message: str) -> None:
    with pytest.raises(InputError) as caught:
        steps(random_model(), bad_request)
    assert message in str(caught.value) and "\n" not in str(caught.value)
