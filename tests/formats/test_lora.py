"""LoRA files in every layout: what diffusers computes with them, merged and live, and refused in one line."""

import random
from collections.abc import Iterator
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
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.formats.lora import lora_file
from unspeckle.formats.lora.layer_names import lora_layer_names
from unspeckle.formats.stable_diffusion import add_ons
from unspeckle.generation.metadata import image_metadata
from unspeckle.generation.request import Request
from unspeckle.model_io.precision import set_precision
from unspeckle.output.png import read_png
from unspeckle.prompts import parse_prompt

FAMILIES = ("1", "2", "xl")
KEPT: dict[str, Any] = {}


@pytest.fixture
def whole(tmp_path_factory: Any) -> Any:
    """A function from a family to the folder of its pipeline."""

    def made(family: str) -> Path:
        if family not in KEPT:
            folder = tmp_path_factory.mktemp(family)
            stable_diffusion_files.tiny_pipeline(family, folder / "scratch").save_pretrained(folder / "pipe")
            KEPT[family] = folder / "pipe"
        return KEPT[family]

    return made


def peer(folder: Path) -> Any:
    """The pipeline of diffusers, which needs peft for LoRA."""
    pytest.importorskip("peft", reason="peft is not installed: no peer to compare LoRA with")
    return stable_diffusion_files.load_pipeline(folder)


def layers(model: Any, which: str) -> Iterator[tuple[str, tuple[str, ...], Tensor]]:
    """Name, spellings and weight of the layers that a file may be about."""
    parts = model.modules()
    for ours, names in lora_layer_names(model).items():
        weight = lora_file.get_layer(parts, ours).weight
        attention = ".layers." in ours
        if which == "all" or (which == "attention" and attention) or (which == "unet" and ours.startswith("network")):
            yield ours, names, weight


def kohya(model: Any, which: str = "attention", seed: int = 0, place: int = 0) -> dict[str, Tensor]:
    """A file's tensors: ranks 2, 3 and 4, alphas that are not the rank. place: the spelling, 0 = as kohya does. Text
    encoders have one rank, as without kohya's names the peer takes all alphas for the first rank."""
    generator = torch.Generator().manual_seed(seed)
    held = {}
    for number, (ours, names, weight) in enumerate(layers(model, which)):
        rank = 2 + number % 3 if ours.startswith("network") else 3
        down = torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
        up = torch.randn(len(weight), rank, *[1] * (weight.ndim - 2), generator=generator) * 0.3
        name = names[place]
        held |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.5)}
    return held


def answers(model: Any, pipe: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What network and text encoders of both say."""
    torch.manual_seed(3)
    asked = stable_diffusion_files.UNetInputs(pipe.unet.config)
    words = model.tokenizer.encode(["a frog on stilts", ""])
    with torch.no_grad():
        ours = [
            asked.output_of_ours(model.network),
            *(encoder(words[:, n])[0] for n, encoder in enumerate(model.text_encoder.encoders)),
        ]
        theirs = [asked.output_of_theirs(pipe.unet)]
        for n, reader in enumerate(one for one in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if one):
            read = reader(words[:, n], output_hidden_states=True)
            theirs.append(read.hidden_states[-2] if len(model.text_encoder.encoders) > 1 else read.last_hidden_state)
    return ours, theirs


def assert_same(model: Any, pipe: Any, plain: list[Tensor]) -> None:
    ours, theirs = answers(model, pipe)
    assert all(relative_error(mine, other) <= 1e-4 for mine, other in zip(ours, theirs, strict=True))
    assert all(relative_error(mine, before) >= 0.05 for mine, before in zip(ours, plain, strict=True))


def load(pipe: Any, held: dict[str, Tensor], name: str, scratch: Path) -> list[str]:
    """Load a file of kohya's into the peer; returns the adapters' names. With transformers 5 the peer (0.39) does not
    find its text encoders' layers by kohya's names, nor fill them by its own: that is done here, alpha and all."""
    file = scratch / f"{name}-unet.safetensors"
    save_file({key: tensor for key, tensor in held.items() if key.startswith("lora_unet")}, file)
    pipe.load_lora_weights(file, adapter_name=name)
    texts = {}
    for place, reader in (
        ("text_encoder", pipe.text_encoder),
        ("text_encoder_2", getattr(pipe, "text_encoder_2", None)),
    ):
        own = (
            {}
            if reader is None
            else {n.removeprefix("text_model.").replace(".", "_"): n for n, _ in reader.named_modules()}
        )
        for key in held:
            short, _, end = key.partition(".")
            prefix, _, short = short.partition("_text_model_")
            mine = prefix == "lora_te2" if place == "text_encoder_2" else prefix in ("lora_te", "lora_te1")
            if mine and end != "alpha":
                stem, rank = key.partition(".")[0], len(held[key.partition(".")[0] + ".lora_down.weight"])
                scale = float(held[f"{stem}.alpha"]) / rank if "up" in end else 1
                role = "lora_B" if "up" in end else "lora_A"
                texts[f"{place}.{own[short]}.{role}.weight"] = held[key] * scale
    if texts:
        pipe.load_lora_weights(texts, adapter_name=f"{name}-texts")
        for place in ("text_encoder", "text_encoder_2"):
            for mine, parameter in getattr(pipe, place, torch.nn.Module()).named_parameters():
                if f".{name}-texts." in mine:  # which transformers 5 lets lie
                    parameter.data.copy_(texts[f"{place}.{mine.replace(f'.{name}-texts.', '.')}"])
    return [name, f"{name}-texts"] if texts else [name]


def use(pipe: Any, weights: dict[str, float], loaded: dict[str, list[str]]) -> None:
    each = {adapter: weight for name, weight in weights.items() for adapter in loaded[name]}
    pipe.set_adapters(list(each), list(each.values()))


@pytest.mark.parametrize("family", FAMILIES)
def test_two_at_once_merged_and_live_are_those_of_diffusers(family: str, whole: Any, tmp_path: Path) -> None:
    pipe, model = peer(whole(family)), unspeckle.load(whole(family))
    plain, _ = answers(model, pipe)
    weights = {"one": 0.7, "two": -0.4}
    loaded = {}
    for seed, name in enumerate(weights):
        save_file(held := kohya(model, seed=seed), tmp_path / f"{name}.safetensors")
        loaded[name] = load(pipe, held, name, tmp_path)
    use(pipe, weights, loaded)
    read = {
        name: lora_file.read_lora(tmp_path / f"{name}.safetensors", model).set_strength(weights[name])
        for name in weights
    }
    before = model.hash
    for one in read.values():
        one.attach(model.modules())
    model.invalidate_hash()
    assert_same(model, pipe, plain)
    live = model.hash
    read["two"].set_strength(0)
    use(pipe, {"one": 0.7}, loaded)
    assert_same(model, pipe, plain)
    assert len({before, live, model.hash}) == 3
    for one in read.values():
        one.detach(model.modules())
    assert model.invalidate_hash().hash == before and all(map(torch.equal, answers(model, pipe)[0], plain))
    for name, one in read.items():
        one.set_strength(weights[name]).merge(model.modules())
    use(pipe, weights, loaded)
    pipe.fuse_lora(adapter_names=[adapter for names in loaded.values() for adapter in names])
    assert_same(model, pipe, plain)
    assert model.invalidate_hash().hash != before


def test_a_picture_names_the_strength_that_its_adapters_had(whole: Any, tmp_path: Path) -> None:
    """Also where the hash of the weights is from before they were made to draw in another precision."""
    save_file(kohya(unspeckle.load(whole("1"))), tmp_path / "one.safetensors")
    exact, low, merged = (unspeckle.load(whole("1")) for _ in range(3))
    ask, named = Request("a frog", steps=1, size=16), {}
    lora_file.read_lora(tmp_path / "one.safetensors", merged).merge(merged.modules())
    for model in (exact, low):
        adapters = lora_file.read_lora(tmp_path / "one.safetensors", model)
        adapters.attach(model.modules())
        model.invalidate_hash()
        set_precision(model, "bfloat16" if model is low else "float32")
        for strength in (1.0, 0.5, 0.0, 1.0):
            adapters.set_strength(strength)
            said = image_metadata(unspeckle.draw(model, ask)[0])["model"]["hash"]
            assert named.setdefault(strength, said) == said == model.hash
    assert len({*named.values(), merged.invalidate_hash().hash}) == 4
    assert low.invalidate_hash().hash == named[1.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_convolutions_too(family: str, whole: Any, tmp_path: Path) -> None:
    """LoCon: kernels of 1 and 3, of every block; the peer knows the names of kohya's own for XL."""
    pipe, model = peer(whole(family)), unspeckle.load(whole(family))
    plain, _ = answers(model, pipe)
    save_file(held := kohya(model, "unet"), tmp_path / "locon.safetensors")
    lora_file.read_lora(tmp_path / "locon.safetensors", model).attach(model.modules())
    load(pipe, held, "locon", tmp_path)
    ours = answers(model, pipe)[0]
    assert relative_error(ours[0], answers(model, pipe)[1][0]) <= 1e-4 and relative_error(ours[0], plain[0]) >= 0.05
    assert sum(t.ndim == 4 and t.shape[2] == 3 for t in held.values()) > 10


LAYOUTS = {
    "kohya": (0, "lora_down", "lora_up"), "peft": (1, "lora_A", "lora_B"), "diffusers": (1, "lora.down", "lora.up"),
    "2023": (1, "lora_linear_layer.down", "lora_linear_layer.up"), "other": (2, "lora_down", "lora_up"),
}  # fmt: skip


def told(model: Any, layout: str) -> dict[str, Tensor]:
    """The same adapters by another layout's names."""
    place, *ends = LAYOUTS[layout]
    held = kohya(model, "attention", place=place)
    return {key.replace("lora_down", ends[0]).replace("lora_up", ends[1]): tensor for key, tensor in held.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_says_the_same(family: str, whole: Any, tmp_path: Path) -> None:
    model, expected = unspeckle.load(whole(family)), None
    for layout in LAYOUTS:
        save_file(told(model, layout), tmp_path / "file.safetensors")
        found = {
            name: one.weight_delta() for name, one in lora_file.read_lora(tmp_path / "file.safetensors", model).items()
        }
        expected = expected or found
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_names_of_the_first_processors(whole: Any, tmp_path: Path) -> None:
    """As diffusers saved them until 2023, without the U-Net's own name or with it, and its text encoder's."""
    model = unspeckle.load(whole("1"))
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    first = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_{}_lora"
    for name in (first, f"unet.{first}"):
        held = {}
        for letter in ("q", "out"):
            held |= {f"{name.format(letter)}.down.weight": down.clone(), f"{name.format(letter)}.up.weight": up.clone()}
        save_file(held, tmp_path / "old.safetensors")
        read = dict(lora_file.read_lora(tmp_path / "old.safetensors", model).items())
        base = "network.down_blocks.0.transformer.layers.0.self_attn"
        assert read.keys() == {f"{base}.to_q", f"{base}.to_out"} and torch.equal(
            read[f"{base}.to_out"].weight_delta(), up @ down
        )
    name, file = "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora", tmp_path / "old.safetensors"
    save_file({f"{name}.down.weight": torch.randn(2, 64), f"{name}.up.weight": torch.randn(64, 2)}, file)
    assert [name for name, _ in lora_file.read_lora(file, model).items()] == ["text.encoders.0.layers.1.out"]


@pytest.mark.parametrize("root", [False, True])
def test_alphas_that_only_the_metadata_say(root: bool, whole: Any, tmp_path: Path) -> None:
    """As diffusers writes them since 2025, from peft's configuration."""
    peft = pytest.importorskip("peft", reason="peft is not installed: no peer to compare LoRA with")
    pipe, model = peer(whole("1")), unspeckle.load(whole("1"))
    plain, _ = answers(model, pipe)
    torch.manual_seed(4)
    config = peft.LoraConfig(
        r=4, lora_alpha=7, target_modules=["to_q", "to_k", "ff.net.2"], init_lora_weights=False, use_rslora=root,
        rank_pattern={"to_k": 2}, alpha_pattern={"to_k": 3},
    )  # fmt: skip
    pipe.unet.add_adapter(config)
    pipe.save_lora_weights(
        tmp_path, unet_lora_layers=peft.get_peft_model_state_dict(pipe.unet),
        unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict(),
    )  # fmt: skip
    lora_file.read_lora(tmp_path / "pytorch_lora_weights.safetensors", model).attach(model.modules())
    ours, theirs = answers(model, pipe)
    assert relative_error(ours[0], theirs[0]) <= 1e-4 and relative_error(ours[0], plain[0]) >= 0.05


@pytest.mark.parametrize("layout", lora_file.LORA_LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_read_by_both(layout: str, family: str, whole: Any, tmp_path: Path) -> None:
    model, held = unspeckle.load(whole(family)), {}
    held = {key: tensor for key, tensor in kohya(model, "attention").items() if key.startswith("lora_unet")}
    save_file(held, tmp_path / "first.safetensors")
    first = lora_file.read_lora(tmp_path / "first.safetensors", model)
    lora_file.write_lora(first, model, tmp_path / "again.safetensors", layout)
    again = dict(lora_file.read_lora(tmp_path / "again.safetensors", model).items())
    assert all(relative_error(again[name].weight_delta(), one.weight_delta()) <= 1e-6 for name, one in first.items())
    assert again.keys() == dict(first.items()).keys()
    if layout == "kohya":
        written = load_file(tmp_path / "again.safetensors")
        assert written.keys() == held.keys() and all(torch.equal(written[key], held[key]) for key in held)
    else:
        return  # the peer takes ranks that differ for alphas that do: see test_a_lora_trained_here
    pipe = peer(whole(family))
    pipe.load_lora_weights(tmp_path / "again.safetensors")
    first.attach(model.modules())
    ours, theirs = answers(model, pipe)
    assert relative_error(ours[0], theirs[0]) <= 1e-4


def spoilt(held: dict[str, Tensor], **changes: Any) -> dict[str, Tensor]:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    renamed = {f"{name}.{key.replace('_weight', '.weight')}": tensor for key, tensor in changes.items()}
    return {k: t for k, t in {**held, **renamed}.items() if t is not None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"lora_down_weight": torch.randn(3, 768)},
      r"attn2_to_k' is \(64, \d\) times \(3, 768\), but its layer here is \(64, 64\)"),
     ({"lora_up_weight": torch.randn(64, 9)}, "for another kind of model"),
     ({"lora_up_weight": None}, "lacks the up tensor"), ({"alpha": torch.ones(2)}, "is no number"),
     ({"alpha": torch.tensor(torch.nan)}, "not finite"),
     ({"lora_down_weight": torch.zeros(0, 64)}, "for another kind"),
     ({"lora_down_weight": torch.tensor(1.0)}, "for another kind"),
     ({"lora_up_weight": torch.zeros(64, 3, dtype=torch.int32)}, "not finite"),
     ({"hada_w1_a": torch.zeros(1)}, "holds 'lora_unet_mid_block_.*hada_w1_a', which no layer of pipe takes: .*LoHa"),
     ({"dora_scale": torch.zeros(1)}, "dora_scale"), ({"lora_mid_weight": torch.zeros(1)}, "lora_mid")],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(changes: Any, says: str, whole: Any, tmp_path: Path) -> None:
    model = unspeckle.load(whole("1"))
    save_file(spoilt(kohya(model), **changes), tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match=says) as error:
        lora_file.read_lora(tmp_path / "odd.safetensors", model)
    assert "\n" not in str(error.value) and len(str(error.value)) < 900


def test_of_another_family_or_none(whole: Any, tmp_path: Path) -> None:
    one, xl = unspeckle.load(whole("1")), unspeckle.load(whole("xl"))
    save_file(kohya(xl), tmp_path / "xl.safetensors")
    with pytest.raises(InputError, match=r"lora_te1_.*|which no layer of pipe takes"):
        lora_file.read_lora(tmp_path / "xl.safetensors", one)
    odd, number = tmp_path / "odd.safetensors", '{"unet.lora_alpha": %s}'
    for metadata in ("{", number % '"x"', number % "NaN", number % "[]", '{"unet.alpha_pattern": 3}', "[" * 99999):
        save_file(told(one, "peft"), odd, {"lora_adapter_metadata": metadata})
        with pytest.raises(InputError, match="metadata are damaged"):
            lora_file.read_lora(odd, one)
    save_file({}, odd)
    unet = whole("1") / "unet" / "diffusion_pytorch_model.safetensors"
    for path, says in ((odd, "holds nothing"), (unet, r"'conv_in.weight', 'conv_norm_out.bias' and 2\d\d more")):
        with pytest.raises(InputError, match=says):
            lora_file.read_lora(path, one)


def test_what_does_not_fit_leaves_the_model_as_it_was(whole: Any, tmp_path: Path) -> None:
    model = unspeckle.load(whole("1"))
    save_file(kohya(model), tmp_path / "good.safetensors")
    save_file(kohya(unspeckle.load(whole("xl"))), tmp_path / "bad.safetensors")
    width = model.text_encoder.config.encoders[0].width
    for name in ("first", "a"):  # the second is a token
        save_file({"emb_params": torch.randn(1, width)}, tmp_path / f"{name}.safetensors")
    good, bad, first, token = (tmp_path / f"{name}.safetensors" for name in ("good", "bad", "first", "a"))
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for wrong in ({"loras": [good, bad]}, {"loras": [good], "embeddings": [first, token]},
                  {"loras": [good], "autoencoder": bad}):  # fmt: skip
        with pytest.raises(InputError):
            add_ons.apply_add_ons(model, **wrong)
        now = model.state_dict()
        assert now.keys() == held.keys() and all(torch.equal(now[name], held[name]) for name in held)
        assert model.hash == unspeckle.load(whole("1")).hash


def test_precision_comes_last(whole: Any, tmp_path: Path) -> None:
    """Nothing is added to packed weights; adapters that stood there before stay live beside weights that are not."""
    file = tmp_path / "one.safetensors"
    save_file(kohya(unspeckle.load(whole("1")), "all"), file)
    low = unspeckle.load(whole("1"), precision="bfloat16")
    for add in (lambda: add_ons.apply_add_ons(low, [file]), lambda: lora_file.read_lora(file, low)):
        with pytest.raises(InputError, match=r"load 'pipe' in float32, add it, then precision.lower"):
            add()
    live, merged, plain = (unspeckle.load(whole("1")) for _ in range(3))
    adapters = lora_file.read_lora(file, live)
    adapters.attach(live.modules())
    lora_file.read_lora(file, merged).merge(merged.modules())
    x, given = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), [None] * 3
    for number, one in enumerate((live, merged, plain)):
        given[number] = one.text_encoder(one.tokenizer.encode(["a frog"]))
        set_precision(one, "bfloat16")

    def apart(one: Any, other: Any, words: Any) -> float:
        seen, expected = (m.denoiser(x, torch.tensor([0.5]), words) for m in (one, other))
        return float((seen - expected).norm() / expected.norm())

    with torch.no_grad():
        assert apart(live, merged, given[1]) < 0.05 < 0.3 < apart(live, plain, given[1])
        adapters.set_strength(0)
        assert apart(live, plain, given[2]) < 0.05
        adapters.detach(live.modules())
        assert apart(live, plain, given[2]) < 0.05


def test_200_damaged_files(whole: Any, tmp_path: Path) -> None:
    model, draw = unspeckle.load(whole("1")), random.Random(0)
    save_file(kohya(model), tmp_path / "whole.safetensors")
    data, file = (tmp_path / "whole.safetensors").read_bytes(), tmp_path / "odd.safetensors"
    refused = 0
    for turn in range(200):
        many = bytearray(data[: draw.randrange(len(data))] if turn % 4 == 0 else data)
        for _ in range(draw.choice((1, 3, 30)) if turn % 4 else 0):
            many[draw.randrange(min(len(many), 4000))] = draw.randrange(256)
        file.write_bytes(bytes(many))
        try:
            lora_file.read_lora(file, model)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(file) in str(error)
    assert refused >= 180


def off(one: Any, other: Any) -> float:
    """The mean difference of two pictures' pixels."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def test_the_command_line(whole: Any, tmp_path: Path, capsys: Any) -> None:
    model, common = unspeckle.load(whole("1")), ["--model", str(whole("1")), "--quiet"]
    asked = [
        "draw",
        "a frog",
        "--steps",
        "2",
        "--size",
        "16",
        "--precision",
        "float32",
        "--out",
        str(tmp_path),
        *common,
    ]
    one, two = tmp_path / "one.safetensors", tmp_path / "two:2.safetensors"
    for seed, file in enumerate((one, two)):
        save_file(kohya(model, seed=seed), file)
    added = ["--lora", f"{one}:-.5", "--lora", str(two)]
    assert main([*asked, *added]) == 0
    path = Path(capsys.readouterr().out.strip())
    said = image_metadata(read_png(path))["model"]
    assert said["name"] == "pipe + one:-0.5 + two:2" and said["hash"] != model.hash
    for file, strength in ((one, -0.5), (two, 1.0)):
        lora_file.read_lora(file, model).set_strength(strength).merge(model.modules())
    assert read_png(path).tobytes() == unspeckle.draw(model, Request("a frog", steps=2, size=16))[0].tobytes()
    assert main(["replay", str(path), *added, *common]) == 0
    assert "difference: 0" in capsys.readouterr().out
    assert main(["replay", str(path), "--lora", f"{one}:-5e-1", "--lora", f"{two}:1E0", *common]) == 0
    assert "difference: 0" in capsys.readouterr().out
    assert main([*asked, *added, "--precision", "bfloat16"]) == 0
    rounded, without = read_png(Path(capsys.readouterr().out.strip())), unspeckle.load(whole("1"))
    assert image_metadata(rounded)["model"]["hash"] == said["hash"]
    plain = unspeckle.draw(without, Request("a frog", steps=2, size=16))[0]
    assert off(rounded, read_png(path)) < 0.2 * off(plain, read_png(path))
    faults = {
        f"{tmp_path}/none:1": "no such file",
        f"{one}:999": "a weight lies between",
        f"{one}:-1e3": "a weight lies between",
        f"{one}:nan": "a weight lies between",
        f"{one}:strong": f"{one}:strong: no such file",
        str(tmp_path): f"--lora {tmp_path}: is a folder, and the prompt names nothing in it by <lora:…>; give a file",
        "": "no such file",
    }
    for given, says in faults.items():
        assert main([*asked, "--lora", given]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


def test_a_prompt_names_them(whole: Any, tmp_path: Path, capsys: Any) -> None:
    """Beside the model, in `loras` or `Lora` beside it or its folder, and where --lora says, which comes first."""
    place, other = tmp_path / "models" / "pipe", tmp_path / "other"
    for folder in (place.parent, tmp_path / "Lora", other):
        folder.mkdir()
    place.symlink_to(whole("1"))
    model, plain = unspeckle.load(place), unspeckle.load(place)
    files = (place.parent / "one.safetensors", tmp_path / "Lora" / "two.safetensors", other / "one.safetensors")
    for seed, file in enumerate(files):
        save_file(kohya(model, seed=seed), file)
    options = ["--model", str(place), "--steps", "2", "--size", "16", "--precision", "float32", "--quiet"]
    asked = ["draw", "a <lora:two:-5e-1> frog", "<lora:one:0.8>", *options, "--out", str(tmp_path)]
    assert main(asked) == 0
    path = Path(capsys.readouterr().out.strip())
    for file, strength in ((files[1], -0.5), (files[0], 0.8)):
        lora_file.read_lora(file, model).set_strength(strength).merge(model.modules())
    ask = Request("a frog", steps=2, size=16)
    assert read_png(path).tobytes() == unspeckle.draw(model, ask)[0].tobytes()
    assert off(read_png(path), unspeckle.draw(plain, ask)[0]) > 1
    said = image_metadata(read_png(path))
    assert said["prompt"] == "a <lora:two:-5e-1> frog <lora:one:0.8>"
    assert said["model"] == {"name": "pipe + two:-0.5 + one:0.8", "hash": model.invalidate_hash().hash}
    assert main(["replay", str(path), "--model", str(place), "--quiet"]) == 0
    assert "difference: 0" in capsys.readouterr().out
    assert main([*asked, "--lora", str(other)]) == 0
    assert off(read_png(Path(capsys.readouterr().out.strip())), read_png(path)) > 1

    worn = add_ons.apply_add_ons(plain, lora_tags=parse_prompt(said["prompt"]).lora_tags, model_path=place)
    assert unspeckle.draw(worn, replace(ask, prompt=said["prompt"]))[0].tobytes() == read_png(path).tobytes()
    with pytest.raises(InputError, match=r"prompt: <lora:one>: is not in 'pipe \+ two:-0.5 \+ one:0.8'; a Stable"):
        unspeckle.draw(worn, replace(ask, prompt="a frog <lora:one>"))


@pytest.mark.parametrize(
    ("words", "says"),
    [(["a <lora:ink:2>", "--model", "{pipe}"],
      "prompt: <lora:ink:2>: there is no ink.safetensors in {here}; put it there, or name its folder with --lora"),
     (["a <lora:ink>", "--model", "{pipe}", "--lora", "{other}"], "no ink.safetensors in {other}, {here}; put"),
     (["a <lora:ink>"], "prompt: <lora:ink>: is for Stable Diffusion, and 'embedded' is none; name one with --model"),
     (["a <lora:ink", "--model", "{pipe}"], 'prompt: unclosed "<lora:"'),
     (["a", "--negative", "b <lora:ink>", "--model", "{pipe}"],
      "negative: <lora:ink>: counts for the whole drawing; write it in the prompt")],
)  # fmt: skip
def test_a_prompt_that_names_none_is_one_line(
    words: list[str], says: str, whole: Any, tmp_path: Path, capsys: Any
) -> None:
    place = {"pipe": whole("1"), "here": whole("1").parent, "other": tmp_path}
    given = [word.format(**place) for word in words]
    assert main(["draw", *given, "--steps", "1", "--out", str(tmp_path), "--quiet"]) == 2
    error = capsys.readouterr().err
    says = says.replace("'embedded'", repr(unspeckle.load().card.name))
    assert says.format(**place) in error and error.count("\n") == 1
