"""Which folders training uses, and which options it refuses before any work."""

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_models import model_with_student
from training_runs import TYPED_OPTIONS, train_options
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.model_io.model_file import save
from unspeckle.training.plan_file import PLAN_FILE
from unspeckle.training.run_folder import lock_run
from unspeckle.training.train_command import run_training


def test_two_processes_do_not_train_in_one_run(color_folder: Path, tmp_path: Path) -> None:
    with lock_run(tmp_path / "run"), pytest.raises(InputError, match="another process"):
        run_training(train_options(color_folder, tmp_path / "run"))


def test_a_folder_with_other_files_is_not_used(color_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="contains other files"):
        run_training(train_options(color_folder, tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "--for 30m"),
        ({"seconds": 60.0}, "exactly one"),
        ({"steps": 0}, "^steps 0"),
        ({"preset": "gigantic"}, "nano, micro"),
        ({"precision": "int3"}, "^precision int3"),
        ({"device": "abacus"}, "^device 'abacus': unknown"),
        ({"device": "meta"}, "^device 'meta': unknown"),
        ({"size": "17"}, "multiples of 2 here, at least 16; try 16x16"),
        ({"size": "8"}, "at least 16; try 16x16"),
        ({"batch_size": 0}, "^batch_size 0"),
        ({"balance": 1.5}, "^balance 1.5: must be between 0"),
        ({"balance": float("nan")}, "^balance nan: must be between 0"),
        ({"optimizer": "sgd"}, "^optimizer sgd: unknown; choose muon or adamw"),
        ({"learning_rate": 0.0}, "^learning_rate 0: must be greater than 0.*4e-3 is usual with muon"),
        ({"learning_rate": 1.5}, "^learning_rate 1.5: must be"),
        ({"learning_rate": float("nan")}, "^learning_rate nan: must be"),
        ({"json": True}, "^json: has an effect only with --plan"),
    ],
)
def test_options_that_cannot_be_are_named(
    color_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_training(train_options(color_folder, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / PLAN_FILE).exists()


def test_messages_name_options_as_they_are_typed(
    color_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(color_folder), "--out", str(tmp_path / "run"), *TYPED_OPTIONS]
    assert main([*command, "--learning-rate", "2"]) == 2
    assert "--learning-rate 2: must be greater than 0" in capsys.readouterr().err
    assert main([*command, "--json"]) == 2
    assert "--json: has an effect only with --plan" in capsys.readouterr().err


def test_the_plan_of_a_run_is_shown(color_folder: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_training(train_options(color_folder, finished_run, plan_only=True, json=True)) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((finished_run / PLAN_FILE).read_text())


@pytest.mark.parametrize(
    "command_line", ["train FOLDER --from MODEL --out RUN --steps 3", "distil MODEL --out RUN --steps 3"]
)
def test_only_models_that_were_trained_here_are_trained_further(
    command_line: str, color_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sd_folder: Any
) -> None:
    save(model_with_student().student, tmp_path / "student.safetensors")
    models = {
        sd_folder("1"): "was not trained by unspeckle",
        tmp_path / "student.safetensors": "name the model it was distilled from",
    }
    for model, message in models.items():
        paths = {"FOLDER": str(color_folder), "MODEL": str(model), "RUN": str(tmp_path / "run")}
        assert main([paths.get(word, word) for word in command_line.split()]) == 2
        output = capsys.readouterr()
        lines = [line for line in output.err.splitlines() if line.startswith("unspeckle: ")]
        assert output.out == "" and len(lines) == 1 and f"{model}: " in lines[0] and message in lines[0]
        assert not (tmp_path / "run" / PLAN_FILE).exists()
