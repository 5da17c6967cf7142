"""Fine-tuning a Stable Diffusion by a LoRA: runs that keep the contract, and a file that diffusers draws alike with."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_training import equal
from unspeckle.commands import tune

import stable_diffusion_files
import unspeckle
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.formats.lora import lora_file
from unspeckle.generation.pipeline import steps
from unspeckle.generation.request import Request
from unspeckle.training import cached_latents, checkpoint, lora_task
from unspeckle.training import plan as plans
from unspeckle.training.lora_task import OUTPUT_FILE, LoraUpdater
from unspeckle.training.options import LoraOptions, TrainOptions
from unspeckle.training.plan import LoraPlan

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (30, 60, 220)}
KEPT: dict[str, Path] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures of 16 × 16 in three colours, with captions in class folders."""
    root, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(10):
            pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a family to its folder."""

    def made(family: str) -> Path:
        if family not in KEPT:
            place = tmp_path_factory.mktemp(family)
            prediction = "v_prediction" if family == "2" else "epsilon"
            stable_diffusion_files.tiny_pipeline(family, place / "scratch", prediction).save_pretrained(place / "pipe")
            KEPT[family] = place / "pipe"
        return KEPT[family]

    return made


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tune, "MEASURED", 0.0)
    monkeypatch.setattr(lora_task, "STEPS", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def options(folder: Path, out: Path, origin: Path, **changes: Any) -> LoraOptions:
    asked = LoraOptions(folder, out, origin, steps=6, size="16", batch_size=4, quiet=True, precision="float32", rank=4)
    return replace(asked, **changes)


def final(run: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.load_latest_checkpoint(run / "checkpoints")
    assert found is not None
    return {**found.tensors, **load_file(run / OUTPUT_FILE)}


@pytest.mark.parametrize(("family", "changes"), [("1", {}), ("2", {"precision": "bfloat16"}), ("xl", {"words": True})])
def test_stopped_and_resumed_is_bit_for_bit_the_same(
    family: str, changes: dict[str, Any], folder: Path, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, whole, out = LoraUpdater.step, tmp_path / "whole", tmp_path / "run"
    assert tune.run_lora_training(options(folder, whole, base(family), **changes)) == 0

    def step(self: LoraUpdater, batch: Any, number: int) -> Any:
        if number == 3 and self.plan.warmup_steps < 10**9:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(LoraUpdater, "step", step)
        assert tune.run_lora_training(options(folder, out, base(family), **changes)) == 130
    assert not (out / OUTPUT_FILE).exists()
    assert tune.run_lora_training(options(folder, out, base(family), **changes)) == 0
    assert equal(final(out), final(whole))
    assert (whole / "samples" / "step-00000006.png").exists()
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6 and len(lines[-1]["held_out_shares"]) == 8
    parts = {key.split(".")[0].split("_")[1] for key in load_file(whole / OUTPUT_FILE)}
    assert parts == ({"unet", "te1", "te2"} if changes.get("words") else {"unet"})


@pytest.mark.parametrize(("family", "layout"), [("1", "kohya"), ("2", "peft"), ("xl", "kohya")])
def test_diffusers_draws_the_same_with_it(family: str, layout: str, folder: Path, base: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed: no peer to draw with the LoRA")
    out = tmp_path / "run"
    asked = options(folder, out, base(family), layout=layout, learning_rate=0.02, steps=12)
    assert tune.run_lora_training(asked) == 0
    pipe, model = stable_diffusion_files.load_pipeline(base(family)), unspeckle.load(base(family))
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    said = {"num_inference_steps": 5, "height": 16, "width": 16, "guidance_scale": 4.0, "output_type": "latent"}

    def theirs() -> torch.Tensor:
        return pipe("red", negative_prompt="blue", generator=torch.Generator().manual_seed(7), **said).images

    plain = theirs()
    pipe.load_lora_weights(out / OUTPUT_FILE)
    expected = theirs()
    lora_file.read_lora(out / OUTPUT_FILE, model).merge(model.modules())
    *_, last = steps(
        model,
        Request(
            "red", "blue", seed=7, steps=5, sampler="ddim", timestep_spacing="leading", size=16, guidance_scale=4.0
        ),
    )
    assert (last.x - expected).norm() <= 1e-3 * expected.norm()
    assert (expected - plain).norm() >= 0.02 * plain.norm()


def test_it_learns(folder: Path, base: Any, tmp_path: Path) -> None:
    """What was held out is denoised better than by the checkpoint, which the first moment of a run is."""
    found = []
    for count, rate in ((1, 1e-9), (60, 5e-3)):
        out = tmp_path / f"run{count}"
        assert tune.run_lora_training(options(folder, out, base("1"), steps=count, learning_rate=rate)) == 0
        found.append([json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][-1]["held_out"])
    assert found[1] < 0.9 * found[0]


def test_the_loss_is_that_of_diffusers(folder: Path, base: Any) -> None:
    """The error of eps, or of v, at the entry of the table that the time stands for."""
    for family, prediction in (("1", "eps"), ("2", "v")):
        model, pipe = unspeckle.load(base(family)), stable_diffusion_files.load_pipeline(base(family))
        plan = a_plan(model)
        tuner = LoraUpdater(plan, model)
        x, captions = torch.randn(4, 4, 8, 8), ["a frog", "red", "", "blue frog"]
        batch = cached_latents.LatentBatch(x, captions, torch.arange(4))
        with torch.no_grad():
            mine = tuner.loss(batch)
        from unspeckle.rng import ExampleRNG

        stream = ExampleRNG(plan.seed, batch.indices)
        k, eps = (stream.uniform(0) * 1000).ceil().long() - 1, stream.normal(1, x.shape[1:])
        scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
        tokens = pipe.tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
        target = scheduler.get_velocity(x, eps, k) if prediction == "v" else eps
        with torch.no_grad():
            words = pipe.text_encoder(tokens).last_hidden_state
            error = pipe.unet(scheduler.add_noise(x, eps, k), k, words).sample - target
        assert abs(float(mine) / float(error.square().mean()) - 1) <= 1e-3, family


def a_plan(model: Any) -> LoraPlan:
    return LoraPlan(
        options={}, corpus_fingerprint="", size=(16, 16), preset="", network_config=model.network.config, text_config=model.text.config, steps=1,
        batch_size=4, seed=0, device="cpu", precision="float32", compile=False, threads=1, parameter_count=0, images_per_second=0, total_seconds=0,
        memory_bytes=0, disk_bytes=0, autoencoder_config=model.autoencoder.config, ema_widths=(), caption_dropout=0.0,
    )  # fmt: skip


def test_pictures_are_encoded_once(folder: Path, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    assert tune.run_lora_training(options(folder, out, base("1"))) == 0
    held = load_file(out / cached_latents.LATENTS_FILE)
    model = unspeckle.load(base("1"))
    assert len(held["training"]) + len(held["heldout"]) == 30
    (out / OUTPUT_FILE).unlink()
    monkeypatch.setattr(cached_latents, "encoded", None)  # would be called
    before = final_checkpoint(out)
    assert tune.run_lora_training(options(folder, out, base("1"))) == 0 and equal(final_checkpoint(out), before)
    assert model.autoencoder.decode(held["training"][:1]).shape == (1, 3, 16, 16)


def final_checkpoint(run: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.load_latest_checkpoint(run / "checkpoints")
    assert found is not None
    return found.tensors


def test_what_cannot_be_is_named_with_its_mend(folder: Path, base: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    for changes, says in (
        ({"rank": 0}, "--rank 0"), ({"layout": "x"}, "--layout x"), ({"learning_rate": -1.0}, "--learning-rate"),
        ({"size": "20x17"}, "sides must be multiples of 4"), ({"steps": None}, "exactly one"),
        ({"from_model": tmp_path / "none"}, "no such file"), ({"from_model": base("1-inpaint")}, "inpainting model"),
        ({"from_model": base("1-lcm")}, "consistency model"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            tune.run_lora_training(replace(options(folder, out, base("1")), **changes))
    assert not (out / plans.PLAN_FILE).exists()
    common = ["train", str(folder), "--out", str(out), "--steps", "1"]
    for given, says in (
        (["--lora"], "name it with --from"), (["--rank", "3"], "--rank: is only for --lora"),
        (["--lora", "--from", str(base("1")), "--preset", "nano"], "--preset: is not for --lora"),
    ):  # fmt: skip
        assert main([*common, *given]) == 2 and says in capsys.readouterr().err


def test_a_finished_run_is_no_model(folder: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("plan.json", OUTPUT_FILE):
        (run / name).touch()
    more = ["--out", str(tmp_path / "new"), "--steps", "1"]
    for words, option in (
        (["draw", "a frog", "--model", str(run)], "--model "),
        (["score", str(run)], ""), (["distil", str(run), *more], ""),
        (["train", str(folder), "--from", str(run), *more], "--from "),
        (["train", str(folder), "--lora", "--from", str(run), *more], "--from "),
    ):  # fmt: skip
        assert main(words) == 2
        assert capsys.readouterr().err == (
            f"unspeckle: {option}{run}: this run holds a LoRA, which changes a model but is none; "
            f"draw with it by --model CHECKPOINT --lora {run / OUTPUT_FILE}\n"
        )


def test_a_run_is_kept_to_what_it_began_with(folder: Path, base: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    asked = ["train", str(folder), "--lora", "--from", str(base("1")), "--steps", "2", "--size", "16", "--rank", "2"]
    asked += ["--batch", "2", "--out", str(out)]
    assert main([*asked, "--plan", "--json"]) == 0 and not out.exists()
    planned = json.loads(capsys.readouterr().out)
    assert planned["rank"] == 2 and planned["parameters"] > 0 and planned["prediction"] == "eps"
    assert main([*asked, "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(out / OUTPUT_FILE)
    assert main(asked) == 0 and "this run is finished" in capsys.readouterr().err
    assert main([*asked[:-1], str(out), "--rank", "3"]) == 2 and "began with --rank 2" in capsys.readouterr().err
    with pytest.raises(InputError, match="plan of a run of `train --lora`"):
        plans.load_plan(out)
    drawn = ["draw", "red", "--model", str(base("1")), "--lora", str(out / OUTPUT_FILE), "--steps", "2", "--size", "16"]
    assert main([*drawn, "--out", str(tmp_path / "drawn"), "--quiet"]) == 0
    from unspeckle.training import command

    with pytest.raises(InputError, match="train --lora"):
        command.run_training(TrainOptions(folder, out, steps=1))
