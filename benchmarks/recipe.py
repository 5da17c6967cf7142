"""One change at a time: train a plan, perhaps changed, on a folder for a number of images; print its validation loss.

    python benchmarks/recipe.py FOLDER [--preset tiny] [--size 64] [--space latents] [--images 25600] [--threads 1]
        [--out MODEL.safetensors] [FIELD=VALUE ...]

FIELD is one of the plan's, with its section (optimizer.name=adamw, optimizer.muon_learning_rate=0.002,
work.batch_size=32, objective.time_distribution=uniform, objective.loss_weighting=min_snr: see training/plan.py and
objective.py), or of its network (model.network.blocks_per_level=3). No FIELD trains the plan as `train` would choose
it. The validation loss always has the unchanged plan's objective, so that lines of one space compare; across spaces,
compare drawings of the models that --out keeps. Steps are eager, so that processes side by side compare too.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from training_step import plan_for

from unspeckle.corpus.batches import batches
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import open_corpus
from unspeckle.model import Model, ModelCard
from unspeckle.model_io.model_file import save
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.networks.latent_autoencoder import LatentAutoencoder
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training.autoencoder_task import AutoencoderTask, init_autoencoder
from unspeckle.training.cost import count_text_steps
from unspeckle.training.inputs import image_cache_folder
from unspeckle.training.pixel_statistics import fit_pixel_autoencoder
from unspeckle.training.plan import LATENT_OBJECTIVE, PIXEL_OBJECTIVE, Plan
from unspeckle.training.preset_choice import autoencoder_config_for
from unspeckle.training.text_to_image_updater import TextToImageUpdater, init_modules
from unspeckle.training.train_planner import AUTOENCODER_STEP_FRACTION
from unspeckle.training.trainer import fit, training_step
from unspeckle.training.validation import ValidationLoss

VALIDATION_IMAGES = 128


def change_plan(plan: Plan, changes: list[str]) -> Plan:
    """The plan with fields changed, each as "section.field=VALUE", where VALUE is JSON or plain text."""
    for change in changes:
        path, _, text = change.partition("=")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        plan = replace_field(plan, path.split("."), tuple(value) if isinstance(value, list) else value)
    return plan


def replace_field(config: Any, path: list[str], value: Any) -> Any:
    """The dataclass with the field at that path, through the dataclasses that it holds, replaced."""
    name, *rest = path
    return replace(config, **{name: replace_field(getattr(config, name), rest, value) if rest else value})


def make_plan(args: argparse.Namespace, tokenizer: Tokenizer, autoencoder: Autoencoder) -> tuple[Plan, Plan]:
    """The plan as `train` would choose it, and the one of the trial."""
    usual = plan_for(args.preset, args.size, 32, tokenizer, autoencoder)
    usual = replace(usual, objective=PIXEL_OBJECTIVE if args.space == "pixels" else LATENT_OBJECTIVE)
    usual = usual.with_changes(work={"seed": args.seed}, optimizer={"name": "muon"})
    plan = change_plan(usual, args.changes)
    steps = args.images // plan.work.batch_size
    text_steps = plan.work.text_steps
    if not any(change.startswith("work.text_steps=") for change in args.changes):
        text_steps = count_text_steps(steps) if plan.model.network.coarse_predictor_layers else 0
    autoencoder_steps = round(AUTOENCODER_STEP_FRACTION * steps)
    return usual, plan.with_changes(
        work={"steps": steps, "text_steps": text_steps, "autoencoder_steps": autoencoder_steps},
        optimizer={"warmup_steps": max(1, min(200, steps // 20))},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--space", choices=["pixels", "latents"], default="pixels")
    parser.add_argument("--out", type=Path, help="where to keep the model")
    parser.add_argument("--images", type=int, default=25_600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_intermixed_args()
    torch.set_num_threads(args.threads)
    corpus = open_corpus(read_folder(args.folder), args.size, cache_dir=image_cache_folder())
    tokenizer = Tokenizer.train(corpus.training_captions())
    if args.space == "pixels":
        autoencoder: Autoencoder = fit_pixel_autoencoder(corpus)
    else:
        autoencoder = init_autoencoder(args.seed, autoencoder_config_for(corpus.training.size))
    usual, plan = make_plan(args, tokenizer, autoencoder)
    if isinstance(autoencoder, LatentAutoencoder):
        with tempfile.TemporaryDirectory() as run:
            list(fit(AutoencoderTask(plan, Path(run), corpus, autoencoder)))
    updater = TextToImageUpdater(plan, init_modules(plan), tokenizer, autoencoder)
    validation_loss = ValidationLoss(
        corpus.validation, tokenizer, autoencoder, usual.objective, device=updater.device, max_images=VALIDATION_IMAGES
    )
    training_batches = batches(corpus.training, plan.work.batch_size, seed=plan.work.seed, start=0)
    start, cpu_start = time.perf_counter(), time.process_time()
    for step in range(1, plan.work.steps + 1):
        training_step(updater, next(training_batches), step)
    images_per_second = plan.work.total_images / (time.perf_counter() - start)
    # If nothing else had run: compare these on a busy machine.
    images_per_cpu_second = plan.work.total_images / (time.process_time() - cpu_start)
    result = validation_loss(updater.denoiser, updater.compute_modules.text_encoder)
    if args.out:
        modules = updater.weights.module.eval().requires_grad_(False)
        denoiser = plan.model.build_denoiser(modules.network)  # type: ignore[arg-type]
        card = ModelCard(size=plan.model.size)
        save(Model(denoiser, tokenizer, modules.text_encoder, autoencoder, card), args.out)  # type: ignore[arg-type]
    name, errors = " ".join([args.preset, *args.changes]), " ".join(f"{error:.4f}" for error in result.relative_errors)
    print(
        f"{name:32s} validation loss {result.total:.4f}  {images_per_second:.1f} images/s  "
        f"{images_per_cpu_second:.1f} a CPU second  {errors}"
    )


if __name__ == "__main__":
    main()
