"""Distilling: targets that are right by construction, and runs that keep the contract of `train`."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import equal, final
from torch import Tensor, nn
from unspeckle.commands import distil as command

from oracle import GaussianMixture, one_gaussian, two_gaussians
from tiny_models import CAPTIONS, gray_model, random_model
from unspeckle.denoiser import Conditioning
from unspeckle.errors import InputError
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import save
from unspeckle.schedule import CosineSchedule, FlowSchedule, VESchedule
from unspeckle.timesteps import timesteps
from unspeckle.training import command as train_command
from unspeckle.training import plan as plans
from unspeckle.training.distillation_task import StudentUpdater
from unspeckle.training.options import DistilOptions, TrainOptions
from unspeckle.training.plan import DistilPlan
from unspeckle.training.teacher_trajectories import (
    DISTILLATION_TIMESTEP_SPACING,
    draw_student_images,
    draw_teacher_trajectories,
    draw_trajectory,
    generate_teacher_trajectories,
    list_segments,
    segment_target,
)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def plan(**changes: object) -> DistilPlan:
    model = random_model()
    made = DistilPlan(
        options={}, corpus_fingerprint="", size=(16, 16), preset="", network_config=model.network.config, text_config=model.text_encoder.config, steps=1,
        batch_size=4, seed=0, device="cpu", precision="float32", compile=False, threads=1, parameter_count=0, images_per_second=0, total_seconds=0,
        memory_bytes=0, disk_bytes=0, autoencoder_config=model.autoencoder.config,
    )  # fmt: skip
    return replace(made, **changes)


class Knows(nn.Module):
    """A network that predicts x as the mixture's best denoiser does; with `ahead`, as its best student does."""

    def __init__(self, mixture: GaussianMixture, schedule: object) -> None:
        super().__init__()
        self.mixture, self.schedule, self.one = mixture, schedule, nn.Parameter(torch.ones(()))

    def prepare(self, given: Conditioning) -> Conditioning:
        return given._replace(prepared=True)

    def forward(self, x: Tensor, clock: Tensor, given: Conditioning) -> Tensor:
        return self.mixture.denoiser(self.schedule)(x, clock)


class Foresees(Knows):
    """The best student of one Gaussian: where x_t = α m + r (…), r² = α² d² + σ², the ODE keeps (x_t - α m) / r."""

    def forward(self, x: Tensor, clock: Tensor, given: Conditioning) -> Tensor:
        grid = [timesteps(DISTILLATION_TIMESTEP_SPACING, self.schedule, int(2**k)) for k in given.vector[:, -1]]
        begins = [int((way - t).abs().argmin()) for way, t in zip(grid, clock.double(), strict=True)]
        t = torch.stack([way[i] for way, i in zip(grid, begins, strict=True)]).view(-1, 1, 1, 1)
        s = torch.stack([way[i + 1] for way, i in zip(grid, begins, strict=True)]).view(-1, 1, 1, 1)
        (alpha, sigma), (alpha_s, sigma_s) = self.schedule(t), self.schedule(s)
        mean, deviation = float(self.mixture.means[0, 0]), float(self.mixture.stds[0])
        wide, wide_s = (((a * deviation) ** 2 + b**2).sqrt() for a, b in ((alpha, sigma), (alpha_s, sigma_s)))
        landed = alpha_s * mean + wide_s / wide * (x.double() - alpha * mean)
        kept = sigma_s / sigma
        return ((landed - kept * x) / (alpha_s - kept * alpha)).to(x.dtype)


def knowing(kind: type[Knows], mixture: GaussianMixture, schedule: object):
    model = gray_model()
    model.denoiser.schedule, model.card = schedule, replace(model.card, clamp=False)
    return model.with_network(kind(mixture, schedule), model.card)


@pytest.mark.parametrize(
    "schedule", [FlowSchedule(), CosineSchedule(), VESchedule(sigma_max=20.0)], ids=["flow", "cosine", "ve"]
)
def test_one_step_towards_a_target_lands_where_the_teacher_does(schedule: object) -> None:
    teacher = knowing(Knows, two_gaussians(), schedule)
    x = torch.randn(5, 2, 1, 1, dtype=torch.float64)
    points = draw_trajectory(teacher, [Conditioning(torch.zeros(5, 1, 1))], x, 12, 1.0)
    grid = timesteps(DISTILLATION_TIMESTEP_SPACING, schedule, 12)
    made = plan(counts=(1, 2, 3, 4))
    assert len(list_segments(made)) == 10
    for stretch in list_segments(made):
        wanted = segment_target(points, schedule, grid, stretch)
        (alpha, sigma), (alpha_s, sigma_s) = (schedule(grid[i]) for i in (stretch.start, stretch.end))
        landed = alpha_s * wanted + sigma_s / sigma * (points[stretch.start] - alpha * wanted)
        torch.testing.assert_close(landed, points[stretch.end], rtol=1e-9, atol=1e-9)


def test_a_grids_stretches_are_the_students_own_grids() -> None:
    for n in (1, 2, 3, 4, 6):
        torch.testing.assert_close(
            timesteps(DISTILLATION_TIMESTEP_SPACING, FlowSchedule(), 12)[:: 12 // n],
            timesteps(DISTILLATION_TIMESTEP_SPACING, FlowSchedule(), n),
            rtol=1e-15,
            atol=0,
        )
    torch.testing.assert_close(
        timesteps(DISTILLATION_TIMESTEP_SPACING, FlowSchedule(), 4),
        torch.tensor([1, 0.9, 0.75, 0.5, 0], dtype=torch.float64),
    )


@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule()], ids=["flow", "cosine"])
def test_the_best_student_of_a_gaussian_draws_its_ode_in_any_number_of_steps(schedule: object) -> None:
    lump = one_gaussian(mean=0.5, std=0.4)
    student = knowing(Foresees, lump, schedule)
    x = torch.randn(6, 2, 1, 1)
    exact = 0.5 + 0.4 * x  # at t = 1 all is noise of variance 1
    for steps in (1, 2, 4):
        found = draw_student_images(student, Conditioning(torch.zeros(6, 1, 1)), x, steps)
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


def test_targets_of_many_moves_are_those_of_the_best_student() -> None:
    lump, schedule = one_gaussian(), FlowSchedule()
    teacher, student = knowing(Knows, lump, schedule), Foresees(lump, schedule)
    x = torch.randn(4, 2, 1, 1)
    points, grid, made = (
        draw_trajectory(teacher, [Conditioning(torch.zeros(4, 1, 1))], x, 800, 1.0),
        timesteps(DISTILLATION_TIMESTEP_SPACING, schedule, 800),
        plan(moves=800),
    )
    for stretch in list_segments(made):
        given = Conditioning(torch.zeros(4, 1, 1), vector=torch.full((4, 1), float(stretch.step_count)).log2())
        best = student(points[stretch.start], grid[stretch.start].expand(4), given)
        torch.testing.assert_close(segment_target(points, schedule, grid, stretch), best, rtol=0, atol=0.01)


def test_guidance_is_baked_in_and_bounded() -> None:
    """A teacher that says the number of its caption, at scale 3, teaches three times that, white at most."""
    teacher, made = gray_model(), plan(scale=3.0, moves=12)
    ids = teacher.tokenizer.encode(["0.2", "0.9"])
    points = draw_teacher_trajectories(teacher, ids, torch.randn(2, 3, 16, 16), made).points
    for stretch in list_segments(made):
        wanted = segment_target(
            points, FlowSchedule(), timesteps(DISTILLATION_TIMESTEP_SPACING, FlowSchedule(), 12), stretch
        )
        torch.testing.assert_close(wanted[0], torch.full((3, 16, 16), 0.6), rtol=0, atol=1e-4)
        torch.testing.assert_close(wanted[1], torch.full((3, 16, 16), 2.0), rtol=0, atol=1e-4)


def test_lessons_hang_on_their_number_alone() -> None:
    teacher, ids = random_model(), random_model().tokenizer.encode(CAPTIONS)
    many = generate_teacher_trajectories(teacher, ids, plan(batch=3), 0)
    first, second = next(many), next(many)
    again = next(generate_teacher_trajectories(teacher, ids, plan(batch=3), 3))
    assert torch.equal(second.points, again.points) and torch.equal(
        second.conditioning.tokens, again.conditioning.tokens
    )
    assert not torch.equal(first.points[0], second.points[0])
    alone = next(generate_teacher_trajectories(teacher, ids, plan(batch=1), 4))
    torch.testing.assert_close(alone.points, second.points[:, 1:2], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RUN of train, as it were."""
    out = tmp_path_factory.mktemp("teacher") / "frogs"
    out.mkdir()
    save(random_model(), out / "model.safetensors")
    (out / train_command.CAPTIONS_FILE).write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    return out


def options(run: Path, out: Path, **changes: object) -> DistilOptions:
    asked = DistilOptions(run, out, steps=10, guidance_scale=1.5, batch_size=2, quiet=True, precision="float32")
    return replace(asked, **changes)


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert command.run_distillation(options(run, out)) == 0
    return out


def test_stopped_and_resumed_is_bit_for_bit_the_same(
    run: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StudentUpdater.step

    def step(self: StudentUpdater, batch: object, number: int) -> object:
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch, number)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(StudentUpdater, "step", step)
        assert command.run_distillation(options(run, out)) == 130
    assert not (out / "model.safetensors").exists()
    assert command.run_distillation(options(run, out)) == 0
    assert equal(final(out), final(whole))


def test_the_file_carries_the_teacher_as_it_was(run: Path, whole: Path) -> None:
    both, teacher = load(whole), load(run)
    assert all(torch.equal(tensor, both.state_dict()[name]) for name, tensor in teacher.state_dict().items())
    ask = Request("a frog", seed=2)
    assert draw(both, ask)[0].tobytes() == draw(teacher, ask)[0].tobytes()
    card = both.student.card
    assert (card.step_counts, card.steps, card.guidance_scale, card.sampler, card.timestep_spacing) == (
        (1, 2, 4),
        4,
        1.0,
        "ddim",
        "shifted",
    )
    assert card.corpus["teacher"] == teacher.hash and card.corpus["scale"] == 1.5
    assert str(run) not in json.dumps(card.corpus) + card.recipe
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 10 and set(lines[-1]["held_out_shares"]) == {"1", "2", "4"}


def test_a_student_comes_nearer_to_its_teacher(run: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert command.run_distillation(options(run, out, steps=40, batch=4)) == 0

    def held(where: Path) -> dict[str, float]:
        return [json.loads(line) for line in (where / "log.jsonl").read_text().splitlines()][-1]["held_out_shares"]

    assert all(held(out)[steps] < 0.98 * held(whole)[steps] for steps in ("1", "2", "4"))


def test_what_cannot_be_distilled_is_named_with_its_mend(run: Path, whole: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "frogs.safetensors", tmp_path / "run"
    save(random_model(), file)
    with pytest.raises(InputError, match="--corpus"):
        command.run_distillation(options(file, out))
    with pytest.raises(InputError, match="exactly one"):
        command.run_distillation(options(run, out, steps=None))
    with pytest.raises(InputError, match="--precision int3"):
        command.run_distillation(options(run, out, precision="int3"))
    with pytest.raises(InputError, match="no such file"):
        command.run_distillation(options(tmp_path / "none", out))
    save(load(whole).student, tmp_path / "student.safetensors")
    (tmp_path / train_command.CAPTIONS_FILE).write_text("a frog\n")
    with pytest.raises(InputError, match="nothing to teach"):
        command.run_distillation(options(tmp_path / "student.safetensors", out))
    assert not out.exists()


def test_a_run_is_kept_to_what_it_began_with(
    run: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run_distillation(options(run, whole, quiet=False)) == 0
    assert "finished" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"--scale 1.5, not with --scale 2"):
        command.run_distillation(options(run, whole, scale=2.0))
    with pytest.raises(InputError, match="plan of a run of `distil`"):
        train_command.run_training(TrainOptions(tmp_path, whole, steps=1))
    assert command.run_distillation(options(run, whole, plan_only=True, json=True)) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((whole / plans.PLAN_FILE).read_text())
    half = tmp_path / "half"
    assert command.run_distillation(options(run, half, plan_only=True)) == 0 and not half.exists()
    plans.load_plan(whole, DistilPlan).save(half)
    with (tmp_path / "others").open("w"):
        pass
    other = tmp_path / "other"
    other.mkdir()
    (other / train_command.CAPTIONS_FILE).write_text("two pizzas\n")
    save(random_model(), other / "model.safetensors")
    with pytest.raises(InputError, match="captions changed"):
        command.run_distillation(options(other, half))


def test_a_tenth_of_a_folders_captions(tmp_path: Path) -> None:
    captions = [f"caption {i % 400}" for i in range(1000)]
    taught, held_out = command._split_captions(captions)
    assert len(held_out) == 32 and not set(held_out) & set(taught)
    assert set(taught) | set(held_out) == {*captions, ""} and 0.015 < taught.count("") / len(taught) < 0.025
    taught, held_out = command._split_captions(["a", "b", "a"])
    assert (set(taught), set(held_out)) == ({"a", "b", ""}, {"a", "b"})
