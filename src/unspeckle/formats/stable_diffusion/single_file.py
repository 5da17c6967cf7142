"""A single file of the original code, to and from a Checkpoint: it says nothing of itself, so its shapes must."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer as BPE
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion import original_names
from unspeckle.formats.stable_diffusion.checkpoint import Checkpoint, Habits, fetched, table
from unspeckle.formats.stable_diffusion.clip_vocabulary import find
from unspeckle.networks.unet import UNet, UNetConfig
from unspeckle.networks.vae import Vae, VaeConfig
from unspeckle.schedule import STABLE_DIFFUSION
from unspeckle.text.clip import ClipConfig, ClipEncoder, ClipTextsConfig
from unspeckle.text.clip_tokenizer import END, ClipTokenizer

PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v", "v-prediction": "v"}
SCALE = "unspeckle.latent_scale"  # in the metadata, where it is not its kind's
SCALES = {False: 0.18215, True: 0.13025}  # of the latents: Rombach et al. 2022; XL


def read(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path, prediction: str | None = None,
    vocabulary: BPE | None = None,
) -> Checkpoint:  # fmt: skip
    """The file's model; vocabulary: where none is to be looked for. InputError, one line, where it is of no known kind,
    incomplete or undecidable."""
    unet = _part(tensors, original_names.UNET_PREFIX)
    if "input_blocks.0.0.weight" not in unet:
        raise InputError(f"{file}: {_found(tensors)}; a model is Stable Diffusion 1, 2 or XL, or one of ours")
    network, large = _network(unet, file), "label_emb.0.0.weight" in unet
    vae = _part(tensors, original_names.VAE_PREFIX)
    coder = autoencoder(vae, float(metadata.get(SCALE) or SCALES[large]), file)
    texts = [
        (prefix, opens, part) for prefix, opens in original_names.TEXT_PREFIXES if (part := _part(tensors, prefix))
    ]
    if not texts:
        raise InputError(f"{file}: holds no text encoder that is known here, only its U-Net; get the whole model")
    spare = original_names.SPARE
    encoders = []
    for place, (prefix, opens, part) in enumerate(texts):
        if not opens and "embeddings.token_embedding.weight" in part:
            texts[place] = (prefix, opens, part := {f"text_model.{name}": tensor for name, tensor in part.items()})
        config = _encoder(part, opens, large, file)
        encoders.append(config)
        if opens and not large:  # Stable Diffusion 2 reads the last layer but one
            spare += rf"|transformer\.resblocks\.{config.layers}\.|text_projection$"
    first, pads = encoders[0], ["!" if opens else END for _, opens, _ in texts]
    checkpoint = Checkpoint(
        where=file,
        unet=network,
        vae=coder,
        texts=ClipTextsConfig(tuple(encoders), large, large and len(encoders) == 2),
        tokenizer=ClipTokenizer(vocabulary, first.length, pads) if vocabulary else find(file.parent, first, pads),
        habits=Habits(),
    )
    checkpoint.habits = _habits(checkpoint, tensors, metadata, prediction)
    known = (original_names.UNET_PREFIX, original_names.VAE_PREFIX, *(prefix for prefix, _, _ in texts))
    others = [name for name in tensors if not name.startswith(known) and not re.match(spare, name)]
    if others:
        raise InputError(f"{file}: has a spare tensor '{sorted(others)[0][:100]}' that no model known here has")
    found = {
        "network": fetched(UNet, network, table(UNet, network, original_names.UNET), unet, file, spare),
        "autoencoder": fetched(Vae, coder, table(Vae, coder, original_names.VAE), vae, file, spare),
    }
    for place, (config, (_, opens, part)) in enumerate(zip(encoders, texts, strict=True)):
        rows = original_names.OPENCLIP if opens else original_names.OPENAI
        found[f"text.encoders.{place}"] = fetched(
            ClipEncoder, config, table(ClipEncoder, config, rows), part, file, spare
        )
    checkpoint.tensors = {f"{part}.{name}": tensor for part, held in found.items() for name, tensor in held.items()}
    return checkpoint


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _found(tensors: Mapping[str, Tensor]) -> str:
    names = sorted(tensors)
    if any("lora" in name for name in names):
        return "is a LoRA, which changes a model but is none (--lora adds it to one)"
    if any(name.startswith(("decoder.", original_names.VAE_PREFIX + "decoder.")) for name in names):
        return "is an autoencoder without a U-Net"
    return f"holds no U-Net that is known here but {len(names)} tensors like '{names[0][:60]}'" if names else "is empty"


class _Shapes:
    """The shapes in one part; InputError where one is missing or makes no sense."""

    def __init__(self, part: Mapping[str, Tensor], file: Path, prefix: str) -> None:
        self.part, self.file, self.prefix = part, file, prefix

    def side(self, name: str, at: int) -> int:
        tensor = self.part.get(name)
        if tensor is None or tensor.ndim <= at or not tensor.shape[at]:
            what = "lacks the tensor" if tensor is None else "has an ill-shaped tensor"
            raise InputError(f"{self.file}: {what} '{self.prefix}{name}'; copy or download it again")
        return tensor.shape[at]

    def count(self, pattern: str) -> int:
        """How many there are of what the pattern's group numbers from 0 on."""
        numbers = {int(found[1]) for name in self.part if (found := re.match(pattern, name)) and len(found[1]) < 5}
        return max(numbers, default=-1) + 1

    def multiples(self, names: Sequence[str], of: int) -> tuple[int, ...]:
        sides = [self.side(name, 0) for name in names]
        if any(side % of for side in sides):
            raise InputError(f"{self.file}: the widths {sides} of '{self.prefix}' are no multiples of {of}")
        return tuple(side // of for side in sides)


def _network(part: Mapping[str, Tensor], file: Path) -> UNetConfig:
    shapes = _Shapes(part, file, original_names.UNET_PREFIX)
    every = shapes.count(r"input_blocks\.(\d+)\.")
    shrinks = [n for n in range(every) if f"input_blocks.{n}.0.op.weight" in part]
    whole = shrinks[0] if shrinks else every
    firsts = [1 + whole * level for level in range(len(shrinks) + 1)]
    width, leaves = shapes.side("input_blocks.0.0.weight", 0), shapes.side("out.2.weight", 0)
    if whole < 2 or shrinks != [whole * (i + 1) for i in range(len(shrinks))]:
        raise InputError(f"{file}: its U-Net's {every} blocks stand on no levels that are known here")
    middle = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    linear = part["middle_block.1.proj_in.weight"].ndim == 2 if "middle_block.1.proj_in.weight" in part else False
    return UNetConfig(
        channels=leaves,
        beside=shapes.side("input_blocks.0.0.weight", 1) - leaves,
        width=width,
        multipliers=shapes.multiples([f"input_blocks.{n}.0.out_layers.3.weight" for n in firsts], width),
        blocks=whole - 1,
        depths=tuple(shapes.count(rf"input_blocks\.{n}\.1\.transformer_blocks\.(\d+)\.") for n in firsts),
        middle_depth=shapes.count(r"middle_block\.1\.transformer_blocks\.(\d+)\."),
        sees_itself=(True,) * len(firsts),
        feed_forward=True,
        projection="linear" if linear else "conv",
        head_width=64,
        heads=0 if linear else 8,
        text_width=shapes.side(middle, 1),
        vector_width=shapes.side("label_emb.0.0.weight", 1) if "label_emb.0.0.weight" in part else 0,
        guidance_width=shapes.side("time_embed.cond_proj.weight", 1) if "time_embed.cond_proj.weight" in part else 0,
        scale_shift=False,
        clock_scale=1.0,
    )


def autoencoder(part: Mapping[str, Tensor], scale: float, file: Path) -> VaeConfig:
    """The sizes of the autoencoder that has these tensors of the original layout, without their prefix."""
    shapes = _Shapes(part, file, original_names.VAE_PREFIX)
    levels, width = shapes.count(r"encoder\.down\.(\d+)\."), shapes.side("encoder.conv_in.weight", 0)
    return VaeConfig(
        latents=shapes.side("decoder.conv_in.weight", 1),
        width=width,
        multipliers=shapes.multiples([f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)], width),
        blocks=shapes.count(r"encoder\.down\.0\.block\.(\d+)\."),
        mixes="quant_conv.weight" in part,
        scale=scale,
    )


def _encoder(part: Mapping[str, Tensor], opens: bool, large: bool, file: Path) -> ClipConfig:
    shapes = _Shapes(part, file, "")
    root, layer = ("", "transformer.resblocks") if opens else ("text_model.", "text_model.encoder.layers")
    token = "token_embedding.weight" if opens else f"{root}embeddings.token_embedding.weight"
    place = "positional_embedding" if opens else f"{root}embeddings.position_embedding.weight"
    vocabulary, width = shapes.side(token, 0), shapes.side(token, 1)
    layers = shapes.count(rf"{re.escape(layer)}\.(\d+)\.")
    return ClipConfig(
        width=width,
        layers=layers - 1 if opens and not large and part.get("text_projection") is not None else layers,
        heads=max(width // 64, 1),
        inner=shapes.side(f"{layer}.0.mlp.{'c_fc' if opens else 'fc1'}.weight", 0),
        vocabulary=vocabulary,
        length=shapes.side(place, 0),
        end=min(49407, vocabulary - 1),
        quick=not opens,
        projection=shapes.side("text_projection", 1) if opens and large else 0,
        skip=int(large),
        final_norm=not large,
    )


def _habits(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], prediction: str | None
) -> Habits:
    """What the kind decides, and what it predicts: by the option, by a mark in the file, by a .yaml beside it, and
    for all but Stable Diffusion 2 by its kind. InputError where none of them says."""
    file, family = checkpoint.where, checkpoint.family
    marks = (metadata.get("modelspec.prediction_type"), metadata.get("modelspec.architecture"))
    found = prediction or PREDICTIONS.get(str(marks[0]))
    if found is None and ("v_pred" in tensors or (marks[1] or "").endswith("-v")):
        found = "v"
    beside = file.with_suffix(".yaml")
    if found is None and beside.is_file():
        text = beside.read_text(encoding="utf-8", errors="replace")
        found = "v" if re.search(r"parameterization:\s*[\"']?v\b", text) else "eps"
    if found is None and (family != "2" or checkpoint.unet.beside):
        found = "eps"
    if found is None:
        raise InputError(
            f"{file}: is a Stable Diffusion 2, and its tensors do not tell whether it predicts v (the models of 768 "
            f"pixels) or eps (those of 512); decide with --prediction v or --prediction eps"
        )
    size = 1024 if family.startswith("xl") else 768 if family == "2" and found == "v" else 512
    few = bool(checkpoint.unet.guidance_width)
    snr = "ztsnr" in tensors
    return Habits(
        table=replace(STABLE_DIFFUSION, zero_snr=snr), prediction=found, sampler="lcm" if few else "dpmpp_2m",
        spacing="trailing" if snr else None, size=size,
    )  # fmt: skip
