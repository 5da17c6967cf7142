"""Dynamic thresholding from the command line to the image, and back from its metadata."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import unspeckle
from tiny_models import random_model
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.generation.metadata import image_metadata, request_from_metadata
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.model import Model
from unspeckle.model_io.model_file import save
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.output.png import read_png


def shares_at_bounds(model: Model, **changes: object) -> list[float]:
    """The share of values at the bounds or beyond in each denoised image of a strongly guided drawing."""
    low, high = model.autoencoder.latent_bounds
    request = replace(Request("a frog", seed=3, guidance_scale=30.0, steps=4), **changes)
    scaled = ((step.denoised - (low + high) / 2) / ((high - low) / 2) for step in steps(model, request))
    return [float((x.abs() > 0.999).float().mean()) for x in scaled]


def test_denoised_images_are_scaled_into_bounds_and_not_cut_off() -> None:
    model = random_model()
    cut, shrunk = shares_at_bounds(model), shares_at_bounds(model, dynamic_threshold=0.9)
    assert max(cut) > 0.2  # the scale drives many values out
    assert all(share <= 0.102 for share in shrunk)
    assert max(shares_at_bounds(model, dynamic_threshold=1.0)) < 0.01  # by the farthest value: nothing is cut


def test_the_command_line_draws_what_python_does_and_replays_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = random_model(), tmp_path / "tiny.safetensors"
    save(model, path)
    drawn = []
    for typed in ([], ["--dynamic-threshold", "0.9"]):
        command = ["draw", "a frog", "-m", str(path), "--guidance-scale", "30", "-o", str(tmp_path), "-q"]
        assert main([*command, *typed]) == 0
        drawn.append(Path(capsys.readouterr().out.strip()))
    plain, bounded = map(read_png, drawn)
    (ours,) = unspeckle.draw(model, Request("a frog", guidance_scale=30.0, dynamic_threshold=0.9))
    assert np.array_equal(bounded, ours) and not np.array_equal(bounded, plain)
    assert image_metadata(bounded)["dynamic_threshold"] == 0.9
    assert request_from_metadata(image_metadata(bounded))[0].dynamic_threshold == 0.9
    assert "dynamic_threshold" not in image_metadata(plain)
    assert main(["replay", str(drawn[1]), "-m", str(path)]) == 0
    assert capsys.readouterr().out == "largest pixel difference: 0\n"


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan"), "most", True])
def test_a_threshold_that_is_no_share_is_refused(share: object) -> None:
    with pytest.raises(InputError, match=r"threshold .*: must be over 0 and at most 1"):
        resolve(random_model(), Request(dynamic_threshold=share))  # type: ignore[arg-type]


def test_where_there_are_no_bounds_it_is_refused_in_a_line() -> None:
    model = random_model()
    latent = replace(model, autoencoder=LatentAutoencoder(LatentAutoencoderConfig(latent_channels=3)))
    for unbounded in (latent, replace(model, card=replace(model.card, clamp_denoised=False))):
        with pytest.raises(InputError, match="dynamic_threshold: this model denoises latents, which") as caught:
            resolve(unbounded, Request(dynamic_threshold=0.995, size=64))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="dynamic_threshold: works for images of at most"):
        resolve(model, Request(dynamic_threshold=0.995, size=4000))
