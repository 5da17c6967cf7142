"""The command line where a drawing starts from an image."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unspeckle
from sample_images import make_image, make_mask
from tiny_models import random_model
from unspeckle.cli import main
from unspeckle.cli.run_draw import read_input_image
from unspeckle.generation.metadata import image_fingerprint, image_metadata
from unspeckle.output.png import read_png

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    """A folder with a model, an image and a mask."""
    folder = tmp_path_factory.mktemp("images")
    shutil.copy(model, folder / "tiny.safetensors")
    make_image().save(folder / "photo.png")
    make_image(32, 32).save(folder / "other.png")
    make_mask().save(folder / "mask.png")
    (folder / "text.png").write_text("no image")
    return folder


def draw(folder: Path, out: Path, options: str) -> int:
    words = options.replace("FOLDER", str(folder)).split()
    return main(["draw", "frog", "-m", str(folder / "tiny.safetensors"), "-q", "-o", str(out), *words])


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_embedded_model_starts_from_an_image_in_every_precision(
    folder: Path, tmp_path: Path, capsys: Capture, precision: str
) -> None:
    words = ["draw", "a frog", "--image", str(folder / "photo.png"), "--size", "64", "--steps", "4", "-q"]
    assert main([*words, "--precision", "float32", "-o", str(tmp_path / "float32")]) == 0
    assert main([*words, "--precision", precision, "-o", str(tmp_path / precision)]) == 0
    expected, image = (np.asarray(read_png(Path(path)), float) for path in capsys.readouterr().out.split())
    assert np.abs(image - expected).mean() < 10


def test_options_reach_the_image(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    options = "--image FOLDER/photo.png --mask FOLDER/mask.png --strength 0.75 --no-paste-original"
    options += " --variation-seed 9 --variation-strength 0.5 --count 2"
    assert draw(folder, tmp_path, options) == 0
    paths = capsys.readouterr().out.split()
    request = unspeckle.Request(
        "frog",
        count=2,
        image=make_image(),
        mask=make_mask(),
        strength=0.75,
        variation_seed=9,
        variation_strength=0.5,
        paste_original=False,
    )
    expected = unspeckle.draw(random_model(), request)
    assert [read_png(Path(path)).tobytes() for path in paths] == [image.tobytes() for image in expected]
    metadata = image_metadata(read_png(Path(paths[1])))
    assert metadata["image"] == image_fingerprint(make_image()) and metadata["mask"] == image_fingerprint(make_mask())
    assert (metadata["seed"], metadata["variation_seed"], metadata["strength"]) == (0, 10, 0.75)
    assert metadata["paste_original"] is False
    assert draw(folder, tmp_path, "--hires-size 32x24 --upscaler latent --strength 0.5 --film-strip") == 0
    large, film = (Path(path) for path in capsys.readouterr().out.split())
    assert read_png(large).size == (32, 24) and image_metadata(read_png(large))["hires_size"] == [32, 24]
    assert film.name.endswith("strip.png")


def test_replay_needs_the_same_image(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    options = "--image FOLDER/photo.png --mask FOLDER/mask.png --sampler euler_ancestral"
    assert draw(folder, tmp_path, options) == 0
    path, model = capsys.readouterr().out.strip(), str(folder / "tiny.safetensors")
    replay = ["replay", path, "-m", model, "-q"]
    image, mask = ["--image", str(folder / "photo.png")], ["--mask", str(folder / "mask.png")]
    assert main([*replay, *image, *mask]) == 0
    assert capsys.readouterr().out == "largest pixel difference: 0\n"
    assert main([*replay, *mask]) == 2
    assert "give it by --image" in capsys.readouterr().err
    assert main([*replay, *image]) == 2
    assert "give it by --mask" in capsys.readouterr().err
    assert main([*replay, "--image", str(folder / "other.png"), *mask]) == 2
    assert "other.png: is not the image" in capsys.readouterr().err
    # Another file with the same pixels is the same image.
    resaved = tmp_path / "resaved.bmp"
    make_image().save(resaved)
    assert main([*replay, "--image", str(resaved), *mask]) == 0
    for options in ("--variation-seed 3 -n 2", "--hires-size 32"):
        capsys.readouterr()
        assert draw(folder, tmp_path / "more", options) == 0
        path = capsys.readouterr().out.split()[-1]
        assert main(["replay", path, "-m", model, "-q"]) == 0
        assert capsys.readouterr().out == "largest pixel difference: 0\n"
        assert main(["replay", path, "-m", model, "-q", *image]) == 2
        assert f"--image: {path} was drawn without one; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--image FOLDER/none.png", "none.png: no such image"),
        ("--image FOLDER/text.png", "text.png: cannot be read ("),
        ("--image FOLDER", "no such image"),
        ("--mask FOLDER/mask.png", "--image"),
        ("--image FOLDER/other.png --mask FOLDER/mask.png", "--mask: is 16x16"),
        ("--strength 0.5", "--strength: has an effect only with --image or --hires-size"),
        ("--image FOLDER/photo.png --strength 2", "--strength 2"),
        ("--hires-size huge", "--hires-size 'huge': is not a size"),
        ("--clip-skip 2", "--clip-skip 2"),
        ("--tile-size -1", "--tile-size -1"),
        ("--hires-size 32 --upscaler magic", "--upscaler 'magic': unknown; choose one of lanczos, latent"),
        ("--variation-seed x", "see unspeckle draw --help"),
    ],
)
def test_bad_input_is_one_line_and_2(options: str, message: str, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    assert draw(folder, tmp_path, options) == 2
    output = capsys.readouterr()
    assert output.out == "" and message in output.err and output.err.count("\n") == 1


def test_photographs_are_upright_and_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    # Orientation: to be turned by a quarter
    exif[0x0112] = 6
    make_image(32, 16).save(tmp_path / "turned.png", exif=exif)
    turned = read_input_image(tmp_path / "turned.png", "--image")
    assert turned is not None and turned.size == (16, 32)
    assert turned.tobytes() == make_image(32, 16).transpose(Image.Transpose.ROTATE_270).tobytes()
    Image.fromarray(np.zeros((16, 16, 4), np.uint8)).save(tmp_path / "clear.png")
    clear = read_input_image(tmp_path / "clear.png", "--image")
    assert clear is not None and clear.getextrema() == ((255, 255),) * 3
