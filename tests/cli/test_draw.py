"""`draw` and `replay`: options reach the image, results go to standard output, and an image is drawn again exactly."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

import unspeckle
from tiny_models import random_model
from unspeckle.cli import main
from unspeckle.generation import pipeline
from unspeckle.generation.initial_latents import initial_latents
from unspeckle.generation.metadata import IMAGE_METADATA_KEY, image_metadata
from unspeckle.model_io.model_file import save
from unspeckle.output.png import read_png, write_png

Capture = pytest.CaptureFixture[str]


def test_draw_prints_absolute_paths_and_nothing_else(
    model: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["draw", "a", "frog", "-m", model, "--count", "3", "--seed", "7", "--out", "new/folder"]) == 0
    output = capsys.readouterr()
    paths = [tmp_path / "new" / "folder" / f"a-frog-{seed}.png" for seed in (7, 8, 9)]
    assert output.out.splitlines() == [str(path) for path in paths]
    expected = unspeckle.draw(random_model(), unspeckle.Request("a frog", seed=7, count=3))
    assert [read_png(path).tobytes() for path in paths] == [image.tobytes() for image in expected]
    assert output.err.splitlines()[-1] == "a frog: step 4 of 4"
    assert main(["draw", "a frog", "-m", model, "--quiet"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == (f"{tmp_path / 'a-frog-0.png'}\n", "")


def test_every_option_reaches_the_image(model: str, tmp_path: Path, capsys: Capture) -> None:
    options = "--seed 5 --steps 3 --sampler heun --timestep-spacing karras --guidance-scale 2.5 --negative-prompt pizza"
    options += " --size 32x16 --film-strip -q"
    assert main(["draw", "-m", model, "-o", str(tmp_path), *options.split(), "--", "-frog"]) == 0
    path, film_path = (Path(line) for line in capsys.readouterr().out.splitlines())
    metadata = image_metadata(read_png(path))
    assert read_png(path).size == (32, 16)
    del metadata["version"], metadata["model"]
    assert metadata == {
        "prompt": "-frog",
        "negative_prompt": "pizza",
        "seed": 5,
        "steps": 3,
        "sampler": "heun",
        "timestep_spacing": "karras",
        "guidance_scale": 2.5,
        "size": [32, 16],
        "batch": [5, 1],
    }
    assert film_path.name == "frog-5-strip.png" and image_metadata(read_png(film_path))["film"] is True
    assert main(["replay", str(film_path), "-m", model]) == 2
    assert "replay the image itself" in capsys.readouterr().err


def test_replay(model: str, tmp_path: Path, capsys: Capture) -> None:
    options = ["-n", "3", "--sampler", "euler_ancestral", "-q"]
    assert main(["draw", "a frog", "-m", model, "-o", str(tmp_path), *options]) == 0
    path = Path(capsys.readouterr().out.splitlines()[2])
    assert main(["replay", str(path), "-m", model]) == 0
    assert capsys.readouterr().out == "largest pixel difference: 0\n"
    image = read_png(path)
    red, green, blue = image.getpixel((3, 4))  # type: ignore[misc]
    image.putpixel((3, 4), (red, green - 9 if green > 100 else green + 9, blue))
    write_png(image, path)
    assert main(["replay", str(path), "-m", model, "-q"]) == 1
    assert capsys.readouterr().out == "largest pixel difference: 9\n"


def test_images_drawn_together_are_replayed_together(
    model: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_sizes: list[int] = []

    def counted(resolved: object, seeds: list[int], *rest: object) -> object:
        batch_sizes.append(len(seeds))
        return initial_latents(resolved, seeds, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "initial_latents", counted)
    options = ["-n", "5", "--seed", "3", "--batch-size", "2", "-q"]
    assert main(["draw", "a frog", "-m", model, "-o", str(tmp_path), *options]) == 0
    paths = capsys.readouterr().out.split()
    assert batch_sizes == [2, 2, 1]
    batches = [image_metadata(read_png(Path(path)))["batch"] for path in paths]
    assert batches == [[3, 2], [3, 2], [5, 2], [5, 2], [7, 1]]
    for path in (paths[1], paths[4]):
        assert main(["replay", path, "-m", model, "-q"]) == 0
    assert batch_sizes[3:] == [2, 1]


def test_replay_recognizes_another_model(model: str, tmp_path: Path, capsys: Capture) -> None:
    other = random_model()
    next(other.text_encoder.parameters()).data.add_(1)
    save(other, tmp_path / "other.safetensors")
    assert main(["draw", "a frog", "-m", model, "-o", str(tmp_path), "-q"]) == 0
    path = capsys.readouterr().out.strip()
    assert main(["replay", path, "-m", str(tmp_path / "other.safetensors")]) == 2
    error = capsys.readouterr().err
    assert random_model().hash in error and other.hash in error and "--model" in error and error.count("\n") == 1


def save_with_metadata(image: Image.Image, metadata: dict[str, Any], path: Path) -> None:
    """Save the image with these metadata, whatever they are."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(IMAGE_METADATA_KEY, json.dumps(metadata))
    image.save(path, pnginfo=chunks)


@pytest.mark.parametrize("prompt", [5, ["a frog"], "frog" * 50_000])
def test_metadata_whose_prompt_is_no_prompt(prompt: object, model: str, tmp_path: Path, capsys: Capture) -> None:
    image = unspeckle.draw(random_model(), "a frog", steps=1)[0]
    path = tmp_path / "a.png"
    save_with_metadata(image, {**image_metadata(image), "prompt": prompt}, path)
    assert main(["replay", str(path), "-m", model]) == 2
    assert capsys.readouterr().err == f"unspeckle: {path}: prompt: must be text of at most 100000 characters\n"


WRONG = [[], ["ddim"], {}, {"a": 1, "b": 2}, None, float("nan"), float("inf"), 10**400, -(10**400), "", "ab", True]
# All fields of the metadata that replay reads
FIELDS = (
    "prompt negative_prompt seed steps sampler timestep_spacing guidance_scale size model batch guidance_method "
    "guidance_rescale guidance_interval guide_model image mask strength hires_size upscaler clip_skip tile_size "
    "paste_original precision variation_seed variation_strength dynamic_threshold"
)


@pytest.mark.parametrize("name", FIELDS.split())
def test_metadata_with_a_field_that_it_may_not_have(name: str, model: str, tmp_path: Path, capsys: Capture) -> None:
    image = unspeckle.draw(random_model(), "a frog", seed=1, steps=1)[0]
    right = (str,) if name in ("prompt", "negative_prompt") else (bool,) if name == "paste_original" else ()
    for value in (value for value in WRONG if not isinstance(value, right)):
        save_with_metadata(image, {**image_metadata(image), name: value}, tmp_path / "a.png")
        assert main(["replay", str(tmp_path / "a.png"), "-m", model, "-q"]) == 2, value
        output = capsys.readouterr()
        assert output.out == "" and output.err.count("\n") == 1 and len(output.err) < 1000, value


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a wug on blorb stilts", "wug, blorb"),
        ("a (wug:1.2) [frog|blorb] BREAK hybrid(frog, zib) AND two \\(frogs\\) :0.5", "wug, blorb, zib"),
    ],
)
def test_words_that_the_model_does_not_know_are_named(
    prompt: str, words: str, model: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["draw", prompt, "-m", model, "-o", str(tmp_path), "--steps", "1"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == f"the model does not know these words: {words}"


def test_a_prompt_with_everything_is_replayed(model: str, tmp_path: Path, capsys: Capture) -> None:
    guide = random_model()
    next(guide.network.parameters()).data.add_(0.1)
    save(guide, tmp_path / "guide.safetensors")
    options = "--guidance-method apg --guidance-rescale 0.3 --guidance-interval 0.1,0.9 -n 2 -q --film-strip"
    prompt = "[a frog:two (frogs:1.3):0.5] NOT [pizza|a] AND hybrid(frog, rabbit, 0.4, guesses)"
    for more in ([], ["--guide-model", str(tmp_path / "guide.safetensors")]):
        assert main(["draw", prompt, "-m", model, "-o", str(tmp_path), *options.split(), *more]) == 0
        path = capsys.readouterr().out.splitlines()[2]
        assert main(["replay", path, "-m", model, *more]) == 0
        assert capsys.readouterr().out == "largest pixel difference: 0\n"
    assert main(["replay", path, "-m", model]) == 2
    assert f"guided by a weaker model, 'tiny' ({guide.hash}); give it by --guide-model" in capsys.readouterr().err
    assert main(["replay", path, "-m", model, "--guide-model", model]) == 2
    assert "give the right one by --guide-model" in capsys.readouterr().err


def test_ctrl_c_is_130_and_leaves_nothing_half_done(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unspeckle", "draw", "frog", "-m", model, "--steps", "1000", "-n", "64"]
    # A test run started with & in a shell ignores the signal, and its child processes would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen([*command, "-o", str(tmp_path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stderr is not None
        # The first line says that the first step is done.
        process.stderr.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err and out == b""
    assert list(tmp_path.iterdir()) == []
