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
from unspeckle.corpus import Corpus, Listing, open_corpus
from unspeckle.errors import InputError, prefix_with_option
from unspeckle.model import Model, load
from unspeckle.networks.autoencoder import Autoencoder, Identity, IdentityConfig
from unspeckle.networks.latent_autoencoder import Latents
from unspeckle.text.text_encoder import TextEncoder
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import autoencoder_task, checkpoint
from unspeckle.training.options import TrainOptions
from unspeckle.training.plan import Plan
from unspeckle.training.planner import space

WORDS = "tokenizer.json"  # in a RUN


class Materials(NamedTuple):
    """What a plan is made for."""

    corpus: Corpus
    tokenizer: Tokenizer
    autoencoder: Autoencoder
    origin: Model | None


def own(path: Path) -> Model:
    """The model that training goes on from, or a student's teacher. InputError where it is not one that learns here."""
    model = load(path)
    if model.card.step_counts:
        raise InputError(f"{path}: is a student, which has nothing to teach; name the model that taught it")
    if not (isinstance(model.text_encoder, TextEncoder) and isinstance(model.autoencoder, Identity | Latents)):
        raise InputError(f"{path}: was not trained here, and only such models can be distilled or trained further")
    return replace(model, student=None)


def gather(listing: Listing, options: TrainOptions, plan: Plan | None, console: Console) -> Materials:
    """Decode the pictures, and take or learn the words."""
    resumed = plan is not None and checkpoint.steps_done(options.out / "checkpoints") > 0
    with prefix_with_option("--from", options.from_model):
        origin = None if options.from_model is None or resumed else own(options.from_model)
    if plan is not None and origin is not None and _parts(origin) != (plan.network, plan.text, plan.autoencoder):
        raise InputError(f"--from {options.from_model}: changed since {options.out} began; give another --out")
    if plan is None:
        for line in listing.describe():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if plan is not None:
        size = plan.size
    elif options.size is not None:
        size = quantities.parse_size(options.size)
    else:
        size = origin.card.size if origin is not None else (128, 128) if torch.cuda.is_available() else (64, 64)
    corpus = decoded(listing, size, console)
    if plan is not None:
        tokenizer = _kept_tokenizer(options.out)
        autoencoder = _planned(plan) if origin is None else origin.autoencoder
    elif origin is not None:
        tokenizer, autoencoder = origin.tokenizer, origin.autoencoder
    else:
        learnt = space(options, corpus.training.size) == "latents"
        tokenizer = Tokenizer.learn(corpus.captions())
        autoencoder = autoencoder_task.unlearnt(options.seed or 0) if learnt else standard(corpus)
    if plan is None:
        for line in corpus.describe():
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        _warn_of_cuts(corpus, tokenizer, console)
    return Materials(corpus, tokenizer, autoencoder, origin)


def decoded(listing: Listing, size: tuple[int, int], console: Console) -> Corpus:
    """The listing's pictures, decoded where they were not yet."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("decoding pictures")

        def told(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return open_corpus(listing, size, cache=cache(), progress=told)


def _kept_tokenizer(run: Path) -> Tokenizer:
    try:
        return Tokenizer.from_json((run / WORDS).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise InputError(f"{run / WORDS}: cannot be read ({error}); put it back, or give another --out") from error


def _parts(model: Model) -> tuple[Any, Any, Any]:
    text: Any = model.text_encoder
    return model.network.config, text.config, model.autoencoder.config


def _planned(plan: Plan) -> Autoencoder:
    """The plan's autoencoder, its learnt weights still in RUN."""
    kind = plan.autoencoder
    return Identity(kind) if isinstance(kind, IdentityConfig) else autoencoder_task.unlearnt(plan.seed, kind)


def cache() -> Path:
    """Where decoded pictures lie, for every run to find."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unspeckle" / "pictures"


def standard(corpus: Corpus) -> Identity:
    """Pixel space, standardised by the colours of at most 1,024 training pictures."""
    split = corpus.training
    count = min(len(split), 1024)
    chosen = np.arange(count) * len(split) // count
    sums, squares, places = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    each = max(1, min(64, (1 << 22) // math.prod(split.size)))
    for some in np.array_split(chosen, -(-count // each)):
        pixels = split.pictures(some).double() / 127.5 - 1
        sums += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
        places += pixels[:, 0].numel()
    mean = sums / places
    deviation = (squares / places - mean**2).clamp(min=0).sqrt().clamp(min=0.05)
    red, green, blue = ([round(float(v), 4) for v in pair] for pair in zip(mean, deviation, strict=True))
    return Identity(IdentityConfig((red[0], green[0], blue[0]), (red[1], green[1], blue[1])))


def _warn_of_cuts(corpus: Corpus, tokenizer: Tokenizer, console: Console) -> None:
    captions = list(dict.fromkeys(corpus.captions()))
    cut = [caption for caption, lost in zip(captions, tokenizer.cut(captions), strict=True) if lost]
    if cut:
        console.print(
            f"{len(cut):,} captions are longer than {tokenizer.length - 1} tokens and lose their ends: {cut[0][:100]}…",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
