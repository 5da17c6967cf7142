"""Do two checkouts of unspeckle give the same bits? Images, latents, trained, resumed and distilled tensors.

    git worktree add /tmp/before b242062
    python benchmarks/compare_bits.py /tmp/before

Each case runs in a process of its own for each version, with the same interpreter; the version before is spoken to by
its own names (OLD_OPTIONS, and `unspeckle.old_names` for tensors). One line a case; exit code 1 where one differs.
Needs the development tools (diffusers and transformers write the tiny Stable Diffusion checkpoints).
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FAMILIES = ("1", "1-inpaint", "1-lcm", "2", "xl", "xl-inpaint", "xl-refiner")
SAMPLERS = (
    "ddpm", "ddim", "euler", "euler_ancestral", "heun", "lms", "plms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "unipc",
    "lcm",
)  # fmt: skip
REQUESTS: dict[str, dict[str, Any]] = {  # of the embedded model, beside its samplers
    "as the card says": {"count": 3},
    "weights and alternation": {"prompt": "a (red:1.5) rabbit [with a top hat|on stilts]", "steps": 8},
    "composition": {"prompt": "a panda AND a pizza NOT white :0.5", "steps": 8, "guidance_scale": 4.0},
    "hybrid": {"prompt": "a hybrid(frog, rabbit) on stilts", "steps": 8},
    "negative prompt, rescale, interval": {
        "negative_prompt": "a red frog", "guidance_rescale": 0.5, "guidance_interval": (0.2, 0.8), "steps": 8,
    },
    "adaptive projected guidance": {"guidance_method": "apg", "steps": 8},
    "variation": {"variation_seed": 9, "variation_strength": 0.3, "count": 2, "steps": 8},
    "hires": {"hires_size": (128, 128), "steps": 8},
    "no guidance": {"guidance_scale": 1.0, "steps": 8},
    "4 steps": {"steps": 4},
    "1 step": {"steps": 1},
}  # fmt: skip
OLD_OPTIONS = {  # today's names of request fields and options, and those of version 0.1
    "negative_prompt": "negative", "timestep_spacing": "grid", "guidance_scale": "scale",
    "guidance_method": "guidance", "guidance_rescale": "rescale", "guidance_interval": "interval",
    "variation_seed": "variation", "hires_size": "hires", "batch_size": "batch", "batch-size": "batch",
}  # fmt: skip
TRAINING: dict[str, list[str]] = {
    "pixels, float32": ["--space", "pixels", "--precision", "float32", "--optimizer", "adamw"],
    "pixels, bfloat16": ["--space", "pixels", "--precision", "bfloat16", "--optimizer", "muon"],
    "latents, bfloat16": ["--space", "latents", "--precision", "bfloat16", "--size", "64"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("before", type=Path, help="a checkout of the version before")
    parser.add_argument("--cases", default="embedded,families,training,lora,distillation")
    parser.add_argument("--worker", metavar="CASE", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help="where runs are kept (default: a temporary folder)")
    args = parser.parse_args()
    if args.worker:
        for name, digest in worker(args.worker, args.work):
            print(json.dumps([name, digest]), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        different = 0
        for name, same in compare(args.before.resolve(), args.cases.split(","), work.resolve()):
            print(f"{'same bits' if same else 'DIFFERENT'}  {name}", flush=True)
            different += not same
    print(f"{different} cases differ")
    return 1 if different else 0


def compare(before: Path, cases: list[str], work: Path) -> Iterator[tuple[str, bool]]:
    if "embedded" in cases:
        yield from drawn_alike(before, "embedded", work)
    if {"families", "lora"} & set(cases):
        write_families(before, work)
    if "families" in cases:
        yield from drawn_alike(before, "families", work)
    if {"training", "distillation", "lora"} & set(cases):
        write_folder(work / "images")
    if {"training", "distillation"} & set(cases):
        for name, options in TRAINING.items():
            yield from trained_alike(before, work, name, options)
    if "lora" in cases:
        options = ["--lora", "--from", str(work / "sd-1"), "--rank", "4", "--precision", "float32"]
        yield from trained_alike(before, work, "lora", options, size="16", result="lora.safetensors")
    if "distillation" in cases:
        yield from distilled_alike(before, work)


# drawing


def drawn_alike(before: Path, case: str, work: Path) -> Iterator[tuple[str, bool]]:
    results = []
    for root in (before, ROOT):
        command = [sys.executable, __file__, str(before), "--worker", case, "--work", str(work)]
        done = subprocess.run(command, env=environment(root), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{root}: {done.stderr[-2000:]}")
        results.append([json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")])
    for (name, old), (_, new) in zip(*results, strict=True):
        yield name, old == new


def worker(case: str, work: Path) -> Iterator[tuple[str, str]]:
    """In a process of one of the versions: the name of each drawing and a digest of its latents and its images."""
    import unspeckle

    if case == "embedded":
        model = unspeckle.load()
        yield "embedded: hash of the model", model.hash
        for sampler in SAMPLERS:
            yield f"embedded: {sampler}", digest(model, {"sampler": sampler, "steps": 6, "count": 2})
        for name, options in REQUESTS.items():
            yield f"embedded: {name}", digest(model, options)
        yield "embedded: image to image", digest(model, {"image": photo(64), "strength": 0.6, "steps": 10})
        masked = {"image": photo(64), "mask": mask(64), "strength": 0.8, "steps": 10}
        yield "embedded: inpainting", digest(model, masked)
        return
    for family in FAMILIES:
        model = unspeckle.load(work / f"sd-{family}")
        yield f"Stable Diffusion {family}: hash of the model", model.hash
        plain: dict[str, Any] = {"prompt": "a frog on stilts", "size": (32, 32), "steps": 4}
        for sampler in ("lcm",) if family == "1-lcm" else ("dpmpp_2m", "euler_ancestral", "plms", "unipc"):
            yield f"Stable Diffusion {family}: {sampler}", digest(model, {**plain, "sampler": sampler})
        image = {"image": photo(32), "strength": 0.7}
        yield f"Stable Diffusion {family}: image to image", digest(model, {**plain, **image})
        yield f"Stable Diffusion {family}: inpainting", digest(model, {**plain, **image, "mask": mask(32)})
        lower = unspeckle.load(work / f"sd-{family}", precision="bfloat16")
        yield f"Stable Diffusion {family}: bfloat16", digest(lower, plain)


def digest(model: Any, options: dict[str, Any]) -> str:
    import unspeckle

    options = {"prompt": "a frog on stilts", "seed": 7, **options}
    if hasattr(unspeckle, "Request"):
        request = unspeckle.Request(**options)
    else:
        old = {OLD_OPTIONS.get(name, name): value for name, value in options.items()}
        old |= {"sampler": "euler_a"} if old.get("sampler") == "euler_ancestral" else {}
        request = unspeckle.Ask(**old)
    found = hashlib.sha256()
    for step in unspeckle.steps(model, request):
        found.update(step.x.float().contiguous().numpy().tobytes())
    for image in unspeckle.draw(model, request):
        found.update(image.tobytes())
    return found.hexdigest()


def photo(side: int) -> Any:
    import numpy as np
    from PIL import Image

    up, across = np.mgrid[0:side, 0:side] / side
    return Image.fromarray((255 * np.stack([up, across, (up + across) / 2], 2)).astype("uint8"))


def mask(side: int) -> Any:
    from PIL import Image

    image = Image.new("L", (side, side))
    image.paste(255, (side // 4, side // 4, 3 * side // 4, side))
    return image


# what is needed


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root / "src"), "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", "")} | (
        {} if os.environ.get("XDG_CACHE_HOME") else {"XDG_CACHE_HOME": str(Path.home() / ".cache")}
    )


def write_families(before: Path, work: Path) -> None:
    """Tiny checkpoints of every family, by the tests of the version before."""
    code = (
        "import sys; from pathlib import Path; import stable; work = Path(sys.argv[1])\n"
        f"for family in {FAMILIES!r}:\n"
        "    stable.pipeline(family, work / 'scratch').save_pretrained(work / f'sd-{family}')\n"
    )
    path = f"{before / 'src'}{os.pathsep}{before / 'tests'}"
    env = {**environment(before), "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code, str(work)], env=env, check=True, capture_output=True)


def write_folder(folder: Path, count: int = 40) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        color, place = ("red", "green", "blue")[i % 3], random.integers(8, 40, 2)
        pixels = np.full((72, 80, 3), 200, np.uint8) - random.integers(0, 40, (72, 80, 3), dtype=np.uint8)
        pixels[place[0] : place[0] + 24, place[1] : place[1] + 24] = [
            220 * (c == color) for c in ("red", "green", "blue")
        ]
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"a {color} square number {i % 7}\n")


# training


def trained_alike(
    before: Path, work: Path, name: str, options: list[str], *, size: str = "32", result: str = "model.safetensors"
) -> Iterator[tuple[str, bool]]:
    size_option = [] if "--size" in options else ["--size", size]
    preset = [] if "--lora" in options else ["--preset", "nano"]
    common = [*options, *size_option, *preset, "--batch-size", "6", "--steps", "40", "--seed", "3", "--device", "cpu"]
    files = []
    for root, version in ((before, "old"), (ROOT, "new")):
        run = work / f"run-{name.replace(', ', '-')}-{version}"
        # The version before read captions as they are; that is an option today.
        as_before = ["--no-caption-augmentation"] if root == ROOT and "--lora" not in options else []
        command = ["train", str(work / "images"), "--out", str(run), *common, *as_before]
        stopped = run_in_two_parts(root, command, run)
        files.append(run / result)
    yield f"training, {name}{' (stopped and resumed)' if stopped else ''}", equal_tensors(*files)


def distilled_alike(before: Path, work: Path) -> Iterator[tuple[str, bool]]:
    files = []
    teacher = work / "run-pixels-float32-old"  # one teacher for both: written by the version before
    for root, version in ((before, "old"), (ROOT, "new")):
        run = work / f"run-few-{version}"
        options = ["--steps", "24", "--batch-size", "2", "--seed", "3", "--device", "cpu", "--precision", "float32"]
        stopped = run_in_two_parts(root, ["distil", str(teacher), "--out", str(run), *options], run)
        files.append(run / "model.safetensors")
    yield f"distillation{' (stopped and resumed)' if stopped else ''}", equal_tensors(*files)


def run_in_two_parts(root: Path, command: list[str], run: Path) -> bool:
    """Run the command, stop it by Ctrl-C at its first report, and give it again; whether it was stopped."""
    if root != ROOT:
        command = [f"--{OLD_OPTIONS.get(word[2:], word[2:])}" if word.startswith("--") else word for word in command]
    whole = [sys.executable, "-m", "unspeckle", *command, "--quiet"]
    process = subprocess.Popen(whole, env=environment(root), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log = run / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    if process.returncode not in (0, 130):
        raise SystemExit(f"{' '.join(whole)}: {error.decode()[-2000:]}")
    stopped = process.returncode == 130
    if stopped:
        subprocess.run(whole, env=environment(root), check=True, capture_output=True)
    return stopped


def equal_tensors(old_file: Path, new_file: Path) -> bool:
    """Whether the two files hold the same tensors, those of the old one by the names of today."""
    import torch
    from safetensors.torch import load_file

    from unspeckle.old_names import rename_tensor

    def renamed(name: str) -> str:
        part, _, rest = name.partition(".")
        return f"{part}.{rename_tensor(part, rest)}" if part in ("network", "text", "autoencoder", "student") else name

    old, new = {renamed(name): tensor for name, tensor in load_file(old_file).items()}, load_file(new_file)
    return old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)


if __name__ == "__main__":
    sys.exit(main())
