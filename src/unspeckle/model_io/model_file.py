"""A model of ours is one .safetensors file: every tensor, and all that explains them as JSON in its metadata.

Loading is strict: a tensor that is missing, unexpected or of another shape is an error that names it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unspeckle import configuration
from unspeckle.atomic import replace_file
from unspeckle.denoiser import Denoiser
from unspeckle.errors import InputError
from unspeckle.formats.safetensors_io import check_tensors
from unspeckle.formats.weight_dtypes import SCALE_SUFFIX, decode_weights, encode_weights
from unspeckle.model import TEXT_ENCODERS, Kinds, Model, ModelCard
from unspeckle.networks import AUTOENCODERS, NETWORKS
from unspeckle.networks.embedding_space import EmbeddingSpace
from unspeckle.old_names import rename_model_metadata, rename_tensor
from unspeckle.quantization.precision import AUTO, set_precision
from unspeckle.schedule import SCHEDULES
from unspeckle.text.image_text_encoder import ImageTextConfig, ImageTextEncoder
from unspeckle.text.tokenizer import CaptionTokenizer, Tokenizer
from unspeckle.unclip import UnCLIPModel
from unspeckle.upsampler import UpsamplerModel

FORMAT = 2  # version 0.1 wrote format 1, by the names in old_names
MODEL_METADATA_KEY = "unspeckle"
MODEL_FILE = "model.safetensors"  # in a RUN folder
IMAGE_TEXT_KIND = "image_text"  # of a file that image_text_file.py reads
# Of an UnCLIPModel, besides a Model's
UNCLIP_PARTS = (
    "image_text",
    *("prior", "prior_text", "prior_autoencoder"),
    *("upsampler", "upsampler_text", "upsampler_autoencoder"),
)
MAX_UPSAMPLING_FACTOR = 16
LORA_FILE = "lora.safetensors"  # in a RUN folder of train --lora
ModuleT = TypeVar("ModuleT", bound=nn.Module)
_PARTS: dict[str, Kinds] = {"network": NETWORKS, "text": TEXT_ENCODERS, "autoencoder": AUTOENCODERS}
_FIELDS = (*_PARTS, "schedule", "prediction", "time_conditioning", "tokenizer", "card")


def save(model: Model, path: str | Path, dtype: str = "float32") -> None:
    """Write the model as one file, atomically. dtype: how weights are stored, a name of weight_dtypes.STORED_DTYPES.

    InputError where the model was loaded in a lower precision, in which its weights are not as they were."""
    if model.precision != "float32":
        raise InputError(f"{model.card.name!r}: draws in {model.precision} and cannot be saved; load it in float32")
    tensors = encode_weights(model.modules(), dtype)
    metadata = json.dumps({"format": FORMAT, **model.describe(), "dtype": dtype})
    with replace_file(Path(path)) as temp_file:
        save_file(tensors, temp_file, {MODEL_METADATA_KEY: metadata})


class UnspeckleCheckpoint(NamedTuple):
    """What a model file of ours holds, read but not built."""

    # where it was read
    file: Path
    # the JSON that explains the tensors
    metadata: str
    # as stored, by the names in the file
    tensors: dict[str, Tensor]

    def build(self, device: str | torch.device = "cpu", precision: str = "float32") -> Model:
        """The model on the device, to draw in that precision ("auto" is float32). InputError where the metadata are
        damaged or of a newer version, or do not fit the tensors."""
        try:
            metadata, tensors = _by_current_names(self._parse_metadata(), self.tensors)
            model = _build_model(metadata, tensors, self.file)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, RecursionError) as e:
            raise InputError(
                f"{self.file}: its configuration describes no model ({type(e).__name__}: {str(e)[:100]})"
            ) from e
        return set_precision(model.to(device), "float32" if precision == AUTO else precision)

    def _parse_metadata(self) -> dict[str, Any]:
        file = self.file
        try:
            metadata = json.loads(self.metadata)
        except (ValueError, RecursionError) as e:
            raise InputError(f"{file}: its metadata are damaged ({str(e)[:100]}); copy or train it again") from e
        if not isinstance(metadata, dict) or type(metadata.get("format")) is not int:
            raise InputError(f"{file}: its metadata are damaged (no format number); copy or train it again")
        if metadata.get("kind") == IMAGE_TEXT_KIND:
            raise InputError(f"{file}: is a CLIP, which compares images with texts and draws nothing; choose a model")
        if metadata["format"] > FORMAT:
            newer = f"was written by a newer unspeckle (format {metadata['format']})"
            raise InputError(f"{file}: {newer}; update unspeckle")
        return metadata


def _by_current_names(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors by the names of today, which are not those of format 1."""
    if metadata["format"] > 1:
        return metadata, tensors

    def current_name(name: str) -> str:
        part, _, rest = name.partition(".")
        if part not in (*_PARTS, "student"):
            return name
        weight = rest.removesuffix(SCALE_SUFFIX)
        return f"{part}.{rename_tensor(part, weight)}{rest[len(weight) :]}"

    return rename_model_metadata(metadata), {current_name(name): tensor for name, tensor in tensors.items()}


def _build_model(metadata: dict[str, Any], tensors: dict[str, Tensor], file: Path) -> Model:
    if missing := [name for name in _FIELDS if name not in metadata]:
        raise InputError(f"{file}: its metadata lack {', '.join(missing)}; copy or train it again")
    prefixes = {*_PARTS, *({"student"} & metadata.keys()), *(UNCLIP_PARTS if "unclip" in metadata else ())}
    if unexpected := [name for name in tensors if name.split(".")[0] not in prefixes]:
        raise InputError(f"{file}: has an unexpected tensor {unexpected[0]!r} that belongs to no part of the model")
    schedule = configuration.kind_from_json(SCHEDULES, metadata["schedule"], "schedule")
    tensors = decode_weights(tensors, file)
    network, text_encoder, autoencoder = (
        _build_part(metadata[part], kinds, tensors, part, file) for part, kinds in _PARTS.items()
    )
    model = Model(
        denoiser=Denoiser(network, schedule, metadata["prediction"], metadata["time_conditioning"]),
        tokenizer=Tokenizer.from_json(metadata["tokenizer"]),
        text_encoder=text_encoder,
        autoencoder=autoencoder,
        card=configuration.from_json(ModelCard, metadata["card"], f"{file}: card"),
    )
    if "student" in metadata:
        network = _build_part(metadata["student"]["network"], NETWORKS, tensors, "student", file)
        card = configuration.from_json(ModelCard, metadata["student"]["card"], f"{file}: student's card")
        model.student = model.with_network(network, card)
    if "upsampler" in metadata:
        return _as_upsampler(model, metadata, file)
    return _build_unclip_model(model, metadata["unclip"], tensors, file) if "unclip" in metadata else model


def _build_unclip_model(model: Model, metadata: dict[str, Any], tensors: dict[str, Tensor], file: Path) -> UnCLIPModel:
    """The decoder with its CLIP and its prior."""
    config = configuration.from_json(ImageTextConfig, metadata["image_text"], f"{file}: image_text")
    image_text = _load_part(lambda: ImageTextEncoder(config), tensors, "image_text", file)
    prior = _build_submodel(metadata["prior"], model.tokenizer, tensors, "prior", file)
    if not isinstance(prior.autoencoder, EmbeddingSpace):
        raise InputError(f"{file}: its prior draws no embeddings; copy or train it again")
    upsampler = None
    if "upsampler" in metadata:
        large = _build_submodel(metadata["upsampler"], model.tokenizer, tensors, "upsampler", file)
        upsampler = _as_upsampler(large, metadata["upsampler"], file)
    return UnCLIPModel(**vars(model), image_text=image_text, prior=prior, upsampler=upsampler)


def _build_submodel(
    metadata: dict[str, Any], tokenizer: CaptionTokenizer, tensors: dict[str, Tensor], name: str, file: Path
) -> Model:
    """A whole model within a model, whose tensors' names begin with that name."""
    schedule = configuration.kind_from_json(SCHEDULES, metadata["schedule"], "schedule")
    network = _build_part(metadata["network"], NETWORKS, tensors, name, file)
    return Model(
        denoiser=Denoiser(network, schedule, metadata["prediction"], metadata["time_conditioning"]),
        tokenizer=tokenizer,
        text_encoder=_build_part(metadata["text"], TEXT_ENCODERS, tensors, f"{name}_text", file),
        autoencoder=_build_part(metadata["autoencoder"], AUTOENCODERS, tensors, f"{name}_autoencoder", file),
        card=configuration.from_json(ModelCard, metadata["card"], f"{file}: {name}'s card"),
    )


def _as_upsampler(model: Model, metadata: dict[str, Any], file: Path) -> UpsamplerModel:
    factor = metadata["upsampler"]["factor"]
    if type(factor) is not int or not 2 <= factor <= MAX_UPSAMPLING_FACTOR:
        raise InputError(f"{file}: upsampling factor {factor!r} is none; copy or train it again")
    return UpsamplerModel(**vars(model), factor=factor)


def _build_part(config: dict[str, Any], kinds: Kinds, tensors: dict[str, Tensor], part: str, file: Path) -> Any:
    """Build one part without initial values and give it the file's tensors as its own."""
    fields = dict(config)
    kind = fields.pop("kind", None)
    if kind not in kinds:
        raise InputError(f"{file}: {part} kind {kind!r} is unknown; this unspeckle knows {', '.join(kinds)}")
    config_class, build = kinds[kind]
    typed_config = configuration.from_json(config_class, fields, f"{file}: {part}")
    return _load_part(lambda: build(typed_config), tensors, part, file)


def _load_part(build: Callable[[], ModuleT], tensors: dict[str, Tensor], part: str, file: Path) -> ModuleT:
    """What `build` makes, with the file's tensors as its own."""
    with NoInitialization():
        module = build()
    prefix = f"{part}."
    expected = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    check_tensors(expected, found, file)
    module.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in found.items()}, assign=True)
    return module.eval()


class NoInitialization(TorchFunctionMode):
    """Modules that are built inside leave their parameters uninitialized, since a file's tensors will replace them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))
