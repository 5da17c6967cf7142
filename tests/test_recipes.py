"""The scripts of recipes/: each part begins once it can, goes on by another call, and nothing is lost on the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_few_step import taught

from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import save

RECIPES = Path(__file__).parents[1] / "recipes"
STAND_IN = """#!/bin/sh
# A python that only notes what it is told; the second `train` and the second `distil` come to their end.
echo "$*" >> "$NOTES"
case "$*" in
    *make-corpus*) mkdir -p "$WORK/scenes" && touch "$WORK/scenes/about.json" ;;
    *" train "*) part=run ;;
    *" distil "*) part=few ;;
esac
[ -n "$part" ] || exit 0
[ -z "$FAILS" ] || exit "$FAILS"
[ -z "$KILLED" ] || kill -9 $$
mkdir -p "$WORK/$part"
[ -f "$WORK/$part/plan.json" ] && touch "$WORK/$part/model.safetensors"
touch "$WORK/$part/plan.json" "$WORK/$part/log.jsonl"
[ -f "$WORK/$part/model.safetensors" ] || exit 124
"""


@pytest.fixture
def gpu(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Calls recipes/gpu.sh with the stand-in; returns its exit code, what it said, and what was begun in that call."""
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def call(**settings: str) -> tuple[int, str, list[str]]:
        notes.write_text("")
        told = {"PYTHON": str(python), "NOTES": str(notes), "WORK": str(tmp_path / "work"), "FONT": "/none", **settings}
        done = subprocess.run(
            ["bash", RECIPES / "gpu.sh", tmp_path / "out"], env={**os.environ, **told}, capture_output=True, text=True
        )
        return (
            done.returncode,
            done.stdout,
            [line.replace(str(tmp_path), "") for line in notes.read_text().splitlines()],
        )

    return call


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_gpu_recipe_is_called_until_it_is_done(gpu, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, said, begun = gpu()
    assert code == 0 and "not done yet" in said and [line.split()[2] for line in begun] == ["make-corpus", "train"]
    code, said, begun = gpu(FOR="30m", FEW="9m", SCALE="3")
    assert code == 0 and "not done yet" in said
    assert begun == [
        "-m unspeckle train /work/scenes --out /work/run --for 30m --size 128 --preset small",
        "-m unspeckle distil /work/run --corpus /work/scenes --out /work/few --for 9m --scale 3",
    ]
    code, said, begun = gpu()
    assert code == 0 and "done: " in said and "not done" not in said
    assert begun[-1].startswith("recipes/embed.py /work/few ")
    assert "--scale 4 --apart --out /out/embedded.safetensors" in begun[-1]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"plan.json", "few-plan.json", "few-log.jsonl"}


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_gpu_recipe_begins_nothing_that_it_has_no_time_for_and_tells_of_failures(gpu) -> None:  # type: ignore[no-untyped-def]
    code, said, begun = gpu(BUDGET="5")
    assert code == 0 and "not done yet" in said and [line.split()[2] for line in begun] == ["make-corpus"]
    for how, expected in (({"FAILS": "2"}, 2), ({"FAILS": "130"}, 130), ({"KILLED": "yes"}, 137)):
        code, said, begun = gpu(**how)
        assert code == expected and "not done" not in said


@pytest.mark.parametrize("together", [True, False])
def test_a_student_lies_apart_where_both_are_too_large(
    together: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    import embed

    save(taught(), tmp_path / "both.safetensors")
    size = (tmp_path / "both.safetensors").stat().st_size
    monkeypatch.setattr(embed, "LARGEST", size + 5000 if together else size - 5000)
    words = ["--corpus-seed", "1", "--dtype", "float32", "--scale", "4", "--out", str(tmp_path / "in.safetensors")]
    line = ["embed.py", str(tmp_path / "both.safetensors"), *words]
    if not together:
        (tmp_path / "in.safetensors").write_text("as it was")
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit, match="is more than"):
            embed.main()
        assert (tmp_path / "in.safetensors").read_text() == "as it was"
    monkeypatch.setattr(sys, "argv", [*line, "--apart"])
    embed.main()
    model = load(tmp_path / "in.safetensors")
    student = model.student if together else load(tmp_path / "in-few.safetensors")
    assert (model.student is not None) is together is not (tmp_path / "in-few.safetensors").exists()
    assert student.card.step_counts and student.card.license == model.card.license == embed.LICENCE
    assert model.card.guidance_scale == 4 and model.card.name == f"unspeckle emoji {model.card.size[0]}"
