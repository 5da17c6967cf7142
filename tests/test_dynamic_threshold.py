"""Dynamic thresholding on its way from the command line to the picture, and back from its record."""

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


def spread(model: Model, **changes: object) -> list[float]:
    """How far each denoised of a strongly guided drawing reaches, as a share of the bounds."""
    low, high = model.autoencoder.latent_bounds
    request = replace(Request("a frog", seed=3, guidance_scale=30.0, steps=4), **changes)
    moved = ((step.denoised - (low + high) / 2) / ((high - low) / 2) for step in steps(model, request))
    return [float((x.abs() > 0.999).float().mean()) for x in moved]


def test_denoised_are_shrunk_into_bounds_and_not_cut_off() -> None:
    model = random_model()
    cut, shrunk = spread(model), spread(model, dynamic_threshold=0.9)
    assert max(cut) > 0.2  # the scale drives many values out
    assert all(share <= 0.102 for share in shrunk)
    assert max(spread(model, dynamic_threshold=1.0)) < 0.01  # by the farthest value: nothing is cut


def test_the_command_line_draws_what_python_does_and_replays_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = random_model(), tmp_path / "tiny.safetensors"
    save(model, path)
    drawn = []
    for words in ([], ["--threshold", "0.9"]):
        assert main(["draw", "a frog", "-m", str(path), "--scale", "30", "-o", str(tmp_path), "-q", *words]) == 0
        drawn.append(Path(capsys.readouterr().out.strip()))
    plain, bounded = map(read_png, drawn)
    (ours,) = unspeckle.draw(model, Request("a frog", guidance_scale=30.0, dynamic_threshold=0.9))
    assert np.array_equal(bounded, ours) and not np.array_equal(bounded, plain)
    assert (
        image_metadata(bounded)["dynamic_threshold"]
        == 0.9
        == request_from_metadata(image_metadata(bounded))[0].dynamic_threshold
    )
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
    for one in (latent, replace(model, card=replace(model.card, clamp_denoised=False))):
        with pytest.raises(InputError, match="threshold: this model draws latents, which have no bounds") as caught:
            resolve(one, Request(dynamic_threshold=0.995, size=64))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="threshold: is reckoned for at most"):
        resolve(model, Request(dynamic_threshold=0.995, size=4000))
