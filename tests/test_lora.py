"""LoRA files in every layout: what diffusers computes with them, merged and live, and refused in one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import stable
import unspeckle
from test_stable_networks import Asked, far
from unspeckle.formats import lora
from unspeckle.formats.lora_names import spelt

FAMILIES = ("1", "2", "xl")
KEPT: dict[str, Any] = {}


@pytest.fixture
def whole(tmp_path_factory: Any) -> Any:
    """A function from a family to the folder of its pipeline."""

    def made(family: str) -> Path:
        if family not in KEPT:
            folder = tmp_path_factory.mktemp(family)
            stable.pipeline(family, folder / "scratch").save_pretrained(folder / "pipe")
            KEPT[family] = folder / "pipe"
        return KEPT[family]

    return made


def peer(folder: Path) -> Any:
    """The pipeline of diffusers, which needs peft for LoRA."""
    pytest.importorskip("peft", reason="peft is not installed: no peer to compare LoRA with")
    return stable.loaded(folder)


def layers(model: Any, which: str) -> Iterator[tuple[str, tuple[str, ...], Tensor]]:
    """Name, spellings and weight of the layers that a file may be about."""
    parts = model.parts()
    for ours, names in spelt(model).items():
        weight = lora.layer(parts, ours).weight
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
    asked = Asked(pipe.unet.config)
    words = model.tokenizer.encode(["a frog on stilts", ""])
    with torch.no_grad():
        ours = [
            asked.of_ours(model.network),
            *(encoder(words[:, n])[0] for n, encoder in enumerate(model.text.encoders)),
        ]
        theirs = [asked.of_theirs(pipe.unet)]
        for n, reader in enumerate(one for one in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if one):
            read = reader(words[:, n], output_hidden_states=True)
            theirs.append(read.hidden_states[-2] if len(model.text.encoders) > 1 else read.last_hidden_state)
    return ours, theirs


def assert_same(model: Any, pipe: Any, plain: list[Tensor]) -> None:
    ours, theirs = answers(model, pipe)
    assert all(far(mine, other) <= 1e-4 for mine, other in zip(ours, theirs, strict=True))
    assert all(far(mine, before) >= 0.05 for mine, before in zip(ours, plain, strict=True))


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
    read = {name: lora.read(tmp_path / f"{name}.safetensors", model).turn(weights[name]) for name in weights}
    before = model.hash
    for one in read.values():
        one.attach(model.parts())
    model.changed()
    assert_same(model, pipe, plain)
    live = model.hash
    read["two"].turn(0)
    use(pipe, {"one": 0.7}, loaded)
    assert_same(model, pipe, plain)
    assert len({before, live, model.hash}) == 3
    for one in read.values():
        one.detach(model.parts())
    assert model.changed().hash == before and all(map(torch.equal, answers(model, pipe)[0], plain))
    for name, one in read.items():
        one.turn(weights[name]).merge(model.parts())
    use(pipe, weights, loaded)
    pipe.fuse_lora(adapter_names=[adapter for names in loaded.values() for adapter in names])
    assert_same(model, pipe, plain)
    assert model.changed().hash != before


@pytest.mark.parametrize("family", FAMILIES)
def test_convolutions_too(family: str, whole: Any, tmp_path: Path) -> None:
    """LoCon: kernels of 1 and 3, of every block; the peer knows the names of kohya's own for XL."""
    pipe, model = peer(whole(family)), unspeckle.load(whole(family))
    plain, _ = answers(model, pipe)
    save_file(held := kohya(model, "unet"), tmp_path / "locon.safetensors")
    lora.read(tmp_path / "locon.safetensors", model).attach(model.parts())
    load(pipe, held, "locon", tmp_path)
    ours = answers(model, pipe)[0]
    assert far(ours[0], answers(model, pipe)[1][0]) <= 1e-4 and far(ours[0], plain[0]) >= 0.05
    assert sum(t.ndim == 4 and t.shape[2] == 3 for t in held.values()) > 10
