"""What a model is trained from: decoded images, a tokenizer, an autoencoder, and perhaps a model to continue."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress

from unspeckle import quantities
from unspeckle.corpus.caption_augmentation import CaptionAugmenter, should_reword
from unspeckle.corpus.folder_listing import FolderListing
from unspeckle.corpus.keywords import read_keywords
from unspeckle.corpus.splits import Corpus, open_corpus
from unspeckle.errors import InputError, prefix_with_option
from unspeckle.model import Model
from unspeckle.model_io.loading import load
from unspeckle.networks.autoencoder import Autoencoder, PixelAutoencoder, PixelAutoencoderConfig
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.text.text_encoder import TextEncoder
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.training import checkpoint
from unspeckle.training.autoencoder_task import init_autoencoder
from unspeckle.training.options import TrainOptions
from unspeckle.training.pixel_statistics import fit_pixel_autoencoder
from unspeckle.training.plan import Plan
from unspeckle.training.preset_choice import autoencoder_config_for, choose_space
from unspeckle.unclip import UnCLIPModel

# In a RUN
TOKENIZER_FILE = "tokenizer.json"
# Wordings of a caption that a tokenizer is trained on, and of all captions together
TOKENIZER_WORDINGS, MAX_TOKENIZER_TEXTS = 8, 100_000
# Width and height of the images if nobody says, on a CPU and on a GPU
CPU_SIZE, CUDA_SIZE = (64, 64), (128, 128)


class TrainingInputs(NamedTuple):
    """What a model is trained from."""

    corpus: Corpus
    tokenizer: Tokenizer
    autoencoder: Autoencoder
    # The model whose training is continued with other images
    base_model: Model | None = None

    def make_augmenter(self, seed: int) -> CaptionAugmenter:
        """What gives captions in different wordings, none of which is cut by the tokenizer."""
        return make_caption_augmenter(self.corpus.training_words, self.tokenizer, seed)


def load_trainable_model(path: Path) -> Model:
    """The model that training continues, or a student's teacher, without its student. InputError if it is not one that
    was trained here."""
    model = load(path)
    if model.card.step_counts:
        raise InputError(f"{path}: is a student, which cannot be trained further; name the model it was distilled from")
    if isinstance(model, UnCLIPModel):
        raise InputError(f"{path}: is an unCLIP model, whose parts are trained together; name a model of one network")
    is_own = isinstance(model.text_encoder, TextEncoder) and isinstance(
        model.autoencoder, PixelAutoencoder | LatentAutoencoder
    )
    if not is_own:
        raise InputError(f"{path}: was not trained by unspeckle; only such models can be distilled or trained further")
    return replace(model, student=None)


def load_inputs(listing: FolderListing, options: TrainOptions, plan: Plan | None, console: Console) -> TrainingInputs:
    """Decode the images, and load or train the tokenizer. plan: of a run that is continued."""
    base_model = _load_base_model(options, plan)
    if plan is None:
        print_lines(console, listing.describe())
    corpus = decode_corpus(listing, _image_size(options, plan, base_model), console)
    if plan is not None:
        tokenizer = _load_tokenizer(options.out)
        autoencoder = _build_autoencoder(plan) if base_model is None else base_model.autoencoder
    elif base_model is not None:
        assert isinstance(base_model.tokenizer, Tokenizer)
        tokenizer, autoencoder = base_model.tokenizer, base_model.autoencoder
        if uses_caption_augmentation(corpus, options):
            augmenter = make_caption_augmenter(corpus.training_words, tokenizer, options.seed or 0)
            tokenizer.meaningless_words |= augmenter.meaningless_words
    else:
        use_latents = choose_space(options, corpus.training.size) == "latents"
        tokenizer = _train_tokenizer(corpus, options)
        tokenizer.related_words = read_keywords(listing.folder)
        if use_latents:
            autoencoder = init_autoencoder(options.seed or 0, autoencoder_config_for(corpus.training.size))
        else:
            autoencoder = fit_pixel_autoencoder(corpus)
    if plan is None:
        print_lines(console, corpus.describe())
        _warn_truncated_captions(corpus, tokenizer, console)
    return TrainingInputs(corpus, tokenizer, autoencoder, base_model)


def make_caption_augmenter(words: frozenset[str], tokenizer: Tokenizer, seed: int) -> CaptionAugmenter:
    """What gives captions of these words in different wordings, none of which is cut by the tokenizer. What the
    tokenizer's model knows says something, even if these captions do not use it."""

    def fits(text: str) -> bool:
        return not tokenizer.are_truncated([text])[0]

    return CaptionAugmenter(words | tokenizer.known_words, seed, fits)


def uses_caption_augmentation(corpus: Corpus, options: TrainOptions) -> bool:
    """Whether captions are read in different wordings: as the options say, or where they are English and alike."""
    if options.caption_augmentation is not None:
        return options.caption_augmentation
    return should_reword(corpus.training_words)


def _train_tokenizer(corpus: Corpus, options: TrainOptions) -> Tokenizer:
    """A tokenizer of the corpus's captions, and of some of their wordings if these are read."""
    captions = sorted(set(corpus.training_captions()))
    if not uses_caption_augmentation(corpus, options):
        return Tokenizer.train(corpus.training_captions())
    augmenter = CaptionAugmenter(corpus.training_words, options.seed or 0)
    sample = captions[:: max(1, len(captions) * TOKENIZER_WORDINGS // MAX_TOKENIZER_TEXTS)]
    wordings = (augmenter.reword(caption, n) for caption in sample for n in range(1, 1 + TOKENIZER_WORDINGS))
    tokenizer = Tokenizer.train(corpus.training_captions(), wordings=wordings)
    tokenizer.meaningless_words = augmenter.meaningless_words
    return tokenizer


def print_lines(console: Console, lines: list[str]) -> None:
    """Print lines as they are, however long."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def decode_corpus(listing: FolderListing, size: tuple[int, int], console: Console) -> Corpus:
    """The listing's images, decoded if they were not yet."""
    with Progress(console=console, transient=True) as progress:
        task_id = progress.add_task("decoding images")

        def show_progress(done: int, total: int) -> None:
            progress.update(task_id, completed=done, total=total)

        return open_corpus(listing, size, cache_dir=image_cache_folder(), progress=show_progress)


def image_cache_folder() -> Path:
    """Where decoded images are kept, for all runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unspeckle" / "pictures"


def _load_base_model(options: TrainOptions, plan: Plan | None) -> Model | None:
    """The model of --from, if it is needed: a run that has a checkpoint has all that it took from it."""
    is_resumed = plan is not None and checkpoint.latest_step(options.out) > 0
    if options.from_model is None or is_resumed:
        return None
    with prefix_with_option("--from", options.from_model):
        base_model = load_trainable_model(options.from_model)
    if plan is not None:
        planned = plan.model.network, plan.model.text_encoder, plan.model.autoencoder
        if _model_configs(base_model) != planned:
            raise InputError(f"--from {options.from_model}: changed since {options.out} began; give another --out")
    return base_model


def _image_size(options: TrainOptions, plan: Plan | None, base_model: Model | None) -> tuple[int, int]:
    if plan is not None:
        return plan.corpus_size
    if options.size is not None:
        return quantities.parse_size(options.size)
    if base_model is not None:
        return base_model.card.size
    return CUDA_SIZE if torch.cuda.is_available() else CPU_SIZE


def _load_tokenizer(run_folder: Path) -> Tokenizer:
    path = run_folder / TOKENIZER_FILE
    try:
        return Tokenizer.from_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise InputError(f"{path}: cannot be read ({error}); put it back, or give another --out") from error


def _model_configs(model: Model) -> tuple[Any, Any, Any]:
    text_encoder: Any = model.text_encoder
    return model.network.config, text_encoder.config, model.autoencoder.config


def _build_autoencoder(plan: Plan) -> Autoencoder:
    """The plan's autoencoder, whose trained weights are still in RUN."""
    config = plan.model.autoencoder
    if isinstance(config, PixelAutoencoderConfig):
        return PixelAutoencoder(config)
    assert isinstance(config, LatentAutoencoderConfig)
    return init_autoencoder(plan.work.seed, config)


def _warn_truncated_captions(corpus: Corpus, tokenizer: Tokenizer, console: Console) -> None:
    captions = list(dict.fromkeys(corpus.training_captions()))
    flags = zip(captions, tokenizer.are_truncated(captions), strict=True)
    truncated = [caption for caption, is_truncated in flags if is_truncated]
    if truncated:
        max_tokens = tokenizer.context_length - 1
        line = f"{len(truncated):,} captions are longer than {max_tokens} tokens and are cut: {truncated[0][:100]}…"
        print_lines(console, [line])
