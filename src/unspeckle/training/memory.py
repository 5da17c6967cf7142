"""How much memory a training step takes, counted without taking it, and how much there is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from unspeckle.corpus import Corpus
from unspeckle.corpus.device_images import resident
from unspeckle.denoiser import Conditioning
from unspeckle.errors import InputError
from unspeckle.networks.latent_autoencoder import LatentConfig, Latents
from unspeckle.training.plan import AnyPlan, Plan
from unspeckle.training.reconstruction_loss import reconstruction

SHARE = 0.8  # of what is free that a step may take
PICTURES = 0.25  # of what is free on a GPU, that the corpus may take beforehand
BASE = 500 * 2**20  # bytes for the libraries, a compiler, a batch on its way
BUSY = 1.3  # what a backward pass holds at its peak, in units of what the forward pass kept for it
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def kept(plan: Plan) -> int:
    """Bytes that the forward pass of one picture through the network keeps for the backward pass, counted on the meta
    device."""
    dtype = _dtype(plan)
    with torch.device("meta"):
        network = plan.built().to(dtype)
        config, (width, height) = plan.network, plan.extent
        words = torch.empty(1, plan.text.length, config.text_width, dtype=dtype)
        given = Conditioning(words, None, torch.empty(1, config.vector_width, dtype=dtype))
        x = torch.empty(1, config.channels, height, width, dtype=dtype)
        return _kept(network, lambda: network(x, torch.empty(1), given))


def kept_to_learn_latents(plan: Plan) -> int:
    """The same of the autoencoder, in those of its steps that take the most."""
    assert isinstance(plan.autoencoder, LatentConfig)
    with torch.device("meta"):
        latents = Latents(plan.autoencoder).to(_dtype(plan))
        latents.standard.float()
        pictures = torch.empty(1, 3, plan.size[1], plan.size[0])
        return _kept(latents, lambda: reconstruction(latents, pictures, lambda x: x + torch.empty_like(x), coarse=True))


def autoencoder_parameters(plan: Plan) -> int:
    """How many there are of those that are learnt, here or for another model; 0 where x is pixels."""
    if not isinstance(plan.autoencoder, LatentConfig):
        return 0
    with torch.device("meta"):
        return sum(p.numel() for p in Latents(plan.autoencoder).parameters())


def _dtype(plan: Plan) -> torch.dtype:
    return torch.float32 if plan.precision == "float32" else torch.bfloat16


def _kept(module: nn.Module, forward: Callable[[], Tensor]) -> int:
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage()._cdata] = tensor
        return tensor

    own = {p.untyped_storage()._cdata for p in module.parameters()}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    del output
    return sum(t.untyped_storage().nbytes() for storage, t in seen.items() if storage not in own)


def needed(plan: Plan) -> int:
    """Bytes of a whole step: weights, gradients, Adam's two moments, the averages, and what a batch keeps. The most of
    the autoencoder's learning, where it learns, and of the network's, which it serves."""
    learnt = 16 if plan.precision == "float32" else 20  # bytes for each parameter that learns
    latent = autoencoder_parameters(plan)
    network = (learnt + 4 * len(plan.averages)) * plan.parameters + 4 * latent + BUSY * plan.rows * kept(plan)
    if not plan.latent_steps:
        return BASE + round(network)
    before = 4 * plan.parameters + learnt * latent + BUSY * plan.batch * kept_to_learn_latents(plan)
    return BASE + round(max(network, before))


def free(device: str) -> int | None:
    """Bytes that this process can still take, or None where that is not known."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:  # a container's limit, cgroup v2
        limit, taken = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return available
    return min(available, limit - taken)


def near(corpus: Corpus, device: str) -> Corpus:
    """The corpus, its training pictures in the device's own memory where that is not the processor's and they take no
    more than PICTURES of what is free there."""
    room = free(device) if device.startswith("cuda") else None
    fits = room is not None and corpus.training.store.pixels.nbytes <= PICTURES * room
    return resident(corpus, device) if fits else corpus


def fitted(plan: AnyPlan, asked: bool, say: Callable[[str], None]) -> AnyPlan:
    """The plan, its batch halved until a step fits what is free. InputError where the batch was asked for, or where
    not even one picture fits."""
    room = free(plan.device)
    if room is None or needed(plan) <= SHARE * room:
        return plan
    wanted, smaller = needed(plan), plan
    while smaller.batch > 1 and needed(smaller) > SHARE * room:
        smaller = replace(smaller, batch=smaller.batch // 2)
    short = f"needs about {wanted / 2**30:.1f} GiB of memory, {room / 2**30:.1f} GiB are free"
    if needed(smaller) > SHARE * room:
        raise InputError(
            f"training {plan.preset} at {plan.size[0]}x{plan.size[1]} {short}; take a smaller --preset or --size"
        )
    if asked:
        raise InputError(f"--batch {plan.batch}: {short}; try --batch {smaller.batch}")
    say(f"a batch of {plan.batch} {short}: training in batches of {smaller.batch}")
    return smaller


def ran_out(error: BaseException) -> bool:
    """Is this how torch says that there is no memory left?"""
    spoken = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in spoken)
    )
