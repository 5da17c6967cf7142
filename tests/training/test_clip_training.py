"""Training a CLIP of our own: its losses, what it learns, that it resumes to the bit, and its file."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from training_runs import COLORS, final_tensors, interrupt_at, tensors_equal
from unspeckle.cli import main
from unspeckle.corpus.batches import Batch
from unspeckle.errors import InputError
from unspeckle.model_io.image_text_file import load_image_text_model
from unspeckle.networks.autoencoder import PixelAutoencoderConfig
from unspeckle.networks.image_encoder import ImageEncoderConfig
from unspeckle.text.text_encoder import TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.clip_planner import image_encoder_config
from unspeckle.training.clip_updater import CLIPUpdater, same_captions
from unspeckle.training.clip_validation import RetrievalResult, wrap_text
from unspeckle.training.contrastive_loss import contrastive_loss
from unspeckle.training.plan import CLIPPlan, ComputePlan, ContrastiveSettings, ModelPlan, OptimizerPlan, WorkPlan
from unspeckle.training.trainer import training_step

TYPED = ["--kind", "clip", "--size", "16", "--batch-size", "8", "--steps", "12", "--precision", "float32", "--quiet"]


@pytest.fixture(scope="module")
def clip_run(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, without interruption."""
    run = tmp_path_factory.mktemp("clip") / "run"
    assert main(["train", str(color_folder), "--out", str(run), *TYPED]) == 0
    return run


def test_infonce_is_the_cross_entropy_of_rows_and_columns() -> None:
    logits = torch.randn(5, 5, dtype=torch.float64)
    loss = contrastive_loss(logits, torch.eye(5, dtype=torch.bool), "infonce").mean()
    numbers = torch.arange(5)
    expected = (F.cross_entropy(logits, numbers) + F.cross_entropy(logits.T, numbers)) / 2
    assert torch.allclose(loss, expected)


def test_siglip_is_the_loss_of_its_paper() -> None:
    logits = torch.randn(4, 4, dtype=torch.float64)
    loss = contrastive_loss(logits, torch.eye(4, dtype=torch.bool), "siglip").mean()
    expected = -sum(
        float(torch.sigmoid((1 if i == j else -1) * logits[i, j]).log()) for i in range(4) for j in range(4)
    )
    assert float(loss) == pytest.approx(expected / 4)


@pytest.mark.parametrize("name", ["infonce", "siglip"])
def test_a_caption_that_two_images_have_draws_both_near(name: str) -> None:
    matches = same_captions(["a frog", "a cat", "a frog"])
    assert matches.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    logits = torch.zeros(3, 3, requires_grad=True)
    contrastive_loss(logits, matches, name).sum().backward()
    gradient = logits.grad
    assert gradient is not None and bool((gradient[matches] < 0).all()) and bool((gradient[~matches] > 0).all())


def make_updater(captions: list[str], loss: str) -> CLIPUpdater:
    tokenizer = Tokenizer.train(captions, vocab_size=200)
    image = ImageEncoderConfig(size=(16, 16), widths=(32, 48), blocks=1, embedding_width=32, text_width=32)
    plan = CLIPPlan(
        options={},
        corpus_fingerprint="",
        model=ModelPlan(
            size=(16, 16),
            preset="CLIP",
            network=image,
            text_encoder=TextEncoderConfig(tokenizer.vocab_size, tokenizer.context_length, 32, 1),
            autoencoder=PixelAutoencoderConfig(),
        ),
        work=WorkPlan(steps=400, batch_size=len(captions)),
        compute=ComputePlan(device="cpu", precision="float32"),
        optimizer=OptimizerPlan(name="muon", warmup_steps=5),
        contrastive=ContrastiveSettings(loss),
    )
    return CLIPUpdater(plan, tokenizer)


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_it_learns_one_batch_by_heart(loss: str) -> None:
    captions = [f"a {color} {noun}" for color in ("red", "blue", "green") for noun in ("frog", "car", "tree", "house")]
    updater = make_updater(captions, loss)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=generator)
    batch = Batch(images, captions, torch.arange(12))
    losses = [float(training_step(updater, batch, step).loss) for step in range(1, 81)]
    assert losses[0] > 1 and losses[-1] < 0.05 * losses[0]


def test_it_finds_held_out_images_better_than_by_guessing(color_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", str(color_folder), "--out", str(run), "--kind", "clip", "--size", "16", "--batch-size", "16"]
    assert main([*command, "--steps", "60", "--precision", "float32", "--quiet"]) == 0
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert last["validation_loss"] < 0.3 and max(last["validation_errors"].values()) == 0
    assert set(last["validation_errors"]) == {"image to text", "text to image"}
    # Images that it never saw, of another size
    model = load_image_text_model(run)
    images = [Image.new("RGB", (40, 30), color) for color in COLORS.values()]
    cosines = model.embed_images(images) @ model.embed_texts(list(COLORS)).T
    assert cosines.argmax(dim=1).tolist() == [0, 1, 2]
    assert torch.allclose(model.embed_images(images).norm(dim=1), torch.ones(3))
    with Image.open(next((run / "samples").iterdir())) as samples:
        assert samples.width > 300


def test_an_interrupted_run_ends_as_one_that_was_not(
    color_folder: Path, clip_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", str(color_folder), "--out", str(tmp_path / "run"), *TYPED]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, CLIPUpdater)
        assert main(command) == 130
    assert main(command) == 0
    assert tensors_equal(final_tensors(tmp_path / "run"), final_tensors(clip_run))


def test_a_killed_run_ends_as_one_that_was_not(color_folder: Path, clip_run: Path, tmp_path: Path) -> None:
    run, script = tmp_path / "run", "import unspeckle.training.progress as p; p.CHECKPOINT_INTERVAL = 0.0\n"
    script += f"from unspeckle.cli import main; main({['train', str(color_folder), '--out', str(run), *TYPED]!r})"
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 120
    while not list((run / "checkpoints").glob("step-*3.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(["train", str(color_folder), "--out", str(run), *TYPED]) == 0
    assert tensors_equal(final_tensors(run), final_tensors(clip_run))


def test_its_file_draws_nothing_and_is_read_strictly(
    clip_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["draw", "red", "--model", str(clip_run), "--out", str(tmp_path)]) == 2
    assert "is a CLIP, which compares images with texts and draws nothing" in capsys.readouterr().err
    page = load_image_text_model(clip_run)._repr_html_()
    assert "images of 16 × 16 pixels and texts, as 128 numbers" in page
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((clip_run / "model.safetensors").read_bytes()[:-100])
    for path, message in (
        (damaged, "damaged.safetensors"),
        (tmp_path / "gone", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            load_image_text_model(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "clip", "--loss", "relativistic"], "--loss relativistic: unknown; choose infonce or siglip"),
        (["--kind", "clip", "--unconditional"], "--unconditional: goes with --kind gan only"),
        (["--kind", "clip", "--space", "latents"], "--space: does not go with --kind clip"),
        (["--kind", "clip", "--lora"], "--lora: does not go with --kind clip"),
        (["--kind", "clip", "--size", "18"], "--size 18x18: sides must be multiples of 4 here"),
        (["--kind", "clop"], "--kind clop: unknown; choose one of diffusion, gan, clip"),
    ],
)
def test_options_that_do_not_go_with_a_clip(
    color_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    command = ["train", str(color_folder), "--out", str(tmp_path / "run"), "--steps", "5", "--quiet"]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("size", "levels"), [((16, 16), 1), ((32, 32), 2), ((64, 64), 3), ((128, 128), 4), ((512, 512), 4), ((96, 64), 3)]
)
def test_an_image_encoder_fits_the_size(size: tuple[int, int], levels: int) -> None:
    assert len(image_encoder_config(size).widths) == levels


def test_the_errors_of_a_retrieval_are_shares_of_guessing() -> None:
    guessing: dict[str, Any] = {"total": 1.0, "image_to_text": 1 / 4, "text_to_image": 1 / 9, "text_to_image_5": 5 / 9}
    result = RetrievalResult(**guessing, images=9, captions=4)
    assert result.relative_errors == pytest.approx((1, 1)) and result.levels == ("image to text", "text to image")
    assert "25.0% are nearest to their own of 4 captions" in result.summary


def test_long_captions_are_shown_in_lines() -> None:
    from PIL import ImageFont

    lines = wrap_text("a frog on stilts beside an extraordinarily", 80, ImageFont.load_default(14)).split("\n")
    assert " ".join(lines) == "a frog on stilts beside an extraordinarily" and len(lines) > 2
