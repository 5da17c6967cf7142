"""`unspeckle score`: numbers on standard output, everything else next to it, and bad input refused before the work."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import make_plan, make_student_plan, model_with_student, random_model
from unspeckle import configuration
from unspeckle.cli import main
from unspeckle.cli.score_options import check_report_path
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import open_corpus
from unspeckle.errors import InputError
from unspeckle.model_io.model_file import save
from unspeckle.scoring.scores import Scores
from unspeckle.training.plan_file import save_plan

SMALL = ["--images", "16", "--steps", "2"]
SMALL_CORPUS = [*SMALL, "--seeds", "2"]


def score(*arguments: object) -> int:
    return main(["score", *map(str, arguments)])


def read_json(report: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(report.with_suffix(".json").read_text())
    return values


def without_times(scores: Scores) -> Scores:
    return replace(
        scores,
        seconds_per_image=0.0,
        by_steps=tuple(replace(p, seconds_per_image=0.0) for p in scores.by_steps),
        by_guidance_scale=tuple(replace(p, seconds_per_image=0.0) for p in scores.by_guidance_scale),
    )


def test_scores_with_a_corpus(
    model_file: Path, square_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert score(model_file, "--corpus", square_corpus, "-o", out, *SMALL_CORPUS) == 0
    output = capsys.readouterr()
    assert output.out.splitlines() == [str(out), str(out.with_suffix(".json"))]
    assert "at 16x16" in output.err and "note: " in output.err and "s left" in output.err
    scores = configuration.from_json(Scores, read_json(out), "scores")
    assert scores.hash == random_model().hash
    assert (scores.images_per_seed, scores.seeds, scores.steps) == (16, (0, 1), 2)
    assert scores.corpus is not None and not scores.corpus.is_training_corpus
    assert "another corpus" in " ".join(scores.warnings)
    assert [d.name for d in scores.distances] == ["kid", "frechet", "precision", "recall", "density", "coverage"]
    assert scores.loss is not None and scores.bits_per_dim is not None and scores.memorization is not None
    distance = scores.find_distance("kid")
    assert distance is not None and distance.generated.mean > 10 * abs(distance.floor.mean)  # an untrained model
    assert all(p.kid is not None for p in (*scores.by_steps, *scores.by_guidance_scale))
    html = out.read_text()
    assert "How well tiny draws" in html and scores.corpus.fingerprint in html
    assert "unspeckle score MODEL --corpus FOLDER --images 16 --seeds 2 --steps 2</code>" in html

    # Once more: the same numbers but for the times, and as JSON on standard output
    assert score(model_file, "--corpus", square_corpus, "-o", out, *SMALL_CORPUS, "--json", "-q") == 0
    output = capsys.readouterr()
    assert output.err == "" and len(output.out.splitlines()) == 1
    repeated = configuration.from_json(Scores, json.loads(output.out), "scores")
    assert without_times(repeated) == without_times(scores)


def test_scores_without_a_corpus(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert score(model_file, *SMALL, "--json", "--seeds", "2") == 0
    output = capsys.readouterr()
    scores = configuration.from_json(Scores, json.loads(output.out), "scores")
    assert scores.corpus is None and scores.distances == () and "--corpus" in scores.missing[0]
    assert all(p.kid is None and p.seconds_per_image > 0 for p in (*scores.by_steps, *scores.by_guidance_scale))
    assert scores.seconds_per_image > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny-score.html", "tiny-score.json"]
    assert str(tmp_path / "tiny-score.html") in output.err and "--seeds has no effect" in output.err


def test_a_corpus_with_too_few_validation_images(
    model_file: Path, square_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_corpus = tmp_path / "few"
    small_corpus.mkdir()
    for path in sorted(square_corpus.iterdir())[:60]:
        (small_corpus / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "few.html"
    assert score(model_file, "--corpus", small_corpus, "-o", out, *SMALL_CORPUS, "-q") == 0
    capsys.readouterr()
    scores = read_json(out)
    assert "at least 20 are needed" in scores["missing"][0] and scores["distances"] == []


def test_captions_are_read_as_the_run_read_them(
    square_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless options say otherwise; and the validation loss is that of the plan's objective."""
    run, out = tmp_path / "run", tmp_path / "run.html"
    run.mkdir()
    corpus = open_corpus(read_folder(square_corpus, "auto", "a square"), 16, cache_dir=tmp_path / "cache")
    model = random_model()
    model.card = replace(model.card, corpus={"fingerprint": corpus.fingerprint})
    save(model, run / "model.safetensors")
    options = {"captions": "auto", "caption": "a square", "template": None}
    save_plan(replace(make_plan(), options=options).with_changes(objective={"mean": 1.0, "std": 0.5}), run)
    assert score(run, "--corpus", square_corpus, "-o", out, *SMALL_CORPUS, "-q") == 0
    scores = read_json(out)
    assert scores["corpus"]["is_training_corpus"]
    assert not any("another corpus" in line for line in scores["warnings"])
    middle = torch.tensor(0.5 / 8, dtype=torch.float64)
    expected = float((1.0 + 0.5 * torch.special.ndtri(middle)).sigmoid())
    assert scores["loss"]["times"][0] == pytest.approx(expected, rel=1e-5)
    assert score(run, "--corpus", square_corpus, "--caption", "a", "-o", out, *SMALL_CORPUS, "-q") == 0
    assert not read_json(out)["corpus"]["is_training_corpus"]
    capsys.readouterr()


def test_the_loss_of_a_student_is_its_teachers(
    square_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, path, out, results = model_with_student(), tmp_path / "model.safetensors", tmp_path / "a.html", []
    for model in (teacher, teacher.student, random_model()):
        assert model is not None
        save(model, path)
        assert score(path, "--corpus", square_corpus, "-o", out, *SMALL_CORPUS, "-q") == 0
        results.append(read_json(out))
        is_plain = model.card.name == "tiny" and model.student is None and not model.card.step_counts
        assert ("Guidance scale" in out.read_text()) == is_plain
    capsys.readouterr()
    with_student, student, plain = results
    assert with_student["loss"] == plain["loss"] and with_student["bits_per_dim"] == plain["bits_per_dim"]
    assert with_student["missing"] == [] and any("its teacher's" in line for line in with_student["warnings"])
    assert student["loss"] is student["bits_per_dim"] is None and "loss" in student["missing"][0]
    assert [point["steps"] for point in with_student["by_steps"]] == [1, 2, 4]
    assert with_student["by_guidance_scale"] == []
    generated = [[distance["generated"] for distance in scores["distances"]] for scores in (with_student, student)]
    assert generated[0] == generated[1]


def test_a_run_of_distil_is_scored_as_one_of_train(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "run.html"
    run.mkdir()
    (run / "model.safetensors").write_bytes(model_file.read_bytes())
    save_plan(replace(make_student_plan(), options={"steps": 3}), run)
    assert score(run, "-o", out, *SMALL, "-q") == 0
    capsys.readouterr()
    (run / "plan.json").write_text("[" * 100_000)
    assert score(run, "-o", out, *SMALL, "-q") == 2
    error = capsys.readouterr().err
    assert "plan.json: cannot be read" in error and len(error.splitlines()) == 1


def test_the_precision_is_the_chosen_one_and_is_named(
    model_file: Path, square_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same captions and seeds the numbers are close, but not the same."""
    results = {}
    for name in ("float32", "bfloat16"):
        out, options = tmp_path / f"{name}.html", [] if name == "float32" else ["--precision", name]
        assert score(model_file, "--corpus", square_corpus, "-o", out, *SMALL_CORPUS, *options, "-q") == 0
        results[name] = read_json(out)
        assert results[name]["precision"] == name and f"guidance scale 5, in {name}" in out.read_text()
        assert ("--precision bfloat16</code>" in out.read_text()) == (name == "bfloat16")
    exact, low = results["float32"], results["bfloat16"]
    assert low["hash"] == exact["hash"]
    for name in ("loss", "bits_per_dim"):
        assert low[name]["total"] != exact[name]["total"] == pytest.approx(low[name]["total"], rel=0.02)
    kids = [next(d for d in r["distances"] if d["name"] == "kid")["generated"]["mean"] for r in (exact, low)]
    assert kids[0] != kids[1] == pytest.approx(kids[0], rel=0.1)
    capsys.readouterr()


def test_a_stable_diffusion_model_is_scored_in_the_precision_that_it_would_be_drawn_in(
    sd_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("diffusers", reason="needs diffusers")
    monkeypatch.setattr("unspeckle.quantization.precision.is_faster_in", lambda device, dtype: True)
    out = tmp_path / "a.html"
    for options, name in ([], "bfloat16"), (["--precision", "float32"], "float32"):
        assert score(sd_folder("1-lcm"), "-o", out, "--images", 8, "--steps", 1, "-q", *options) == 0
        assert read_json(out)["precision"] == name and f"--precision {name}</code>" in out.read_text()
    capsys.readouterr()


BAD_INPUT = [
    ("score HERE/nothing.safetensors", "HERE/nothing.safetensors"),
    ("score MODEL --corpus HERE/nothing", "HERE/nothing"),
    ("score MODEL --features magic", "scattering, inception"),
    ("score MODEL --features scattering:x", "leave :x out"),
    ("score MODEL --features inception:", "inception:FILE"),
    ("score MODEL --features inception:HERE/nothing --corpus FOLDER", "there is no such file"),
    ("score MODEL --features inception", "--features inception: has an effect only with --corpus"),
    ("score MODEL --images 3", "--images 3"),
    ("score MODEL --images many", "--images"),
    ("score MODEL --seeds 0", "--seeds 0"),
    ("score MODEL --prompts 25", "--prompts 25: has an effect only if --corpus"),
    ("score MODEL --prompts 25 --corpus FOLDER", "--prompts 25: has an effect only if --corpus"),
    ("score MODEL --caption frog", "--caption: has an effect only with --corpus"),
    ("score MODEL --captions txt", "--captions: has an effect only with --corpus"),
    ("score MODEL --template {name}", "--template: has an effect only with --corpus"),
    ("score MODEL --steps 0", "--steps 0"),
    ("score MODEL --sampler magic", "dpmpp_2m"),
    ("score MODEL --guidance-scale inf", "--guidance-scale inf"),
    ("score MODEL --out HERE/report.pdf", "--out HERE/report.pdf: must end in .html"),
    ("score MODEL --out HERE/nowhere/report.html", "there is no folder HERE/nowhere"),
    ("score MODEL --device abacus", "abacus"),
    ("score MODEL --precision magic", "--precision 'magic'"),
]


@pytest.mark.parametrize(("line", "message"), BAD_INPUT)
def test_bad_input(
    line: str,
    message: str,
    model_file: Path,
    square_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"MODEL": model_file, "HERE": tmp_path, "FOLDER": square_corpus}
    arguments = line.split()
    for name, path in paths.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and message.replace("HERE", str(tmp_path)) in output.err
    assert len([line for line in output.err.splitlines() if line.startswith("unspeckle: ")]) == 1
    assert list(tmp_path.iterdir()) == []


def read_only_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    return "nothing can be written in"


def folder_in_its_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path.mkdir()
    return f"{path} is a folder"


def folder_in_place_of_the_numbers(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path.with_suffix(".json").mkdir()
    return f"{path.with_suffix('.json')} is a folder"


def read_only_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path.touch()
    monkeypatch.setattr("os.access", lambda file, mode: mode != os.W_OK or Path(file) != path)
    return "exists and may not be replaced"


def file_of_another_user_in_a_sticky_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path.touch()
    path.parent.chmod(0o1777)
    monkeypatch.setattr("os.access", lambda file, mode: True)
    monkeypatch.setattr("os.geteuid", lambda: path.stat().st_uid + 1)
    return "exists and may not be replaced"


@pytest.mark.parametrize(
    "obstacle",
    [
        read_only_folder,
        folder_in_its_place,
        folder_in_place_of_the_numbers,
        read_only_file,
        file_of_another_user_in_a_sticky_folder,
    ],
    ids=lambda obstacle: obstacle.__name__,
)
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    obstacle: Callable[[Path, pytest.MonkeyPatch], str],
    model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    out = tmp_path / "report.html"
    reason = obstacle(out, monkeypatch)
    monkeypatch.setattr("unspeckle.cli.run_score.load", work)
    assert score(model_file, "--out", out, *SMALL) == 2
    error = capsys.readouterr().err
    assert f"--out {out}: " in error and reason in error and "; give" in error and len(error.splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_report_in_a_file_system_of_the_kernel_is_refused() -> None:
    with pytest.raises(InputError, match=r"nothing can be written in /proc"):
        check_report_path(Path("/proc/x.html"))


def test_an_old_report_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    check_report_path(tmp_path / "report.html")
    assert os.listdir(tmp_path) == ["report.html"]  # noqa: PTH208


def test_ctrl_c_exits_with_130_and_leaves_nothing(model_file: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "unspeckle", "score", str(model_file), "--images", "100000"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [*line, "-o", str(tmp_path / "a.html")], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == b"" and b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []
