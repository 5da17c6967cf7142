"""The Python interface: `import unspeckle` and its names."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

import unspeckle
from tiny_models import random_model
from unspeckle.generation.codec import decode_to_images


def test_the_names_are_these() -> None:
    names = "InputError Model ModelCard Request check distil draw film grid load machine plan save steps train"
    expected = names.split()
    assert sorted(unspeckle.__all__) == expected and set(expected) <= set(dir(unspeckle))
    assert all(getattr(unspeckle, name).__name__ == name for name in expected)
    with pytest.raises(AttributeError, match="has no attribute 'generate'"):
        _ = unspeckle.generate


def test_draw_takes_a_prompt_and_options_or_a_request() -> None:
    model = random_model()
    [image] = unspeckle.draw(model, "a frog on stilts", seed=7, guidance_scale=5)
    request = unspeckle.Request("a frog on stilts", seed=7, guidance_scale=5)
    assert isinstance(image, Image.Image) and image.size == (16, 16)
    for same in (
        unspeckle.draw(model, request),
        unspeckle.draw(model, unspeckle.Request("a frog on stilts"), seed=7, guidance_scale=5),
    ):
        assert [one.tobytes() for one in same] == [image.tobytes()]
    assert unspeckle.draw(model, request, seed=8)[0].tobytes() != image.tobytes()


def test_steps_end_in_what_draw_draws() -> None:
    model = random_model()
    steps = list(unspeckle.steps(model, "a frog", seed=3, count=2, steps=3))
    assert len(steps) == 4 and [float(step.t) for step in steps][::3] == [1.0, 0.0]
    drawn = [image.tobytes() for image in unspeckle.draw(model, "a frog", seed=3, count=2, steps=3)]
    assert [image.tobytes() for image in decode_to_images(model, steps[-1].x)] == drawn
    request = unspeckle.Request("a frog", seed=3, count=2, steps=3)
    assert all(torch.equal(one.x, other.x) for one, other in zip(steps, unspeckle.steps(model, request), strict=True))


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("scale", "guidance_scale"),
        ("cfg_scale", "guidance_scale"),
        ("negative", "negative_prompt"),
        ("num_inference_steps", "steps"),
        ("sampelr", "sampler"),
        ("grid", "timestep_spacing"),
        ("hires", "hires_size"),
    ],
)
def test_an_unknown_option_names_the_nearest_one(option: str, nearest: str) -> None:
    for function in (unspeckle.draw, unspeckle.steps):
        for request in ("a frog", unspeckle.Request("a frog")):
            with pytest.raises(unspeckle.InputError) as caught:
                function(random_model(), request, **{option: 3})
            assert str(caught.value) == f"{option}: a drawing has no such option; the nearest is `{nearest}`"


def test_an_option_of_a_wrong_value_is_named() -> None:
    with pytest.raises(unspeckle.InputError, match=r"^guidance_scale 'much': must be a finite number") as caught:
        unspeckle.draw(random_model(), "a frog", guidance_scale="much")
    assert caught.value.option == "guidance_scale"


def test_save_and_load_are_a_round_trip(tmp_path: Path) -> None:
    model = random_model()
    unspeckle.save(model, tmp_path / "tiny.safetensors")
    again = unspeckle.load(tmp_path / "tiny.safetensors")
    assert isinstance(again, unspeckle.Model) and again.card == model.card
    assert unspeckle.draw(again, "a frog")[0].tobytes() == unspeckle.draw(model, "a frog")[0].tobytes()


def test_without_an_argument_the_embedded_model_is_loaded() -> None:
    model = unspeckle.load()
    assert isinstance(model.card, unspeckle.ModelCard) and model.card.size == (64, 64)


def test_every_field_of_a_request_has_a_comment() -> None:
    """The comments are the interface's reference."""
    lines = Path(unspeckle.generation.request.__file__).read_text().split("\n")
    for field in fields(unspeckle.Request):
        index = next(i for i, line in enumerate(lines) if line.startswith(f"    {field.name}: "))
        assert lines[index - 1].startswith("    # ")
