"""Training a LoRA for a Stable Diffusion: runs that can be continued, a file with which diffusers draws the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import stable_diffusion_files
import unspeckle
from conftest import SDFolder
from training_runs import (
    checkpoint_tensors,
    final_tensors,
    interrupt_at,
    rewrite_as_version_0_1,
    tensors_equal,
    write_color_folder,
)
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.formats.lora import lora_file
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.model_io.model_file import LORA_FILE
from unspeckle.rng import ExampleRNG
from unspeckle.training import cached_latents, lora_task
from unspeckle.training.lora_command import run_lora_training
from unspeckle.training.lora_updater import LoraUpdater
from unspeckle.training.options import LoraOptions, TrainOptions
from unspeckle.training.plan import LORA_OBJECTIVE, ComputePlan, LoraPlan, LoraSettings, ModelPlan, WorkPlan
from unspeckle.training.plan_file import PLAN_FILE, load_plan
from unspeckle.training.train_command import run_training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images."""
    return write_color_folder(tmp_path_factory.mktemp("colors"), images_per_color=10)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """How good samples are does not matter here."""
    monkeypatch.setattr(lora_task, "SAMPLE_STEPS", 2)


def lora_options(folder: Path, out: Path, base: Path, **changes: Any) -> LoraOptions:
    options = LoraOptions(folder, out, base, steps=6, size="16", batch_size=4, quiet=True, precision="float32", rank=4)
    return replace(options, **changes)


def last_record(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    return record


@pytest.mark.parametrize(
    ("family", "changes"), [("1", {}), ("2", {"precision": "bfloat16"}), ("xl", {"train_text_encoder": True})]
)
def test_an_interrupted_run_gives_the_same_weights(
    family: str, changes: dict[str, Any], folder: Path, sd_folder: SDFolder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also if version 0.1 began it."""
    base, uninterrupted, run = sd_folder(family), tmp_path / "uninterrupted", tmp_path / "run"
    assert run_lora_training(lora_options(folder, uninterrupted, base, **changes)) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, LoraUpdater)
        assert run_lora_training(lora_options(folder, run, base, **changes)) == 130
    assert not (run / LORA_FILE).exists()
    plan = load_plan(run, LoraPlan)
    rewrite_as_version_0_1(run)
    assert load_plan(run, LoraPlan) == plan
    assert run_lora_training(lora_options(folder, run, base, **changes)) == 0
    assert tensors_equal(final_tensors(run, LORA_FILE), final_tensors(uninterrupted, LORA_FILE))
    assert (uninterrupted / "samples" / "step-00000006.png").exists()
    record = last_record(uninterrupted)
    assert record["step"] == 6 and len(record["validation_errors"]) == 8
    modules = {key.split(".")[0].split("_")[1] for key in load_file(uninterrupted / LORA_FILE)}
    assert modules == ({"unet", "te1", "te2"} if changes.get("train_text_encoder") else {"unet"})


@pytest.mark.parametrize(("family", "layout"), [("1", "kohya"), ("2", "peft"), ("xl", "kohya")])
def test_diffusers_draws_the_same_with_it(
    family: str, layout: str, folder: Path, sd_folder: SDFolder, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="peft is not installed: no peer to draw with the LoRA")
    base, run = sd_folder(family), tmp_path / "run"
    options = lora_options(folder, run, base, layout=layout, learning_rate=0.02, steps=12)
    assert run_lora_training(options) == 0
    pipeline, model = stable_diffusion_files.load_pipeline(base), unspeckle.load(base)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    arguments = {
        "num_inference_steps": 5, "height": 16, "width": 16, "guidance_scale": 4.0, "output_type": "latent",
        "negative_prompt": "blue",
    }  # fmt: skip

    def draw_by_diffusers() -> torch.Tensor:
        return pipeline("red", generator=torch.Generator().manual_seed(7), **arguments).images

    without_lora = draw_by_diffusers()
    pipeline.load_lora_weights(run / LORA_FILE)
    expected = draw_by_diffusers()
    lora_file.read_lora(run / LORA_FILE, model).merge(model.modules())
    request = Request("red", seed=7, steps=5, sampler="ddim", timestep_spacing="leading", size=16)
    request = replace(request, negative_prompt="blue", guidance_scale=4.0)
    *_, last = steps(model, request)
    assert (last.x - expected).norm() <= 1e-3 * expected.norm()
    assert (expected - without_lora).norm() >= 0.02 * without_lora.norm()


def test_it_learns(folder: Path, sd_folder: SDFolder, tmp_path: Path) -> None:
    """Validation images are denoised better than by the base model, which a run without learning gives."""
    losses = []
    for count, learning_rate in ((1, 1e-9), (60, 5e-3)):
        run = tmp_path / f"run{count}"
        options = lora_options(folder, run, sd_folder("1"), steps=count, learning_rate=learning_rate)
        assert run_lora_training(options) == 0
        losses.append(last_record(run)["validation_loss"])
    assert losses[1] < 0.9 * losses[0]


def make_lora_plan(model: Any) -> LoraPlan:
    parts = ModelPlan((16, 16), "", model.network.config, model.text_encoder.config, model.autoencoder.config)
    return LoraPlan(
        options={},
        corpus_fingerprint="",
        model=parts,
        work=WorkPlan(steps=1, batch_size=4),
        compute=ComputePlan("cpu", "float32"),
        objective=replace(LORA_OBJECTIVE, caption_dropout=0.0),
        lora=LoraSettings(base_hash=""),
    ).with_changes(optimizer={"ema_widths": ()})


def test_the_loss_is_that_of_diffusers(sd_folder: SDFolder) -> None:
    """The error of eps, or of v, at the entry of the table that the time stands for."""
    for family, prediction in (("1", "eps"), ("2", "v")):
        base = sd_folder(family)
        model, pipeline = unspeckle.load(base), stable_diffusion_files.load_pipeline(base)
        plan = make_lora_plan(model)
        x, captions = torch.randn(4, 4, 8, 8), ["a frog", "red", "", "blue frog"]
        batch = cached_latents.LatentBatch(x, captions, torch.arange(4))
        with torch.no_grad():
            loss = LoraUpdater(plan, model).loss(batch, 1)
        rng = ExampleRNG(plan.work.seed, batch.indices)
        k, eps = (rng.uniform(0) * 1000).ceil().long() - 1, rng.normal(1, x.shape[1:])
        scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
        ids = pipeline.tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
        target = scheduler.get_velocity(x, eps, k) if prediction == "v" else eps
        with torch.no_grad():
            tokens = pipeline.text_encoder(ids).last_hidden_state
            error = pipeline.unet(scheduler.add_noise(x, eps, k), k, tokens).sample - target
        assert abs(float(loss) / float(error.square().mean()) - 1) <= 1e-3, family


@pytest.mark.parametrize("version", ["today", "0.1"])
def test_images_are_encoded_once(
    folder: Path, sd_folder: SDFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    run = tmp_path / "run"
    assert run_lora_training(lora_options(folder, run, sd_folder("1"))) == 0
    path = run / cached_latents.LATENTS_FILE
    latents = load_file(path)
    assert len(latents["training"]) + len(latents["validation"]) == 30
    if version == "0.1":
        from safetensors.torch import save_file

        plan = load_plan(run, LoraPlan)
        assert plan is not None
        metadata = {"corpus": plan.corpus_fingerprint, "origin": plan.lora.base_hash}
        save_file({"training": latents["training"], "heldout": latents["validation"]}, path, metadata)
    (run / LORA_FILE).unlink()
    # It would be called.
    monkeypatch.setattr(cached_latents, "encode_images_alone", None)
    before = checkpoint_tensors(run)
    assert run_lora_training(lora_options(folder, run, sd_folder("1"))) == 0
    assert tensors_equal(checkpoint_tensors(run), before)
    images = unspeckle.load(sd_folder("1")).autoencoder.decode(latents["training"][:1])
    assert images.shape == (1, 3, 16, 16)


def test_what_cannot_be_trained_is_refused_with_advice(
    folder: Path, sd_folder: SDFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for changes, message in (
        ({"rank": 0}, "rank 0"),
        ({"layout": "x"}, "layout x"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"size": "20x17"}, "sides must be multiples of 4"),
        ({"steps": None}, "exactly one"),
        ({"from_model": tmp_path / "none"}, "no such file"),
        ({"from_model": sd_folder("1-inpaint")}, "inpainting model"),
        ({"from_model": sd_folder("1-lcm")}, "consistency model"),
    ):
        with pytest.raises(InputError, match=message):
            run_lora_training(replace(lora_options(folder, run, sd_folder("1")), **changes))
    assert not (run / PLAN_FILE).exists()
    command = ["train", str(folder), "--out", str(run), "--steps", "1"]
    for options, message in (
        (["--lora"], "name it with --from"),
        (["--rank", "3"], "--rank: has an effect only with --lora"),
        (["--lora", "--from", "x", "--preset", "nano"], "--preset: does not go with --lora"),
        (["--lora", "--from", "x", "--optimizer", "muon"], "--optimizer: does not go with --lora"),
    ):
        assert main([*command, *options]) == 2 and message in capsys.readouterr().err


def test_a_run_with_a_lora_is_no_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in (PLAN_FILE, LORA_FILE):
        (run / name).touch()
    more = ["--out", str(tmp_path / "new"), "--steps", "1"]
    for command, option in (
        (["draw", "a frog", "--model", str(run)], "--model "),
        (["score", str(run)], ""),
        (["distil", str(run), *more], ""),
        (["train", str(folder), "--from", str(run), *more], "--from "),
        (["train", str(folder), "--lora", "--from", str(run), *more], "--from "),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"unspeckle: {option}{run}: ") and f"--lora {run / LORA_FILE}" in error


def test_a_run_keeps_to_what_it_began_with(
    folder: Path, sd_folder: SDFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = tmp_path / "run", str(sd_folder("1"))
    command = ["train", str(folder), "--lora", "--from", base, "--steps", "2", "--size", "16", "--batch-size", "2"]
    command += ["--out", str(run), "--rank", "2"]
    assert main([*command, "--plan", "--json"]) == 0 and not run.exists()
    plan = json.loads(capsys.readouterr().out)
    assert plan["lora"]["rank"] == 2 and plan["measured"]["parameter_count"] > 0
    assert plan["model"]["prediction"] == "eps"
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(run / LORA_FILE)
    assert main(command) == 0 and "this run is finished" in capsys.readouterr().err
    assert main([*command[:-1], "3"]) == 2 and "began with --rank 2" in capsys.readouterr().err
    with pytest.raises(InputError, match="plan of a run of `train --lora`"):
        run_training(TrainOptions(folder, run, steps=1))
    draw = ["draw", "red", "--model", base, "--lora", str(run / LORA_FILE), "--steps", "2", "--size", "16"]
    assert main([*draw, "--out", str(tmp_path / "images"), "--quiet"]) == 0
