"""What a run is made of: decoded pictures, words, an autoencoder, and the model that it goes on from."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from unspeckle import quantities
from unspeckle.corpus import Corpus, FolderListing, open_corpus
from unspeckle.errors import InputError, prefix_with_option
from unspeckle.model import Model
from unspeckle.model_io.loading import load
from unspeckle.networks.autoencoder import Autoencoder, PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.networks.latent_autoencoder import LatentAutoencoder
from unspeckle.text.text_encoder import TextEncoder
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import autoencoder_task, checkpoint
from unspeckle.training.options import TrainOptions
from unspeckle.training.plan import Plan
from unspeckle.training.planner import choose_space

TOKENIZER_FILE = "tokenizer.json"  # in a RUN


class TrainingInputs(NamedTuple):
    """What a plan is made for."""

    corpus: Corpus
    tokenizer: Tokenizer
    autoencoder: Autoencoder
    base_model: Model | None


def load_trainable_model(path: Path) -> Model:
    """The model that training goes on from, or a student's teacher. InputError where it is not one that learns here."""
    model = load(path)
    if model.card.step_counts:
        raise InputError(f"{path}: is a student, which has nothing to teach; name the model that taught it")
    if not (
        isinstance(model.text_encoder, TextEncoder)
        and isinstance(model.autoencoder, PixelAutoencoder | LatentAutoencoder)
    ):
        raise InputError(f"{path}: was not trained here, and only such models can be distilled or trained further")
    return replace(model, student=None)


def load_inputs(listing: FolderListing, options: TrainOptions, plan: Plan | None, console: Console) -> TrainingInputs:
    """Decode the pictures, and take or learn the words."""
    is_resumed = plan is not None and checkpoint.latest_step(options.out / "checkpoints") > 0
    with prefix_with_option("--from", options.from_model):
        base_model = None if options.from_model is None or is_resumed else load_trainable_model(options.from_model)
    if (
        plan is not None
        and base_model is not None
        and _model_configs(base_model) != (plan.network_config, plan.text_config, plan.autoencoder_config)
    ):
        raise InputError(f"--from {options.from_model}: changed since {options.out} began; give another --out")
    if plan is None:
        for line in listing.describe():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if plan is not None:
        size = plan.size
    elif options.size is not None:
        size = quantities.parse_size(options.size)
    else:
        size = base_model.card.size if base_model is not None else (128, 128) if torch.cuda.is_available() else (64, 64)
    corpus = decode_corpus(listing, size, console)
    if plan is not None:
        tokenizer = _load_tokenizer(options.out)
        autoencoder = _build_autoencoder(plan) if base_model is None else base_model.autoencoder
    elif base_model is not None:
        tokenizer, autoencoder = base_model.tokenizer, base_model.autoencoder
    else:
        use_latents = choose_space(options, corpus.training.size) == "latents"
        tokenizer = Tokenizer.train(corpus.training_captions())
        autoencoder = (
            autoencoder_task.init_autoencoder(options.seed or 0) if use_latents else fit_pixel_autoencoder(corpus)
        )
    if plan is None:
        for line in corpus.describe():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        _warn_truncated_captions(corpus, tokenizer, console)
    return TrainingInputs(corpus, tokenizer, autoencoder, base_model)


def decode_corpus(listing: FolderListing, size: tuple[int, int], console: Console) -> Corpus:
    """The listing's pictures, decoded where they were not yet."""
    with Progress(console=console, transient=True) as progress:
        task_id = progress.add_task("decoding pictures")

        def show_progress(done: int, total: int) -> None:
            progress.update(task_id, completed=done, total=total)

        return open_corpus(listing, size, cache_dir=image_cache_folder(), progress=show_progress)


def _load_tokenizer(run_folder: Path) -> Tokenizer:
    try:
        return Tokenizer.from_json((run_folder / TOKENIZER_FILE).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise InputError(
            f"{run_folder / TOKENIZER_FILE}: cannot be read ({error}); put it back, or give another --out"
        ) from error


def _model_configs(model: Model) -> tuple[Any, Any, Any]:
    text_encoder: Any = model.text_encoder
    return model.network.config, text_encoder.config, model.autoencoder.config


def _build_autoencoder(plan: Plan) -> Autoencoder:
    """The plan's autoencoder, its learnt weights still in RUN."""
    config = plan.autoencoder_config
    return (
        PixelAutoencoder(config)
        if isinstance(config, PixelAutoencoderConfig)
        else autoencoder_task.init_autoencoder(plan.seed, config)
    )


def image_cache_folder() -> Path:
    """Where decoded pictures lie, for every run to find."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unspeckle" / "pictures"


def fit_pixel_autoencoder(corpus: Corpus) -> PixelAutoencoder:
    """Pixel space, standardised by the colours of at most 1,024 training pictures."""
    split = corpus.training
    count = min(len(split), 1024)
    indices = np.arange(count) * len(split) // count
    sums, squares, pixel_count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    chunk_size = max(1, min(64, (1 << 22) // math.prod(split.size)))
    for chunk in np.array_split(indices, -(-count // chunk_size)):
        pixels = split.center_crops(chunk).double() / 127.5 - 1
        sums += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
        pixel_count += pixels[:, 0].numel()
    mean = sums / pixel_count
    std = (squares / pixel_count - mean**2).clamp(min=0).sqrt().clamp(min=0.05)
    red, green, blue = (
        [round(float(value), 4) for value in mean_and_std] for mean_and_std in zip(mean, std, strict=True)
    )
    return PixelAutoencoder(PixelAutoencoderConfig((red[0], green[0], blue[0]), (red[1], green[1], blue[1])))


def _warn_truncated_captions(corpus: Corpus, tokenizer: Tokenizer, console: Console) -> None:
    captions = list(dict.fromkeys(corpus.training_captions()))
    truncated = [
        caption
        for caption, is_truncated in zip(captions, tokenizer.are_truncated(captions), strict=True)
        if is_truncated
    ]
    if truncated:
        console.print(
            f"{len(truncated):,} captions are longer than {tokenizer.context_length - 1} tokens and lose their ends: {truncated[0][:100]}…",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
