"""Does a model read where things are to be? The error of x̂ with a caption, with its places turned round, and with none.

    python benchmarks/places.py MODEL FOLDER [--pictures 128]

Of held-out pictures whose caption says left, right, above or below, by noise level. What a caption is worth there, in
nats of mutual information for each unit of log signal-to-noise ratio, is half the ratio times what it takes off the
squared error (Guo, Shamai & Verdú 2005, eq. 2). A model that reads places has some for the turned caption to lose.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import torch

import unspeckle
from unspeckle.corpus import open_corpus, read_folder
from unspeckle.rng import ExampleRNG
from unspeckle.training.inputs import image_cache_folder

TIMES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.86, 0.9, 0.93, 0.96, 0.98, 0.99)
TURNED = {"left": "right", "right": "left", "above": "below", "below": "above"}
SAID = re.compile(rf"\b({'|'.join(TURNED)})\b")


@torch.no_grad()
def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("model", type=Path)
    ask.add_argument("folder", type=Path)
    ask.add_argument("--pictures", type=int, default=128)
    asked = ask.parse_args()
    model = unspeckle.load(asked.model)
    split = open_corpus(read_folder(asked.folder), model.card.size, cache_dir=image_cache_folder()).validation
    placed = [i for i, caption in enumerate(split.first_captions(range(len(split)))) if SAID.search(caption)]
    chosen = np.array(placed[: asked.pictures])
    right = split.first_captions(chosen)
    wordings = {
        "as it is": right,
        "turned": [SAID.sub(lambda found: TURNED[found.group(1)], caption) for caption in right],
        "none": [""] * len(right),
    }
    x = model.autoencoder.encode(split.center_crops(chosen).float() / 127.5 - 1)
    givens = [model.text_encoder(model.tokenizer.encode(captions)) for captions in wordings.values()]
    noise = ExampleRNG(0, torch.arange(len(x)))
    print(f"{len(right)} pictures, such as {right[0]!r}")
    print("time   " + "".join(f"{name:>10}" for name in wordings) + "   nats of the caption, of its places")
    for place, level in enumerate(TIMES):
        t = torch.full((len(x),), level)
        alpha, sigma = model.denoiser.schedule(t[0])
        x_t = alpha * x + sigma * noise.normal(place, x.shape[1:])
        own, turned, none = (float((model.denoiser(x_t, t, given) - x).square().mean()) for given in givens)
        worth = 0.5 * float(alpha / sigma) ** 2 * x[0].numel()
        nats = f"{worth * (none - own):8.2f} {worth * (turned - own):12.3f}"
        print(f"{level:.2f}   {own:10.4f}{turned:10.4f}{none:10.4f}   {nats}")


if __name__ == "__main__":
    main()
