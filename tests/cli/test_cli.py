"""The command line's contract: results on standard output, one line and exit code 2 for what a person can mend."""

import errno
import gc
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import unspeckle
from tiny_models import random_model, save_random_model
from unspeckle.cli import entry, main
from unspeckle.model_io.model_file import save
from unspeckle.output.png import attach_metadata, image_metadata, read_png, write_png


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_random_model(tmp_path_factory.mktemp("model")))


def test_draw_prints_absolute_paths_and_nothing_else(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["draw", "a", "frog", "-m", model, "--count", "3", "--seed", "7", "--out", "new/folder"]) == 0
    said = capsys.readouterr()
    expected = [tmp_path / "new" / "folder" / f"a-frog-{seed}.png" for seed in (7, 8, 9)]
    assert said.out.splitlines() == [str(path) for path in expected]
    ours = unspeckle.draw(random_model(), unspeckle.Request("a frog", seed=7, count=3))
    assert [read_png(path).tobytes() for path in expected] == [image.tobytes() for image in ours]
    assert said.err.splitlines()[-1] == "a frog: step 4 of 4"
    assert main(["draw", "a frog", "-m", model, "--quiet"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{tmp_path / 'a-frog-0.png'}\n", "")


def test_every_option_reaches_the_picture(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--seed 5 --steps 3 --sampler heun --grid karras --scale 2.5 --negative pizza --size 32x16 --strip -q"
    assert main(["draw", "-m", model, "-o", str(tmp_path), *options.split(), "--", "-frog"]) == 0
    picture, film = (Path(line) for line in capsys.readouterr().out.splitlines())
    said = image_metadata(read_png(picture))
    assert read_png(picture).size == (32, 16)
    del said["version"], said["model"]
    assert said == {
        "prompt": "-frog", "negative": "pizza", "seed": 5, "steps": 3, "sampler": "heun", "grid": "karras",
        "scale": 2.5, "size": [32, 16], "batch": [5, 1],
    }  # fmt: skip
    assert film.name == "frog-5-strip.png" and image_metadata(read_png(film))["film"] is True
    assert main(["replay", str(film), "-m", model]) == 2
    assert "replay the picture itself" in capsys.readouterr().err


def test_replay(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", "a frog", "-m", model, "-n", "3", "--sampler", "euler_a", "-o", str(tmp_path), "-q"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[2])
    assert main(["replay", str(path), "-m", model]) == 0
    assert capsys.readouterr().out == "largest pixel difference: 0\n"
    picture = read_png(path)
    red, green, blue = picture.getpixel((3, 4))  # type: ignore[misc]
    picture.putpixel((3, 4), (red, green - 9 if green > 100 else green + 9, blue))
    write_png(picture, path)
    assert main(["replay", str(path), "-m", model, "-q"]) == 1
    assert capsys.readouterr().out == "largest pixel difference: 9\n"


def test_pictures_drawn_together_are_replayed_together(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    door = sys.modules["unspeckle.generation.pipeline"]
    begin = door.begin
    monkeypatch.setattr(door, "begin", lambda *given: rows.append(len(given[2])) or begin(*given))
    line = ["draw", "a frog", "-m", model, "-n", "5", "--seed", "3", "--batch", "2", "-o", str(tmp_path), "-q"]
    assert main(line) == 0
    paths = capsys.readouterr().out.split()
    assert rows == [2, 2, 1]
    assert [image_metadata(read_png(Path(path)))["batch"] for path in paths] == [[3, 2], [3, 2], [5, 2], [5, 2], [7, 1]]
    for path in (paths[1], paths[4]):
        assert main(["replay", path, "-m", model, "-q"]) == 0
    assert rows[3:] == [2, 1]


def test_replay_knows_another_model(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = random_model()
    next(other.text_encoder.parameters()).data.add_(1)
    save(other, tmp_path / "other.safetensors")
    assert main(["draw", "a frog", "-m", model, "-o", str(tmp_path), "-q"]) == 0
    path = capsys.readouterr().out.strip()
    assert main(["replay", path, "-m", str(tmp_path / "other.safetensors")]) == 2
    said = capsys.readouterr().err
    assert random_model().hash in said and other.hash in said and "--model" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("prompt", [5, ["a frog"], "frog" * 50_000])
def test_a_record_whose_prompt_is_no_prompt(
    prompt: object, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["draw", "a frog", "-m", model, "-o", str(tmp_path), "-q"]) == 0
    path = Path(capsys.readouterr().out.strip())
    picture = read_png(path)
    write_png(attach_metadata(picture, {**image_metadata(picture), "prompt": prompt}), path)
    assert main(["replay", str(path), "-m", model]) == 2
    assert capsys.readouterr().err == "unspeckle: prompt: must be text of at most 100000 characters\n"


WRONG = [[], ["ddim"], {}, {"a": 1, "b": 2}, None, float("nan"), float("inf"), 10**400, -(10**400), "", "ab", True]
FIELDS = [  # of a record, all that replay reads
    "prompt", "negative", "seed", "steps", "sampler", "grid", "scale", "size", "model", "batch", "guidance", "rescale",
    "interval", "guide", "image", "mask", "strength", "hires", "upscaler", "clip_skip", "tiles", "paste", "precision",
    "variation", "variation_strength", "threshold",
]  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_a_record_whose_field_is_nothing_that_it_may_be(
    name: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = unspeckle.draw(random_model(), unspeckle.Request("a frog", seed=1, steps=1))[0]
    right = (str,) if name in ("prompt", "negative") else (bool,) if name == "paste" else ()
    for value in (value for value in WRONG if not isinstance(value, right)):
        write_png(attach_metadata(picture, {**image_metadata(picture), name: value}), tmp_path / "a.png")
        assert main(["replay", str(tmp_path / "a.png"), "-m", model, "-q"]) == 2, value
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and len(said.err) < 1000, value


def test_strange_words_are_named(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["draw", "a wug on blorb stilts", "-m", model, "-o", str(tmp_path)])
    assert capsys.readouterr().err.splitlines()[0] == "words the model never saw: wug, blorb"


def test_strange_words_are_those_that_are_said(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "a (wug:1.2) [frog|blorb] BREAK hybrid(frog, zib) AND two \\(frogs\\) :0.5"
    main(["draw", prompt, "-m", model, "-o", str(tmp_path), "--steps", "1"])
    assert capsys.readouterr().err.splitlines()[0] == "words the model never saw: wug, blorb, zib"


def test_a_prompt_with_everything_is_replayed(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guide = random_model()
    next(guide.network.parameters()).data.add_(0.1)
    save(guide, tmp_path / "guide.safetensors")
    options = ["--guidance", "apg", "--rescale", "0.3", "--interval", "0.1,0.9", "-n", "2", "-q", "--strip"]
    prompt = "[a frog:two (frogs:1.3):0.5] NOT [pizza|a] AND hybrid(frog, rabbit, 0.4, guesses)"
    for more in ([], ["--guide", str(tmp_path / "guide.safetensors")]):
        assert main(["draw", prompt, "-m", model, "-o", str(tmp_path), *options, *more]) == 0
        picture = capsys.readouterr().out.splitlines()[2]
        assert main(["replay", picture, "-m", model, *more]) == 0
        assert capsys.readouterr().out == "largest pixel difference: 0\n"
    assert main(["replay", picture, "-m", model]) == 2
    assert f"guided by a weaker model, 'tiny' ({guide.hash}); name it with --guide" in capsys.readouterr().err
    assert main(["replay", picture, "-m", model, "--guide", model]) == 2
    assert "name the right one with --guide" in capsys.readouterr().err


BAD = [
    ("dra frog", "'dra'"),
    ("--nonsense", "--nonsense"),
    ("draw frog --sede 3", "--sede"),
    ("draw", "PROMPT"),
    ("draw frog --steps many", "--steps"),
    ("draw frog -m MODEL --steps 0", "steps 0"),
    ("draw frog -m MODEL --count 0", "count 0"),
    ("draw frog -m MODEL --batch 0", "batch 0: must be a whole number"),
    ("draw frog -m MODEL --seed -1", "seed -1"),
    ("draw frog -m MODEL --sampler magic", "dpmpp_2m"),
    ("draw frog -m MODEL --grid magic", "karras"),
    ("draw frog -m MODEL --scale inf", "scale inf"),
    ("draw frog -m MODEL --size 30", "32x32"),
    ("draw frog -m MODEL --guidance magic", "cfg, apg"),
    ("draw frog -m MODEL --rescale 2", "rescale 2"),
    ("draw frog -m MODEL --interval 0.8", "0.1,0.8"),
    ("draw frog -m MODEL --guide HERE/nothing", "--guide HERE/nothing: no such file"),
    ("draw frog -m MODEL --guide MODEL --negative x", "NOT"),
    ("draw (frog -m MODEL", "unclosed"),
    ("draw frog -m MODEL --negative [frog", "negative: unclosed"),
    ("draw frog --size huge", "write 64 or"),
    ("check HERE --size 0", "write 64 or"),
    ("draw frog -m MODEL --device abacus", "abacus"),
    ("draw frog -m MODEL --out HERE/text", "HERE/text"),
    ("draw frog -m MODEL --out HERE/text/below", "HERE/text"),
    ("draw frog -m HERE/text", "HERE/text"),
    ("draw frog -m HERE/nothing", "--model HERE/nothing: no such file"),
    ("draw frog -m HERE", "model.safetensors"),
    ("replay HERE/nothing.png", "HERE/nothing.png"),
    ("replay HERE/text", "HERE/text"),
    ("convert HERE/nothing HERE/b.safetensors", "HERE/nothing: no such file or folder"),
    ("convert HERE/nothing", "wants A and B"),
    ("convert HERE/new --to magic", "choose one of onnx, openvino"),
    ("convert MODEL HERE/new", "has patches of 2 pixels"),
    ("distil / --steps 3", "/: holds no model"),
    ("distil HERE --steps 3", "HERE: holds no model.safetensors"),
    ("distil MODEL --out HERE/few --steps 3 --scale nan", "--scale nan"),
    ("distil MODEL --out HERE/few --steps 3 --scale inf", "--scale inf"),
    ("make-corpus", "Missing command"),
    ("make-corpus emoji HERE/new --scenes none", "--scenes"),
    ("make-corpus emoji HERE/new --scenes 0", "--scenes 0"),
    ("make-corpus emoji HERE/new --nouns ,", "--nouns"),
    ("check HERE/nothing", "HERE/nothing"),
    ("train", "folder"),
    ("train HERE --out HERE/run --for 45", "write 45m"),
    ("train HERE --out HERE/run --pictures few", "--pictures"),
    ("train HERE --out HERE/run --steps 0", "--steps 0"),
]


@pytest.mark.parametrize(("line", "names"), BAD)
def test_bad_input(
    line: str,
    names: str,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("Dear model, please draw me a frog.\n")
    words = [word.replace("MODEL", model).replace("HERE", str(tmp_path)) for word in line.split()]
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert names.replace("HERE", str(tmp_path)) in said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text"]


def test_odd_names_stay_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", "x", "-m", f"{tmp_path}/two\nlines\x1b[31m"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "\x1b" not in said


def test_a_folder_that_cannot_be_written(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", "x", "-m", model, "-o", "/proc/nowhere"]) == 2
    said = capsys.readouterr().err
    assert "/proc/nowhere" in said and len(said.splitlines()) == 1


def test_a_full_disk_is_told_with_the_file_that_was_to_be(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    picture, report = tmp_path / "a-frog-0.png", tmp_path / "a.html"
    for words, name in (
        (["draw", "a frog", "-m", model, "-o", str(tmp_path)], picture),
        (["score", model, "-n", "8", "-o", str(report)], report),
    ):
        assert main([*words, "--steps", "1", "-q"]) == 2
        said = capsys.readouterr()
        assert said.err == f"unspeckle: {name}: No space left on device; free some, and give the same command again\n"
        assert said.out == "" and list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_is_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object) -> torch.Tensor:
        return torch.empty(2**55)

    monkeypatch.setattr("unspeckle.commands.draw.signed", greedy)
    assert main(["draw", "a frog", "-m", model, "-o", str(tmp_path), "-q"]) == 2
    assert capsys.readouterr().err == (
        "unspeckle: memory does not suffice; ask for fewer or smaller pictures, or a smaller --batch\n"
    )


def test_train_parses_what_people_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    command = ModuleType("unspeckle.training.command")
    command.run = lambda options: seen.append(options) or 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unspeckle.training.command", command)
    line = (
        "train pictures --out run --for 1h30m --size 96x64 --preset atom --captions folders --from m.safetensors"
        " --seed 3 --batch 32 --device cpu --precision bfloat16 --no-compile --no-mirror --plan --json"
    )
    assert main([*line.split(), "--template", "a {}", "--caption", ""]) == 0
    assert main(["train", "pictures", "--out", "run", "--pictures", "2M"]) == 0
    assert main(["train", "pictures", "--out", "run", "--steps", "1.5k"]) == 0
    first, second, third = seen
    from unspeckle.training.options import TrainOptions

    assert first == TrainOptions(
        folder=Path("pictures"), out=Path("run"), seconds=5400.0, size="96x64", preset="atom", captions="folders",
        caption="", template="a {}", from_model=Path("m.safetensors"), seed=3, batch_size=32, device="cpu",
        precision="bfloat16", compile=False, flip=False, plan_only=True, json=True,
    )  # fmt: skip
    assert second == TrainOptions(folder=Path("pictures"), out=Path("run"), images=2_000_000)
    assert third == TrainOptions(folder=Path("pictures"), out=Path("run"), steps=1500)


def test_check_says_what_is_amiss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
        (tmp_path / f"{i}.txt").write_text(f"a frog, number {i}")
    assert main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:400])
    assert main(["check", str(tmp_path), "--json"]) == 1
    said = capsys.readouterr()
    assert '"kind": "unreadable"' in said.out and "2.png" in said.out and len(said.out.splitlines()) == 1
    assert "2.png" in said.err


def test_ctrl_c_is_130_and_leaves_nothing_half_done(model: str, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "unspeckle", "draw", "frog", "-m", model, "--steps", "1000", "-n", "64"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite run with & would hand its deafness down
    with subprocess.Popen([*line, "-o", str(tmp_path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stderr is not None
        running.stderr.readline()  # a first step is done
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert b"Traceback" not in err and out == b""
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_its_own_looks_for_no_cycles_at_its_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["unspeckle", "draw", "a frog", "--steps", "0"])
    try:
        assert entry() == 2 and gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("unspeckle ")
    assert main([]) == 0
    assert "make-corpus" in capsys.readouterr().out
