"""The command line where a drawing starts from a picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_image_tasks import mask, picture

import unspeckle
from tiny_models import random_model, save_random_model
from unspeckle.cli import main
from unspeckle.generation.metadata import image_fingerprint
from unspeckle.output.png import image_metadata, read_png


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a picture and a mask."""
    folder = tmp_path_factory.mktemp("pictures")
    save_random_model(folder)
    picture().save(folder / "photo.png")
    picture(32, 32).save(folder / "other.png")
    mask().save(folder / "mask.png")
    (folder / "text.png").write_text("no picture")
    return folder


def draw(place: Path, out: Path, options: str, command: str = "draw frog") -> int:
    said = options.replace("PLACE", str(place)).split()
    return main([*command.split(), "-m", str(place / "tiny.safetensors"), "-q", "-o", str(out), *said])


def test_options_reach_the_picture(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--image PLACE/photo.png --mask PLACE/mask.png --strength 0.75 --variation 9 --variation-strength 0.5"
    assert draw(place, tmp_path, f"{options} --no-paste --tiles 64 --count 2") == 0
    paths = capsys.readouterr().out.split()
    ask = unspeckle.Request(
        "frog",
        count=2,
        image=picture(),
        mask=mask(),
        strength=0.75,
        variation_seed=9,
        variation_strength=0.5,
        paste_original=False,
    )
    expected = unspeckle.draw(random_model(), ask)
    assert [read_png(Path(path)).tobytes() for path in paths] == [image.tobytes() for image in expected]
    said = image_metadata(read_png(Path(paths[1])))
    assert said["image"] == image_fingerprint(picture()) and said["mask"] == image_fingerprint(mask())
    assert (said["seed"], said["variation"], said["strength"], said["paste"]) == (0, 10, 0.75, False)
    assert draw(place, tmp_path, "--hires 32x24 --upscaler latent --strength 0.5 --strip") == 0
    large, film = (Path(path) for path in capsys.readouterr().out.split())
    assert (
        read_png(large).size == (32, 24)
        and image_metadata(read_png(large))["hires"] == [32, 24]
        and film.name.endswith("strip.png")
    )


def test_replay_wants_the_same_picture(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(place, tmp_path, "--image PLACE/photo.png --mask PLACE/mask.png --sampler euler_a") == 0
    path, model = capsys.readouterr().out.strip(), str(place / "tiny.safetensors")
    replay = ["replay", path, "-m", model, "-q"]
    photo, hole = ["--image", str(place / "photo.png")], ["--mask", str(place / "mask.png")]
    assert main([*replay, *photo, *hole]) == 0
    assert capsys.readouterr().out == "largest pixel difference: 0\n"
    assert main([*replay, *hole]) == 2
    assert "name it with --image" in capsys.readouterr().err
    assert main([*replay, *photo]) == 2
    assert "name it with --mask" in capsys.readouterr().err
    assert main([*replay, "--image", str(place / "other.png"), *hole]) == 2
    assert "other.png: is not the picture" in capsys.readouterr().err
    resaved = tmp_path / "resaved.bmp"
    picture().save(resaved)  # another file of the same pixels
    assert main([*replay, "--image", str(resaved), *hole]) == 0
    for options in ("--variation 3 -n 2", "--hires 32"):
        capsys.readouterr()
        assert draw(place, tmp_path / "more", options) == 0
        assert main(["replay", capsys.readouterr().out.split()[-1], "-m", model, "-q"]) == 0
    assert capsys.readouterr().out == "largest pixel difference: 0\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--image PLACE/none.png", "none.png: no such picture"),
        ("--image PLACE/text.png", "text.png: cannot be read (not a picture, or damaged)"),
        ("--image PLACE", "no such picture"),
        ("--mask PLACE/mask.png", "give image as well"),
        ("--image PLACE/other.png --mask PLACE/mask.png", "mask: is 16x16"),
        ("--strength 0.5", "give image or hires"),
        ("--image PLACE/photo.png --strength 2", "strength 2"),
        ("--hires huge", "--hires 'huge': is no size"),
        ("--clip-skip 2", "without CLIP"),
        ("--tiles -1", "tiles -1"),
        ("--upscaler magic", "choose one of lanczos, latent"),
        ("--variation x", "see unspeckle draw --help"),
    ],
)
def test_bad_input_is_one_line_and_2(
    options: str, says: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(place, tmp_path, options) == 2
    said = capsys.readouterr()
    assert said.out == "" and says in said.err and said.err.count("\n") == 1


def test_photographs_are_upright_and_on_white(place: Path, tmp_path: Path) -> None:
    from unspeckle.commands.draw import open_input_image

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture(32, 16).save(tmp_path / "turned.png", exif=exif)
    turned = open_input_image(tmp_path / "turned.png", "--image")
    assert turned is not None and turned.size == (16, 32)
    assert turned.tobytes() == picture(32, 16).transpose(Image.Transpose.ROTATE_270).tobytes()
    Image.fromarray(np.zeros((16, 16, 4), np.uint8)).save(tmp_path / "clear.png")
    clear = open_input_image(tmp_path / "clear.png", "--image")
    assert clear is not None and clear.getextrema() == ((255, 255),) * 3


def test_help_has_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", "--help"]) == 0
    said = capsys.readouterr().out
    places = [said.index(f"\n{group}:") for group in ("Options", "Guidance", "From a picture, or toward another")]
    assert places == sorted(places) and said.index("--mask") > places[2] > said.index("--rescale") > places[1]
