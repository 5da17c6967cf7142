"""Features of networks that others trained, from the usual hubs or from a path: what the literature compares by.

inception  the pooled 2,048 of the Inception network of 2015 (Heusel et al. 2017), pictures made 299 pixels wide as
           clean-fid does (Parmar et al. 2022)
dinov2     the class token of DINOv2 (Oquab et al. 2023; as a judge, Stein et al. 2023)
clip       CLIP's picture embedding, of length 1 (Radford et al. 2021; CMMD, Jayasumana et al. 2024), and how well it
           fits a caption (the CLIP score, Hessel et al. 2021)

Only safetensors and plain tensors are ever read, never anything that can run code.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from unspeckle.errors import InputError
from unspeckle.scoring.features import Features, digest
from unspeckle.scoring.inception import SIDE, Inception

INCEPTION = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
DINOV2, CLIP = "facebook/dinov2-large", "openai/clip-vit-large-patch14-336"
SHARE = 16  # pictures at once
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def pretrained(name: str, where: str, device: str) -> Features:
    """The features "inception", "dinov2" or "clip"; `where` is a path or a hub's name, or nothing for the usual one.
    InputError, naming the option, where they cannot be had."""
    make: dict[str, Any] = {"inception": Pooled, "dinov2": ClassToken, "clip": Clip}
    features: Features = make[name](where, device)
    return features


class Pooled:
    """Inception's features; with them `distances.frechet` is the FID."""

    def __init__(self, where: str, device: str) -> None:
        tensors = _inception_tensors(where)
        with torch.device("meta"):
            network = Inception()
        wanted = {k for k in network.state_dict() if not k.endswith("num_batches_tracked")}
        held = {k: t for k, t in tensors.items() if not k.endswith("num_batches_tracked")}
        if wrong := sorted(wanted ^ held.keys()):
            raise InputError(f"--features inception:{where}: is not the Inception of FID ({wrong[0]!r} does not fit)")
        network.to_empty(device=device)
        try:
            network.load_state_dict(held, strict=False)
        except RuntimeError as e:
            why = str(e).splitlines()[-1].strip()[:120]
            raise InputError(f"--features inception:{where}: is not the Inception of FID ({why})") from e
        self.network, self.device = network.eval().requires_grad_(False), device
        self.name, self.hash = "inception, pooled", digest("inception", *(held[k] for k in sorted(held)))

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        parts = (((resized(some, SIDE) - 128) / 128).to(self.device) for some in torch.split(pictures, SHARE))
        return torch.cat([self.network(part).cpu() for part in parts])


class _Transformer:
    """A picture transformer of the package transformers, and what pictures must be for it."""

    def __init__(self, kind: str, option: str, where: str, device: str, colours: tuple[Any, Any]) -> None:
        self.network, self.device = _from_hub(kind, option, where).to(device), device
        config = self.network.config
        self.side: int = getattr(config, "vision_config", config).image_size
        self.colours = [torch.tensor(c).view(3, 1, 1) for c in colours]
        state = self.network.state_dict()
        self.name, self.hash = f"{option} {Path(where).name}", digest(option, *(state[k] for k in sorted(state)))

    def prepared(self, pictures: Tensor, side: int) -> Tensor:
        mean, deviation = self.colours
        return ((resized(pictures, side) / 255 - mean) / deviation).to(self.device)


class ClassToken(_Transformer):
    """DINOv2's class token at 224 pixels."""

    def __init__(self, where: str, device: str) -> None:
        super().__init__("Dinov2Model", "dinov2", where or DINOV2, device, _IMAGENET)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        side = 16 * self.network.config.patch_size  # 224 for patches of 14, whatever size it was trained at
        parts = (self.prepared(some, side) for some in torch.split(pictures, SHARE))
        return torch.cat([self.network(pixel_values=part).pooler_output.float().cpu() for part in parts])


class Clip(_Transformer):
    """CLIP's embeddings of pictures and of captions, of length 1."""

    def __init__(self, where: str, device: str) -> None:
        super().__init__("CLIPModel", "clip", where or CLIP, device, _CLIP)
        self.words = _from_hub("CLIPTokenizer", "clip", where or CLIP)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        found = []
        for some in torch.split(pictures, SHARE):
            pooled = self.network.vision_model(pixel_values=self.prepared(some, self.side)).pooler_output
            found.append(F.normalize(self.network.visual_projection(pooled).float(), dim=1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def captions(self, captions: list[str]) -> Tensor:
        """(N, D): a caption's embedding; its ends beyond 77 tokens are lost."""
        found = []
        for first in range(0, len(captions), SHARE):
            told = self.words(captions[first : first + SHARE], padding=True, truncation=True, return_tensors="pt")
            pooled = self.network.text_model(**told.to(self.device)).pooler_output
            found.append(F.normalize(self.network.text_projection(pooled).float(), dim=1).cpu())
        return torch.cat(found)

    @staticmethod
    def score(pictures: Tensor, captions: Tensor) -> float:
        """The CLIP score of embeddings (N, D) and (N, D): 100 · max(cos, 0), on average. Hessel et al. 2021, whose
        factor is 2.5 instead of 100."""
        return float(100 * (pictures * captions).sum(1).clamp(min=0).mean())


def resized(pictures: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) uint8 as (B, 3, side, side) float32 of 0 to 255: each colour by Pillow's bicubic filter, which
    widens where pictures shrink, and never rounded. Parmar et al. 2022."""
    colours = pictures.cpu().flatten(0, 1).to(torch.float32).numpy()
    made = [Image.fromarray(colour).resize((side, side), Image.Resampling.BICUBIC) for colour in colours]
    return torch.from_numpy(np.stack([np.asarray(one) for one in made])).clamp(0, 255).view(-1, 3, side, side)


def _inception_tensors(where: str) -> dict[str, Tensor]:
    try:
        if where:
            if not Path(where).is_file():
                raise InputError(f"--features inception:{where}: no such file; give {INCEPTION.rsplit('/')[-1]}")
            tensors = torch.load(where, map_location="cpu", weights_only=True)
        else:
            tensors = torch.hub.load_state_dict_from_url(
                INCEPTION, map_location="cpu", weights_only=True, check_hash=True, progress=False
            )
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as e:
        why = " ".join(str(e).split())[:80]
        raise InputError(f"--features inception: {where or INCEPTION} cannot be read ({why}); get it again") from e
    except OSError as e:  # URLError among them
        raise InputError(
            f"--features inception: {INCEPTION} cannot be fetched; give inception:FILE with its copy"
        ) from e
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise InputError(f"--features inception:{where}: holds no tensors by name; get {INCEPTION}")
    return tensors


def _from_hub(kind: str, option: str, where: str) -> Any:
    """A class of transformers from a folder, the hub's cache or the hub."""
    try:
        import transformers
    except ImportError as e:
        raise InputError(f"--features {option}: needs more packages; pip install 'unspeckle[score]'") from e
    quiet: Any = transformers.utils.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    safe = {} if kind.endswith("Tokenizer") else {"use_safetensors": True}
    try:
        found = getattr(transformers, kind).from_pretrained(where, **safe)
    except Exception as e:  # whatever its parts raise for a file they do not like
        why = " ".join(str(e).split())[:100]
        raise InputError(
            f"--features {option}:{where}: cannot be loaded ({why}); give {option}:FOLDER with its config.json and "
            "model.safetensors, or a name on the hub"
        ) from e
    return found.eval().requires_grad_(False) if isinstance(found, nn.Module) else found
