"""A model is one .safetensors file: every tensor, and all that explains them as JSON in its metadata.

Nothing that can run code is ever loaded, and loading is strict: a tensor that is missing, spare or of another shape is
an error that names it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unspeckle import configuration, schedule
from unspeckle.atomic import replace_file
from unspeckle.denoiser import TIME_CONDITIONINGS, Denoiser, SomeConditioning
from unspeckle.errors import InputError
from unspeckle.model_io import weight_dtypes
from unspeckle.model_io.safetensors_io import check_tensors, read_safetensors
from unspeckle.networks import AUTOENCODERS, NETWORKS
from unspeckle.networks.autoencoder import Autoencoder
from unspeckle.prompts import LoraTag
from unspeckle.rng import Noise, noise_from_seeds
from unspeckle.text.text_encoder import TextEncoder, TextEncoderConfig
from unspeckle.text.tokenizer import Tokenizer
from unspeckle.timesteps import timesteps

Kinds = Mapping[str, tuple[type[Any], Any]]  # by name: (configuration, module)

FORMAT = 1
METADATA_KEY = "unspeckle"
MODEL_FILE = "model.safetensors"  # in a RUN
LORA_FILE = "lora.safetensors"  # in a RUN of train --lora
TEXT_ENCODERS: Kinds = {"transformer": (TextEncoderConfig, TextEncoder)}


@dataclass(frozen=True)
class ModelCard:
    """What a person should know of a model, and what a drawing takes where its ask says nothing."""

    name: str = "unnamed"
    license: str = ""
    sampler: str = "dpmpp_2m"
    timestep_spacing: str = "uniform"
    steps: int = 30
    guidance_scale: float = 5.0
    size: tuple[int, int] = (64, 64)  # width, height in pixels
    clamp_denoised: bool = True  # keep the estimate within the autoencoder's bounds: for models of pixels
    step_counts: tuple[int, ...] = ()  # of a student: the only counts of steps that it knows (see student.py)
    vocabulary: tuple[str, ...] = ()  # words worth suggesting
    recipe: str = ""  # the commands that made it
    corpus: dict[str, Any] = field(default_factory=dict)  # summary of what it saw


class SamplingSetup(NamedTuple):
    """Where a drawing stops: times (N + 1,) float64; it starts at start · noise, and asks the denoiser."""

    times: Tensor
    initial_scale: float
    denoiser: Denoiser


@dataclass
class Model:
    """All that a drawing needs. text, tokenizer: words -> Given; autoencoder: pictures <-> x.

    student: a model that draws the same in few steps (see student.py). It has a network and a card of its own, and
    shares all else. precision: in which it draws, see precision.py; known_hash: its weights_hash from before that
    changed it; loras: those that prompts may name, as they are in its weights.
    """

    denoiser: Denoiser
    tokenizer: Tokenizer
    text_encoder: nn.Module
    autoencoder: Autoencoder
    card: ModelCard
    student: "Model | None" = None
    precision: str = "float32"
    stored_hash: str | None = None
    loras: tuple[LoraTag, ...] = ()

    def noise(self, seeds: Sequence[int], shape: Sequence[int]) -> Noise:
        """The noise of drawings with those seeds, of x's shape."""
        return noise_from_seeds(seeds, shape, self.device)

    def default_timestep_spacing(self, sampler: str) -> str:
        """The grid of times that the sampler walks on where an ask names none."""
        return self.card.timestep_spacing

    def sampling_setup(self, sampler: str, timestep_spacing: str, steps: int) -> SamplingSetup:
        """The way of a sampler on the grid of that name."""
        stops = timesteps(timestep_spacing, self.denoiser.schedule, steps)
        return SamplingSetup(stops, float(self.denoiser.schedule(stops[0])[1]), self.denoiser)

    def add_conditioning(
        self, conditioning: SomeConditioning, positive: bool, guidance_scale: float, size: tuple[int, int]
    ) -> SomeConditioning:
        """The given of a wanted or an unwanted guess, with what the model wants to be told besides of a drawing with
        that guidance scale and of that size in pixels."""
        return conditioning

    @property
    def takes_mask(self) -> bool:
        """Whether the network is told, beside x, what to paint: a mask of ones, and the rest's latents."""
        return False

    def with_clip_skip(self, clip_skip: int) -> "Model":
        """The model, its text read without the last clip_skip - 1 layers of CLIP. InputError where it has no such."""
        if clip_skip != 1:
            raise InputError(f"clip_skip {clip_skip}: this model reads its words without CLIP; leave it out")
        return self

    def cfg_scale(self, guidance_scale: float) -> float:
        """Of a guidance scale, what is left for the guidance rule: 1 where the network itself is told of it."""
        return guidance_scale

    def modules(self) -> dict[str, nn.Module]:
        """The modules whose tensors are stored, by the prefix of their names."""
        own = {"network": self.network, "text": self.text_encoder, "autoencoder": self.autoencoder}
        return own if self.student is None else {**own, "student": self.student.network}

    @property
    def network(self) -> nn.Module:
        assert isinstance(self.denoiser.network, nn.Module)
        return self.denoiser.network

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> "Model":
        """Move every part to the device, in place."""
        for part in self.modules().values():
            part.to(device)
        return self

    def with_network(self, network: Any, card: ModelCard) -> "Model":
        """A student of this model: its own network and card, all else shared."""
        teacher = self.denoiser
        denoiser = Denoiser(network, teacher.schedule, teacher.prediction, teacher.time_conditioning)
        return Model(denoiser, self.tokenizer, self.text_encoder, self.autoencoder, card)

    def state_dict(self) -> dict[str, Tensor]:
        """Every stored tensor by its full name, such as "network.enter.weight"."""
        return {f"{p}.{k}": v.detach() for p, part in self.modules().items() for k, v in part.state_dict().items()}

    @property
    def hash(self) -> str:
        """12 hex digits of what decides the pictures: tensors and configuration, but not the cards' words."""
        return self.weights_hash

    @property
    def weights_hash(self) -> str:
        """The hash, but for how strong live adapters are, which may be turned at any time."""
        if self.stored_hash is not None:
            return self.stored_hash
        metadata = model_metadata(self)
        for network in (metadata["network"], metadata.get("student", {}).get("network", {})):
            if not network.get("draft", True):  # models from before there were drafts keep their hash
                del network["draft"]
        deciding: list[Any] = [metadata, self.card.clamp_denoised]
        if self.student is not None and self.student.card.clamp_denoised != ModelCard.clamp_denoised:
            deciding += [{"student": {"clamp": self.student.card.clamp_denoised}}]
        for card in (metadata.pop("card"), metadata.get("student", {}).pop("card", {})):
            deciding += [card["few"]] if card.get("few") else []
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            plain = tensor.to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
            digest.update(plain.numpy().data)
        return digest.hexdigest()[:12]


def save(model: Model, path: str | Path, dtype: str = "float32") -> None:
    """Write the model as one file, atomically. dtype: how weights are stored, one of weight_dtypes.DTYPES. InputError where
    it was made ready to draw in a lower precision: its weights lie otherwise then."""
    if model.precision != "float32":
        raise InputError(f"{model.card.name!r}: draws in {model.precision} and is not to be saved; load it in float32")
    tensors = weight_dtypes.encode_weights(model.modules(), dtype)
    with replace_file(Path(path)) as beside:
        save_file(tensors, beside, {METADATA_KEY: json.dumps({**model_metadata(model), "dtype": dtype})})


def load(
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    *,
    prediction: str | None = None,
    trust_pickle: bool = False,
    precision: str = "float32",
) -> Model:
    """Read a .safetensors file of ours or a RUN's, or a Stable Diffusion: a folder of diffusers, a single file, or a
    name on the hub; without a path, the model inside the package. precision: "float32", "bfloat16", "float16", "int8"
    (on a CPU, lossy), or "auto": bfloat16 for a Stable Diffusion where the hardware multiplies it faster, else float32.
    Of foreign ones: prediction, "eps" or "v", where they do not tell; trust_pickle, to read the tensors of a .ckpt.

    InputError, one line, where the file is not there, not known, damaged, or does not fit its own configuration.
    """
    if path is None:
        with as_file(files("unspeckle") / "models" / "embedded.safetensors") as inside:
            if not inside.is_file():
                raise InputError("this installation has no embedded model; name one with --model")
            return load(inside, device, precision=precision)
    from unspeckle.model_io import detect
    from unspeckle.model_io import precision as precisions

    precisions.check_precision(precision, str(device))

    foreign = detect.read_foreign(path, prediction, trust_pickle)
    if foreign is not None:
        return detect.build_stable_diffusion_model(
            foreign, device, precisions.resolve_precision(precision, str(device))
        )
    file = find_model_file(Path(path))
    said, tensors = _read_model_file(file)
    try:
        model = _build_model(said, tensors, file)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, RecursionError) as e:
        raise InputError(f"{file}: its configuration makes no model ({type(e).__name__}: {str(e)[:100]})") from e
    return precisions.set_precision(model.to(device), "float32" if precision == precisions.AUTO else precision)


def find_model_file(path: Path) -> Path:
    """The model file that `path` means: itself, or the one of a RUN folder. InputError where there is none."""
    if path.is_file():
        return path
    if not path.exists():
        raise InputError(
            f"{path}: no such file or folder; a model is a .safetensors file, a RUN of `train` or a Stable Diffusion"
        )
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    if (path / LORA_FILE).is_file():
        how = f"draw with it by --model CHECKPOINT --lora {path / LORA_FILE}"
        raise InputError(f"{path}: this run holds a LoRA, which changes a model but is none; {how}")
    if (path / "plan.json").exists() or (path / "checkpoints").exists():
        raise InputError(
            f"{path}: this run has no {MODEL_FILE} yet; give the same train command again and let it finish"
        )
    raise InputError(
        f"{path}: holds no {MODEL_FILE}; a model is a .safetensors file, a RUN of `train` or a Stable Diffusion"
    )


def model_metadata(model: Model) -> dict[str, Any]:
    denoiser, student = model.denoiser, model.student
    if not isinstance(denoiser.time_conditioning, str):
        raise InputError(f"a clock that is a function cannot be stored; choose one of {', '.join(TIME_CONDITIONINGS)}")
    metadata = {
        "format": FORMAT,
        "network": _configured(model.network, NETWORKS),
        "schedule": configuration.kind_to_json(schedule.SCHEDULES, denoiser.schedule),
        "prediction": denoiser.prediction,
        "clock": denoiser.time_conditioning,
        "text": _configured(model.text_encoder, TEXT_ENCODERS),
        "tokenizer": model.tokenizer.to_json(),
        "autoencoder": _configured(model.autoencoder, AUTOENCODERS),
        "card": configuration.to_json(model.card),
    }
    if student is not None:
        metadata["student"] = {
            "network": _configured(student.network, NETWORKS),
            "card": configuration.to_json(student.card),
        }
    return metadata


def _configured(module: Any, kinds: Kinds) -> dict[str, Any]:
    name = next((name for name, (_, make) in kinds.items() if type(module) is make), None)
    if name is None:
        raise InputError(f"{type(module).__name__} is of no kind that can be stored; choose one of {', '.join(kinds)}")
    return {"kind": name, **configuration.to_json(module.config)}


def _read_model_file(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON and the tensors, as stored, of a file that may be anything."""
    text, tensors = read_safetensors(file)
    try:
        metadata = json.loads(text.get(METADATA_KEY, ""))
    except (ValueError, RecursionError) as e:
        raise InputError(f"{file}: its metadata are damaged ({str(e)[:100]}); copy or train it again") from e
    if not isinstance(metadata, dict) or type(metadata.get("format")) is not int:
        raise InputError(f"{file}: its metadata are damaged (no format number); copy or train it again")
    if metadata["format"] > FORMAT:
        raise InputError(f"{file}: was written by a newer unspeckle (format {metadata['format']}); update unspeckle")
    return metadata, tensors


def _build_model(metadata: dict[str, Any], tensors: dict[str, Tensor], file: Path) -> Model:
    parts: dict[str, Kinds] = {"network": NETWORKS, "text": TEXT_ENCODERS, "autoencoder": AUTOENCODERS}
    missing = [
        name for name in (*parts, "schedule", "prediction", "clock", "tokenizer", "card") if name not in metadata
    ]
    if missing:
        raise InputError(f"{file}: its metadata lack {', '.join(missing)}; copy or train it again")
    prefixes = {*parts, *({"student"} & metadata.keys())}
    unexpected = [name for name in tensors if name.split(".")[0] not in prefixes]
    if unexpected:
        raise InputError(f"{file}: has a spare tensor {unexpected[0]!r} that belongs to no part of the model")
    noise_schedule = configuration.kind_from_json(schedule.SCHEDULES, metadata["schedule"], "schedule")
    tensors = weight_dtypes.decode_weights(tensors, file)
    network, text, autoencoder = (
        _build_part(metadata[part], kinds, tensors, part, file) for part, kinds in parts.items()
    )
    model = Model(
        denoiser=Denoiser(network, noise_schedule, metadata["prediction"], metadata["clock"]),
        tokenizer=Tokenizer.from_json(metadata["tokenizer"]),
        text_encoder=text,
        autoencoder=autoencoder,
        card=configuration.from_json(ModelCard, metadata["card"], f"{file}: card"),
    )
    if "student" in metadata:
        network = _build_part(metadata["student"]["network"], NETWORKS, tensors, "student", file)
        card = configuration.from_json(ModelCard, metadata["student"]["card"], f"{file}: student's card")
        model.student = model.with_network(network, card)
    return model


def _build_part(config: dict[str, Any], kinds: Kinds, tensors: dict[str, Tensor], part: str, file: Path) -> Any:
    """Build one part without initial values and give it the file's tensors as its own."""
    values = dict(config)
    kind = values.pop("kind", None)
    if kind not in kinds:
        raise InputError(f"{file}: {part} kind {kind!r} is unknown; this unspeckle knows {', '.join(kinds)}")
    config_class, make = kinds[kind]
    typed_config = configuration.from_json(config_class, values, f"{file}: {part}")
    with NoInitialization():
        module = make(typed_config)
    wanted = module.state_dict()
    tensors_of_part = {
        name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")
    }
    check_tensors({f"{part}.{name}": tensor for name, tensor in wanted.items()},
            {f"{part}.{name}": tensor for name, tensor in tensors_of_part.items()}, file)  # fmt: skip
    module.load_state_dict(tensors_of_part, assign=True)
    return module.eval()


class NoInitialization(TorchFunctionMode):
    """Modules built inside leave their parameters as memory came: the file's tensors take their place."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))
