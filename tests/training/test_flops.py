"""How much of what the device could do a training reaches: counted work, a measured peak, and where they are told."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import test_training
import torch
from test_training import options

from tiny_models import make_plan
from unspeckle.training import command, measurement
from unspeckle.training import plan as plans
from unspeckle.training.plan import DistilPlan, Plan

folder, whole, own_cache = test_training.folder, test_training.whole, test_training.own_cache  # fixtures


@pytest.mark.parametrize("name", ["nano", "tiny", "t-nano"])
def test_there_and_back_is_nearly_thrice_there(name: str) -> None:
    """Only what leads to the picture and the words, which do not learn here, is spared on the way back."""
    said = make_plan(name)
    thrice = measurement.count_training_flops(said.network_config, said.input_size, said.text_config.context_length)
    assert 0.8 * thrice < measurement.count_flops_per_image(said) <= thrice


def test_a_student_costs_its_own_rows_and_its_teachers_steps() -> None:
    fields = {**vars(make_plan("nano")), "counts": (1, 2), "moves": 6}
    learnt, forward = (
        measurement.count_flops_per_image(make_plan("nano")),
        measurement.count_training_flops(make_plan("nano").network_config, (64, 64), 8) / 3,
    )
    guided, alone = (
        measurement.count_flops_per_image(DistilPlan(**fields, guidance_scale=scale)) for scale in (4.0, 1.0)
    )
    assert guided == pytest.approx(3 * learnt + 12 * forward) and alone == pytest.approx(3 * learnt + 6 * forward)


def test_the_peak_is_the_quickest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, took = [0.0], iter([0.5, 0.004, 0.002, 0.003, *[0.01] * 99])

    def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        assert a.dtype == b.dtype == out.dtype == torch.bfloat16
        clock[0] += next(took)

    monkeypatch.setattr(measurement.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "mm", product)
    assert measurement.measure_peak_flops("cpu", "bfloat16", 0.6) == pytest.approx(2 * 1024**3 / 0.002)
    assert 0.6 <= clock[0] < 0.62  # so long and no longer


def test_the_plan_says_what_is_reached(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run_training(options(folder, tmp_path / "run", plan_only=True, json=True, quiet=False)) == 0
    said = capsys.readouterr()
    made: dict[str, Any] = json.loads(said.out)
    assert made["work"] > 1e6 and made["peak"] > 1e9
    assert made["mfu"] == pytest.approx(made["work"] * made["rate"] / made["peak"]) and 0 < made["mfu"] < 1
    row = re.search(r"reaches +([\d.]+) of ([\d.]+) TFLOP/s measured, (\d+)% \(MFU\)", said.err.replace(" %", "%"))
    assert row is not None
    assert [float(number) for number in row.groups()] == pytest.approx(
        [made["work"] * made["rate"] / 1e12, made["peak"] / 1e12, 100 * made["mfu"]], abs=0.51
    )


def test_the_log_says_what_was_reached_but_while_the_words_learn(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspeckle.training.stage.REPORT_EVERY", 0.0)
    assert command.run_training(options(folder, tmp_path / "run")) == 0
    made = plans.load_plan(tmp_path / "run")
    assert made is not None
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["rate"]]
    assert len(steps) == 12 and [line["step"] for line in steps if "mfu" not in line] == [1, 2, 3]
    for line in steps[made.text_steps :]:
        assert line["mfu"] == pytest.approx(line["rate"] * made.flops_per_image / made.peak_flops)


def test_a_plan_from_before_says_nothing_of_it(folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = json.loads((whole / plans.PLAN_FILE).read_text())
    old = json.dumps({name: value for name, value in held.items() if name not in ("work", "peak", "mfu")})
    now = (whole / plans.PLAN_FILE).read_text()
    (whole / plans.PLAN_FILE).write_text(old)
    try:
        assert command.run_training(options(folder, whole, plan_only=True, quiet=False)) == 0
    finally:
        (whole / plans.PLAN_FILE).write_text(now)
    assert "reaches" not in capsys.readouterr().err
    assert str(Plan.compute_mfu(make_plan("nano"), 5.0)) == "nan"
