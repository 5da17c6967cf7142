"""The options of the commands: their names, their help, and the options that messages name."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

import unspeckle
from unspeckle.cli import main
from unspeckle.cli.app import app
from unspeckle.cli.command import NEEDED_OPTIONS, RENAMED_OPTIONS, option_names
from unspeckle.corpus.emoji.nouns import CURATED_NOUNS, all_nouns
from unspeckle.errors import InputError, option_name
from unspeckle.presets import PRESETS
from unspeckle.samplers import SAMPLERS
from unspeckle.timesteps import TIMESTEP_SPACINGS

ROOT = Path(unspeckle.__file__).parent
# Options of other programs that messages name: Homebrew's
FOREIGN_OPTIONS = {"--cask"}
# Arguments of Python functions that no command hands on
PYTHON_ARGUMENTS = {"dtype", "prompts_per_category", "start"}
EXPECTED = {
    "draw": "model seed count batch-size steps sampler timestep-spacing guidance-scale negative-prompt size out "
    "film-strip guidance-method guidance-rescale guidance-interval dynamic-threshold guide-model image strength mask "
    "paste-original no-paste-original like mix from-words to-words variation-seed variation-strength hires-size "
    "upsampler upscaler prediction trust-pickle "
    "lora embedding vae preview clip-skip tile-size precision device quiet",
    "train": "out for images steps size preset space captions caption template from optimizer learning-rate seed "
    "batch-size device precision compile no-compile flip no-flip balance caption-augmentation "
    "no-caption-augmentation license lora rank train-text-encoder layout "
    "prediction trust-pickle kind loss factor unconditional plan json quiet",
    "distil": "out for images steps corpus guidance-scale seed batch-size device precision plan json quiet",
    "score": "corpus out features images seeds prompts steps sampler timestep-spacing guidance-scale captions caption "
    "template json prediction trust-pickle precision device quiet",
    "replay": "model guide-model image mask like upsampler lora embedding vae prediction trust-pickle device quiet",
    "check": "captions caption template size json",
    "convert": "to prediction trust-pickle",
    "emoji": "scenes seed nouns size sprites quiet",
}


def all_commands() -> dict[str, Any]:
    """The commands by their names, without groups of commands."""
    group: Any = typer.main.get_command(app)
    corpus = group.commands["make-corpus"].commands
    return {name: one for name, one in {**group.commands, **corpus}.items() if name != "make-corpus"}


ALL_OPTIONS = frozenset[str]().union(*map(option_names, all_commands().values()))


def test_the_options_of_each_command() -> None:
    found = {
        name: {one for one in option_names(command) if one.startswith("--")} for name, command in all_commands().items()
    }
    assert found == {name: {f"--{one}" for one in options.split()} for name, options in EXPECTED.items()}


def test_renamed_options_have_gone_and_their_new_names_exist() -> None:
    assert set(RENAMED_OPTIONS.values()) <= ALL_OPTIONS
    assert not ALL_OPTIONS & set(RENAMED_OPTIONS)


def test_options_that_need_others_exist() -> None:
    for command, options in NEEDED_OPTIONS.items():
        names = {*options, *(name for needed in options.values() for name in needed)}
        assert names <= option_names(all_commands()[command])


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", [*EXPECTED, ""])
def test_help(name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([*(["make-corpus"] if name == "emoji" else []), *([name] if name else []), "--help"]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= columns for line in text.splitlines())
    # No name is broken at a hyphen.
    assert not [line for line in text.splitlines() if re.search(r"\w-$", line)]
    # Every option's text begins with a capital letter, and is a phrase of at least two words.
    for param in all_commands()[name].params if name else ():
        help_text = getattr(param, "help", None)
        assert help_text and help_text[0].isupper() and len(help_text.split()) > 2, param.name


def test_help_has_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", "--help"]) == 0
    text = capsys.readouterr().out
    titles = ("Options", "Guidance", "Starting from an image", "Variations and high resolution", "Stable Diffusion")
    groups = [text.index(f"\n{title}:") for title in titles]
    assert groups == sorted(groups)
    assert groups[3] > text.index("--mask FILE") > groups[2] > text.index("--guidance-rescale") > groups[1]
    assert groups[4] > text.index("--upscaler lanczos") > text.index("--variation-seed N") > groups[3]
    assert main(["train", "--help"]) == 0
    assert "\nLoRA training:" in capsys.readouterr().out


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n    {code:<3}  " in text for code in (0, 1, 2, 130))
    assert main(["convert", "--help"]) == 0
    assert "convert [OPTIONS] [MODEL] OUT\n" in capsys.readouterr().out


def test_help_counts_the_curated_nouns() -> None:
    nouns = next(param.help for param in all_commands()["emoji"].params if param.name == "nouns")
    assert f"curated list of {len(CURATED_NOUNS)} nouns" in nouns and len(all_nouns()) > 600


def test_help_without_a_command_says_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert '\n      unspeckle draw "a frog on stilts"\n' in text and "make-corpus" in text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("unspeckle ")


@pytest.mark.parametrize(
    ("option", "names"),
    [("sampler", SAMPLERS), ("timestep_spacing", TIMESTEP_SPACINGS), ("preset", PRESETS)],
)
def test_help_lists_all_choices(option: str, names: Any) -> None:
    for command in all_commands().values():
        for param in (one for one in command.params if one.name == option):
            choices = param.help.partition(":")[2].partition("  [default")[0]
            assert [word for word in re.findall(r"[\w-]+", choices) if word in names] == list(names)


def strings_of(file: Path) -> Iterator[str]:
    """All string constants of a source file, also those within f-strings."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def sources() -> list[Path]:
    """All source files but the one with the table of old names."""
    return sorted(file for file in ROOT.rglob("*.py") if file != ROOT / "cli" / "command.py")


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_messages_name_options_that_a_command_has(file: Path) -> None:
    for text in strings_of(file):
        found = set(re.findall(r"(?<![\w(-])--[a-z][a-z-]*[a-z](?![\w-])", text))
        assert found <= ALL_OPTIONS | FOREIGN_OPTIONS | {"--help", "--version"}, text


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_arguments_that_errors_name_are_options_of_a_command(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError"):
            continue
        arguments = [*node.args[1:], *(keyword.value for keyword in node.keywords if keyword.arg == "option")]
        for argument in arguments:
            if isinstance(argument, ast.Constant) and argument.value not in PYTHON_ARGUMENTS:
                assert option_name(str(argument.value)) in ALL_OPTIONS, argument.value


def test_errors_name_options_as_the_command_has_them() -> None:
    error = InputError(" 2: too much; give `image` or `hires_size`, see `docs`", "guidance_scale")
    assert str(error) == "guidance_scale 2: too much; give `image` or `hires_size`, see `docs`"
    options = {"--guidance-scale", "--image", "--hires-size"}
    assert error.for_command_line(options) == ("--guidance-scale 2: too much; give --image or --hires-size, see `docs`")
    assert error.for_command_line({"--image"}).startswith("guidance_scale 2: too much; give --image or `hires_size`")
    assert InputError(": empty", "prompt").for_command_line() == "PROMPT: empty"
    assert InputError(": empty", "seconds").for_command_line() == "--for: empty"


def test_train_parses_what_people_write(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    command = ModuleType("unspeckle.training.train_command")
    command.run_training = lambda options: calls.append(options) or 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unspeckle.training.train_command", command)
    line = (
        "train photos --out run --for 1h30m --size 96x64 --preset nano --captions folders --from m.safetensors"
        " --seed 3 --batch-size 32 --device cpu --precision bfloat16 --no-compile --no-flip --plan --json"
    )
    assert main([*line.split(), "--template", "a {}", "--caption", ""]) == 0
    assert main(["train", "photos", "--out", "run", "--images", "2M"]) == 0
    assert main(["train", "photos", "--out", "run", "--steps", "1.5k"]) == 0
    from unspeckle.training.options import TrainOptions

    assert calls[0] == TrainOptions(
        folder=Path("photos"),
        out=Path("run"),
        seconds=5400.0,
        size="96x64",
        preset="nano",
        captions="folders",
        caption="",
        template="a {}",
        from_model=Path("m.safetensors"),
        seed=3,
        batch_size=32,
        device="cpu",
        precision="bfloat16",
        compile=False,
        flip=False,
        plan_only=True,
        json=True,
    )
    assert calls[1] == TrainOptions(folder=Path("photos"), out=Path("run"), images=2_000_000)
    assert calls[2] == TrainOptions(folder=Path("photos"), out=Path("run"), steps=1500)


def test_check_reports_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"a frog, number {i}")
    assert main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:400])
    assert main(["check", str(tmp_path), "--json"]) == 1
    output = capsys.readouterr()
    assert '"kind": "unreadable"' in output.out and "2.png" in output.out and output.out.count("\n") == 1
    assert "2.png" in output.err
