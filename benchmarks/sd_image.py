"""A whole image by a Stable Diffusion, from process start to PNG: ours, diffusers in bfloat16 and OpenVINO.

    python benchmarks/sd_image.py make FOLDER --family 1      # or xl; full size, random weights in float16
    python benchmarks/sd_image.py run FOLDER --steps 20 --rows ours,diffusers,openvino
    python benchmarks/sd_image.py decode FOLDER               # the autoencoder alone, in turns, and its error
    python benchmarks/sd_image.py precision FOLDER --size 512 # the same image in our precisions: seconds, decibels

Each row is a process of its own, in turns; seconds, and the peak of its anonymous memory (what is not a file's), read
twenty times a second. OpenVINO's models are converted, and its cache is filled, before it is timed.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

PROMPT, SEED = "a photograph of an astronaut riding a horse", 7


def make(folder: Path, family: str) -> None:
    """Write a whole model with weights under which it says something."""
    from unspeckle.formats.stable_diffusion import writing
    from unspeckle.formats.stable_diffusion.checkpoint import SchedulerDefaults
    from unspeckle.formats.stable_diffusion.families import unet_checkpoint
    from unspeckle.networks.vae import VAEConfig
    from unspeckle.presets import STABLE_DIFFUSION_CONFIGS
    from unspeckle.text.clip import CLIPTextConfig, CLIPTextEncodersConfig
    from unspeckle.text.clip_tokenizer import CLIPTokenizer, openai_bpe

    large = family == "xl"
    letters = openai_bpe([])
    end = len(letters.get_vocab()) - 1
    readers = [CLIPTextConfig(eos_token_id=end, skipped_layers=int(large), normalize_tokens=not large)]
    if large:
        wide = CLIPTextConfig(
            1280,
            32,
            20,
            5120,
            eos_token_id=end,
            quick_gelu=False,
            projection_width=1280,
            skipped_layers=1,
            normalize_tokens=False,
        )
        readers.append(wide)
    made = unet_checkpoint(
        path=folder,
        unet_config=STABLE_DIFFUSION_CONFIGS["xl" if large else "1.5"],
        vae_config=VAEConfig(scaling_factor=0.13025 if large else 0.18215),
        text_config=CLIPTextEncodersConfig(tuple(readers), large, large),
        tokenizer=CLIPTokenizer(letters, pad_tokens=("!",) * len(readers)),
        scheduler_defaults=SchedulerDefaults(image_size=1024 if large else 512, sampler="ddim"),
    )
    generator = torch.Generator().manual_seed(0)
    pieces = made.build_modules()
    for part, module in pieces.items():
        for name, held in module.state_dict().items():
            deviation = 0.8 * held[0].numel() ** -0.5 if held.ndim > 1 else 0.02
            tensor = torch.randn(held.shape, generator=generator).mul_(deviation)
            if "norm" in name and name.endswith("weight"):
                tensor += 1
            made.tensors[f"{part}.{name}"] = tensor.half()
    writing.write_diffusers_folder(made, folder)


def run(folder: Path, rows: list[str], steps: int, rounds: int) -> None:
    commands = {
        "ours": [sys.executable, "-m", "unspeckle", "draw", PROMPT, "-m", str(folder), "--seed", str(SEED), "--sampler",
                 "ddim", "--precision", "bfloat16", "--steps", str(steps), "--out", str(folder / "drawn"), "-q"],
        "diffusers": [sys.executable, __file__, "diffusers", str(folder), "--steps", str(steps)],
        "openvino": [sys.executable, __file__, "openvino", str(folder), "--steps", str(steps)],
    }  # fmt: skip
    taken: dict[str, list[float]] = {row: [] for row in rows}
    peaks: dict[str, int] = dict.fromkeys(rows, 0)
    if "openvino" in rows:
        subprocess.run([*commands["openvino"][:-1], "1"], check=True, capture_output=True)
    for _ in range(rounds):
        for row in rows:
            start = time.perf_counter()
            process = subprocess.Popen(commands[row], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            while process.poll() is None:
                peaks[row] = max(peaks[row], anonymous(process.pid))
                time.sleep(0.05)
            taken[row].append(time.perf_counter() - start)
            if process.returncode:
                raise SystemExit(f"{row} failed:\n{process.stderr and process.stderr.read().decode()[-2000:]}")
    peers = [statistics.median(taken[row]) for row in rows if row != "ours"]
    for row in rows:
        seconds = statistics.median(taken[row])
        ratio = f"{seconds / min(peers):5.2f} × fastest peer" if peers else ""
        print(f"{row:10s} {seconds:7.1f} s  {ratio}  {peaks[row] / 2**30:5.2f} GiB anonymous at its peak")


def anonymous(pid: int) -> int:
    """Bytes of a process's memory that lie in no file."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def diffusers(folder: Path, steps: int) -> None:
    pipe = pipeline(folder)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(SEED)
    pipe(PROMPT, num_inference_steps=steps, generator=generator).images[0].save(folder / "diffusers.png")


def pipeline(folder: Path, **options: Any) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, **options)


def openvino(folder: Path, steps: int) -> None:
    """Their compiled U-Net and decoder, with the scheduler and the words' encoder of diffusers; SD 1.x only."""
    import openvino as ov
    from diffusers import DDIMScheduler
    from PIL import Image
    from transformers import CLIPTextModel, CLIPTokenizer

    place = folder / "openvino"
    if not (place / "unet.xml").exists():
        _convert(folder, place)
    core = ov.Core()
    said = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": str(place / "cache")}
    said["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    unet, decoder = (core.compile_model(place / f"{name}.xml", "CPU", said) for name in ("unet", "decoder"))
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    reader = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", torch_dtype=torch.bfloat16)
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(steps)
    with torch.inference_mode():
        ids = tokenizer(["", PROMPT], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        words = reader(ids.input_ids)[0].float().numpy()
        x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(SEED)) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            given = scheduler.scale_model_input(x, t).repeat(2, 1, 1, 1)
            eps = torch.from_numpy(unet([given.numpy(), t.float().repeat(2).numpy(), words])[0])
            x = scheduler.step(eps[:1] + 7.5 * (eps[1:] - eps[:1]), t, x).prev_sample
        image = torch.from_numpy(decoder([(x / 0.18215).numpy()])[0])[0]
    data = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(data).save(folder / "openvino.png")


def _convert(folder: Path, place: Path) -> None:
    import openvino as ov
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)

    class Eps(torch.nn.Module):
        def forward(self, x: Any, t: Any, words: Any) -> Any:
            return unet(x, t, words, return_dict=False)[0]

    class ImageDecoder(torch.nn.Module):
        def forward(self, z: Any) -> Any:
            return vae.decode(z, return_dict=False)[0]

    unet.requires_grad_(False), vae.requires_grad_(False)
    asked = {
        "unet": (Eps(), (torch.randn(2, 4, 64, 64), torch.full((2,), 500.0), torch.randn(2, 77, 768))),
        "decoder": (ImageDecoder(), (torch.randn(1, 4, 64, 64),)),
    }
    for name, (module, given) in asked.items():
        with torch.no_grad():
            shapes = [ov.PartialShape(list(one.shape)) for one in given]
            ov.save_model(ov.convert_model(module, example_input=given, input=shapes), place / f"{name}.xml")


def decode(folder: Path, rounds: int) -> None:
    """The decoder at 512², seconds and error against float32 in decibels."""
    import unspeckle
    from unspeckle.model_io.process_memory import keep_freed_memory

    keep_freed_memory()
    exact, low = unspeckle.load(folder), unspeckle.load(folder, precision="bfloat16")
    vae = pipeline(folder).vae.to(memory_format=torch.channels_last)
    scale = exact.autoencoder.config.scaling_factor
    z = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    like: Any = {"memory_format": torch.channels_last}
    calls = {
        "ours": lambda: low.autoencoder.decode(z),
        "diffusers": lambda: vae.decode((z / scale).bfloat16().contiguous(**like)).sample.float(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        truth = exact.autoencoder.decode(z)
        error = {name: float((call() - truth).norm() / truth.norm()) for name, call in calls.items()}
        for _ in range(rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    for name, taken in seconds.items():
        print(f"{name:10s} {statistics.median(taken):6.2f} s   error {error[name]:.1e}")


def precisions(folder: Path, steps: int, size: int) -> None:
    """One seed's image in each precision: seconds of the processor, and how near float32's it is."""
    import numpy as np

    import unspeckle
    from unspeckle.model_io.process_memory import keep_freed_memory

    keep_freed_memory()
    exact: Any = None
    for name in ("float32", "bfloat16", "int8"):
        model = unspeckle.load(folder, precision=name)
        ask, start = unspeckle.Request(PROMPT, seed=SEED, steps=steps, sampler="ddim", size=size), time.process_time()
        drawn = np.asarray(unspeckle.draw(model, ask)[0], float)
        exact = drawn if exact is None else exact
        apart = float(((drawn - exact) ** 2).mean())
        near = f"{10 * math.log10(255**2 / apart):.1f} dB" if apart else ""
        print(f"{name:10s} {time.process_time() - start:7.1f} s  {near}", flush=True)
        del model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "run", "decode", "precision", "diffusers", "openvino"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=["1", "xl"], default="1")
    parser.add_argument("--rows", default="ours,diffusers")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--size", type=int, default=512)
    asked = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if asked.what == "make":
        make(asked.folder, asked.family)
    elif asked.what == "run":
        run(asked.folder, asked.rows.split(","), asked.steps, asked.rounds)
    elif asked.what == "decode":
        decode(asked.folder, asked.rounds)
    elif asked.what == "precision":
        precisions(asked.folder, asked.steps, asked.size)
    else:
        {"diffusers": diffusers, "openvino": openvino}[asked.what](asked.folder, asked.steps)


if __name__ == "__main__":
    main()
