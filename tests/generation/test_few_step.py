"""Few-step students: one file holds both models, each draws its requests, and the teacher's images do not change."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model_files import load_error, read_model_file, write_model_file
from tiny_models import gray_model, model_with_student, random_model
from unspeckle.cli import main
from unspeckle.denoiser import Conditioning, PreparedConditioning
from unspeckle.errors import InputError
from unspeckle.generation.few_step import select_network, with_step_count
from unspeckle.generation.metadata import image_metadata, request_from_metadata
from unspeckle.generation.pipeline import draw, steps
from unspeckle.generation.request import Request
from unspeckle.generation.resolve import resolve
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import save
from unspeckle.output.png import max_pixel_difference
from unspeckle.training.student_updater import init_student


def test_a_new_student_computes_what_its_teacher_does_at_any_step_count() -> None:
    teacher = random_model()
    student = teacher.with_network(init_student(teacher), teacher.card)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0.2, 0.7, 1.0])
    conditioning = teacher.text_encoder(teacher.tokenizer.encode(["a frog", "two red frogs", ""]))
    with_count = with_step_count(conditioning, torch.tensor([1, 2, 4]))
    assert torch.equal(with_count.vector[:, -1], torch.tensor([0.0, 1.0, 2.0]))
    assert torch.allclose(student.denoiser(x, t, with_count), teacher.denoiser(x, t, conditioning), atol=1e-5)


def test_step_count_where_there_was_no_vector() -> None:
    conditioning = with_step_count(Conditioning(torch.zeros(2, 3, 4)), torch.tensor([8, 1]))
    assert conditioning.vector.tolist() == [[3.0], [0.0]]


def test_one_file_holds_both_and_either_alone(tmp_path: Path) -> None:
    both, teacher = model_with_student(), random_model()
    save(both, tmp_path / "both.safetensors")
    save(both.student, tmp_path / "student.safetensors")
    again, alone = load(tmp_path / "both.safetensors"), load(tmp_path / "student.safetensors")
    assert (again.hash, again.card, again.student.card) == (both.hash, both.card, both.student.card)
    assert again.state_dict().keys() == both.state_dict().keys()
    assert all(torch.equal(tensor, both.state_dict()[name]) for name, tensor in again.state_dict().items())
    many, few = Request("a frog", seed=3), Request("a frog", seed=3, steps=2)
    assert draw(again, many)[0].tobytes() == draw(teacher, many)[0].tobytes()
    assert draw(again, few)[0].tobytes() == draw(alone, few)[0].tobytes() != draw(teacher, few)[0].tobytes()
    again.student = None
    assert again.hash == teacher.hash != both.hash


def test_the_hash_covers_all_that_decides_a_students_images() -> None:
    usual, unbounded = model_with_student(), model_with_student()
    unbounded.student.card = replace(unbounded.student.card, clamp_denoised=False)
    assert unbounded.hash != usual.hash


def test_a_file_is_strict_about_its_student(tmp_path: Path) -> None:
    path = tmp_path / "both.safetensors"
    save(model_with_student(), path)
    metadata, tensors = read_model_file(path)
    name = "student.conv_in.weight"
    without_tensor = {key: tensor for key, tensor in tensors.items() if key != name}
    without_student = {key: value for key, value in metadata.items() if key != "student"}
    spare = {**tensors, "student.more": torch.ones(1)}
    assert f"lacks the tensor '{name}'" in load_error(write_model_file(path, metadata, without_tensor))
    assert "tensor 'student.more'" in load_error(write_model_file(path, metadata, spare))
    assert "tensor 'student." in load_error(write_model_file(path, without_student, tensors))
    for broken in (3, {}, {"network": metadata["network"], "card": {}}):
        load_error(write_model_file(path, {**metadata, "student": broken}, tensors))
    save_file(tensors, path)
    assert "or a model of unspeckle" in load_error(path)


@pytest.mark.parametrize(
    ("drawing", "by_student"),
    [
        (Request(steps=1), True),
        (Request(steps=4), True),
        (Request(steps=4, guidance_scale=1.0, sampler="ddim", timestep_spacing="shifted"), True),
        (Request(), False),
        (Request(steps=3), False),
        (Request(steps=4, guidance_scale=5.0), False),
        (Request(steps=4, sampler="heun"), False),
        (Request(steps=4, timestep_spacing="uniform"), False),
        (Request(steps=4, negative_prompt="a pizza"), False),
    ],
)
def test_which_network_draws(drawing: Request, by_student: bool) -> None:
    model = model_with_student()
    assert (select_network(model, drawing).network is model.student.network) == by_student
    resolved = resolve(model, drawing)
    assert (resolved.guidance_scale == 1.0 and resolved.timestep_spacing == "shifted") == by_student
    assert (select_network(model, resolved).network is model.student.network) == by_student


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--steps 4", ""),
        ("--steps 3 --negative-prompt red", ""),
        ("--negative-prompt red", ""),
        ("--steps 4 --negative-prompt red", "--negative-prompt"),
        ("--steps 2 --guidance-scale 3", "--guidance-scale 3.0"),
        ("--steps 1 --guidance-rescale 0.5", "--guidance-rescale"),
    ],
)
def test_a_teacher_that_draws_in_its_students_steps_says_why(
    options: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(model_with_student(), tmp_path / "both.safetensors")
    line = ["draw", "a frog", "-m", str(tmp_path / "both.safetensors"), "-o", str(tmp_path), *options.split()]
    assert main(line) == 0
    metadata = [line for line in capsys.readouterr().err.splitlines() if "few-step student" in line]
    assert [line.split(":")[0] for line in metadata] == [why] * bool(why)


def test_a_students_image_is_replayed_by_its_student() -> None:
    model = model_with_student()
    image = draw(model, Request("a frog", seed=5, count=2, steps=2))[1]
    again, place = request_from_metadata(image_metadata(image))
    assert max_pixel_difference(draw(model, again)[place], image) == 0
    assert resolve(model, again) == resolve(model, Request("a frog", seed=5, count=2, steps=2))


@pytest.mark.parametrize(
    ("bad_request", "message"),
    [
        (Request(steps=3), "distilled to 1, 2, 4 steps"),
        (Request(guidance_scale=3.0), "guidance_scale 3.0: this model was distilled"),
        (Request(negative_prompt="a pizza", steps=2), "negative_prompt: this model was distilled"),
        (Request(sampler="heun"), "sampler 'heun'"),
    ],
)
def test_a_student_alone_refuses_what_it_cannot_draw(bad_request: Request, message: str) -> None:
    with pytest.raises(InputError, match=message):
        steps(model_with_student().student, bad_request)


def test_a_student_is_with_counts_steps_and_follows_the_law() -> None:
    """A student that predicts log2 of its step count must draw that gray, in exactly so many calls."""
    model = gray_model()

    class StepCountNetwork(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.calls = model.network.config, 0
            self.one = torch.nn.Parameter(torch.ones(()))

        def prepare(self, conditioning: Conditioning) -> PreparedConditioning:
            return PreparedConditioning(*conditioning)

        def forward(self, x: Tensor, c_noise: Tensor, conditioning: PreparedConditioning) -> Tensor:
            self.calls += 1
            return conditioning.vector[:, -1].view(-1, 1, 1, 1).expand_as(x) / 2

    network = StepCountNetwork()
    model.student = model.with_network(
        network, replace(model.card, step_counts=(1, 2, 4), sampler="ddim", timestep_spacing="shifted")
    )
    for count in (1, 2, 4):
        network.calls = 0
        for step in steps(model, Request("0.3", seed=1, count=2, steps=count)):
            last = step
        assert network.calls == count
        assert torch.allclose(last.x, torch.tensor(count).log2() / 2, atol=1e-6)
