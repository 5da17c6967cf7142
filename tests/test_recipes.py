"""The scripts in recipes/: each part starts when it can and continues in another call; nothing is lost on the way."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_models import model_with_student
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import save

RECIPES = Path(__file__).parents[1] / "recipes"
PYTHON_STUB = """#!/bin/sh
# A python that only records its arguments; the second `train` and the second `distil` of a run finish.
echo "$*" >> "$CALLS"
case "$*" in
    *make-corpus*) mkdir -p "$5" && touch "$5/about.json" && exit 0 ;;
    *" train "* | *" distil "*) ;;
    *) exit 0 ;;
esac
[ -z "$EXIT_CODE" ] || exit "$EXIT_CODE"
[ -z "$KILLED" ] || kill -9 $$
run=$(echo "$*" | sed 's/.*--out \\([^ ]*\\).*/\\1/')
mkdir -p "$run"
[ -f "$run/plan.json" ] && touch "$run/model.safetensors"
touch "$run/plan.json" "$run/log.jsonl"
[ -f "$run/model.safetensors" ] || exit 124
"""
GpuRecipe = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def gpu_recipe(tmp_path: Path) -> GpuRecipe:
    """Calls recipes/gpu.sh with the stub; returns its exit code, what it printed, and the calls of python it made."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(PYTHON_STUB)
    python.chmod(0o755)

    def run(**settings: str) -> tuple[int, str, list[str]]:
        calls.write_text("")
        environment = {"PYTHON": str(python), "CALLS": str(calls), "WORK": str(tmp_path / "work"), "FONT": "/none"}
        process = subprocess.run(
            ["bash", RECIPES / "gpu.sh", tmp_path / "out"],
            env={**os.environ, **environment, **settings},
            capture_output=True,
            text=True,
        )
        lines = [line.replace(str(tmp_path), "") for line in calls.read_text().splitlines()]
        return process.returncode, process.stdout, lines

    return run


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_gpu_recipe_is_called_until_it_is_done(gpu_recipe: GpuRecipe, tmp_path: Path) -> None:
    code, printed, calls = gpu_recipe()
    assert code == 0 and "not done yet" in printed and [call.split()[2] for call in calls] == ["make-corpus", "train"]
    code, printed, calls = gpu_recipe(TRAIN_TIME="30m", DISTIL_TIME="9m", GUIDANCE_SCALE="3")
    assert code == 0 and "not done yet" in printed
    assert calls == [
        "-m unspeckle train /work/scenes --out /work/run --for 30m --size 128 --preset small",
        "-m unspeckle distil /work/run --corpus /work/scenes --out /work/few --for 9m --guidance-scale 3",
    ]
    code, printed, calls = gpu_recipe()
    assert code == 0 and "done: " in printed and "not done" not in printed
    assert calls[-1].startswith("recipes/embed.py /work/few ")
    assert "--guidance-scale 4 --allow-separate-student --out /out/embedded.safetensors" in calls[-1]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"plan.json", "few-plan.json", "few-log.jsonl"}


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_gpu_recipe_starts_nothing_without_time_for_it_and_reports_failures(gpu_recipe: GpuRecipe) -> None:
    code, printed, calls = gpu_recipe(BUDGET="5")
    assert code == 0 and "not done yet" in printed and [call.split()[2] for call in calls] == ["make-corpus"]
    for failure, expected in (({"EXIT_CODE": "2"}, 2), ({"EXIT_CODE": "130"}, 130), ({"KILLED": "yes"}, 137)):
        code, printed, calls = gpu_recipe(**failure)
        assert code == expected and "not done" not in printed


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_recipe_of_the_embedded_model_goes_on_where_it_stopped(tmp_path: Path) -> None:
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(PYTHON_STUB)
    python.chmod(0o755)
    work = tmp_path / "work"
    environment = {"PYTHON": str(python), "CALLS": str(calls), "WORK": str(work), "OUT": str(tmp_path / "out")}

    def run() -> tuple[int, list[str]]:
        calls.write_text("")
        process = subprocess.run(
            ["bash", RECIPES / "embedded.sh"], env={**os.environ, **environment}, capture_output=True, text=True
        )
        return process.returncode, calls.read_text().replace(str(tmp_path), "").splitlines()

    results = [run() for _ in range(4)]
    # Each of the two runs of the teacher, and the student, is stopped once.
    assert [code for code, _ in results] == [124, 124, 124, 0]
    first, second, student, last = (lines for _, lines in results)
    assert [line.split()[2] for line in first] == ["make-corpus", "train"]
    assert [line.split()[2] for line in second] == ["train", "make-corpus", "train"]
    assert [line.split()[2] for line in student] == ["train", "train", "distil"]
    assert "--from /work/first" in second[-1] and first[-1] == second[0] == student[0] == last[0]
    assert last[-1].startswith("recipes/embed.py /work/few ") and last[-1].endswith("--out /out")
    times = (work / "times.txt").read_text().splitlines()
    # Of a part that was finished before, too: its call says so, and takes seconds.
    assert [line.split("  ")[1].split(":")[0] for line in times[:2]] == ["scenes of seed 2", "teacher, first run"]
    assert times[1].endswith("exit 124") and times[-1].startswith("20") and "student: 0 min, exit 0" in times[-1]


@pytest.mark.parametrize("fits_in_one_file", [True, False])
def test_a_student_gets_its_own_file_where_both_are_too_large_for_one(
    fits_in_one_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    import embed

    save(model_with_student(), tmp_path / "both.safetensors")
    size = (tmp_path / "both.safetensors").stat().st_size
    monkeypatch.setattr(embed, "MAX_BYTES", size + 5000 if fits_in_one_file else size - 5000)
    out = tmp_path / "embedded.safetensors"
    arguments = ["embed.py", str(tmp_path / "both.safetensors"), "--corpus-seed", "1", "--dtype", "float32"]
    arguments += ["--guidance-scale", "4", "--out", str(out)]
    if not fits_in_one_file:
        out.write_text("as it was")
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match="has more than"):
            embed.main()
        assert out.read_text() == "as it was"
    monkeypatch.setattr(sys, "argv", [*arguments, "--allow-separate-student"])
    embed.main()
    student_file = tmp_path / "embedded-few.safetensors"
    model = load(out)
    student = model.student if fits_in_one_file else load(student_file)
    assert (model.student is not None) is fits_in_one_file is not student_file.exists()
    assert student is not None and student.card.step_counts
    assert student.card.license == model.card.license == embed.LICENSE
    assert model.card.guidance_scale == 4 and model.card.name == f"unspeckle emoji {model.card.size[0]}"
