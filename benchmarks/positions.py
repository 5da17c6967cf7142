"""Does a model read where objects should be? The error of x̂ with a caption, with its positions reversed, and with none.

    python benchmarks/positions.py MODEL FOLDER [--images 128]

Measured by noise level on validation images whose caption says left, right, above or below. What a caption is worth at
a level, in nats of mutual information for each unit of log signal-to-noise ratio, is half the signal-to-noise ratio
times the reduction of the squared error (Guo, Shamai & Verdú 2005, eq. 2). Reversing a caption costs something only if
the model reads positions.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import torch

import unspeckle
from unspeckle.corpus.captions import read_folder
from unspeckle.corpus.splits import open_corpus
from unspeckle.rng import ExampleRNG
from unspeckle.training.inputs import image_cache_folder

TIMES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.86, 0.9, 0.93, 0.96, 0.98, 0.99)
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
POSITION_WORD = re.compile(rf"\b({'|'.join(OPPOSITES)})\b")


def reverse_positions(caption: str) -> str:
    """The caption with left and right, above and below exchanged."""
    return POSITION_WORD.sub(lambda match: OPPOSITES[match.group(1)], caption)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=128)
    args = parser.parse_args()
    model = unspeckle.load(args.model)
    split = open_corpus(read_folder(args.folder), model.card.size, cache_dir=image_cache_folder()).validation
    all_captions = split.first_captions(range(len(split)))
    with_position = [i for i, caption in enumerate(all_captions) if POSITION_WORD.search(caption)]
    indices = np.array(with_position[: args.images])
    captions = split.first_captions(indices)
    variants = {
        "as it is": captions,
        "reversed": [reverse_positions(caption) for caption in captions],
        "none": [""] * len(captions),
    }
    x = model.autoencoder.encode(split.center_crops(indices).float() / 127.5 - 1)
    conditionings = [model.text_encoder(model.tokenizer.encode(texts)) for texts in variants.values()]
    rng = ExampleRNG(0, torch.arange(len(x)))
    print(f"{len(captions)} images, such as {captions[0]!r}")
    print("time   " + "".join(f"{name:>10}" for name in variants) + "   nats of the caption, of its positions")
    for index, time in enumerate(TIMES):
        t = torch.full((len(x),), time)
        alpha, sigma = model.denoiser.schedule(t[0])
        x_t = alpha * x + sigma * rng.normal(index, x.shape[1:])
        true, reversed_, none = (float((model.denoiser(x_t, t, c) - x).square().mean()) for c in conditionings)
        # Half the signal-to-noise ratio; the error is a mean over x, not a sum.
        nats_per_error = 0.5 * float(alpha / sigma) ** 2 * x[0].numel()
        nats = f"{nats_per_error * (none - true):8.2f} {nats_per_error * (reversed_ - true):12.3f}"
        print(f"{time:.2f}   {true:10.4f}{reversed_:10.4f}{none:10.4f}   {nats}")


if __name__ == "__main__":
    main()
