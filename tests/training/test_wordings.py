"""Training on captions in many wordings: decided by the captions, said in the plan, and the same when resumed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from training_runs import final_tensors, interrupt_at, tensors_equal, train_options, write_color_folder
from unspeckle.cli import main
from unspeckle.corpus.captions import read_folder
from unspeckle.errors import InputError
from unspeckle.training.inputs import load_inputs
from unspeckle.training.options import TrainOptions
from unspeckle.training.text_to_image_task import TextToImageTask
from unspeckle.training.train_command import run_training


def planned(options: TrainOptions, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The plan as JSON, and what is said."""
    assert run_training(replace(options, plan_only=True, json=True, quiet=False)) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), " ".join(printed.err.split())


def test_an_interrupted_run_gives_the_same_weights(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"caption_augmentation": True}
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    assert run_training(train_options(color_folder, uninterrupted, **changes)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        assert run_training(train_options(color_folder, run, **changes)) == 130
    assert run_training(train_options(color_folder, run, **changes)) == 0
    assert tensors_equal(final_tensors(run), final_tensors(uninterrupted))


def test_captions_that_are_alike_are_read_in_many_wordings(
    color_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, said = planned(train_options(color_folder, tmp_path / "run"), capsys)
    assert plan["work"]["caption_augmentation"] and plan["measured"]["caption_augmentation_cost"] >= 0
    assert "each in up to 32 wordings, as people type them; steps take" in said
    plan, said = planned(train_options(color_folder, tmp_path / "run", caption_augmentation=False), capsys)
    assert not plan["work"]["caption_augmentation"] and "wordings" not in said


def test_captions_of_many_words_are_read_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspeckle.corpus.caption_augmentation.MAX_GRAMMAR_WORDS", 5)
    (tmp_path / "colors").mkdir()
    plan, _ = planned(train_options(write_color_folder(tmp_path / "colors"), tmp_path / "run"), capsys)
    assert not plan["work"]["caption_augmentation"]


def test_batches_hold_wordings_that_the_tokenizer_reads_to_their_end(color_folder: Path, tmp_path: Path) -> None:
    from unspeckle.model import ModelCard
    from unspeckle.training.plan import Plan
    from unspeckle.training.plan_file import load_plan

    options = train_options(color_folder, tmp_path / "run", steps=1)
    assert run_training(options) == 0
    plan = load_plan(tmp_path / "run", Plan)
    assert plan is not None
    inputs = load_inputs(read_folder(color_folder), options, plan, Console(quiet=True))
    batches = TextToImageTask(plan, tmp_path / "run", inputs, ModelCard()).batches(0)
    captions = [caption for _ in range(20) for caption in next(batches).captions]
    assert len(set(captions)) > 30 and not any(inputs.tokenizer.are_truncated(captions))
    assert {"please", "digital"} <= inputs.tokenizer.meaningless_words
    assert set(inputs.tokenizer.known_words) == {"a", "photo", "of", "red", "green", "blue"}


def test_keywords_of_a_folder_reach_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "colors").mkdir()
    folder = write_color_folder(tmp_path / "colors")
    (folder / "keywords.json").write_text('{"Crimson": "red"}')
    assert run_training(train_options(folder, tmp_path / "run", steps=1)) == 0
    capsys.readouterr()
    assert main(["draw", "crimson grean please", "-m", str(tmp_path / "run"), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().err
    assert "crimson: not known; nearest: red\n" in printed and "grean: not known; nearest: green\n" in printed
    assert "please: not known" not in printed and "does not know" not in printed
    for text in ("[]", '{"a": 1}', "{"):
        (folder / "keywords.json").write_text(text)
        with pytest.raises(InputError, match=r"keywords\.json: .* mend or remove it"):
            run_training(train_options(folder, tmp_path / "other"))
