"""One change at a time: train a plan, perhaps changed, on a folder for a number of pictures; print its held-out loss.

    python benchmarks/recipe.py FOLDER [--preset tiny] [--size 64] [--space latents] [--pictures 25600] [--threads 1]
        [--out MODEL.safetensors] [FIELD=VALUE ...]

FIELD is one of the plan's (optimizer=adamw, muon_rate=0.002, batch=32, times=[0.6,1.0], distribution=uniform,
weight=min_snr: see objective.py) or of its network (network.blocks=3). No FIELD trains the plan as `train` would choose
it. The held-out loss always has the unchanged plan's times and weights, so that lines of one space compare; across
spaces, compare drawings of the models that --out keeps. Steps are eager, so that processes side by side compare too.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from training_step import plan_for

from unspeckle.corpus import batches, open_corpus, read_folder
from unspeckle.model import Model, ModelCard
from unspeckle.model_io.model_file import save
from unspeckle.networks.latent_autoencoder import LatentAutoencoder
from unspeckle.objective import Objective
from unspeckle.presets import get_preset
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import autoencoder_task
from unspeckle.training.cost import count_text_steps
from unspeckle.training.inputs import fit_pixel_autoencoder, image_cache_folder
from unspeckle.training.master_weights import TextToImageUpdater, init_modules
from unspeckle.training.plan import Plan
from unspeckle.training.planner import (
    AUTOENCODER_STEP_FRACTION,
    LATENT_TIME_MEAN_STD,
    PIXEL_TIME_MEAN_STD,
    network_config_for,
)
from unspeckle.training.validation import ValidationLoss


def changed(plan: Plan, changes: list[str]) -> Plan:
    for change in changes:
        name, _, text = change.partition("=")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        value = tuple(value) if isinstance(value, list) else value
        if name.startswith("network."):
            plan = replace(plan, network=replace(plan.network_config, **{name.removeprefix("network."): value}))
        else:
            plan = replace(plan, **{name: value})
    return plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--space", choices=["pixels", "latents"], default="pixels")
    parser.add_argument("--out", type=Path, help="where to keep the model")
    parser.add_argument("--pictures", type=int, default=25_600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_intermixed_args()
    torch.set_num_threads(args.threads)
    corpus = open_corpus(read_folder(args.folder), args.size, cache_dir=image_cache_folder())
    tokenizer = Tokenizer.train(corpus.training_captions())
    autoencoder = (
        fit_pixel_autoencoder(corpus) if args.space == "pixels" else autoencoder_task.init_autoencoder(args.seed)
    )
    usual = plan_for(args.preset, args.size, 32, tokenizer)
    network = network_config_for(get_preset(args.preset), (args.size, args.size), autoencoder)
    usual = replace(usual, seed=args.seed, autoencoder=autoencoder.config, network=network, optimizer="muon")
    usual = replace(usual, times=PIXEL_TIME_MEAN_STD if args.space == "pixels" else LATENT_TIME_MEAN_STD)
    plan = changed(usual, args.changes)
    steps = args.pictures // plan.batch_size
    if getattr(plan.network_config, "draft", 0) and not any(
        change.startswith("word_steps=") for change in args.changes
    ):
        plan = replace(plan, word_steps=count_text_steps(steps))
    plan = replace(
        plan, steps=steps, warmup=max(1, min(200, steps // 20)), latent_steps=round(AUTOENCODER_STEP_FRACTION * steps)
    )
    if isinstance(autoencoder, LatentAutoencoder):
        with tempfile.TemporaryDirectory() as run:
            for _ in autoencoder_task.train_autoencoder(
                autoencoder_task.AutoencoderTask(plan, Path(run), corpus, autoencoder)
            ):
                pass
    learner = TextToImageUpdater(plan, init_modules(plan), tokenizer, autoencoder)
    judged = Objective("logit_normal", *usual.time_mean_std)
    held = ValidationLoss(corpus.validation, tokenizer, autoencoder, judged, torch.device("cpu"), 128)
    data = batches(corpus.training, plan.batch_size, seed=plan.seed, start=0)
    start, began = time.perf_counter(), time.process_time()
    for step in range(1, steps + 1):
        learner.step(next(data), step)
    rate = steps * plan.batch_size / (time.perf_counter() - start)
    alone = (
        steps * plan.batch_size / (time.process_time() - began)
    )  # had nothing else run: compare these on a busy machine
    loss = held(learner.denoiser, learner.compute_module.text_encoder)
    shares = " ".join(f"{share:.4f}" for share in loss.relative_errors)
    if args.out:
        parts = learner.weights.eval().requires_grad_(False)
        denoiser = plan.build_denoiser(parts.network)
        save(Model(denoiser, tokenizer, parts.text_encoder, autoencoder, ModelCard(size=plan.size)), args.out)
    name = " ".join([args.preset, *args.changes])
    print(f"{name:32s} held-out {loss.total:.4f}  {rate:.1f} pictures/s  {alone:.1f} a CPU second  {shares}")


if __name__ == "__main__":
    main()
