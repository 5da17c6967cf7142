"""An unCLIP model: its parts learn, resume to the bit, and draw from texts and from images."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import unspeckle
from tiny_models import CAPTIONS, random_model
from training_runs import COLORS, checkpoint_tensors, interrupt_at, tensors_equal
from unspeckle.cli import main
from unspeckle.corpus.batches import Batch
from unspeckle.corpus.shrunk_split import shrink_split
from unspeckle.generation.image_prompts import slerp
from unspeckle.generation.pipeline import draw_prompts
from unspeckle.model_io.model_file import save
from unspeckle.networks import PixelAutoencoder, PixelAutoencoderConfig, UNetConfig
from unspeckle.text.text_encoder import TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import unclip_planner
from unspeckle.training.clip_updater import CLIPUpdater
from unspeckle.training.decoder_updater import DecoderUpdater
from unspeckle.training.plan import PIXEL_OBJECTIVE, ComputePlan, ModelPlan, OptimizerPlan, Plan, WorkPlan
from unspeckle.training.prior_task import PriorTask
from unspeckle.training.text_to_image_updater import TextToImageUpdater
from unspeckle.training.trainer import training_step
from unspeckle.training.unclip_command import UnCLIPCommand
from unspeckle.training.unclip_planner import upsampling_factor
from unspeckle.training.upsampler_updater import UpsamplerUpdater
from unspeckle.unclip import UnCLIPModel
from unspeckle.upsampler import UpsamplerModel, enlarge, shrink

PARTS = ("clip", "prior", "upsampler", "decoder")
TYPED = ["--kind", "unclip", "--size", "32", "--preset", "nano", "--batch-size", "4", "--steps", "6"]
TYPED += ["--precision", "float32", "--quiet"]
SMALL_PARTS = """
import unspeckle.training.progress as p; p.CHECKPOINT_INTERVAL = 0.0
from unspeckle.training import unclip_planner as u; u.SMALL_SIDE, u.PRIOR_WIDTH, u.PRIOR_LAYERS = 16, 64, 1
"""


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> Iterator[None]:
    """Decoders of 16 pixels and small priors, in all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unclip_planner, "SMALL_SIDE", 16)
        patch.setattr(unclip_planner, "PRIOR_WIDTH", 64)
        patch.setattr(unclip_planner, "PRIOR_LAYERS", 1)
        yield


@pytest.fixture(scope="module")
def unclip_run(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps of each part, without interruption."""
    run = tmp_path_factory.mktemp("unclip") / "run"
    assert main(["train", str(color_folder), "--out", str(run), *TYPED]) == 0
    return run


@pytest.fixture(scope="module")
def trained_run(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns the three colors."""
    run = tmp_path_factory.mktemp("unclip") / "trained"
    command = ["train", str(color_folder), "--out", str(run), "--kind", "unclip", "--size", "16", "--preset", "nano"]
    assert main([*command, "--batch-size", "16", "--steps", "160", "--precision", "float32", "--quiet"]) == 0
    return run


@pytest.fixture
def model(unclip_run: Path) -> UnCLIPModel:
    model = unspeckle.load(unclip_run)
    assert isinstance(model, UnCLIPModel)
    return model


def read_log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def all_tensors(run: Path) -> dict[str, torch.Tensor]:
    """Those of the checkpoints of all parts."""
    return {f"{part}.{name}": one for part in PARTS for name, one in checkpoint_tensors(run / part).items()}


@pytest.mark.parametrize(
    ("updater_class", "step"), [(CLIPUpdater, 3), (TextToImageUpdater, 2), (UpsamplerUpdater, 4), (DecoderUpdater, 5)]
)
def test_an_interrupted_run_ends_as_one_that_was_not(
    color_folder: Path, unclip_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updater_class: Any, step: int
) -> None:
    command = ["train", str(color_folder), "--out", str(tmp_path / "run"), *TYPED]
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, updater_class)
        assert main(command) == 130
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert main(command) == 0
    assert tensors_equal(all_tensors(tmp_path / "run"), all_tensors(unclip_run))
    assert unspeckle.load(tmp_path / "run").hash == unspeckle.load(unclip_run).hash


def test_a_killed_run_ends_as_one_that_was_not(color_folder: Path, unclip_run: Path, tmp_path: Path) -> None:
    run, script = tmp_path / "run", SMALL_PARTS
    script += f"from unspeckle.cli import main; main({['train', str(color_folder), '--out', str(run), *TYPED]!r})"
    for part, step in (("clip", 2), ("prior", 3), ("decoder", 2)):
        process = subprocess.Popen([sys.executable, "-c", script])
        deadline = time.monotonic() + 120
        while not list((run / part / "checkpoints").glob(f"step-*{step}.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(["train", str(color_folder), "--out", str(run), *TYPED]) == 0
    assert tensors_equal(all_tensors(run), all_tensors(unclip_run))


def test_each_part_predicts_held_out_images_better_than_their_mean(trained_run: Path) -> None:
    for part in ("clip", "prior", "decoder"):
        last = read_log(trained_run / part)[-1]
        assert last["validation_loss"] < 0.7, part
        # A share of the error of the mean image, or of guessing
        errors = list(last["validation_errors"].values())
        assert max(errors) < 1.05 and errors[len(errors) // 2] < 0.8, part


def mean_color(image: Image.Image) -> tuple[float, ...]:
    red, green, blue = image.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore[misc]
    return red, green, blue


def nearest_color(image: Image.Image) -> str:
    color = mean_color(image)
    return min(COLORS, key=lambda name: sum((a - b) ** 2 for a, b in zip(color, COLORS[name], strict=True)))


def test_it_draws_what_words_say_and_what_images_show(trained_run: Path) -> None:
    model = unspeckle.load(trained_run)
    images = {name: Image.new("RGB", (20, 20), color) for name, color in COLORS.items()}
    options: dict[str, Any] = {"seed": 1, "count": 8, "steps": 8}
    for name, image in images.items():
        # After so short a training, one of eight may be wrong.
        assert [nearest_color(one) for one in unspeckle.draw(model, name, **options)].count(name) >= 7
        like = unspeckle.draw(model, "", like=image, **options)
        assert [nearest_color(one) for one in like].count(name) >= 7
        # Variations: the same meaning in other pixels
        assert len({one.tobytes() for one in like}) == 8
    moved = unspeckle.draw(model, "", like=images["red"], from_words="red", to_words="blue", mix=1.0, **options)
    assert [nearest_color(one) for one in moved].count("blue") >= 7


def test_a_mix_passes_from_one_image_to_the_other(trained_run: Path) -> None:
    model = unspeckle.load(trained_run)
    red, blue = (Image.new("RGB", (16, 16), COLORS[name]) for name in ("red", "blue"))
    drawn = {mix: unspeckle.draw(model, "", like=[red, blue], mix=mix, seed=2, steps=8)[0] for mix in (0, 0.5, 1)}
    assert drawn[0].tobytes() == unspeckle.draw(model, "", like=red, seed=2, steps=8)[0].tobytes()
    assert drawn[1].tobytes() == unspeckle.draw(model, "", like=blue, seed=2, steps=8)[0].tobytes()
    redness = [mean_color(image)[0] - mean_color(image)[2] for image in drawn.values()]
    assert redness[0] > redness[1] > redness[2]


def test_slerp_goes_along_the_sphere() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 5, dtype=torch.float64), dim=1).split(1)
    angle = float((a * b).sum().acos())
    for share in (0.0, 0.25, 1.0):
        point = slerp(a, b, share)
        assert float(point.norm()) == pytest.approx(1) and float(
            (a * point).sum().clamp(max=1).acos()
        ) == pytest.approx(share * angle, abs=1e-6)
    assert torch.allclose(slerp(a, a, 0.3), a)


def test_an_image_does_not_depend_on_its_neighbors(model: UnCLIPModel) -> None:
    alone = unspeckle.draw(model, "a red dot", seed=5, steps=3)[0]
    [_, _, third] = unspeckle.draw(model, "a red dot", seed=3, count=3, steps=3)
    [one, _] = draw_prompts(model, ["a red dot", "blue"], [5, 6], unspeckle.Request(steps=3))
    for other in (third, one):
        difference = max(abs(a - b) for a, b in zip(alone.tobytes(), other.tobytes(), strict=True))
        assert difference <= 1
    assert alone.size == (32, 32)


def test_negative_predictions_have_no_embedding(model: UnCLIPModel) -> None:
    embeddings = model.embed_images([Image.new("RGB", (16, 16), color) for color in ("red", "blue")])
    conditioning = model.text_encoder(model.tokenizer.encode(["red", "blue"]))
    width = conditioning.vector.shape[1]
    positive = model.add_image_embeddings(conditioning, embeddings, positive=True).vector
    negative = model.add_image_embeddings(conditioning, embeddings, positive=False).vector
    assert positive is not None and negative is not None and not negative[:, width:].any()
    assert torch.allclose(positive[:, width:] * model.embedding_space.std + model.embedding_space.mean, embeddings)
    # Embeddings are standardized over the training images, and come back as unit vectors.
    latents = model.embedding_space.standardize(embeddings)[:, :, None, None]
    assert torch.allclose(model.embedding_space.to_embeddings(latents), embeddings, atol=1e-5)


def test_its_file_holds_all_parts(model: UnCLIPModel, tmp_path: Path) -> None:
    save(model, tmp_path / "copy.safetensors")
    copy = unspeckle.load(tmp_path / "copy.safetensors")
    assert isinstance(copy, UnCLIPModel) and copy.hash == model.hash and copy.upsampler is not None
    options: dict[str, Any] = {"seed": 3, "steps": 3}
    assert unspeckle.draw(copy, "red", **options)[0].tobytes() == unspeckle.draw(model, "red", **options)[0].tobytes()
    with torch.no_grad():
        next(copy.prior.network.parameters()).add_(0.1)
    assert copy.hash != model.hash


def test_a_drawing_like_images_is_replayed(
    unclip_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for i, color in enumerate(("red", "blue")):
        files.append(tmp_path / f"{color}.png")
        Image.new("RGB", (20 + i, 20), color).save(files[-1])
    like = [word for file in files for word in ("--like", str(file))]
    draw = ["draw", "--model", str(unclip_run), "--steps", "3", "--quiet", "--out", str(tmp_path / "out")]
    assert main([*draw, *like, "--mix", "0.25"]) == 0
    image = capsys.readouterr().out.strip()
    replay = ["replay", image, "--model", str(unclip_run), "--quiet"]
    assert main([*replay, *like]) == 0
    for missing, message in (
        ([], "was drawn like 2 images"),
        (like[:2], "was drawn like 2 images"),
        ([*like[2:], *like[:2]], "is not the image that"),
    ):
        assert main([*replay, *missing]) == 2
        assert message in capsys.readouterr().err


RED = Image.new("RGB", (16, 16), "red")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": 0.5}, "^mix: there is no image to change; give `like`"),
        ({"like": RED, "mix": 0.5}, "^mix: there is nothing to mix"),
        ({"like": [RED, RED], "mix": 1.5}, "^mix 1.5: must be a number from 0 to 1"),
        ({"like": [RED] * 3}, "^like: must be one or two PIL images"),
        ({"like": ["red.png"]}, "^like: must be one or two PIL images"),
        (
            {"like": RED, "to_words": "blue"},
            "^to_words: the difference of two texts moves the image; give `from_words`",
        ),
        ({"like": [RED, RED], "from_words": "red", "to_words": "blue"}, "^to_words: goes with one image only"),
        ({"hires_size": 64}, "^hires_size: does not go with an upsampler"),
    ],
)
def test_what_cannot_be_drawn_is_said(model: UnCLIPModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(unspeckle.InputError, match=message):
        unspeckle.draw(model, "", steps=2, **options)


def test_other_models_draw_like_no_image(unclip_run: Path) -> None:
    with pytest.raises(unspeckle.InputError, match=r"^like: needs a model of `train --kind unclip`"):
        unspeckle.draw(random_model(), "", like=RED)
    with pytest.raises(unspeckle.InputError, match="is the prior of an unCLIP model, which draws no images"):
        unspeckle.draw(unspeckle.load(unclip_run / "prior"), "red", steps=2)
    assert main(["convert", str(unclip_run), str(unclip_run.parent / "graphs"), "--to", "onnx"]) == 2
    with pytest.raises(unspeckle.InputError, match="is an unCLIP model, whose parts are trained together"):
        list(unspeckle.distil(unclip_run, unclip_run.parent / "few", steps=2, quiet=True))


def make_tiny_plan(network: UNetConfig, tokenizer: Tokenizer) -> Plan:
    return Plan(
        options={},
        corpus_fingerprint="",
        model=ModelPlan(
            size=(16, 16),
            preset="test",
            network=network,
            text_encoder=TextEncoderConfig(tokenizer.vocab_size, tokenizer.context_length, 32, 1),
            autoencoder=PixelAutoencoderConfig(),
        ),
        work=WorkPlan(steps=200, batch_size=4),
        compute=ComputePlan(device="cpu", precision="float32"),
        objective=PIXEL_OBJECTIVE,
        optimizer=OptimizerPlan(name="muon", warmup_steps=5),
    )


def losses_on_one_batch(updater: TextToImageUpdater, batch: Batch, steps: int = 150) -> tuple[float, float]:
    """The mean loss of the first and of the last steps on one batch that is seen again and again, with other noise."""
    losses, count = [], len(batch.captions)
    for step in range(1, steps + 1):
        noised = batch._replace(example_indices=torch.arange(count * step, count * (step + 1)))
        losses.append(float(training_step(updater, noised, step).loss))
    return sum(losses[:5]) / 5, sum(losses[-20:]) / 20


def test_an_upsampler_learns_one_batch_by_heart() -> None:
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=120)
    network = UNetConfig(concat_channels=3, base_channels=24, blocks_per_level=1, head_width=24, text_width=32)
    network = UNetConfig(**{**vars(network), "vector_width": 33, "patch_size": 2, "norm_groups": 0})
    autoencoder = PixelAutoencoder(PixelAutoencoderConfig())
    updater = UpsamplerUpdater(make_tiny_plan(network, tokenizer), tokenizer, autoencoder, 2)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8, generator=generator)
    captions = [CAPTIONS[i % len(CAPTIONS)] for i in range(4)]
    batch = Batch(torch.nn.functional.interpolate(images, scale_factor=4), captions, torch.arange(4))
    first, last = losses_on_one_batch(updater, batch)
    assert last < 0.3 * first


def test_a_prior_and_a_decoder_learn_one_batch_by_heart(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A prior that is narrower than an embedding cannot tell its noise.
    monkeypatch.setattr(unclip_planner, "PRIOR_WIDTH", 192)
    command = UnCLIPCommand(unspeckle_options(color_folder, tmp_path / "run"))
    command.open_inputs(None)
    command.load_inputs(None)
    plan = command.make_plan()
    tasks = command.tasks(plan)
    for task in tasks:
        task_updater = task.updater
        if isinstance(task, PriorTask) or isinstance(task_updater, DecoderUpdater):
            task_updater.plan = task_updater.plan.with_changes(work={"steps": 250})
            first, last = losses_on_one_batch(task_updater, next(task.batches(0)), 250)  # type: ignore[arg-type]
            assert last < 0.45 * first, type(task).__name__
        list(task.finish())


def unspeckle_options(folder: Path, out: Path) -> Any:
    from unspeckle.training.options import UnCLIPOptions

    return UnCLIPOptions(folder, out, steps=3, size="16", preset="nano", batch_size=4, quiet=True, precision="float32")


def test_an_upsampler_enlarges_what_another_model_draws(
    color_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model_path = tmp_path / "up", tmp_path / "model.safetensors"
    command = ["train", str(color_folder), "--kind", "upsampler", "--size", "32", "--preset", "nano", "--out", str(run)]
    assert main([*command, "--batch-size", "8", "--steps", "100", "--precision", "float32", "--quiet"]) == 0
    last = read_log(run)[-1]
    errors = list(last["validation_errors"].values())
    # With the small image it knows much even where x is nearly all noise.
    assert last["validation_loss"] < 0.7 and errors[-1] < 0.5
    upsampler = unspeckle.load(run)
    assert isinstance(upsampler, UpsamplerModel) and upsampler.factor == 2
    model = random_model()
    save(model, model_path)
    small, large = (unspeckle.draw(model, "a frog", seed=3, upsampler=one)[0] for one in (None, upsampler))
    assert small.size == (16, 16) and large.size == (32, 32)
    capsys.readouterr()
    draw = ["draw", "a frog", "--model", str(model_path), "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*draw, "--upsampler", str(run)]) == 0
    image = capsys.readouterr().out.strip()
    assert main(["replay", image, "--model", str(model_path), "--upsampler", str(run), "--quiet"]) == 0
    for wrong, message in (([], "was enlarged by the model 'up'"), (["--upsampler", str(model_path)], "enlarges no")):
        assert main(["replay", image, "--model", str(model_path), "--quiet", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["draw", "a frog", "--model", str(run), "--quiet", "--out", str(tmp_path / "out")]) == 2
    assert "--model: enlarges what another model draws" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "upsampler", "--factor", "1"], "--factor 1: must be from 2 to 8"),
        (["--kind", "upsampler", "--size", "34", "--factor", "4"], "--size 34x34: sides must be multiples of"),
        (["--factor", "2"], "--factor: goes with --kind upsampler only"),
        (["--kind", "unclip", "--space", "latents"], "--space: does not go with --kind unclip"),
        (["--kind", "unclip", "--loss", "siglip"], "--loss: goes with --kind gan or --kind clip only"),
    ],
)
def test_options_that_do_not_go_with_a_kind(
    color_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    command = ["train", str(color_folder), "--out", str(tmp_path / "run"), "--steps", "5", "--quiet"]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_small_images_are_means_of_large_ones(color_folder: Path, tmp_path: Path) -> None:
    command = UnCLIPCommand(unspeckle_options(color_folder, tmp_path / "run"))
    command.open_inputs(None)
    command.load_inputs(None)
    split = command.inputs.corpus.training
    small, large = shrink_split(split, 4).center_crops([0, 5]), split.center_crops([0, 5]).double()
    assert small.shape == (2, 3, 4, 4) and small.dtype == torch.uint8
    assert float((small.double() - large.view(2, 3, 4, 4, 4, 4).mean((3, 5))).abs().max()) <= 0.5
    assert shrink_split(split, 1) is split
    flat = torch.randn(1, 3, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(enlarge(shrink(flat, 2), 2).mean(), flat.mean())
    assert [upsampling_factor(size) for size in ((16, 16), (31, 31), (32, 32), (64, 96))] == [1, 1, 2, 4]
