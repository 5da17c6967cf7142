"""The plan of `train`: what is chosen where the options leave it open, and how it is shown."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import make_plan
from training_runs import TYPED_OPTIONS, final_tensors, interrupt_at, tensors_equal, train_options
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.model_io.loading import load
from unspeckle.networks.autoencoder import PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.objective import Objective
from unspeckle.presets import UNET_PRESETS
from unspeckle.training.cost import ImageCost, StepCost
from unspeckle.training.plan import Plan
from unspeckle.training.plan_file import PLAN_FILE, load_plan
from unspeckle.training.preset_choice import choose_preset
from unspeckle.training.train_command import run_training


def make_plan_json(
    folder: Path, out: Path, capsys: pytest.CaptureFixture[str], **changes: Any
) -> tuple[dict[str, Any], str]:
    """The plan as JSON, and as a person reads it."""
    assert run_training(train_options(folder, out, plan_only=True, json=True, quiet=False, **changes)) == 0
    output = capsys.readouterr()
    return json.loads(output.out), re.sub(r"\s+", " ", output.err)


@pytest.mark.parametrize(
    ("changes", "flip"),
    [({"steps": 12}, False), ({"steps": 60}, True), ({"steps": 12, "flip": True}, True),
     ({"steps": 60, "flip": False}, False)],
)  # fmt: skip
def test_images_are_mirrored_if_each_is_seen_often(
    color_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], flip: bool
) -> None:
    """60 images, 8 of them a step."""
    plan, _ = make_plan_json(color_folder, tmp_path / "run", capsys, **changes)
    assert plan["work"]["flip"] is flip


@pytest.mark.parametrize(
    ("changes", "balance"), [({}, 0.5), ({"balance": 0.0}, 0.0), ({"caption": "a dot"}, 0.0), ({"balance": 1.0}, 1.0)]
)
def test_rare_captions_are_shown_more_often_if_they_are_names_of_folders(
    color_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], balance: float
) -> None:
    plan, _ = make_plan_json(color_folder, tmp_path / "run", capsys, **changes)
    assert plan["work"]["balance"] == balance


@pytest.mark.parametrize(
    ("changes", "expected", "row"),
    [
        ({}, ("muon", 1e-3, 4e-3), "optimizer Muon, learning rate 4e-3, for matrices"),
        ({"precision": "bfloat16"}, ("muon", 1e-3, 4e-3), "optimizer Muon, learning rate 4e-3, for matrices"),
        ({"optimizer": "adamw"}, ("adamw", 1e-3, 4e-3), "optimizer AdamW, learning rate 1e-3 "),
        ({"optimizer": "muon", "learning_rate": 2e-3}, ("muon", 5e-4, 2e-3), "; AdamW, learning rate 5e-4, for"),
        ({"precision": "bfloat16", "optimizer": "adamw"}, ("adamw", 1e-3, 4e-3), "optimizer AdamW, learning rate"),
        ({"optimizer": "adamw", "learning_rate": 2.5e-4}, ("adamw", 2.5e-4, 1e-3), "AdamW, learning rate 2.5e-4 "),
    ],
)
def test_the_plan_names_the_optimizer_and_its_learning_rate(
    color_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any],
    expected: tuple[str, float, float], row: str,
) -> None:  # fmt: skip
    plan, table = make_plan_json(color_folder, tmp_path / "run", capsys, **changes)
    optimizer = plan["optimizer"]
    assert (optimizer["name"], optimizer["learning_rate"], optimizer["muon_learning_rate"]) == pytest.approx(expected)
    assert row in table


def test_another_learning_rate_gives_other_weights_and_is_kept(
    color_folder: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plain = ["train", str(color_folder), *TYPED_OPTIONS]
    changed = [*plain, "--optimizer", "adamw", "--learning-rate", "2e-3", "--license", "CC0-1.0"]
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    assert main([*changed, "--out", str(uninterrupted)]) == 0
    assert not tensors_equal(final_tensors(uninterrupted), final_tensors(finished_run))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        assert main([*changed, "--out", str(run)]) == 130
    assert main([*plain, "--out", str(run)]) == 2
    assert "began with --optimizer adamw, not with none" in capsys.readouterr().err
    assert main([*changed, "--out", str(run)]) == 0
    assert tensors_equal(final_tensors(run), final_tensors(uninterrupted))
    card = load(run).card
    assert card.license == "CC0-1.0" and "--optimizer adamw --learning-rate 0.002" in card.recipe
    assert load(finished_run).card.license == ""


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("objective", {"loss_weighting": "heavy"}, "'heavy' is not an option of the objective"),
        ("objective", {"time_distribution": "zipf"}, "'zipf' is not an option of the objective"),
        ("optimizer", {"name": "sgd"}, "field 'optimizer.name' must be muon or adamw, not 'sgd'"),
    ],
)
def test_a_plan_with_an_unknown_choice_is_refused(
    finished_run: Path, tmp_path: Path, section: str, changes: dict[str, Any], message: str
) -> None:
    plan = json.loads((finished_run / PLAN_FILE).read_text())
    plan[section] |= changes
    (tmp_path / PLAN_FILE).write_text(json.dumps(plan))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_plan(tmp_path, Plan)
    assert str(caught.value).startswith(str(tmp_path / PLAN_FILE))


def test_a_benchmark_changes_any_field_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import recipe

    changes = ["loss_weighting=min_snr", "time_distribution=edm", "mean=-0.5", "std=1.2", "gamma=4.0"]
    plan = recipe.change_plan(make_plan(), [f"objective.{change}" for change in changes])
    assert plan.objective == Objective("edm", -0.5, 1.2, "min_snr", 4.0)
    assert make_plan().objective == Objective("logit_normal", 0.3, 1.0, "v")
    assert (
        recipe.change_plan(make_plan("nano"), ["model.network.blocks_per_level=3"]).model.network.blocks_per_level == 3
    )


def test_more_time_never_chooses_a_smaller_network(color_folder: Path, tmp_path: Path) -> None:
    pixels = PixelAutoencoder(PixelAutoencoderConfig())

    def choose(seconds: float) -> int:
        options = train_options(color_folder, tmp_path, steps=None, seconds=seconds)
        name = choose_preset(
            options, (64, 64), pixels, token_count=8, batch_size=64, measure_images_per_second=lambda _: 200.0
        )
        return list(UNET_PRESETS).index(name)

    chosen = [choose(seconds) for seconds in (10.0, 300.0, 3000.0, 30_000.0, 3e6)]
    assert chosen == sorted(chosen) and chosen[0] == 0 and chosen[-1] == len(UNET_PRESETS) - 1


@pytest.mark.parametrize("budget", [1.0, 7.5, 9_000.0, 11_000.0, 400_000.0])
@pytest.mark.parametrize("cost", [StepCost(1.0, 0.8), StepCost(1.09, 0.82), StepCost(1.0, 0.0)])
def test_the_time_that_the_text_stage_saves_is_used_and_no_more(cost: StepCost, budget: float) -> None:
    steps = cost.steps_within(budget)
    # The number of text steps is rounded down.
    assert cost.total(steps) <= budget + cost.text_step_saving and cost.total(steps + 1) > budget


def test_the_cost_of_an_image_makes_the_cost_of_steps() -> None:
    """An image takes 4 s; in the text stage 2 s; its share of the autoencoder's training is 1 s."""
    assert ImageCost(4.0, 2.0, 1.0).to_step_cost() == StepCost(1.25, 0.5)
    assert ImageCost(4.0).to_step_cost() == StepCost(1.0, 0.0)
    assert ImageCost(2.0, 3.0).to_step_cost() == StepCost(1.0, 0.0)


def test_training_rounds_denormal_numbers_to_zero(
    color_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_flush_denormal(False)
    denormal = torch.tensor([1e-39])
    assert float(denormal * 1) > 0
    make_plan_json(color_folder, tmp_path / "run", capsys)
    assert float(denormal * 1) == 0
