"""A checkpoint of another kind (a transformer that predicts flow, another autoencoder, another text encoder) is
described by its parts alone: it is then recognized, drawn with, written, adapted and exported like all others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import unspeckle
from stable_diffusion_files import BPE_MERGES, randomize_weights
from unspeckle.denoiser import Conditioning
from unspeckle.errors import InputError
from unspeckle.formats.checkpoint_parts import CheckpointPart, ModuleSpec, convert_tensors
from unspeckle.formats.export import stable_diffusion_graphs
from unspeckle.formats.lora.layer_names import LORA_LAYOUTS, lora_layer_names
from unspeckle.formats.lora.lora_file import read_lora, write_lora
from unspeckle.formats.stable_diffusion import detect, diffusers_json, writing
from unspeckle.formats.stable_diffusion.checkpoint import NetworkInputs, SchedulerDefaults, StableDiffusionCheckpoint
from unspeckle.formats.stable_diffusion.families import SD1
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.formats.stable_diffusion.tiny_autoencoder import tiny_autoencoder_part
from unspeckle.generation.request import Request
from unspeckle.networks import Transformer, TransformerConfig
from unspeckle.networks.lora import init_adapters
from unspeckle.networks.tiny_autoencoder import TinyAutoencoderConfig
from unspeckle.schedule import FlowSchedule
from unspeckle.text.clip_tokenizer import CLIPTokenizer, openai_bpe


@dataclass(frozen=True)
class BagOfTokensConfig:
    width: int = 16


class BagOfTokens(nn.Module):
    """A text encoder of another kind."""

    def __init__(self, config: BagOfTokensConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(1000, config.width)
        self.layers = nn.ModuleList([nn.Linear(config.width, config.width)])

    def forward(self, ids: Tensor) -> Conditioning:
        return Conditioning(self.layers[0](self.embedding(ids[:, 0])))


NETWORK = TransformerConfig(
    channels=8, patch_size=1, widths=(16, 32), depths=(1, 1), head_width=16, text_width=16, time_scale=1000.0
)
AUTOENCODER = TinyAutoencoderConfig(latent_channels=8, base_channels=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
# Whatever the modules are called, their files say "their" before it
NAMES = tuple((name, f"their.{name}", (("layers", "blocks"),)) for name in ("embedding", "layers"))
FAMILY = replace(SD1, name="new", pipeline="NewPipeline", architecture="new-v1", guidance_scale=1.0)


def network_rules() -> tuple[Any, ...]:
    children = [name for name, _ in Transformer(NETWORK).named_children()]
    parameters = [name for name, _ in Transformer(NETWORK).named_parameters(recurse=False)]
    return tuple((name, f"their.{name}", (("to_q", "q"),)) for name in (*children, *parameters))


def new_checkpoint(path: Path) -> StableDiffusionCheckpoint:
    """A checkpoint of the new family, without tensors."""
    parts = {
        "network": CheckpointPart(
            Transformer,
            NETWORK,
            rules={"diffusers": network_rules(), "original": network_rules()},
            folder="transformer",
            prefix="dit.",
            kohya_prefixes=("lora_dit_",),
        ),
        "autoencoder": replace(tiny_autoencoder_part(AUTOENCODER), prefix="vae."),
        "text": CheckpointPart(
            BagOfTokens,
            BagOfTokensConfig(),
            rules={"diffusers": NAMES, "original": NAMES},
            folder="text_encoder",
            prefix="text.",
            kohya_prefixes=("lora_te_",),
        ),
    }
    return StableDiffusionCheckpoint(
        path=path,
        family=FAMILY,
        parts=parts,
        text_encoder=ModuleSpec(BagOfTokens, BagOfTokensConfig()),
        tokenizer=CLIPTokenizer(openai_bpe(BPE_MERGES), 77, ("!",)),
        network_inputs=NetworkInputs(),
        scheduler_defaults=SchedulerDefaults(
            FlowSchedule(), prediction="flow", time_conditioning="t", timestep_spacing="shifted", image_size=16
        ),
    )


def read_new_file(tensors: Mapping[str, Tensor], metadata: Any, file: Path, *_: Any) -> StableDiffusionCheckpoint:
    checkpoint = new_checkpoint(file)
    for name, part in checkpoint.parts.items():
        theirs = {key.removeprefix(part.prefix): t for key, t in tensors.items() if key.startswith(part.prefix)}
        ours = convert_tensors(part, "original", theirs, file)
        checkpoint.tensors |= {f"{name}.{key}": tensor for key, tensor in ours.items()}
    return checkpoint


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A single file of the new family, which is registered."""
    reader = detect.FileReader(lambda tensors: any(name.startswith("dit.") for name in tensors), read_new_file)
    monkeypatch.setattr(detect, "FILE_READERS", [*detect.FILE_READERS, reader])
    checkpoint = new_checkpoint(tmp_path / "new.safetensors")
    torch.manual_seed(0)
    for name, part in checkpoint.parts.items():
        module = randomize_weights(part.module_class(part.config))
        checkpoint.tensors |= {f"{name}.{key}": tensor.half() for key, tensor in module.state_dict().items()}
    writing.write_single_file(checkpoint, checkpoint.path)
    return checkpoint.path


def load(file: Path) -> StableDiffusionModel:
    model = unspeckle.load(file)
    assert isinstance(model, StableDiffusionModel)
    return model


def test_it_is_recognized_and_drawn_with(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        assert {"dit", "vae", "text"} == {name.split(".")[0] for name in opened.keys()}  # noqa: SIM118
        assert opened.metadata()["modelspec.architecture"] == "new-v1"
    model = load(file)
    assert isinstance(model.network, Transformer) and model.denoiser.prediction == "flow"
    request = Request("a frog", steps=2, size=16, seed=1)
    image = unspeckle.draw(model, request)[0]
    assert image.size == (16, 16) and unspeckle.draw(load(file), request)[0].tobytes() == image.tobytes()
    assert model.hash == load(file).hash
    with pytest.raises(InputError, match="clip_skip 2"):
        model.with_clip_skip(2)


@pytest.mark.parametrize("layout", LORA_LAYOUTS)
def test_its_layers_have_names_in_lora_files(layout: str, file: Path, tmp_path: Path) -> None:
    model = load(file)
    names = lora_layer_names(model)
    assert names["text.layers.0"][:2] == ("lora_te_their_layers_0", "text_encoder.their.layers.0")
    assert {layer.split(".")[0] for layer in names} == {"network", "text"}
    adapters = init_adapters({"network": model.network, "text": model.text_encoder}, 2, 0)
    write_lora(adapters, model, tmp_path / "lora.safetensors", layout)
    assert dict(read_lora(tmp_path / "lora.safetensors", model).items()).keys() == dict(adapters.items()).keys()


def test_a_module_that_cannot_be_written_or_exported_is_named(file: Path) -> None:
    checkpoint = new_checkpoint(file)
    with pytest.raises(InputError, match="text_encoder: diffusers has no module"):
        diffusers_json.component_jsons(checkpoint)
    with pytest.raises(InputError, match="graphs of its part 'text_encoder' are not supported"):
        stable_diffusion_graphs.build_stable_diffusion_graphs(checkpoint, {"text_encoder": {}})


def test_a_row_in_each_table_exports_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = new_checkpoint(file)
    for part in checkpoint.parts.values():
        content = {"_class_name": part.module_class.__name__}  # type: ignore[attr-defined]
        monkeypatch.setitem(diffusers_json.CONFIG_JSONS, part.module_class, lambda config, content=content: content)
        monkeypatch.setitem(
            stable_diffusion_graphs.GRAPH_BUILDERS, part.module_class, lambda _, name, part, config: [(name, config)]
        )
    graphs: Any = stable_diffusion_graphs.build_stable_diffusion_graphs(
        checkpoint, diffusers_json.component_jsons(checkpoint)
    )
    assert {name: config["_class_name"] for name, config in graphs} == {
        "network": "Transformer", "autoencoder": "TinyAutoencoder", "text": "BagOfTokens"
    }  # fmt: skip
