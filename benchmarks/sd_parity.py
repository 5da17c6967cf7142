"""A full-size Stable Diffusion, part by part in float32, against diffusers and transformers: relative errors.

    python benchmarks/sd_image.py make FOLDER --family 1      # or xl; full size, random weights in float16
    python benchmarks/sd_parity.py FOLDER --size 512
    python benchmarks/sd_parity.py FOLDER --size 256 --drawn ddim,euler,dpmpp_2m   # whole drawings in 20 steps

An answer that depended on nothing would prove nothing: the peer's root mean square is printed too, and by how much of
it other words, another time and other sizes move it. One part of one program is in memory at a time; of drawings, one
program. Exit code 1 over 1e-4, of latents over 1e-3, of images over 1/255.
"""

import argparse
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import unspeckle.networks.layers as layers
from unspeckle.denoiser import Conditioning
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.formats.weight_dtypes import to_float32
from unspeckle.generation.codec import decode_to_images
from unspeckle.generation.pipeline import steps as drawn
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load, open_checkpoint

MOST = 1e-4
MOST_OF_LATENTS = 1e-3
TIMES = (600.0, 100.0)
WORDS = {"prompt": "a photograph of an astronaut riding a horse", "negative": "blurred"}
PEERS = {
    "ddim": "DDIMScheduler", "plms": "PNDMScheduler", "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler", "lms": "LMSDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler",
}  # fmt: skip
Answers = dict[str, Tensor]


def ours(checkpoint: StableDiffusionCheckpoint, part: str) -> Any:
    module = checkpoint.build_modules()[part]
    module.load_state_dict(
        {name: to_float32(held) for name, held in checkpoint.part_tensors(part).items()}, assign=True
    )
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
        like = {one: moved for one, moved in expected.items() if one.startswith("other")}
        others = {one: moved - expected[said] for one, moved in like.items() if moved.shape == answer.shape}
        told = "".join(f", {one} {float(by.norm() / expected[said].norm()):.0%}" for one, by in others.items())
        rms = float(expected[said].square().mean().sqrt())
        print(f"{name} {said}: error {errors[-1]:.1e}; root mean square {rms:.2f}{told}", flush=True)
    return max(errors)


def networks(folder: Path, checkpoint: StableDiffusionCheckpoint, side: int) -> float:
    config, generator = checkpoint.parts["network"].config, torch.Generator().manual_seed(0)
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
        vector = (
            torch.cat([pooled, layers.sinusoidal_embedding(sizes[0], 256).view(1, -1)], 1)
            if config.vector_width
            else None
        )
        return {
            "answer": ours(checkpoint, "network")(x, torch.tensor(TIMES[:1]), Conditioning(words[:1], None, vector))
        }

    return compared("U-Net", peer, mine)


def autoencoders(folder: Path, checkpoint: StableDiffusionCheckpoint, side: int) -> float:
    generator, scale = torch.Generator().manual_seed(0), checkpoint.parts["autoencoder"].config.scaling_factor
    z = torch.randn(1, checkpoint.parts["autoencoder"].config.latent_channels, side, side, generator=generator)
    image = torch.rand(1, 3, 8 * side, 8 * side, generator=generator) * 2 - 1

    def peer() -> Answers:
        vae = theirs(folder, "vae", "AutoencoderKL")
        return {"decoded": vae.decode(z / scale).sample, "encoded": vae.encode(image).latent_dist.mean * scale}

    def mine() -> Answers:
        vae = ours(checkpoint, "autoencoder")
        return {"decoded": vae.decode(z), "encoded": vae.encode(image)}

    return compared("autoencoder", peer, mine)


def readers(folder: Path, checkpoint: StableDiffusionCheckpoint) -> float:
    ids = checkpoint.tokenizer.encode((WORDS["prompt"], "two red frogs"))  # (2, encoders, 77)
    worst = 0.0
    for place, config in enumerate(checkpoint.text_encoder.config.encoders):

        def peer(place: int = place, config: Any = config) -> Answers:
            name = ("text_encoder", "text_encoder_2")[place]
            reader = theirs(folder, name, "CLIPTextModelWithProjection" if config.projection_width else "CLIPTextModel")
            read = reader(ids[:, place], output_hidden_states=True)
            tokens = read.hidden_states[-1 - config.skipped_layers] if config.skipped_layers else read.last_hidden_state
            vector = read.text_embeds if config.projection_width else read.pooler_output
            whole = {"tokens": tokens[:1], "other words": tokens[1:]}
            return whole | {"vector": vector[:1], "other words' vector": vector[1:]}

        def mine(place: int = place) -> Answers:
            return dict(
                zip(("tokens", "vector"), ours(checkpoint, "text").encoders[place](ids[:1, place]), strict=True)
            )

        worst = max(worst, compared(f"text encoder {place + 1}", peer, mine))
    return worst


def drawings(folder: Path, samplers: list[str], size: int, steps: int) -> bool:
    """Whether latents and images from the same seed are those of diffusers' pipeline, by each sampler."""
    import diffusers

    plain = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    settings, expected = dict(plain.scheduler.config), {}
    for name in samplers:
        more = {"skip_prk_steps": True} if name == "plms" else {}
        plain.scheduler = getattr(diffusers, PEERS[name]).from_config({**settings, **more})
        told = {
            "prompt": WORDS["prompt"],
            "negative_prompt": WORDS["negative"],
            "num_inference_steps": steps,
            "height": size,
            "width": size,
            "guidance_scale": 4.0,
        }
        latents = plain(**told, generator=torch.Generator().manual_seed(7), output_type="latent").images
        decoded = plain.vae.decode(latents / plain.vae.config.scaling_factor).sample
        expected[name] = latents, plain.image_processor.postprocess(decoded, output_type="pil")[0]
    del plain
    gc.collect()
    model, right = load(folder, precision="float32"), True
    for name in samplers:
        ask = Request(**WORDS, seed=7, steps=steps, size=size, guidance_scale=4.0, sampler=name)
        *_, last = drawn(model, ask)
        latents, image = expected[name]
        error = float((last.x - latents).norm() / latents.norm())
        one, other = (np.asarray(p, np.float64) for p in (decode_to_images(model, last.x)[0], image))
        apart = float(np.abs(one - other).mean())
        print(f"{name}: latents' error {error:.1e}; images apart {apart:.3f} of 255, their deviation {other.std():.0f}")
        right &= error <= MOST_OF_LATENTS and apart <= 1
    return right


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=512, help="of the image")
    parser.add_argument("--drawn", default="", metavar="SAMPLERS", help="whole drawings by these: " + ", ".join(PEERS))
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    if asked.drawn:
        raise SystemExit(not drawings(asked.folder, asked.drawn.split(","), asked.size, asked.steps))
    checkpoint, side = open_checkpoint(asked.folder), asked.size // 8
    if not isinstance(checkpoint, StableDiffusionCheckpoint):
        raise SystemExit(f"{asked.folder}: is no folder of diffusers")
    worst = [readers(asked.folder, checkpoint), autoencoders(asked.folder, checkpoint, side)]
    raise SystemExit(int(max(*worst, networks(asked.folder, checkpoint, side)) > MOST))


if __name__ == "__main__":
    main()
