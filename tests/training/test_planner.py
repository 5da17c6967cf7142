"""What a person may choose of the training: the optimiser and its rate, what is minimised, the licence."""

import json
import re
from pathlib import Path

import pytest
import test_training
import torch
from test_training import equal, final, options, stop_after

from tiny_models import make_plan
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.model_io.loading import load
from unspeckle.objective import Objective
from unspeckle.rng import ExampleRNG
from unspeckle.schedule import CosineSchedule, FlowSchedule, Schedule, VESchedule
from unspeckle.training import command
from unspeckle.training import plan as plans
from unspeckle.training.validation import NOISE_LEVELS, quantile_times

TYPED = ["--steps", "12", "--size", "16", "--preset", "nano", "--batch", "8", "--precision", "float32", "-q"]
folder, whole, own_cache = test_training.folder, test_training.whole, test_training.own_cache  # fixtures


def planned(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> tuple[dict, str]:
    """The plan as JSON, and as a person reads it."""
    assert command.run_training(options(folder, out, plan_only=True, json=True, quiet=False, **changes)) == 0
    said = capsys.readouterr()
    return json.loads(said.out), re.sub(r"\s+", " ", said.err)


@pytest.mark.parametrize(
    ("changes", "kept", "row"),
    [
        ({}, ("adamw", 1e-3, 4e-3), "optimiser AdamW, rate 1e-3 "),
        ({"precision": "bfloat16"}, ("muon", 1e-3, 4e-3), "optimiser Muon, rate 4e-3; AdamW, rate 1e-3, for what"),
        ({"optimizer": "muon"}, ("muon", 1e-3, 4e-3), "optimiser Muon, rate 4e-3;"),
        ({"optimizer": "muon", "learning_rate": 2e-3}, ("muon", 5e-4, 2e-3), "Muon, rate 2e-3; AdamW, rate 5e-4,"),
        ({"precision": "bfloat16", "optimizer": "adamw"}, ("adamw", 1e-3, 4e-3), "optimiser AdamW, rate 1e-3 "),
        ({"learning_rate": 2.5e-4}, ("adamw", 2.5e-4, 1e-3), "optimiser AdamW, rate 2.5e-4 "),
    ],
)
def test_the_plan_names_the_optimiser_and_its_rate(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, kept: tuple, row: str
) -> None:  # fmt: skip
    plan, told = planned(folder, tmp_path / "run", capsys, **changes)
    assert (plan["optimizer"], plan["learning_rate"], plan["muon_rate"]) == pytest.approx(kept)
    assert row in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--optimizer sgd", "--optimizer sgd: unknown; choose muon or adamw"),
        ("--learning-rate 0", "--learning-rate 0: must lie between 0 and 1; 4e-3 is usual with muon"),
        ("--learning-rate 1.5", "--learning-rate 1.5: must lie between 0 and 1"),
        ("--learning-rate nan", "--learning-rate nan: must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_learnt_by_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, says: str
) -> None:  # fmt: skip
    assert main(["train", str(folder), "--out", str(tmp_path / "run"), *TYPED, *words.split()]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "run" / "plan.json").exists()


def test_adapters_have_one_optimiser(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(folder), "--out", str(tmp_path / "run"), "--lora", "--from", "x", "--optimizer", "muon"]
    assert main([*words, "--steps", "3"]) == 2
    assert "--optimizer: is not for --lora; leave it out" in capsys.readouterr().err


def test_a_run_of_another_rate_learns_otherwise_and_goes_on_by_its_plan(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    typed = ["train", str(folder), *TYPED, "--optimizer", "muon", "--learning-rate", "2e-3", "--licence", "CC0-1.0"]
    assert main([*typed, "--out", str(tmp_path / "whole")]) == 0
    assert not equal(final(tmp_path / "whole"), final(whole))
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        assert main([*typed, "--out", str(tmp_path / "run")]) == 130
    assert main(["train", str(folder), *TYPED, "--out", str(tmp_path / "run")]) == 2
    assert "began with --optimizer muon, not with none" in capsys.readouterr().err
    assert main([*typed, "--out", str(tmp_path / "run")]) == 0
    assert equal(final(tmp_path / "run"), final(tmp_path / "whole"))
    card = load(tmp_path / "run").card
    assert card.license == "CC0-1.0" and "--optimizer muon --learning-rate 0.002" in card.recipe
    assert load(whole).card.license == ""


def test_a_run_begun_before_these_choices_goes_on_bit_for_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert command.run_training(options(folder, whole, balance=0.0)) == 0  # as all were then
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert command.run_training(options(folder, out, balance=0.0)) == 130
    held = json.loads((out / plans.PLAN_FILE).read_text())
    for name in NEW:
        del held[name]
    held["asked"] = {name: value for name, value in held["asked"].items() if name not in ASKED}
    (out / plans.PLAN_FILE).write_text(json.dumps(held))
    assert command.run_training(options(folder, out)) == 0
    assert equal(final(out), final(whole))


@pytest.mark.parametrize("changes", [{"distribution": "edm", "times": [-0.5, 1.2]}, {"weight": "min_snr"}])
def test_the_plan_says_what_is_minimised(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    """A run goes on by the times and weights of its plan, to other weights and another held-out loss."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert command.run_training(options(folder, out)) == 130
    (out / plans.PLAN_FILE).write_text(json.dumps(json.loads((out / plans.PLAN_FILE).read_text()) | changes))
    assert command.run_training(options(folder, out)) == 0
    learnt, usual = final(out), final(whole)
    assert learnt.keys() == usual.keys() and not equal(learnt, usual)
    first, second = (json.loads((run / "log.jsonl").read_text().splitlines()[-1]) for run in (out, whole))
    assert (first["held_out_shares"].keys() == second["held_out_shares"].keys()) is ("weight" in changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weight": "heavy"}, "'heavy' is no objective; choose one of plain, v, min_snr, soft"),
        ({"distribution": "zipf"}, "'zipf' is no objective; choose one of uniform, logit_normal, edm"),
        ({"optimizer": "sgd"}, "optimizer 'sgd' is unknown"),
    ],
)
def test_a_plan_that_cannot_be_minimised_is_named(whole: Path, tmp_path: Path, changes: dict, says: str) -> None:
    plan = json.loads((whole / plans.PLAN_FILE).read_text()) | changes
    (tmp_path / plans.PLAN_FILE).write_text(json.dumps(plan))
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        plans.load_plan(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / plans.PLAN_FILE))


def test_a_trial_sets_them_as_any_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import recipe

    made = recipe.changed(make_plan(), ["weight=min_snr", "distribution=edm", "times=[-0.5, 1.2]", "gamma=4.0"])
    assert made.build_objective() == Objective("edm", -0.5, 1.2, "min_snr", 4.0)
    assert make_plan().build_objective() == Objective("logit_normal", 0.3, 1.0, "v")


@pytest.mark.parametrize("times", ["uniform", "logit_normal", "edm"])
@pytest.mark.parametrize(
    "schedule", [FlowSchedule(), VESchedule(), CosineSchedule()], ids=lambda schedule: type(schedule).__name__
)
def test_held_out_times_are_those_that_training_draws(times: str, schedule: Schedule) -> None:
    """An eighth of what is drawn lies about each of the eight middles: half of it below."""
    objective = Objective(times, -0.3, 1.1)
    drawn = objective.sample_times(ExampleRNG(3, torch.arange(40_000)), schedule).double()
    below = (drawn[None] < quantile_times(objective, schedule).double()[:, None]).double().mean(1)
    assert below.tolist() == pytest.approx([(i + 0.5) / NOISE_LEVELS for i in range(NOISE_LEVELS)], abs=0.01)


NEW = ("distribution", "weight", "gamma", "work", "peak", "mfu", "balance", "encode_once")  # of the plan
ASKED = ("optimizer", "learning_rate", "licence", "balance")
