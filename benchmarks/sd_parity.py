"""A full-size Stable Diffusion, part by part in float32, against diffusers and transformers: relative errors.

    python benchmarks/sd_picture.py make FOLDER --family 1      # or xl; full size, random weights in float16
    python benchmarks/sd_parity.py FOLDER --size 512

An answer that depended on nothing would prove nothing: the peer's root mean square is printed too, and by how much of
it other words, another time and other sizes move it. One part of one program is in memory at a time. Exit code 1 over
1e-4.
"""

import argparse
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import unspeckle.networks.layers as layers
from unspeckle.denoiser import Given
from unspeckle.formats import door
from unspeckle.formats.checkpoint import Checkpoint
from unspeckle.storage import float32

MOST = 1e-4
TIMES = (600.0, 100.0)
Answers = dict[str, Tensor]


def ours(checkpoint: Checkpoint, part: str) -> Any:
    module = checkpoint.pieces()[part]
    module.load_state_dict({name: float32(held) for name, held in checkpoint.part(part).items()}, assign=True)
    return module.eval().requires_grad_(False)


def theirs(folder: Path, part: str, kind: str) -> Any:
    import diffusers
    import transformers

    made = getattr(diffusers, kind, None) or getattr(transformers, kind)
    return made.from_pretrained(folder / part, torch_dtype=torch.float32).eval().requires_grad_(False)


def compared(name: str, peer: Callable[[], Answers], mine: Callable[[], Answers]) -> float:
    """Prints a row for each answer but those whose name tells what was changed; returns the largest error."""
    expected = peer()
    gc.collect()
    found = mine()
    gc.collect()
    errors = []
    for said, answer in found.items():
        errors.append(float((answer - expected[said]).norm() / expected[said].norm()))
        others = {one: moved - expected[said] for one, moved in expected.items() if one.startswith("other")}
        told = "".join(f", {one} {float(by.norm() / expected[said].norm()):.0%}" for one, by in others.items())
        rms = float(expected[said].square().mean().sqrt())
        print(f"{name} {said}: error {errors[-1]:.1e}; root mean square {rms:.2f}{told}", flush=True)
    return max(errors)


def networks(folder: Path, checkpoint: Checkpoint, side: int) -> float:
    config, generator = checkpoint.unet, torch.Generator().manual_seed(0)
    x = torch.randn(1, config.channels, side, side, generator=generator)
    words = torch.randn(2, 77, config.text_width, generator=generator)
    pooled = torch.randn(1, config.vector_width - 6 * 256 if config.vector_width else 0, generator=generator)
    sizes = torch.tensor([[8.0 * side, 8.0 * side, 0, 0, 8.0 * side, 8.0 * side], [512, 640, 64, 0, 1024, 768]])

    def peer() -> Answers:
        unet = theirs(folder, "unet", "UNet2DConditionModel")

        def asked(word: int = 0, time: int = 0, size: int = 0) -> Tensor:
            more = {"text_embeds": pooled, "time_ids": sizes[size : size + 1]} if config.vector_width else {}
            answer: Tensor = unet(x, TIMES[time], words[word : word + 1], added_cond_kwargs=more).sample
            return answer

        answers = {"answer": asked(), "other words": asked(word=1), "other time": asked(time=1)}
        return answers | ({"other sizes": asked(size=1)} if config.vector_width else {})

    def mine() -> Answers:
        vector = torch.cat([pooled, layers.sinusoids(sizes[0], 256).view(1, -1)], 1) if config.vector_width else None
        return {"answer": ours(checkpoint, "network")(x, torch.tensor(TIMES[:1]), Given(words[:1], None, vector))}

    return compared("U-Net", peer, mine)


def autoencoders(folder: Path, checkpoint: Checkpoint, side: int) -> float:
    generator, scale = torch.Generator().manual_seed(0), checkpoint.vae.scale
    z = torch.randn(1, checkpoint.vae.channels, side, side, generator=generator)
    picture = torch.rand(1, 3, 8 * side, 8 * side, generator=generator) * 2 - 1

    def peer() -> Answers:
        vae = theirs(folder, "vae", "AutoencoderKL")
        return {"decoded": vae.decode(z / scale).sample, "encoded": vae.encode(picture).latent_dist.mean * scale}

    def mine() -> Answers:
        vae = ours(checkpoint, "autoencoder")
        return {"decoded": vae.decode(z), "encoded": vae.encode(picture)}

    return compared("autoencoder", peer, mine)


def readers(folder: Path, checkpoint: Checkpoint) -> float:
    said = ("a photograph of an astronaut riding a horse", "two red frogs")
    ids = checkpoint.tokenizer.encode(said)  # (2, encoders, 77)
    worst = 0.0
    for place, config in enumerate(checkpoint.texts.encoders):

        def peer(place: int = place, config: Any = config) -> Answers:
            name = ("text_encoder", "text_encoder_2")[place]
            reader = theirs(folder, name, "CLIPTextModelWithProjection" if config.projection else "CLIPTextModel")
            read = reader(ids[:, place], output_hidden_states=True)
            tokens = read.hidden_states[-1 - config.skip] if config.skip else read.last_hidden_state
            return {"tokens": tokens[:1], "other words": tokens[1:]}

        def mine(place: int = place) -> Answers:
            return {"tokens": ours(checkpoint, "text").encoders[place](ids[:1, place])[0]}

        worst = max(worst, compared(f"text encoder {place + 1}", peer, mine))
    return worst


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=512, help="of the picture")
    asked = parser.parse_args()
    checkpoint, side = door.read(asked.folder), asked.size // 8
    if checkpoint is None:
        raise SystemExit(f"{asked.folder}: is no folder of diffusers")
    worst = [readers(asked.folder, checkpoint), autoencoders(asked.folder, checkpoint, side)]
    raise SystemExit(int(max(*worst, networks(asked.folder, checkpoint, side)) > MOST))


if __name__ == "__main__":
    main()
