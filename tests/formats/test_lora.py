"""LoRA files in every layout: what diffusers computes with them, merged and attached, and refused in one line."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import stable_diffusion_files
import unspeckle
from closeness import relative_error
from conftest import SDFolder
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.formats.lora.layer_names import LORA_LAYOUTS, lora_layer_names
from unspeckle.formats.lora.lora_file import read_lora, write_lora
from unspeckle.formats.stable_diffusion.add_ons import apply_add_ons
from unspeckle.formats.stable_diffusion.model import StableDiffusionModel
from unspeckle.generation.metadata import image_metadata
from unspeckle.generation.request import Request
from unspeckle.networks.lora import get_layer
from unspeckle.output.png import read_png
from unspeckle.prompts import parse_prompt
from unspeckle.quantization.precision import set_precision

FAMILIES = ("1", "2", "xl")


@pytest.fixture
def load_model(sd_folder: SDFolder) -> Callable[..., StableDiffusionModel]:
    """A function from a family to a fresh model."""

    def load(family: str = "1", precision: str = "float32") -> StableDiffusionModel:
        model = unspeckle.load(sd_folder(family), precision=precision)
        assert isinstance(model, StableDiffusionModel)
        return model

    return load


def load_peft_pipeline(folder: Path) -> Any:
    """The pipeline of diffusers, which needs peft for LoRA."""
    pytest.importorskip("peft", reason="peft is not installed: there is no peer to compare LoRA with")
    return stable_diffusion_files.load_pipeline(folder)


def find_layers(model: StableDiffusionModel, which: str) -> Iterator[tuple[str, tuple[str, ...], Tensor]]:
    """Our name, names in files and weight of the layers that a file may be about: "all", those of "attention" and
    feed-forward, or those of the "network"."""
    modules = model.modules()
    for layer, names in lora_layer_names(model).items():
        weight = get_layer(modules, layer).weight
        assert isinstance(weight, Tensor)
        is_chosen = {"all": True, "attention": ".layers." in layer, "network": layer.startswith("network")}[which]
        if is_chosen:
            yield layer, names, weight


def kohya_tensors(
    model: StableDiffusionModel, which: str = "attention", seed: int = 0, name_index: int = 0
) -> dict[str, Tensor]:
    """A file's tensors: ranks 2, 3 and 4, alphas that are not the rank. name_index: of each layer's names in files, 0 =
    as kohya does. Text encoders have one rank, as without kohya's names diffusers takes all alphas for the first
    rank."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for number, (layer, names, weight) in enumerate(find_layers(model, which)):
        rank = 2 + number % 3 if layer.startswith("network") else 3
        down = torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
        up = torch.randn(len(weight), rank, *[1] * (weight.ndim - 2), generator=generator) * 0.3
        name = names[name_index]
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.5)}
    return tensors


@torch.no_grad()
def outputs_of_both(model: StableDiffusionModel, pipeline: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of network and text encoders for the same inputs, ours and those of diffusers."""
    torch.manual_seed(3)
    inputs = stable_diffusion_files.UNetInputs.random(pipeline.unet.config)
    ids = model.tokenizer.encode(["a frog on stilts", ""])
    encoders: Any = model.text_encoder.encoders
    network: Any = model.network
    ours = [inputs.our_output(network), *(encoder(ids[:, n])[0] for n, encoder in enumerate(encoders))]
    theirs = [inputs.diffusers_output(pipeline.unet)]
    their_encoders = [pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)]
    for n, encoder in enumerate(encoder for encoder in their_encoders if encoder is not None):
        output = encoder(ids[:, n], output_hidden_states=True)
        theirs.append(output.hidden_states[-2] if len(encoders) > 1 else output.last_hidden_state)
    return ours, theirs


def assert_same(model: StableDiffusionModel, pipeline: Any, plain: list[Tensor]) -> None:
    """Both compute the same, and not what they did without LoRA."""
    for ours, theirs, before in zip(*outputs_of_both(model, pipeline), plain, strict=True):
        assert relative_error(ours, theirs) <= 1e-4 and relative_error(ours, before) >= 0.05


def load_into_pipeline(pipeline: Any, tensors: dict[str, Tensor], name: str, scratch: Path) -> list[str]:
    """Load a file of kohya's into diffusers; returns the adapters' names. With transformers 5, diffusers (0.39) does
    not find its text encoders' layers by kohya's names, nor fill them by its own: that is done here, alpha and all."""
    file = scratch / f"{name}-unet.safetensors"
    save_file({key: tensor for key, tensor in tensors.items() if key.startswith("lora_unet")}, file)
    pipeline.load_lora_weights(file, adapter_name=name)
    text_tensors: dict[str, Tensor] = {}
    for component in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipeline, component, None)
        if encoder is not None:
            text_tensors |= _peft_text_tensors(tensors, component, encoder)
    if not text_tensors:
        return [name]
    text_adapter = f"{name}-texts"
    pipeline.load_lora_weights(text_tensors, adapter_name=text_adapter)
    for component in ("text_encoder", "text_encoder_2"):
        for parameter_name, parameter in getattr(pipeline, component, torch.nn.Module()).named_parameters():
            if f".{text_adapter}." in parameter_name:  # which transformers 5 leaves as they were
                plain_name = parameter_name.replace(f".{text_adapter}.", ".")
                parameter.data.copy_(text_tensors[f"{component}.{plain_name}"])
    return [name, text_adapter]


def _peft_text_tensors(tensors: dict[str, Tensor], component: str, encoder: Any) -> dict[str, Tensor]:
    """The tensors of one text encoder by peft's names, scaled by their alphas."""
    prefixes = ("lora_te2",) if component == "text_encoder_2" else ("lora_te", "lora_te1")
    layers = {name.removeprefix("text_model.").replace(".", "_"): name for name, _ in encoder.named_modules()}
    renamed = {}
    for key, tensor in tensors.items():
        layer, _, role = key.partition(".")
        prefix, _, short = layer.partition("_text_model_")
        if prefix in prefixes and role != "alpha":
            is_up = "up" in role
            scale = float(tensors[f"{layer}.alpha"]) / len(tensors[f"{layer}.lora_down.weight"]) if is_up else 1
            renamed[f"{component}.{layers[short]}.{'lora_B' if is_up else 'lora_A'}.weight"] = tensor * scale
    return renamed


def set_strengths(pipeline: Any, strengths: dict[str, float], adapters: dict[str, list[str]]) -> None:
    by_adapter = {adapter: strength for name, strength in strengths.items() for adapter in adapters[name]}
    pipeline.set_adapters(list(by_adapter), list(by_adapter.values()))


@pytest.mark.parametrize("family", FAMILIES)
def test_two_at_once_merged_and_attached_are_those_of_diffusers(
    family: str, sd_folder: SDFolder, load_model: Any, tmp_path: Path
) -> None:
    pipeline, model = load_peft_pipeline(sd_folder(family)), load_model(family)
    plain, _ = outputs_of_both(model, pipeline)
    strengths = {"one": 0.7, "two": -0.4}
    adapters, sets = {}, {}
    for seed, (name, strength) in enumerate(strengths.items()):
        file, tensors = tmp_path / f"{name}.safetensors", kohya_tensors(model, seed=seed)
        save_file(tensors, file)
        adapters[name] = load_into_pipeline(pipeline, tensors, name, tmp_path)
        sets[name] = read_lora(file, model).set_strength(strength)
    set_strengths(pipeline, strengths, adapters)
    plain_hash = model.hash
    for adapter_set in sets.values():
        adapter_set.attach(model.modules())
    model.invalidate_hash()
    assert_same(model, pipeline, plain)
    attached_hash = model.hash
    sets["two"].set_strength(0)
    set_strengths(pipeline, {"one": 0.7}, adapters)
    assert_same(model, pipeline, plain)
    assert len({plain_hash, attached_hash, model.hash}) == 3
    for adapter_set in sets.values():
        adapter_set.detach(model.modules())
    assert model.invalidate_hash().hash == plain_hash
    assert all(map(torch.equal, outputs_of_both(model, pipeline)[0], plain))
    for name, adapter_set in sets.items():
        adapter_set.set_strength(strengths[name]).merge(model.modules())
    set_strengths(pipeline, strengths, adapters)
    pipeline.fuse_lora(adapter_names=[adapter for names in adapters.values() for adapter in names])
    assert_same(model, pipeline, plain)
    assert model.invalidate_hash().hash != plain_hash


def test_the_weight_of_an_adapted_layer_is_the_merged_one(load_model: Any, tmp_path: Path) -> None:
    attached, merged = load_model(), load_model()
    save_file(kohya_tensors(attached), tmp_path / "one.safetensors")
    read_lora(tmp_path / "one.safetensors", attached).attach(attached.modules())
    adapters = read_lora(tmp_path / "one.safetensors", merged)
    adapters.merge(merged.modules())
    for name, _ in adapters.items():
        adapted, layer = get_layer(attached.modules(), name), get_layer(merged.modules(), name)
        assert torch.equal(adapted.weight, layer.weight)  # type: ignore[arg-type]


def test_an_image_records_the_strength_of_its_adapters(load_model: Any, tmp_path: Path) -> None:
    """Also where the hash of the weights is from before they were made to draw in another precision."""
    exact, low, merged = (load_model() for _ in range(3))
    save_file(kohya_tensors(exact), tmp_path / "one.safetensors")
    read_lora(tmp_path / "one.safetensors", merged).merge(merged.modules())
    request, hashes = Request("a frog", steps=1, size=16), {}
    for model in (exact, low):
        adapters = read_lora(tmp_path / "one.safetensors", model)
        adapters.attach(model.modules())
        model.invalidate_hash()
        set_precision(model, "bfloat16" if model is low else "float32")
        for strength in (1.0, 0.5, 0.0, 1.0):
            adapters.set_strength(strength)
            recorded = image_metadata(unspeckle.draw(model, request)[0])["model"]["hash"]
            assert hashes.setdefault(strength, recorded) == recorded == model.hash
    assert len({*hashes.values(), merged.invalidate_hash().hash}) == 4
    assert low.invalidate_hash().hash == hashes[1.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_convolutions_too(family: str, sd_folder: SDFolder, load_model: Any, tmp_path: Path) -> None:
    """LoCon: kernels of 1 and 3, of every block; diffusers knows kohya's own names for XL."""
    pipeline, model = load_peft_pipeline(sd_folder(family)), load_model(family)
    plain, _ = outputs_of_both(model, pipeline)
    save_file(tensors := kohya_tensors(model, "network"), tmp_path / "locon.safetensors")
    read_lora(tmp_path / "locon.safetensors", model).attach(model.modules())
    load_into_pipeline(pipeline, tensors, "locon", tmp_path)
    ours, theirs = outputs_of_both(model, pipeline)
    assert relative_error(ours[0], theirs[0]) <= 1e-4 and relative_error(ours[0], plain[0]) >= 0.05
    assert sum(tensor.ndim == 4 and tensor.shape[2] == 3 for tensor in tensors.values()) > 10


SPELLINGS = {  # of layers (an index into lora_layer_names) and of the two tensors of each
    "kohya": (0, "lora_down", "lora_up"),
    "peft": (1, "lora_A", "lora_B"),
    "diffusers": (1, "lora.down", "lora.up"),
    "2023": (1, "lora_linear_layer.down", "lora_linear_layer.up"),
    "other": (2, "lora_down", "lora_up"),
}


def respelled_tensors(model: StableDiffusionModel, spelling: str) -> dict[str, Tensor]:
    """The same adapters by other names."""
    name_index, down, up = SPELLINGS[spelling]
    tensors = kohya_tensors(model, "attention", name_index=name_index)
    return {key.replace("lora_down", down).replace("lora_up", up): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_spelling_is_the_same_lora(family: str, load_model: Any, tmp_path: Path) -> None:
    model, expected = load_model(family), None
    for spelling in SPELLINGS:
        save_file(respelled_tensors(model, spelling), tmp_path / "file.safetensors")
        adapters = read_lora(tmp_path / "file.safetensors", model)
        deltas = {name: adapter.weight_delta() for name, adapter in adapters.items()}
        expected = expected or deltas
        assert deltas.keys() == expected.keys()
        assert all(torch.equal(deltas[name], expected[name]) for name in deltas)


def test_names_of_the_first_processors(load_model: Any, tmp_path: Path) -> None:
    """As diffusers saved them until 2023, with or without the U-Net's own name, and its text encoder's."""
    model, file = load_model(), tmp_path / "old.safetensors"
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    pattern = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_{}_lora"
    for name in (pattern, f"unet.{pattern}"):
        tensors = {}
        for projection in ("q", "out"):
            layer = name.format(projection)
            tensors |= {f"{layer}.down.weight": down.clone(), f"{layer}.up.weight": up.clone()}
        save_file(tensors, file)
        adapters = dict(read_lora(file, model).items())
        attention = "network.down_blocks.0.transformer.layers.0.self_attn"
        assert adapters.keys() == {f"{attention}.to_q", f"{attention}.to_out"}
        assert torch.equal(adapters[f"{attention}.to_out"].weight_delta(), up @ down)
    name = "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora"
    save_file({f"{name}.down.weight": torch.randn(2, 64), f"{name}.up.weight": torch.randn(64, 2)}, file)
    assert [layer for layer, _ in read_lora(file, model).items()] == ["text.encoders.0.layers.1.to_out"]


@pytest.mark.parametrize("use_rslora", [False, True])
def test_alphas_that_only_the_metadata_hold(
    use_rslora: bool, sd_folder: SDFolder, load_model: Any, tmp_path: Path
) -> None:
    """As diffusers writes them since 2025, from peft's configuration."""
    peft = pytest.importorskip("peft", reason="peft is not installed: there is no peer to compare LoRA with")
    pipeline, model = load_peft_pipeline(sd_folder("1")), load_model()
    plain, _ = outputs_of_both(model, pipeline)
    torch.manual_seed(4)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=7,
        target_modules=["to_q", "to_k", "ff.net.2"],
        init_lora_weights=False,
        use_rslora=use_rslora,
        rank_pattern={"to_k": 2},
        alpha_pattern={"to_k": 3},
    )
    pipeline.unet.add_adapter(config)
    pipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=peft.get_peft_model_state_dict(pipeline.unet),
        unet_lora_adapter_metadata=pipeline.unet.peft_config["default"].to_dict(),
    )
    read_lora(tmp_path / "pytorch_lora_weights.safetensors", model).attach(model.modules())
    ours, theirs = outputs_of_both(model, pipeline)
    assert relative_error(ours[0], theirs[0]) <= 1e-4 and relative_error(ours[0], plain[0]) >= 0.05


@pytest.mark.parametrize("layout", LORA_LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_file_is_read_by_both(
    layout: str, family: str, sd_folder: SDFolder, load_model: Any, tmp_path: Path
) -> None:
    model, file, written_file = load_model(family), tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    tensors = {key: tensor for key, tensor in kohya_tensors(model).items() if key.startswith("lora_unet")}
    save_file(tensors, file)
    adapters = read_lora(file, model)
    write_lora(adapters, model, written_file, layout)
    reread = dict(read_lora(written_file, model).items())
    assert reread.keys() == dict(adapters.items()).keys()
    for name, adapter in adapters.items():
        expected = adapter.weight_delta().detach()
        assert relative_error(reread[name].weight_delta().detach(), expected) <= 1e-6
    if layout == "peft":
        return  # where ranks differ, diffusers takes them for alphas that differ: see test_lora_training for the rest
    written = load_file(written_file)
    assert written.keys() == tensors.keys() and all(torch.equal(written[key], tensors[key]) for key in tensors)
    pipeline = load_peft_pipeline(sd_folder(family))
    pipeline.load_lora_weights(written_file)
    adapters.attach(model.modules())
    ours, theirs = outputs_of_both(model, pipeline)
    assert relative_error(ours[0], theirs[0]) <= 1e-4


def with_changes(tensors: dict[str, Tensor], changes: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """The tensors with those of one layer changed, or taken away where the change is None."""
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    changed = {**tensors, **{f"{layer}.{role}": tensor for role, tensor in changes.items()}}
    return {key: tensor for key, tensor in changed.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lora_down.weight": torch.randn(3, 768)},
            r"attn2_to_k' is \(64, \d\) times \(3, 768\), but its layer in this model is \(64, 64\)",
        ),
        ({"lora_up.weight": torch.randn(64, 9)}, "for another kind of model"),
        ({"lora_up.weight": None}, "lacks the up tensor"),
        ({"alpha": torch.ones(2)}, "is not one number"),
        ({"alpha": torch.tensor(torch.nan)}, "not finite"),
        ({"lora_down.weight": torch.zeros(0, 64)}, "for another kind"),
        ({"lora_down.weight": torch.tensor(1.0)}, "for another kind"),
        ({"lora_up.weight": torch.zeros(64, 3, dtype=torch.int32)}, "not finite"),
        (
            {"hada_w1_a": torch.zeros(1)},
            "holds 'lora_unet_mid_block_.*hada_w1_a', which fits no layer of pipe: .*LoHa",
        ),
        ({"dora_scale": torch.zeros(1)}, "dora_scale"),
        ({"lora_mid.weight": torch.zeros(1)}, "lora_mid"),
    ],
)
def test_what_does_not_fit_is_one_line(changes: Any, message: str, load_model: Any, tmp_path: Path) -> None:
    model = load_model()
    save_file(with_changes(kohya_tensors(model), changes), tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match=message) as error:
        read_lora(tmp_path / "odd.safetensors", model)
    assert "\n" not in str(error.value) and len(str(error.value)) < 900


def test_files_of_another_family_or_none(sd_folder: SDFolder, load_model: Any, tmp_path: Path) -> None:
    model, xl_model, odd = load_model(), load_model("xl"), tmp_path / "odd.safetensors"
    save_file(kohya_tensors(xl_model), tmp_path / "xl.safetensors")
    with pytest.raises(InputError, match="which fits no layer of pipe"):
        read_lora(tmp_path / "xl.safetensors", model)
    alpha = '{"unet.lora_alpha": %s}'
    for metadata in ("{", alpha % '"x"', alpha % "NaN", alpha % "[]", '{"unet.alpha_pattern": 3}', "[" * 99999):
        save_file(respelled_tensors(model, "peft"), odd, {"lora_adapter_metadata": metadata})
        with pytest.raises(InputError, match="metadata are damaged"):
            read_lora(odd, model)
    save_file({}, odd)
    unet = sd_folder("1") / "unet" / "diffusion_pytorch_model.safetensors"
    for path, message in ((odd, "holds nothing"), (unet, r"'conv_in.weight', 'conv_norm_out.bias' and 2\d\d more")):
        with pytest.raises(InputError, match=message):
            read_lora(path, model)


def test_what_does_not_fit_leaves_the_model_unchanged(load_model: Any, tmp_path: Path) -> None:
    model = load_model()
    save_file(kohya_tensors(model), tmp_path / "good.safetensors")
    save_file(kohya_tensors(load_model("xl")), tmp_path / "bad.safetensors")
    width = model.text_encoder.config.encoders[0].width
    for name in ("first", "a"):  # the second is a token
        save_file({"emb_params": torch.randn(1, width)}, tmp_path / f"{name}.safetensors")
    good, bad, first, token = (tmp_path / f"{name}.safetensors" for name in ("good", "bad", "first", "a"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for wrong in (
        {"loras": [good, bad]},
        {"loras": [good], "embeddings": [first, token]},
        {"loras": [good], "autoencoder": bad},
    ):
        with pytest.raises(InputError):
            apply_add_ons(model, **wrong)
        after = model.state_dict()
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
        assert model.hash == load_model().hash


def test_the_precision_is_set_last(load_model: Any, tmp_path: Path) -> None:
    """Nothing is added to packed weights; adapters attached before stay beside weights that are not packed."""
    file = tmp_path / "one.safetensors"
    save_file(kohya_tensors(load_model(), "all"), file)
    low = load_model(precision="bfloat16")
    for add in (lambda: apply_add_ons(low, [file]), lambda: read_lora(file, low)):
        with pytest.raises(InputError, match=r"load 'pipe' in float32, add it, then call set_precision"):
            add()
    attached, merged, plain = (load_model() for _ in range(3))
    adapters = read_lora(file, attached)
    adapters.attach(attached.modules())
    read_lora(file, merged).merge(merged.modules())
    conditionings = {}
    for name, model in (("attached", attached), ("merged", merged), ("plain", plain)):
        conditionings[name] = model.text_encoder(model.tokenizer.encode(["a frog"]))
        set_precision(model, "bfloat16")
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def difference(model: Any, other: Any, conditioning: Any) -> float:
        output, expected = (each.denoiser(x, torch.tensor([0.5]), conditioning) for each in (model, other))
        return relative_error(output, expected)

    with torch.no_grad():
        assert difference(attached, merged, conditionings["merged"]) < 0.05
        assert difference(attached, plain, conditionings["merged"]) > 0.3
        adapters.set_strength(0)
        assert difference(attached, plain, conditionings["plain"]) < 0.05
        adapters.detach(attached.modules())
        assert difference(attached, plain, conditionings["plain"]) < 0.05


def test_load_adds_them_before_the_precision_changes(sd_folder: SDFolder, load_model: Any, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    save_file(kohya_tensors(load_model(), "all"), file)
    expected = set_precision(apply_add_ons(load_model(), [f"{file}:0.5"]), "bfloat16")
    model = unspeckle.load(sd_folder("1"), precision="bfloat16", loras=[f"{file}:0.5"])
    assert model.precision == "bfloat16" and model.hash == expected.hash != load_model().hash
    with pytest.raises(InputError, match=r"^loras gone\.safetensors: no such file"):
        unspeckle.load(sd_folder("1"), loras=["gone.safetensors"])


def test_200_damaged_files(load_model: Any, tmp_path: Path) -> None:
    model, rng = load_model(), random.Random(0)
    save_file(kohya_tensors(model), tmp_path / "whole.safetensors")
    content, file = (tmp_path / "whole.safetensors").read_bytes(), tmp_path / "odd.safetensors"
    refused = 0
    for number in range(200):
        is_cut = number % 4 == 0
        damaged = bytearray(content[: rng.randrange(len(content))] if is_cut else content)
        for _ in range(0 if is_cut else rng.choice((1, 3, 30))):
            damaged[rng.randrange(min(len(damaged), 4000))] = rng.randrange(256)
        file.write_bytes(bytes(damaged))
        try:
            read_lora(file, model)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(file) in str(error)
    assert refused >= 180


def pixel_difference(image: Any, other: Any) -> float:
    """The mean difference of two images' pixels, of 255."""
    return float(np.abs(np.asarray(image, float) - np.asarray(other, float)).mean())


def test_the_command_line(sd_folder: SDFolder, load_model: Any, tmp_path: Path, capsys: Any) -> None:
    model, common = load_model(), ["--model", str(sd_folder("1")), "--quiet"]
    draw = ["draw", "a frog", "--steps", "2", "--size", "16", "--precision", "float32", "--out", str(tmp_path), *common]
    one, two = tmp_path / "one.safetensors", tmp_path / "two:2.safetensors"
    for seed, file in enumerate((one, two)):
        save_file(kohya_tensors(model, seed=seed), file)
    loras = ["--lora", f"{one}:-.5", "--lora", str(two)]
    assert main([*draw, *loras]) == 0
    path = Path(capsys.readouterr().out.strip())
    recorded = image_metadata(read_png(path))["model"]
    assert recorded["name"] == "pipe + one:-0.5 + two:2" and recorded["hash"] != model.hash
    for file, strength in ((one, -0.5), (two, 1.0)):
        read_lora(file, model).set_strength(strength).merge(model.modules())
    request = Request("a frog", steps=2, size=16)
    assert read_png(path).tobytes() == unspeckle.draw(model, request)[0].tobytes()
    for same in (loras, ["--lora", f"{one}:-5e-1", "--lora", f"{two}:1E0"]):
        assert main(["replay", str(path), *same, *common]) == 0
        assert "difference: 0" in capsys.readouterr().out
    assert main([*draw, *loras, "--precision", "bfloat16"]) == 0
    rounded, plain = read_png(Path(capsys.readouterr().out.strip())), unspeckle.draw(load_model(), request)[0]
    assert image_metadata(rounded)["model"]["hash"] == recorded["hash"]
    assert pixel_difference(rounded, read_png(path)) < 0.2 * pixel_difference(plain, read_png(path))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{folder}/none:1", "no such file"),
        ("{file}:999", "the strength must lie between"),
        ("{file}:-1e3", "the strength must lie between"),
        ("{file}:nan", "the strength must lie between"),
        ("{file}:strong", "{file}:strong: no such file"),
        ("{folder}", "--lora {folder}: is a folder, and the prompt names no LoRA in it by <lora:NAME>; give a file"),
        ("", "no such file"),
    ],
)
def test_a_wrong_option_is_one_line(
    value: str, message: str, sd_folder: SDFolder, load_model: Any, tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "one.safetensors"
    save_file(kohya_tensors(load_model()), file)
    places = {"folder": tmp_path, "file": file}
    line = ["draw", "a frog", "--model", str(sd_folder("1")), "--out", str(tmp_path), "--quiet"]
    assert main([*line, "--lora", value.format(**places)]) == 2
    error = capsys.readouterr().err
    assert message.format(**places) in error and error.count("\n") == 1


def test_a_prompt_names_loras(sd_folder: SDFolder, load_model: Any, tmp_path: Path, capsys: Any) -> None:
    """Beside the model, in `loras` or `Lora` beside it or its folder, and in the folder of --lora, which comes
    first."""
    location, other = tmp_path / "models" / "pipe", tmp_path / "other"
    for folder in (location.parent, tmp_path / "Lora", other):
        folder.mkdir()
    location.symlink_to(sd_folder("1"))
    model, plain = load_model(), load_model()
    files = (location.parent / "one.safetensors", tmp_path / "Lora" / "two.safetensors", other / "one.safetensors")
    for seed, file in enumerate(files):
        save_file(kohya_tensors(model, seed=seed), file)
    options = ["--model", str(location), "--steps", "2", "--size", "16", "--precision", "float32", "--quiet"]
    draw = ["draw", "a <lora:two:-5e-1> frog", "<lora:one:0.8>", *options, "--out", str(tmp_path)]
    assert main(draw) == 0
    path = Path(capsys.readouterr().out.strip())
    for file, strength in ((files[1], -0.5), (files[0], 0.8)):
        read_lora(file, model).set_strength(strength).merge(model.modules())
    request = Request("a frog", steps=2, size=16)
    assert read_png(path).tobytes() == unspeckle.draw(model, request)[0].tobytes()
    assert pixel_difference(read_png(path), unspeckle.draw(plain, request)[0]) > 1
    metadata = image_metadata(read_png(path))
    assert metadata["prompt"] == "a <lora:two:-5e-1> frog <lora:one:0.8>"
    assert metadata["model"] == {"name": "pipe + two:-0.5 + one:0.8", "hash": model.invalidate_hash().hash}
    assert main(["replay", str(path), "--model", str(location), "--quiet"]) == 0
    assert "difference: 0" in capsys.readouterr().out
    assert main([*draw, "--lora", str(other)]) == 0
    assert pixel_difference(read_png(Path(capsys.readouterr().out.strip())), read_png(path)) > 1

    prompt = metadata["prompt"]
    adapted = apply_add_ons(plain, lora_tags=parse_prompt(prompt).lora_tags, model_path=location)
    assert unspeckle.draw(adapted, replace(request, prompt=prompt))[0].tobytes() == read_png(path).tobytes()
    with pytest.raises(InputError, match=r"<lora:one>: is not in 'pipe \+ two:-0.5 \+ one:0.8'"):
        unspeckle.draw(adapted, replace(request, prompt="a frog <lora:one>"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["a <lora:ink:2>", "--model", "{pipe}"],
            "<lora:ink:2>: there is no ink.safetensors in {beside}; put it there, or give its folder with --lora",
        ),
        (["a <lora:ink>", "--model", "{pipe}", "--lora", "{other}"], "no ink.safetensors in {other}, {beside}; put"),
        (["a <lora:ink>"], "<lora:ink>: needs a Stable Diffusion, and '{embedded}' is none; choose one with --model"),
        (["a <lora:ink", "--model", "{pipe}"], 'unclosed "<lora:"'),
        (["a", "--negative-prompt", "b <lora:ink>", "--model", "{pipe}"], "<lora:ink>: "),
    ],
)
def test_a_prompt_that_names_a_missing_lora_is_one_line(
    arguments: list[str], message: str, sd_folder: SDFolder, tmp_path: Path, capsys: Any
) -> None:
    pipe, name = sd_folder("1"), unspeckle.load().card.name
    places = {"pipe": pipe, "beside": pipe.parent, "other": tmp_path, "embedded": name}
    line = [argument.format(**places) for argument in arguments]
    assert main(["draw", *line, "--steps", "1", "--out", str(tmp_path), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message.format(**places) in error and error.count("\n") == 1
