"""What the user can correct is one line on standard error and exit code 2, and names options that the command has."""

import errno
import gc
import sys
from pathlib import Path

import pytest
import torch

from unspeckle.cli import main
from unspeckle.cli.app import entry

Capture = pytest.CaptureFixture[str]


BAD = [
    ("dra frog", "'dra'"),
    ("--nonsense", "--nonsense"),
    ("draw frog --sede 3", "--sede"),
    ("draw", "PROMPT"),
    ("draw frog --steps many", "--steps"),
    ("draw frog -m MODEL --steps 0", "--steps 0"),
    ("draw frog -m MODEL --count 0", "--count 0"),
    ("draw frog -m MODEL --batch-size 0", "--batch-size 0: must be a whole number"),
    ("draw frog -m MODEL --seed -1", "--seed -1"),
    ("draw frog -m MODEL --sampler magic", "dpmpp_2m"),
    ("draw frog -m MODEL --sampler euler_a", "--sampler euler_a: is now called euler_ancestral"),
    ("draw frog -m MODEL --timestep-spacing magic", "karras"),
    ("draw frog -m MODEL --guidance-scale inf", "--guidance-scale inf"),
    ("draw frog -m MODEL --size 30", "32x32"),
    ("draw frog -m MODEL --guidance-method magic", "cfg, apg"),
    ("draw frog -m MODEL --guidance-rescale 2", "--guidance-rescale 2"),
    ("draw frog -m MODEL --guidance-interval 0.8", "0.1,0.8"),
    ("draw frog -m MODEL --guide-model HERE/nothing", "--guide-model HERE/nothing: no such file"),
    ("draw frog -m MODEL --guide-model MODEL --negative-prompt x", "NOT"),
    ("draw (frog -m MODEL", "PROMPT: unclosed"),
    ("draw frog -m MODEL --negative-prompt [frog", "--negative-prompt: unclosed"),
    ("draw frog --size huge", "write 64, or"),
    ("check HERE --size 0", "write 64, or"),
    ("draw frog -m MODEL --device abacus", "--device 'abacus': unknown; choose cpu, cuda or mps"),
    ("draw frog -m MODEL --device mps:7", "--device mps:7: there is no such device"),
    ("draw frog -m MODEL --precision int3", "--precision 'int3': unknown"),
    ("draw frog -m MODEL --out HERE/text", "HERE/text"),
    ("draw frog -m MODEL --out HERE/text/below", "HERE/text"),
    ("draw frog -m HERE/text", "HERE/text"),
    ("draw frog -m HERE/nothing", "--model HERE/nothing: no such file"),
    ("draw frog -m HERE", "model.safetensors"),
    ("replay HERE/nothing.png", "HERE/nothing.png"),
    ("replay HERE/text", "HERE/text"),
    ("convert HERE/nothing HERE/b.safetensors", "HERE/nothing: no such file or folder"),
    ("convert HERE/nothing", "MODEL: is missing"),
    ("convert MODEL MODEL HERE/new", "MODEL: is more than one"),
    ("convert HERE/new --to magic", "choose one of onnx, openvino"),
    ("convert MODEL HERE/new", "has patches of 2 pixels"),
    ("distil / --steps 3", "/: contains no model"),
    ("distil HERE --steps 3", "HERE: holds no model.safetensors"),
    ("distil MODEL --out HERE/few --steps 3 --guidance-scale nan", "--guidance-scale nan"),
    ("distil MODEL --out HERE/few --steps 3 --guidance-scale inf", "--guidance-scale inf"),
    ("make-corpus", "Missing command"),
    ("make-corpus emoji HERE/new --scenes none", "--scenes"),
    ("make-corpus emoji HERE/new --scenes 0", "--scenes 0"),
    ("make-corpus emoji HERE/new --nouns ,", "--nouns"),
    ("check HERE/nothing", "HERE/nothing"),
    ("train", "FOLDER"),
    ("train HERE --out HERE/run --for 45", "write 45m"),
    ("train HERE --out HERE/run --images few", "--images"),
    ("train HERE --out HERE/run --steps 0", "--steps 0"),
    ("train HERE --out HERE/run --steps 9 --lora", "--from"),
]
WITHOUT_EFFECT = [
    ("draw frog -m MODEL --paste-original", "--paste-original: has an effect only with --mask"),
    ("draw frog -m MODEL --no-paste-original", "--paste-original: has an effect only with --mask"),
    ("draw frog -m MODEL --variation-strength 0.1", "--variation-strength: has an effect only with --variation-seed"),
    ("draw frog -m MODEL --upscaler latent", "--upscaler: has an effect only with --hires-size"),
    ("draw frog -m MODEL --strength 1", "--strength: has an effect only with --image or --hires-size"),
    ("draw frog -m MODEL --preview HERE/text -q", "--preview: has no effect with --quiet"),
    ("draw frog -m MODEL --prediction v", "--prediction: is only for Stable Diffusion"),
    ("draw frog --prediction v", "--prediction: is only for Stable Diffusion"),
    ("convert MODEL HERE/new --prediction v", "--prediction: is only for Stable Diffusion"),
    ("convert HERE/new --to onnx --prediction v", "--prediction: is only for Stable Diffusion"),
    ("score MODEL --captions txt", "--captions: has an effect only with --corpus"),
    ("score MODEL --template a_{name}", "--template: has an effect only with --corpus"),
    ("train HERE --out HERE/run --steps 9 --rank 8", "--rank: has an effect only with --lora"),
    ("train HERE --out HERE/run --steps 9 --prediction v", "--prediction: has an effect only with --lora"),
    ("train HERE --out HERE/run --steps 9 --plan --quiet", "--quiet: hides the plan"),
    ("distil MODEL --out HERE/run --steps 9 --plan --quiet", "--quiet: hides the plan"),
    ("train HERE --out HERE/run --steps 9 --json", "--json: has an effect only with --plan"),
    ("distil MODEL --out HERE/run --steps 9 --json", "--json: has an effect only with --plan"),
    ("score MODEL --prompts 9", "--prompts 9: has an effect only if --corpus"),
    ("train HERE --out HERE/run --steps 9 --lora --preset nano", "--preset: does not go with --lora"),
]
RENAMED = [
    ("draw frog --scale 3", "--scale is now --guidance-scale"),
    ("draw frog --scale=3", "--scale is now --guidance-scale"),
    ("draw frog --no-paste", "--no-paste is now --no-paste-original"),
    ("draw frog --guidance apg", "--guidance is now --guidance-method"),
    ("train HERE --out HERE/run --pictures 2M", "--pictures is now --images"),
    ("train HERE --out HERE/run --no-mirror", "--no-mirror is now --no-flip"),
    ("score --grid karras", "--grid is now --timestep-spacing"),
    ("distil MODEL --batch 3", "--batch is now --batch-size"),
    ("check HERE --scale 3", "--scale"),
]


@pytest.mark.parametrize(("line", "message"), BAD + WITHOUT_EFFECT + RENAMED)
def test_bad_input(
    line: str, message: str, model: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("Dear model, please draw me a frog.\n")
    words = [word.replace("MODEL", model).replace("HERE", str(tmp_path)) for word in line.split()]
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1 and message.replace("HERE", str(tmp_path)) in output.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]


def test_an_unknown_option_that_was_renamed_elsewhere_is_unknown(capsys: Capture) -> None:
    assert main(["check", ".", "--scale", "3"]) == 2
    assert "is now" not in capsys.readouterr().err


def test_options_without_effect_are_noted(model: str, tmp_path: Path, capsys: Capture) -> None:
    line = ["draw", "a frog", "-m", model, "-o", str(tmp_path), "--steps", "1"]
    assert main([*line, "--tile-size", "64"]) == 0
    assert capsys.readouterr().err.startswith("--tile-size: no effect, ")
    assert main([*line, "--guidance-scale", "1", "--guidance-rescale", "0.5"]) == 0
    assert capsys.readouterr().err.startswith("--guidance-rescale: no effect at guidance scale 1, ")


def test_odd_file_names_stay_one_line(tmp_path: Path, capsys: Capture) -> None:
    assert main(["draw", "x", "-m", f"{tmp_path}/two\nlines\x1b[31m"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "\x1b" not in error


def test_a_folder_that_cannot_be_written(model: str, capsys: Capture) -> None:
    assert main(["draw", "x", "-m", model, "-o", "/proc/nowhere"]) == 2
    error = capsys.readouterr().err
    assert "/proc/nowhere" in error and error.count("\n") == 1


def test_a_full_disk_is_reported_with_the_file_that_was_being_written(
    model: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for words, file in (
        (["draw", "a frog", "-m", model, "-o", str(tmp_path)], tmp_path / "a-frog-0.png"),
        (["score", model, "-n", "8", "-o", str(tmp_path / "a.html")], tmp_path / "a.html"),
    ):
        assert main([*words, "--steps", "1", "-q"]) == 2
        output = capsys.readouterr()
        advice = "free some space and repeat the command"
        assert output.err == f"unspeckle: {file}: No space left on device; {advice}\n"
        assert output.out == "" and list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_is_one_line(
    model: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate_too_much(*_: object) -> torch.Tensor:
        return torch.empty(2**55)

    monkeypatch.setattr("unspeckle.cli.run_draw.images_with_metadata", allocate_too_much)
    assert main(["draw", "a frog", "-m", model, "-o", str(tmp_path), "-q"]) == 2
    message = "out of memory: choose fewer or smaller images or use a smaller --batch-size"
    assert capsys.readouterr().err == f"unspeckle: {message}\n"


def test_a_process_of_its_own_does_not_collect_garbage_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["unspeckle", "draw", "a frog", "--steps", "0"])
    try:
        assert entry() == 2 and gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
