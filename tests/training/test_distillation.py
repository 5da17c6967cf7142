"""Distillation: targets that are right by construction, and runs that can be continued like those of `train`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oracle import GaussianMixture, one_gaussian, two_gaussians
from tiny_models import CAPTIONS, gray_model, make_student_plan, random_model
from training_runs import final_tensors, interrupt_at, rewrite_as_version_0_1, tensors_equal
from unspeckle.denoiser import AnyConditioning, Conditioning, PreparedConditioning
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model import Model
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import save
from unspeckle.schedule import CosineSchedule, FlowSchedule, Schedule, VESchedule
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.timesteps import timesteps
from unspeckle.training.distil_command import run_distillation, split_captions
from unspeckle.training.distillation_task import DistillationTask
from unspeckle.training.options import DistilOptions, TrainOptions
from unspeckle.training.plan import DistillationPlan, DistillationSettings
from unspeckle.training.plan_file import PLAN_FILE, load_plan, save_plan
from unspeckle.training.run_folder import CAPTIONS_FILE
from unspeckle.training.student_updater import StudentUpdater
from unspeckle.training.teacher_trajectories import (
    DISTILLATION_TIMESTEP_SPACING,
    draw_student_images,
    draw_teacher_trajectories,
    draw_trajectory,
    generate_teacher_trajectories,
    list_segments,
    segment_target,
)
from unspeckle.training.train_command import run_training


def student_times(schedule: Schedule, steps: int) -> Tensor:
    """The times at which a student of that many steps, or the teacher, evaluates its network."""
    return timesteps(DISTILLATION_TIMESTEP_SPACING, schedule, steps)


class OptimalNetwork(nn.Module):
    """Predicts x as the optimal denoiser of a mixture does."""

    def __init__(self, mixture: GaussianMixture, schedule: Schedule) -> None:
        super().__init__()
        self.mixture, self.schedule, self.one = mixture, schedule, nn.Parameter(torch.ones(()))

    def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
        return PreparedConditioning(conditioning.tokens, conditioning.mask, conditioning.vector)

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: AnyConditioning) -> Tensor:
        return self.mixture.denoiser(self.schedule)(x, c_noise)


class OptimalStudent(OptimalNetwork):
    """The best student of a single Gaussian with mean m and standard deviation d: the ODE keeps (x_t - alpha m) / r,
    where r² = alpha² d² + sigma². Its last value of the vector is log2 of the number of steps."""

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: AnyConditioning) -> Tensor:
        assert conditioning.vector is not None
        times = [student_times(self.schedule, int(2**k)) for k in conditioning.vector[:, -1]]
        starts = [int((row - t).abs().argmin()) for row, t in zip(times, c_noise.double(), strict=True)]
        t = torch.stack([row[i] for row, i in zip(times, starts, strict=True)]).view(-1, 1, 1, 1)
        s = torch.stack([row[i + 1] for row, i in zip(times, starts, strict=True)]).view(-1, 1, 1, 1)
        (alpha, sigma), (alpha_s, sigma_s) = self.schedule(t), self.schedule(s)
        mean, std = float(self.mixture.means[0, 0]), float(self.mixture.stds[0])
        r, r_s = (((a * std) ** 2 + b**2).sqrt() for a, b in ((alpha, sigma), (alpha_s, sigma_s)))
        x_s = alpha_s * mean + r_s / r * (x.double() - alpha * mean)
        ratio = sigma_s / sigma
        return ((x_s - ratio * x) / (alpha_s - ratio * alpha)).to(x.dtype)


def model_of(network_class: type[OptimalNetwork], mixture: GaussianMixture, schedule: Schedule) -> Model:
    """A model of such a network, whose predictions are not clamped."""
    model = gray_model()
    model.denoiser.schedule, model.card = schedule, replace(model.card, clamp_denoised=False)
    return model.with_network(network_class(mixture, schedule), model.card)


def empty_conditioning(count: int) -> Conditioning:
    return Conditioning(torch.zeros(count, 1, 1))


@pytest.mark.parametrize(
    "schedule", [FlowSchedule(), CosineSchedule(), VESchedule(sigma_max=20.0)], ids=["flow", "cosine", "ve"]
)
def test_one_step_with_the_target_arrives_where_the_teacher_does(schedule: Schedule) -> None:
    teacher = model_of(OptimalNetwork, two_gaussians(), schedule)
    x = torch.randn(5, 2, 1, 1, dtype=torch.float64)
    points, times = draw_trajectory(teacher, [empty_conditioning(5)], x, 12, 1.0), student_times(schedule, 12)
    segments = list_segments(DistillationSettings("", step_counts=(1, 2, 3, 4)))
    assert len(segments) == 10
    for segment in segments:
        target = segment_target(points, schedule, times, segment)
        (alpha, sigma), (alpha_s, sigma_s) = (schedule(times[i]) for i in (segment.start, segment.end))
        x_s = alpha_s * target + sigma_s / sigma * (points[segment.start] - alpha * target)
        torch.testing.assert_close(x_s, points[segment.end], rtol=1e-9, atol=1e-9)


def test_segments_of_the_teacher_s_times_are_the_student_s_times() -> None:
    schedule = FlowSchedule()
    for n in (1, 2, 3, 4, 6):
        every_nth = student_times(schedule, 12)[:: 12 // n]
        torch.testing.assert_close(every_nth, student_times(schedule, n), rtol=1e-15, atol=0)
    expected = torch.tensor([1, 0.9, 0.75, 0.5, 0], dtype=torch.float64)
    torch.testing.assert_close(student_times(schedule, 4), expected)


@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule()], ids=["flow", "cosine"])
def test_the_best_student_of_a_gaussian_solves_its_ode_in_any_number_of_steps(schedule: Schedule) -> None:
    student = model_of(OptimalStudent, one_gaussian(mean=0.5, std=0.4), schedule)
    x = torch.randn(6, 2, 1, 1)
    # At t = 1 all is noise of variance 1.
    exact = 0.5 + 0.4 * x
    for steps in (1, 2, 4):
        images = draw_student_images(student, empty_conditioning(6), x, steps)
        torch.testing.assert_close(images, exact, rtol=1e-4, atol=1e-4)


def test_targets_of_a_teacher_of_many_steps_are_those_of_the_best_student() -> None:
    gaussian, schedule, steps = one_gaussian(), FlowSchedule(), 800
    teacher, student = model_of(OptimalNetwork, gaussian, schedule), OptimalStudent(gaussian, schedule)
    x = torch.randn(4, 2, 1, 1)
    points = draw_trajectory(teacher, [empty_conditioning(4)], x, steps, 1.0)
    times = student_times(schedule, steps)
    for segment in list_segments(DistillationSettings("", teacher_steps=steps)):
        vector = torch.full((4, 1), float(segment.step_count)).log2()
        best = student(
            points[segment.start], times[segment.start].expand(4), empty_conditioning(4)._replace(vector=vector)
        )
        target = segment_target(points, schedule, times, segment)
        torch.testing.assert_close(target, best, rtol=0, atol=0.01)


def test_guidance_is_part_of_the_targets_and_these_are_clamped() -> None:
    """A teacher that predicts the number of its caption gives three times that with guidance scale 3, white at most."""
    teacher, plan, schedule = gray_model(), make_student_plan(guidance_scale=3.0, teacher_steps=12), FlowSchedule()
    ids = teacher.tokenizer.encode(["0.2", "0.9"])
    points = draw_teacher_trajectories(teacher, ids, torch.randn(2, 3, 16, 16), plan).points
    for segment in list_segments(plan.distillation):
        target = segment_target(points, schedule, student_times(schedule, 12), segment)
        torch.testing.assert_close(target[0], torch.full((3, 16, 16), 0.6), rtol=0, atol=1e-4)
        torch.testing.assert_close(target[1], torch.full((3, 16, 16), 2.0), rtol=0, atol=1e-4)


def test_a_trajectory_depends_on_its_number_alone() -> None:
    teacher, ids = random_model(), random_model().tokenizer.encode(CAPTIONS)
    plan = make_student_plan().with_changes(work={"batch_size": 3})
    trajectories = generate_teacher_trajectories(teacher, ids, plan, 0)
    first, second = next(trajectories), next(trajectories)
    again = next(generate_teacher_trajectories(teacher, ids, plan, 3))
    assert torch.equal(second.points, again.points)
    assert torch.equal(second.conditioning.tokens, again.conditioning.tokens)
    assert not torch.equal(first.points[0], second.points[0])
    alone = next(generate_teacher_trajectories(teacher, ids, plan.with_changes(work={"batch_size": 1}), 4))
    torch.testing.assert_close(alone.points, second.points[:, 1:2], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RUN of `train`, as it were."""
    run = tmp_path_factory.mktemp("teacher") / "frogs"
    run.mkdir()
    save(random_model(), run / "model.safetensors")
    (run / CAPTIONS_FILE).write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    return run


def distil_options(teacher: Path, out: Path, **changes: Any) -> DistilOptions:
    options = DistilOptions(teacher, out, steps=10, guidance_scale=1.5, batch_size=2, quiet=True, precision="float32")
    return replace(options, **changes)


def last_record(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    return record


@pytest.fixture(scope="module")
def student_run(teacher_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RUN of `distil` that nobody interrupted."""
    run = tmp_path_factory.mktemp("runs") / "student"
    assert run_distillation(distil_options(teacher_run, run)) == 0
    return run


def test_an_interrupted_run_gives_the_same_weights(
    teacher_run: Path, student_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if version 0.1 began it."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, StudentUpdater)
        assert run_distillation(distil_options(teacher_run, run)) == 130
    assert not (run / "model.safetensors").exists()
    plan = load_plan(run, DistillationPlan)
    rewrite_as_version_0_1(run)
    assert load_plan(run, DistillationPlan) == plan
    assert run_distillation(distil_options(teacher_run, run)) == 0
    assert tensors_equal(final_tensors(run), final_tensors(student_run))


def test_the_file_contains_the_teacher_as_it_was(teacher_run: Path, student_run: Path) -> None:
    both, teacher = load(student_run), load(teacher_run)
    state = both.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in teacher.state_dict().items())
    request = Request("a frog", seed=2)
    assert draw(both, request)[0].tobytes() == draw(teacher, request)[0].tobytes()
    assert both.student is not None
    card = both.student.card
    assert (card.step_counts, card.steps, card.guidance_scale) == ((1, 2, 4), 4, 1.0)
    assert (card.sampler, card.timestep_spacing) == ("ddim", "shifted")
    assert card.corpus["teacher"] == teacher.hash and card.corpus["guidance_scale"] == 1.5
    assert str(teacher_run) not in json.dumps(card.corpus) + card.recipe
    record = last_record(student_run)
    assert record["step"] == 10 and set(record["validation_errors"]) == {"1", "2", "4"}


def test_a_student_comes_nearer_to_its_teacher(teacher_run: Path, student_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_distillation(distil_options(teacher_run, run, steps=40, batch_size=4)) == 0
    longer, shorter = last_record(run)["validation_errors"], last_record(student_run)["validation_errors"]
    assert all(longer[steps] < 0.98 * shorter[steps] for steps in ("1", "2", "4"))


def test_what_cannot_be_distilled_is_refused_with_advice(teacher_run: Path, student_run: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "frogs.safetensors", tmp_path / "run"
    save(random_model(), file)
    student = load(student_run).student
    assert student is not None
    save(student, tmp_path / "student.safetensors")
    for teacher, changes, message in (
        (file, {}, "--corpus"),
        (teacher_run, {"steps": None}, "exactly one"),
        (teacher_run, {"precision": "int3"}, "precision int3"),
        (teacher_run, {"guidance_scale": float("inf")}, "guidance_scale inf: must be a number"),
        (tmp_path / "none", {}, "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            run_distillation(distil_options(teacher, out, **changes))
    (tmp_path / CAPTIONS_FILE).write_text("a frog\n")
    with pytest.raises(InputError, match="is a student"):
        run_distillation(distil_options(tmp_path / "student.safetensors", out))
    assert not out.exists()


def test_a_run_keeps_to_what_it_began_with(
    teacher_run: Path, student_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_distillation(distil_options(teacher_run, student_run, quiet=False)) == 0
    assert "finished" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"--guidance-scale 1.5, not with --guidance-scale 2"):
        run_distillation(distil_options(teacher_run, student_run, guidance_scale=2.0))
    with pytest.raises(InputError, match="plan of a run of `distil`"):
        run_training(TrainOptions(tmp_path, student_run, steps=1))
    assert run_distillation(distil_options(teacher_run, student_run, plan_only=True, json=True)) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((student_run / PLAN_FILE).read_text())


def test_a_plan_alone_makes_no_folder(teacher_run: Path, tmp_path: Path) -> None:
    assert run_distillation(distil_options(teacher_run, tmp_path / "run", plan_only=True)) == 0
    assert not (tmp_path / "run").exists()


def test_changed_captions_are_refused(student_run: Path, tmp_path: Path) -> None:
    run, other_teacher = tmp_path / "run", tmp_path / "other"
    plan = load_plan(student_run, DistillationPlan)
    assert plan is not None
    save_plan(plan, run)
    other_teacher.mkdir()
    (other_teacher / CAPTIONS_FILE).write_text("two pizzas\n")
    save(random_model(), other_teacher / "model.safetensors")
    with pytest.raises(InputError, match="captions have changed"):
        run_distillation(distil_options(other_teacher, run))


def test_captions_are_held_out_if_there_are_many() -> None:
    captions = [f"caption {i % 400}" for i in range(1000)]
    training, validation = split_captions(captions)
    assert len(validation) == 32 and not set(validation) & set(training)
    assert set(training) | set(validation) == {*captions, ""}
    assert 0.015 < training.count("") / len(training) < 0.025
    training, validation = split_captions(["a", "b", "a"])
    assert (set(training), set(validation)) == ({"a", "b", ""}, {"a", "b"})


def test_the_student_of_a_teacher_that_reads_wordings_reads_them_too(
    teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is the same if it is interrupted; an old teacher's captions are given as they are."""
    assert not distillation_plan(teacher_run, tmp_path / "old").work.caption_augmentation
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    model = random_model()
    assert isinstance(model.tokenizer, Tokenizer)
    model.tokenizer.meaningless_words = frozenset({"please"})
    save(model, teacher / "model.safetensors")
    (teacher / CAPTIONS_FILE).write_text("".join(f"{caption}\n" for caption in CAPTIONS * 40))
    seen: list[str] = []

    def encode(self: DistillationTask, captions: tuple[str, ...]) -> Any:
        seen.extend(captions)
        return encode_captions(self, captions)

    encode_captions = DistillationTask._encode_captions
    monkeypatch.setattr(DistillationTask, "_encode_captions", encode)
    uninterrupted, run = tmp_path / "uninterrupted", tmp_path / "run"
    assert run_distillation(distil_options(teacher, uninterrupted)) == 0
    assert len(set(seen)) > len(CAPTIONS) + 3 and "" in seen
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, StudentUpdater)
        assert run_distillation(distil_options(teacher, run)) == 130
    assert run_distillation(distil_options(teacher, run)) == 0
    assert tensors_equal(final_tensors(run), final_tensors(uninterrupted))


def distillation_plan(teacher: Path, run: Path) -> DistillationPlan:
    """The plan of a short run, which it leaves behind."""
    assert run_distillation(distil_options(teacher, run, steps=1)) == 0
    plan = load_plan(run, DistillationPlan)
    assert plan is not None
    return plan
