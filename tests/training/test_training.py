"""Training: the same weights however it is interrupted, averages as their formula says, nothing bad let through."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tiny_models import model_with_student
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.model import ModelCard
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import save
from unspeckle.networks.autoencoder import PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.training import checkpoint, command, loop, optimizer, planner, stage
from unspeckle.training import plan as plans
from unspeckle.training.checkpoint import Checkpoint
from unspeckle.training.cost import StepCost
from unspeckle.training.ema import PowerFunctionEMA, gamma_from_width
from unspeckle.training.master_weights import StepStats, TextToImageUpdater, init_modules
from unspeckle.training.options import TrainOptions

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (30, 60, 220)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures of 16 × 16 in three colours, with captions in class folders."""
    root, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(20):
            pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def options(folder: Path, out: Path, **changes: object) -> TrainOptions:
    asked = TrainOptions(folder, out, steps=12, size="16", preset="nano", batch_size=8, quiet=True, precision="float32")
    return replace(asked, **changes)


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Ctrl-C, as it were, during the given step."""
    real = TextToImageUpdater.step

    def step(self: TextToImageUpdater, batch: object, number: int) -> object:
        if number == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch, number)

    monkeypatch.setattr(TextToImageUpdater, "step", step)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        assert command.run_training(options(folder, out)) == 0
    return out


def final(run: Path) -> dict[str, Tensor]:
    found = checkpoint.load_latest_checkpoint(run / "checkpoints")
    assert found is not None
    return {**found.tensors, **load_file(run / "model.safetensors")}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_stopped_and_resumed_is_bit_for_bit_the_same(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    for last in (3, 9):
        with monkeypatch.context() as patch:
            stop_after(patch, last)
            assert command.run_training(options(folder, out)) == 130
        assert checkpoint.load_latest_checkpoint(out / "checkpoints").step == last
        assert not (out / "model.safetensors").exists()
    assert command.run_training(options(folder, out)) == 0
    assert equal(final(out), final(whole))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"precision": "bfloat16", "preset": "t-nano"},
        pytest.param({"precision": "bfloat16", "compile": True}, marks=pytest.mark.slow),
        pytest.param({"precision": "bfloat16", "compile": True, "preset": "t-nano"}, marks=pytest.mark.slow),
    ],
    ids=["bfloat16", "transformer", "compiled", "transformer compiled"],
)
def test_resuming_is_bit_for_bit_the_same_as_people_train(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert command.run_training(options(folder, whole, **changes)) == 0
    assert plans.load_plan(whole).compile == ("compile" in changes)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert command.run_training(options(folder, out, **changes)) == 130
    assert command.run_training(options(folder, out, **changes)) == 0
    assert equal(final(out), final(whole))


def test_killed_at_once_and_resumed_is_bit_for_bit_the_same(folder: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    program = (
        "import sys; from pathlib import Path; from unspeckle.training import command, learner, stage\n"
        "from unspeckle.training.options import TrainOptions\n"
        "import time; real = learner.Learner.step; stage.SAVE_EVERY = 0\n"
        "saved = Path(sys.argv[2]) / 'checkpoints'\n"
        "learner.Learner.step = lambda s, b, n: time.sleep(0.3 * saved.exists()) or real(s, b, n)\n"
        "command.run(TrainOptions(Path(sys.argv[1]), Path(sys.argv[2]), steps=12, size='16', preset='nano', batch=8,"
        " quiet=True, precision='float32'))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(folder), str(out)])
    give_up = time.monotonic() + 60
    while len(list((out / "checkpoints").glob("step-*"))) < 2 and time.monotonic() < give_up:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (out / "model.safetensors").exists()
    assert command.run_training(options(folder, out)) == 0
    assert equal(final(out), final(whole))


def test_the_words_learn_alone_first(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plans.load_plan(whole)
    assert plan is not None and plan.text_steps == int(0.3 * plan.steps) >= 3
    for last, moved in (
        (plan.text_steps, {"text", "coarse_predictor"}),
        (plan.text_steps + 1, {"text", "coarse_predictor", "network"}),
    ):
        with monkeypatch.context() as patch:
            stop_after(patch, last)
            assert command.run_training(options(folder, tmp_path / str(last))) == 130
        found = checkpoint.load_latest_checkpoint(tmp_path / str(last) / "checkpoints")
        assert found is not None
        begun = dict(init_modules(plan).named_parameters())
        changed = {name for name, old in begun.items() if not torch.equal(found.tensors[f"weights.{name}"], old)}
        assert {"coarse_predictor" if ".coarse_predictor." in name else name.split(".")[0] for name in changed} == moved


def test_what_is_left_is_foreseen_while_the_words_learn(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of words take 3 s, others 20: the words' pace says nothing of the rest, and nothing is looked at."""
    plan = replace(plans.load_plan(whole), steps=40, word_steps=12, batch=8, rate=8 / 20)
    clock, looked = [100.0], []

    class Walker:
        skipped = 0

        def step(self, batch: object, step: int) -> StepStats:
            clock[0] += 3 if step <= 12 else 20
            return StepStats(1.0, 1.0, True)

        def look(self, step: int) -> stage.Inspection:
            looked.append(step)
            return stage.Inspection()

        def save(self, step: int) -> Path:
            return whole

        def stop(self) -> bool:
            return False

    walker = Walker()
    walker.plan = plan
    monkeypatch.setattr(stage.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stage, "LOOK_EVERY", 25.0)
    reports = list(stage.training_loop(walker, iter(range(99)), 4))
    assert [report.step for report in reports] == list(range(5, 41))
    for report in reports:
        assert report.seconds_left == pytest.approx(3 * max(0, 12 - report.step) + 20 * (40 - max(12, report.step)))
        assert report.is_text_stage == (report.step <= 12)
    assert looked == list(range(14, 40, 2))


def test_a_finished_run_says_so(folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run_training(options(folder, whole, quiet=False)) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(whole / "model.safetensors")
    assert "finished" in said.err


@pytest.mark.parametrize(
    ("changes", "mirrored"),
    [({"steps": 12}, False), ({"steps": 60}, True), ({"steps": 12, "mirror": True}, True),
     ({"steps": 60, "mirror": False}, False)],
)  # fmt: skip
def test_pictures_are_mirrored_where_they_are_seen_often_or_as_asked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], mirrored: bool
) -> None:
    """60 pictures, 8 of them a step."""
    assert command.run_training(options(folder, tmp_path / "run", plan_only=True, json=True, **changes)) == 0
    assert json.loads(capsys.readouterr().out)["mirror"] is mirrored


@pytest.mark.parametrize(
    ("changes", "balance"), [({}, 0.5), ({"balance": 0.0}, 0.0), ({"caption": "a dot"}, 0.0), ({"balance": 1.0}, 1.0)]
)
def test_classes_are_shown_more_alike_than_their_folders_are_full(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], balance: float
) -> None:
    assert command.run_training(options(folder, tmp_path / "run", plan_only=True, json=True, **changes)) == 0
    assert json.loads(capsys.readouterr().out)["balance"] == balance


def test_the_plan_decides_how_often_rare_captions_are_shown(folder: Path, whole: Path) -> None:
    """All pictures but ten have the same caption."""
    plan = replace(plans.load_plan(whole), balance=1.0)
    materials = command.load_inputs(
        command.read_folder(folder), options(folder, whole), plan, command.Console(quiet=True)
    )
    split = materials.corpus.training
    words = [("one",) if i < len(split) - 10 else ("rare",) for i in range(len(split))]
    corpus = replace(materials.corpus, training=replace(split, wordings=tuple(words)))
    training = loop.TextToImageTask(plan, whole, corpus, *materials[1:3], ModelCard(), (), loop.init_modules(plan))
    data = training.batches(0)
    heard = [caption for _ in range(20) for caption in next(data).captions]
    assert heard.count("rare") == pytest.approx(len(heard) / 2, rel=0.15)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_plan_decides_whether_pictures_are_mirrored(folder: Path, whole: Path, mirror: bool) -> None:
    plan = replace(plans.load_plan(whole), mirror=mirror)
    materials = command.load_inputs(
        command.read_folder(folder), options(folder, whole), plan, command.Console(quiet=True)
    )
    training = loop.TextToImageTask(plan, whole, *materials[:3], ModelCard(), (), loop.init_modules(plan))
    seen = torch.cat([next(data).images for data in [training.batches(0)] for _ in range(8)])
    corpus = materials.corpus.training
    straight = {picture.numpy().tobytes() for picture in corpus.center_crops(range(len(corpus)))}
    assert all(picture.numpy().tobytes() in straight for picture in seen) is not mirror


def test_changed_options_are_refused_by_name(folder: Path, whole: Path) -> None:
    with pytest.raises(InputError, match="--batch 8, not with --batch 4"):
        command.run_training(options(folder, whole, batch=4))
    with pytest.raises(InputError, match="began with no --mirror, not with --no-mirror"):
        command.run_training(options(folder, whole, mirror=False))
    with pytest.raises(InputError, match="began with no --space, not with --space latents"):
        command.run_training(options(folder, whole, space="latents"))


def test_a_changed_folder_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        command.run_training(options(folder, out))
    for i in range(18):
        path = other / ("red", "blue")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (200, i, 0)).save(path)
    with pytest.raises(InputError, match="have changed"):
        command.run_training(options(other, out))


@pytest.mark.parametrize(
    "command_line", ["train FOLDER --from MODEL --out RUN --steps 3", "distil MODEL --out RUN --steps 3"]
)
def test_only_models_that_learn_here_are_gone_on_from(
    command_line: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stable_diffusion_files = pytest.importorskip("stable_diffusion_files", reason="needs diffusers")
    stable_diffusion_files.tiny_pipeline("1", tmp_path / "scratch").save_pretrained(tmp_path / "pipe")
    save(model_with_student().student, tmp_path / "student.safetensors")
    capsys.readouterr()
    for name, says in (("pipe", "was not trained here"), ("student.safetensors", "name the model that taught it")):
        told = {"FOLDER": str(folder), "MODEL": str(tmp_path / name), "RUN": str(tmp_path / "run")}
        assert main([told.get(word, word) for word in command_line.split()]) == 2
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if line.startswith("unspeckle: ")]
        assert said.out == "" and len(lines) == 1 and f"{tmp_path / name}: " in lines[0] and says in lines[0]
        assert not (tmp_path / "run" / "plan.json").exists()


@pytest.mark.parametrize(
    ("part", "content", "says"),
    [
        ("plan.json", {"threads": 0}, "'threads' must be at least 1, not 0"),
        ("plan.json", {"steps": -3}, "'steps' must be at least 1"),
        ("plan.json", {"device": "cuda:77"}, "was begun on cuda:77, which is not here"),
        ("plan.json", {"batch": "many"}, "field 'batch'"),
        ("plan.json", b"\xff", "plan.json: cannot be read"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json: cannot be read"),
        ("tokenizer.json", b"{}", "tokenizer.json: cannot be read"),
        ("tokenizer.json", None, "tokenizer.json: cannot be read"),
        ("checkpoints/step-00000012.safetensors", b"torn", "no checkpoint there can be read"),
    ],
)
def test_what_is_wrong_in_a_run_is_named(
    part: str, content: object, says: str, folder: Path, whole: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "model.safetensors").unlink()
    if isinstance(content, dict):
        content = json.dumps(json.loads((run / part).read_text()) | content).encode()
    (run / part).unlink() if content is None else (run / part).write_bytes(content)
    options = "--steps 12 --size 16 --preset nano --batch 8 --precision float32 -q"
    assert main(["train", str(folder), "--out", str(run), *options.split()]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and str(run) in said.err and says in said.err


def test_what_is_no_checkpoint_is_let_be(tmp_path: Path) -> None:
    (tmp_path / "step-final.safetensors").touch()
    for step in (7, 8, 100_000_000, 100_000_001):
        checkpoint.save_checkpoint(tmp_path, Checkpoint(step, {"a": torch.ones(1)}, {}))
    assert checkpoint.latest_step(tmp_path) == checkpoint.load_latest_checkpoint(tmp_path).step == 100_000_001
    assert len(list(tmp_path.iterdir())) == 3


def test_the_run_holds_what_the_contract_says(whole: Path) -> None:
    assert plans.load_plan(whole).steps == 12
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 12 and lines[-1]["pictures"] == 96 and lines[-1]["held_out"] > 0
    with Image.open(sorted((whole / "samples").glob("*.png"))[-1]) as grid:
        assert grid.size[0] % 16 == 0 and len(grid.getcolors(100_000)) > 10
    model = load(whole)
    assert model.card.size == (16, 16) and "red" in model.card.vocabulary
    assert str(whole) not in json.dumps(model.card.corpus) + model.card.recipe
    heard = (whole / command.CAPTIONS_FILE).read_text().splitlines()
    assert set(heard) == {f"a photo of a {name}" for name in COLOURS} and len(heard) == model.card.corpus["training"]


def test_the_model_is_the_best_candidate(folder: Path, whole: Path) -> None:
    held = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()][-1]["held_out"]
    materials = command.load_inputs(
        command.read_folder(folder), options(folder, whole), plans.load_plan(whole), command.Console(quiet=True)
    )
    training = loop.TextToImageTask(
        plans.load_plan(whole), whole, materials.corpus, materials.tokenizer, materials.autoencoder, load(whole).card, (),
        loop.init_modules(plans.load_plan(whole)),
    )  # fmt: skip
    training.resume()
    judge = loop.ValidationLoss(
        materials.corpus.validation,
        materials.tokenizer,
        materials.autoencoder,
        training.updater.objective,
        "cpu",
        loop.VALIDATION_IMAGES,
    )
    losses = {}
    for name, tensors in training.candidate_weights().items():
        model = training.build_model(tensors)
        losses[name] = judge(model.denoiser, model.text_encoder).total
    assert len(losses) == 3
    assert held == pytest.approx(min(losses.values()), rel=1e-6)
    assert load(whole).card.corpus["weights"] == min(losses, key=losses.__getitem__)


def test_it_learns_which_colour_a_word_means(folder: Path, tmp_path: Path) -> None:
    from unspeckle.generation.pipeline import draw
    from unspeckle.generation.request import Request

    out = tmp_path / "run"
    assert command.run_training(options(folder, out, steps=250, batch=32, precision=None)) == 0
    model = load(out)
    for name, colour in COLOURS.items():
        pixels = np.asarray(draw(model, Request(f"a photo of {name}", steps=12, guidance_scale=2.0))[0], np.float64)
        seen = pixels.mean((0, 1))
        nearest = min(COLOURS, key=lambda other: float(np.abs(seen - COLOURS[other]).sum()))
        assert nearest == name, (name, seen, colour)


def test_a_transformer_learns_too(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert command.run_training(options(folder, out, steps=60, batch=32, precision=None, preset="t-nano")) == 0
    held = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][-1]["held_out"]
    plan = plans.load_plan(out)
    materials = command.load_inputs(
        command.read_folder(folder), options(folder, out), plan, command.Console(quiet=True)
    )
    untrained = TextToImageUpdater(plan, loop.init_modules(plan), materials.tokenizer, materials.autoencoder)
    heard = materials.corpus.validation, materials.tokenizer, materials.autoencoder, untrained.objective
    silent = loop.ValidationLoss(*heard, torch.device("cpu"), loop.VALIDATION_IMAGES)(
        untrained.denoiser, untrained.compute_module.text_encoder
    )
    assert held < 0.5 * silent.total  # of saying nothing, which an untrained network does


def test_steps_that_are_not_finite_move_nothing_and_are_bounded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, before = TextToImageUpdater.loss, {}

    def loss(self: TextToImageUpdater, batch: object, step: int) -> Tensor:
        start = int(batch.indices[0]) // 8 + 1
        if start == 5:
            before["weights"] = [t.clone() for t in self.weight_tensors()]
        if start == 6:
            assert all(torch.equal(a, b) for a, b in zip(before["weights"], self.weight_tensors(), strict=True))
        value = real(self, batch, step)
        return value * math.inf if start == 5 or (bad and start > 20) else value

    monkeypatch.setattr(TextToImageUpdater, "loss", loss)
    bad = False
    assert command.run_training(options(folder, tmp_path / "one")) == 0
    assert json.loads((tmp_path / "one/log.jsonl").read_text().splitlines()[-1])["skipped"] == 1
    bad = True
    assert command.run_training(options(folder, tmp_path / "many", steps=60)) == 1
    assert "not been finite for 20 steps" in capsys.readouterr().err


def test_going_on_from_a_model_begins_where_it_ended(folder: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = options(folder, out, steps=1, preset=None, from_model=whole)
    assert command.run_training(asked) == 0
    before, after = load_file(whole / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    moved = max(float((before[k] - after[k]).abs().max()) for k in before)
    assert 0 < moved < 2e-3  # one step of Adam at the learning rate's start


def test_power_average_is_its_formula() -> None:
    steps, gamma = 40, gamma_from_width(0.1)
    values = torch.randn(steps, dtype=torch.float64)
    average = PowerFunctionEMA(0.1, [torch.zeros((), dtype=torch.float64)])
    for step, value in enumerate(values, 1):
        average.update([value], step)
    ends = torch.arange(steps + 1, dtype=torch.float64) ** (gamma + 1)
    expected = (values * ends.diff()).sum() / ends[-1]  # the integral of s^gamma over each step
    assert float(average.averaged_tensors[0]) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_power_average_has_the_width_it_claims(width: float) -> None:
    gamma, s = gamma_from_width(width), torch.linspace(0, 1, 200_001, dtype=torch.float64)
    weight = s**gamma / (s**gamma).sum()
    mean = (weight * s).sum()
    assert float(((weight * (s - mean) ** 2).sum()).sqrt()) == pytest.approx(width, rel=1e-3)


def test_the_pace_rises_stays_and_falls_to_zero(whole: Path) -> None:
    plan = replace(plans.load_plan(whole), steps=1000, warmup=100, decay=0.4, word_steps=0)
    pace = [optimizer.learning_rate_factor(step, plan) for step in range(1, 1001)]
    assert pace[0] == 0.01 and pace[99:600] == [1.0] * 501
    assert pace[799] == pytest.approx(0.5, abs=0.01) and pace[999] == 1 / 400
    again = [optimizer.learning_rate_factor(step, replace(plan, word_steps=300)) for step in range(1, 1001)]
    assert again[:300] == pace[:300] and again[300:] == [*pace[:100], *pace[400:]]


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save_checkpoint(tmp_path, Checkpoint(step, {"a": torch.tensor([float(step)])}, {"skipped": 0}))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000002.safetensors", "step-00000003.safetensors"]
    newest = tmp_path / names[1]
    newest.write_bytes(newest.read_bytes()[:-2])
    assert checkpoint.load_latest_checkpoint(tmp_path).step == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": None}, "--for 30m"),
        ({"seconds": 60.0}, "exactly one"),
        ({"steps": 0}, "--steps 0"),
        ({"preset": "gigantic"}, "nano, micro"),
        ({"precision": "int3"}, "--precision int3"),
        ({"device": "abacus"}, "--device abacus"),
        ({"size": "17"}, "multiples of 2 here, at least 16; try 16x16"),
        ({"size": "8"}, "at least 16; try 16x16"),
        ({"device": "meta"}, "--device meta: cannot be used here"),
        ({"batch": 0}, "--batch 0"),
        ({"balance": 1.5}, "--balance 1.5: must lie between 0"),
        ({"balance": float("nan")}, "--balance nan: must lie between 0"),
    ],
)
def test_bad_options_are_named_with_their_mend(
    folder: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        command.run_training(options(folder, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "plan.json").exists()


def test_two_processes_do_not_train_into_one_run(folder: Path, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "run"
    out.mkdir()
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process"):
            command.run_training(options(folder, out))


def test_a_folder_with_other_things_is_not_trained_into(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other things"):
        command.run_training(options(folder, tmp_path))


@pytest.mark.parametrize("room", [1.0, 7.5, 9_000.0, 11_000.0, 400_000.0])
@pytest.mark.parametrize("cost", [StepCost(1.0, 0.8), StepCost(1.09, 0.82), StepCost(1.0, 0.0)])
def test_the_time_that_the_words_win_is_used_and_no_more(cost: StepCost, room: float) -> None:
    steps = cost.steps_within(room)
    one_word = cost.text_step_saving  # whole steps: the words' share is cut off
    assert cost.total(steps) <= room + one_word and cost.total(steps + 1) > room


def test_more_time_never_chooses_a_smaller_network(folder: Path, tmp_path: Path) -> None:
    from unspeckle.text.tokenizer import Tokenizer

    tokenizer, names = Tokenizer.train(["a frog"]), list(planner.UNET_PRESETS)
    pixels = PixelAutoencoder(PixelAutoencoderConfig())

    def picked_for(seconds: float) -> int:
        asked = options(folder, tmp_path, steps=None, seconds=seconds)
        return names.index(planner._choose_preset(asked, (64, 64), 64, tokenizer, pixels, lambda _: 200))

    picked = [picked_for(seconds) for seconds in (10.0, 300.0, 3000.0, 30_000.0, 3e6)]
    assert picked == sorted(picked) and picked[0] == 0 and picked[-1] == len(names) - 1


def test_no_memory_left_is_one_line_and_the_run_goes_on_later(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, real = tmp_path / "run", TextToImageUpdater.step

    def step(self: TextToImageUpdater, batch: object, number: int) -> object:
        if number == 5:
            torch.empty(2**55)
        return real(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(TextToImageUpdater, "step", step)
        patch.setattr(stage, "SAVE_EVERY", 0.0)
        assert command.run_training(options(folder, out)) == 1
    error = capsys.readouterr().err.strip()
    assert "step 5: no memory left" in error and "--batch 4" in error and len(error.splitlines()) == 1
    assert command.run_training(options(folder, out)) == 0
    assert equal(final(out), final(whole))


def test_plan_shows_the_plan_of_a_run_that_has_begun(
    folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run_training(options(folder, whole, plan_only=True, json=True)) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((whole / plans.PLAN_FILE).read_text())
    with pytest.raises(InputError, match="--seed"):
        command.run_training(options(folder, whole, plan_only=True, seed=9))
