"""How much of what the device could do is reached: counted operations, a measured peak, and where they are shown."""

import json
import re
from pathlib import Path

import pytest
import torch

from tiny_models import make_plan, make_student_plan
from training_runs import train_options
from unspeckle.training import measurement, progress
from unspeckle.training.flops import count_flops_per_image, count_training_flops
from unspeckle.training.plan import Plan
from unspeckle.training.plan_file import load_plan
from unspeckle.training.plan_table import plan_table
from unspeckle.training.train_command import run_training


@pytest.mark.parametrize("name", ["nano", "tiny", "t-nano"])
def test_forward_and_backward_take_nearly_three_times_as_much_as_forward(name: str) -> None:
    """Only the gradients of the image and of the text, which are inputs here, are not computed."""
    plan = make_plan(name)
    context_length = plan.model.text_encoder.context_length
    three_times = count_training_flops(plan.model.network, plan.model.input_size, context_length)
    assert 0.8 * three_times < count_flops_per_image(plan) <= three_times


def test_a_student_costs_its_segments_and_its_teacher_s_steps() -> None:
    plan = make_student_plan(step_counts=(1, 2), teacher_steps=6)
    plan = plan.with_changes(model={"network": make_plan("nano").model.network})
    context_length = plan.model.text_encoder.context_length
    forward = count_training_flops(plan.model.network, plan.model.input_size, context_length) / 3
    unguided, guided = (
        count_flops_per_image(plan.with_changes(distillation={"guidance_scale": scale})) for scale in (1.0, 4.0)
    )
    # Six steps of the teacher are called twice instead of once.
    assert guided - unguided == pytest.approx(6 * forward)
    one_segment = count_flops_per_image(plan.with_changes(distillation={"guidance_scale": 1.0, "step_counts": (1,)}))
    assert unguided - 6 * forward == pytest.approx(3 * (one_segment - 6 * forward))
    # A segment costs what an image costs in the training of the same network.
    trained = count_flops_per_image(make_plan("nano").with_changes(model={"size": plan.model.size}))
    assert one_segment - 6 * forward == pytest.approx(trained)


def test_the_peak_is_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seconds = [0.0], iter([0.5, 0.004, 0.002, 0.003, *[0.01] * 99])

    def multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        assert a.dtype == b.dtype == out.dtype == torch.bfloat16
        clock[0] += next(seconds)

    monkeypatch.setattr(measurement.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "mm", multiply)
    assert measurement.measure_peak_flops("cpu", "bfloat16", 0.6) == pytest.approx(2 * 1024**3 / 0.002)
    # It takes as long as it was given, and no longer.
    assert 0.6 <= clock[0] < 0.62


def test_the_plan_shows_what_is_reached(color_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_training(train_options(color_folder, tmp_path / "run", plan_only=True, json=True, quiet=False)) == 0
    output = capsys.readouterr()
    measured = json.loads(output.out)["measured"]
    flops, peak, images_per_second = (measured[k] for k in ("flops_per_image", "peak_flops", "images_per_second"))
    assert flops > 1e6 and peak > 1e9
    assert measured["mfu"] == pytest.approx(flops * images_per_second / peak) and 0 < measured["mfu"] < 1
    row = re.search(r"reaches +([\d.]+) of ([\d.]+) TFLOP/s measured, (\d+)% \(MFU\)", output.err.replace(" %", "%"))
    assert row is not None
    expected = [flops * images_per_second / 1e12, peak / 1e12, 100 * measured["mfu"]]
    assert [float(number) for number in row.groups()] == pytest.approx(expected, abs=0.51)


def test_the_log_shows_what_is_reached_except_in_the_text_stage(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "REPORT_INTERVAL", 0.0)
    assert run_training(train_options(color_folder, tmp_path / "run")) == 0
    plan = load_plan(tmp_path / "run", Plan)
    assert plan is not None
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["images_per_second"]]
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert [record["step"] for record in steps if "mfu" not in record] == [1, 2, 3]
    assert [record["stage"] for record in steps] == ["text"] * 3 + ["network"] * 9
    for record in steps[plan.work.text_steps :]:
        measured = plan.measured
        expected = record["images_per_second"] * measured.flops_per_image / measured.peak_flops
        assert record["mfu"] == pytest.approx(expected)


def test_a_plan_without_measurements_shows_nothing_of_it() -> None:
    rows = list(plan_table(make_plan("nano"), 0).columns[0].cells)
    assert "network" in map(str, rows) and "reaches" not in map(str, rows)
    assert str(make_plan("nano").measured.compute_mfu(5.0)) == "nan"
