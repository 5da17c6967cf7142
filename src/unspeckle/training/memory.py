"""How much memory a training step takes, counted without taking it, and how much is free."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from unspeckle.corpus.device_images import move_training_images_to_device
from unspeckle.corpus.splits import Corpus
from unspeckle.denoiser import Conditioning
from unspeckle.errors import InputError
from unspeckle.networks.gan import Discriminator, GeneratorConfig
from unspeckle.networks.latent_autoencoder import LatentAutoencoder, LatentAutoencoderConfig
from unspeckle.training.gan_losses import gradient_penalty
from unspeckle.training.master_weights import DTYPES
from unspeckle.training.plan import CLIPPlan, GANPlan, Plan, PlanT
from unspeckle.training.reconstruction_loss import reconstruction_loss

# Share of the free memory that a step may take
MAX_MEMORY_SHARE = 0.8
# Share of a GPU's free memory that the corpus may take beforehand
MAX_CORPUS_SHARE = 0.25
# Bytes for the libraries, a compiler, and a batch on its way
BASE_BYTES = 500 * 2**20
# What a backward pass holds at its peak, in units of what the forward pass kept for it
BACKWARD_FACTOR = 1.3
MEMINFO_FILE, CGROUP_FOLDER = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def activation_bytes(plan: Plan) -> int:
    """Bytes that the forward pass of one image through the network keeps for the backward pass, counted on the meta
    device."""
    if isinstance(plan, GANPlan):
        return gan_activation_bytes(plan)
    dtype = _compute_dtype(plan)
    if isinstance(plan, CLIPPlan):
        with torch.device("meta"):
            encoder, images = plan.build_network().to(dtype), torch.empty(1, 3, plan.model.size[1], plan.model.size[0])
            return _saved_tensor_bytes(encoder, lambda: encoder(images))
    with torch.device("meta"):
        network = plan.build_network().to(dtype)
        config, (width, height) = plan.model.network, plan.model.input_size
        tokens = torch.empty(1, plan.model.text_encoder.context_length, config.text_width, dtype=dtype)
        concat = torch.empty(1, config.concat_channels, height, width, dtype=dtype) if config.concat_channels else None
        conditioning = Conditioning(tokens, None, torch.empty(1, config.vector_width, dtype=dtype), concat)
        x = torch.empty(1, config.channels, height, width, dtype=dtype)
        return _saved_tensor_bytes(network, lambda: network(x, torch.empty(1), conditioning))


def gan_activation_bytes(plan: GANPlan) -> int:
    """The same of a GAN's discriminator, whose update keeps the most: gradients that are differentiated again."""
    config, (width, height) = plan.model.network, plan.model.input_size
    assert isinstance(config, GeneratorConfig)
    with torch.device("meta"):
        discriminator, vector = Discriminator(config), torch.empty(1, config.vector_width)
        images = torch.empty(1, config.channels, height, width)

        def penalties() -> Tensor:
            pairs = [gradient_penalty(lambda x: discriminator(x, vector), images) for _ in ("real", "drawn")]
            return torch.stack([value + penalty for value, penalty in pairs])

        return _saved_tensor_bytes(discriminator, penalties)


def autoencoder_activation_bytes(plan: Plan) -> int:
    """The same of the autoencoder, in those of its steps that take the most."""
    assert isinstance(plan.model.autoencoder, LatentAutoencoderConfig)
    with torch.device("meta"):
        autoencoder = LatentAutoencoder(plan.model.autoencoder).to(_compute_dtype(plan))
        autoencoder.latent_norm.float()
        images = torch.empty(1, 3, plan.model.size[1], plan.model.size[0])
        return _saved_tensor_bytes(
            autoencoder,
            lambda: reconstruction_loss(autoencoder, images, lambda x: x + torch.empty_like(x), with_coarse_loss=True),
        )


def count_autoencoder_parameters(plan: Plan) -> int:
    """How many parameters an autoencoder has that was trained, in this run or for another model; 0 for pixels."""
    if not isinstance(plan.model.autoencoder, LatentAutoencoderConfig):
        return 0
    with torch.device("meta"):
        return sum(p.numel() for p in LatentAutoencoder(plan.model.autoencoder).parameters())


def _compute_dtype(plan: Plan) -> torch.dtype:
    return DTYPES[plan.compute.precision]


def _saved_tensor_bytes(module: nn.Module, forward: Callable[[], Tensor]) -> int:
    saved_tensors: dict[int, Tensor] = {}

    def save_tensor(tensor: Tensor) -> Tensor:
        saved_tensors[tensor.untyped_storage()._cdata] = tensor
        return tensor

    parameter_storages = {p.untyped_storage()._cdata for p in module.parameters()}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(save_tensor, lambda tensor: tensor):
        output = forward()
    del output
    return sum(
        t.untyped_storage().nbytes() for storage, t in saved_tensors.items() if storage not in parameter_storages
    )


def training_step_bytes(plan: Plan) -> int:
    """Bytes of a whole step: weights, gradients, Adam's two moments, the EMAs, and what a batch keeps for the backward
    pass. The larger of the autoencoder's steps, if it is trained, and of the network's."""
    bytes_per_parameter = 16 if plan.compute.precision == "float32" else 20
    autoencoder_parameter_count = count_autoencoder_parameters(plan)
    network_bytes = (
        (bytes_per_parameter + 4 * len(plan.optimizer.ema_widths)) * plan.measured.parameter_count
        + 4 * autoencoder_parameter_count
        + BACKWARD_FACTOR * plan.network_batch_size * activation_bytes(plan)
    )
    if not plan.work.autoencoder_steps:
        return BASE_BYTES + round(network_bytes)
    autoencoder_bytes = (
        4 * plan.measured.parameter_count
        + bytes_per_parameter * autoencoder_parameter_count
        + BACKWARD_FACTOR * plan.work.batch_size * autoencoder_activation_bytes(plan)
    )
    return BASE_BYTES + round(max(network_bytes, autoencoder_bytes))


def free_memory_bytes(device: str) -> int | None:
    """Bytes that this process can still take, or None where that is not known."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        meminfo = dict(line.split(":", 1) for line in MEMINFO_FILE.read_text().splitlines() if ":" in line)
        available = int(meminfo["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        # A container's limit (cgroup v2)
        limit, used = (int((CGROUP_FOLDER / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return available
    return min(available, limit - used)


def corpus_to_device(corpus: Corpus, device: str) -> Corpus:
    """The corpus; its training images in the memory of a GPU, if they take at most MAX_CORPUS_SHARE of what is free
    there."""
    available = free_memory_bytes(device) if device.startswith("cuda") else None
    corpus_fits = available is not None and corpus.training.store.pixels.nbytes <= MAX_CORPUS_SHARE * available
    return move_training_images_to_device(corpus, device) if corpus_fits else corpus


def fit_batch_size(plan: PlanT, is_explicit: bool, print_line: Callable[[str], None]) -> PlanT:
    """The plan, its batch size halved until a step fits into what is free. InputError if the batch size was given
    (is_explicit), or if not even one image fits."""
    available = free_memory_bytes(plan.compute.device)
    if available is None or training_step_bytes(plan) <= MAX_MEMORY_SHARE * available:
        return plan
    required, smaller_plan = training_step_bytes(plan), plan
    while smaller_plan.work.batch_size > 1 and training_step_bytes(smaller_plan) > MAX_MEMORY_SHARE * available:
        smaller_plan = smaller_plan.with_changes(work={"batch_size": smaller_plan.work.batch_size // 2})
    batch_size, smaller_batch_size = plan.work.batch_size, smaller_plan.work.batch_size
    shortage = f"needs about {required / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are free"
    if training_step_bytes(smaller_plan) > MAX_MEMORY_SHARE * available:
        width, height = plan.model.size
        raise InputError(
            f"training {plan.model.preset} at {width}x{height} {shortage}; choose a smaller --preset or --size"
        )
    if is_explicit:
        raise InputError(f" {batch_size}: {shortage}; try {smaller_batch_size}", "batch_size")
    print_line(f"a batch of {batch_size} {shortage}: training in batches of {smaller_batch_size}")
    return smaller_plan


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch says that there is no memory left."""
    messages = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error).lower() for message in messages)
    )
