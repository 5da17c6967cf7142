"""Images of other programs, and our own, as the source of a drawing's options."""

from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

import unspeckle
from sample_images import make_image
from tiny_models import random_model, save_random_model
from unspeckle.cli import main
from unspeckle.generation.metadata import image_metadata
from unspeckle.output.png import read_png, write_png

PROMPT, NEGATIVE_PROMPT = "a (frog:1.2) on stilts", "a pizza"
SETTINGS = "Steps: 3, Sampler: Euler a, Schedule type: Karras, CFG scale: 2.5, Seed: 9, Size: 16x16, Model: theirs"
OPTIONS = {
    "negative_prompt": NEGATIVE_PROMPT,
    "steps": 3,
    "sampler": "euler_ancestral",
    "seed": 9,
    "guidance_scale": 2.5,
}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_random_model(tmp_path_factory.mktemp("model")))


def save_foreign(image: Image.Image, path: Path, settings: str = SETTINGS) -> str:
    """The image as a PNG file that has nothing but parameters; its path."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", f"{PROMPT}\nNegative prompt: {NEGATIVE_PROMPT}\n{settings}")
    image.save(path, pnginfo=chunks)
    return str(path)


def test_replay_draws_the_request_of_another_program(
    model_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [image] = unspeckle.draw(random_model(), PROMPT, timestep_spacing="karras", **OPTIONS)
    file = save_foreign(image, tmp_path / "a.png", f"{SETTINGS}, ControlNet 0: x, Version: v1.9.4")
    assert main(["replay", file, "--model", model_file]) == 0
    output = capsys.readouterr()
    assert output.out == "largest pixel difference: 0\n"
    assert "drawn by another program, whose pixels cannot be drawn exactly" in output.err
    assert "without effect here: ControlNet 0" in output.err
    file = save_foreign(make_image(), tmp_path / "b.png")
    assert main(["replay", file, "--model", model_file, "-q"]) == 1
    output = capsys.readouterr()
    assert output.out.startswith("largest pixel difference: ") and output.err == ""


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (SETTINGS, [], "was drawn by another program from theirs; give a model by --model"),
        (SETTINGS.replace("Euler a", "DPM fast"), ["--model"], "its sampler 'DPM fast' does not exist here"),
        (SETTINGS.replace("Seed: 9, ", ""), ["--model"], "its parameters lack 'Seed'"),
        ("no settings", ["--model"], "its parameters do not end with a line such as"),
        (f"{SETTINGS}, Denoising strength: 0.5", ["--model"], "was drawn from another image; give it by --image"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_a_line(
    settings: str, options: list[str], message: str, model_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save_foreign(make_image(), tmp_path / "a.png", settings)
    assert main(["replay", file, *options, *([model_file] if options else [])]) == 2
    assert f"{file}: {message}" in capsys.readouterr().err


def test_replay_from_another_image(model_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_image().save(tmp_path / "start.png")
    [image] = unspeckle.draw(
        random_model(), PROMPT, timestep_spacing="karras", image=make_image(), strength=0.7, **OPTIONS
    )
    file = save_foreign(image, tmp_path / "a.png", f"{SETTINGS}, Denoising strength: 0.7")
    assert main(["replay", file, "--model", model_file, "--image", str(tmp_path / "start.png"), "-q"]) == 0
    assert capsys.readouterr().out == "largest pixel difference: 0\n"


@pytest.mark.parametrize("ours", [True, False])
def test_draw_without_a_prompt_takes_that_of_the_image(
    ours: bool, model_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of both images of a batch of ours the second's seed."""
    model = random_model()
    if ours:
        image = unspeckle.draw(model, PROMPT, timestep_spacing="karras", **{**OPTIONS, "seed": 8, "count": 2})[1]
        write_png(image, tmp_path / "a.png")
        file = str(tmp_path / "a.png")
    else:
        image = make_image()
        file = save_foreign(image, tmp_path / "a.png")
    for typed, changes in (([], {}), (["--seed", "0", "--steps", "4"], {"seed": 0, "steps": 4})):
        command = ["draw", "--image", file, "--model", model_file, "-o", str(tmp_path / "out"), "-q", *typed]
        assert main(command) == 0
        drawn = read_png(Path(capsys.readouterr().out.strip()))
        [expected] = unspeckle.draw(model, PROMPT, timestep_spacing="karras", image=image, **{**OPTIONS, **changes})
        assert drawn.tobytes() == expected.tobytes() and image_metadata(drawn) == image_metadata(expected)


def test_a_sampler_that_is_missing_here_can_be_replaced(
    model_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save_foreign(make_image(), tmp_path / "a.png", SETTINGS.replace("Euler a", "DPM fast"))
    command = ["draw", "--image", file, "--model", model_file, "-o", str(tmp_path), "-q"]
    assert main(command) == 2
    assert "its sampler 'DPM fast' does not exist here" in capsys.readouterr().err
    assert main([*command, "--sampler", "euler", "--timestep-spacing", "uniform"]) == 0


def test_draw_without_any_prompt_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_image().save(tmp_path / "a.png")
    assert main(["draw"]) == 2
    assert "PROMPT: is missing; write what to draw" in capsys.readouterr().err
    assert main(["draw", "--image", str(tmp_path / "a.png")]) == 2
    line = capsys.readouterr().err
    assert f"PROMPT: is missing, and {tmp_path / 'a.png'} does not give one (has no metadata" in line
