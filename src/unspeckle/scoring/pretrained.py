"""Features of pretrained networks, from their usual hubs or from a local path: those that the literature compares by.

inception  the 2,048 pooled features of the Inception network of 2015 (Heusel et al. 2017), of images resized to 299 ×
           299 pixels as clean-fid does (Parmar et al. 2022)
dinov2     the class token of DINOv2 (Oquab et al. 2023; for evaluation, Stein et al. 2023)
clip       CLIP's image embedding of length 1 (Radford et al. 2021; for CMMD, Jayasumana et al. 2024), and how well it
           matches a caption (CLIP score, Hessel et al. 2021)

Only safetensors and plain tensors are read, never anything that can run code.
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
from unspeckle.scoring.features import FeatureExtractor, hash_tensors
from unspeckle.scoring.inception import INPUT_SIZE, InceptionV3

INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
DINOV2_REPO, CLIP_REPO = "facebook/dinov2-large", "openai/clip-vit-large-patch14-336"
PRETRAINED_FEATURES = ("inception", "dinov2", "clip")
BATCH_SIZE = 16  # images in one call of a network
MeanStd = tuple[tuple[float, float, float], tuple[float, float, float]]
_IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP_MEAN_STD = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def load_pretrained_features(name: str, source: str, device: str) -> FeatureExtractor:
    """The features "inception", "dinov2" or "clip".

    source is a local path or a name on the hub, or empty for the usual weights. InputError, naming the option
    --features, if they cannot be loaded.
    """
    match name:
        case "inception":
            return InceptionFeatures(source, device)
        case "dinov2":
            return DinoV2Features(source, device)
        case _:
            return ClipFeatures(source, device)


class InceptionFeatures:
    """Inception's features, D = 2048; with them distances.frechet_distance is the FID."""

    def __init__(self, path: str, device: str) -> None:
        tensors = _load_inception_weights(path)
        with torch.device("meta"):
            network = InceptionV3()
        expected_keys = {k for k in network.state_dict() if not k.endswith("num_batches_tracked")}
        weights = {k: t for k, t in tensors.items() if not k.endswith("num_batches_tracked")}
        if mismatched_keys := sorted(expected_keys ^ weights.keys()):
            reason = f"tensor {mismatched_keys[0]!r} does not fit"
            raise InputError(f"--features inception:{path}: is not the Inception network of FID ({reason})")
        network.to_empty(device=device)
        try:
            network.load_state_dict(weights, strict=False)
        except RuntimeError as e:
            reason = str(e).splitlines()[-1].strip()[:120]
            raise InputError(f"--features inception:{path}: is not the Inception network of FID ({reason})") from e
        self.network, self.device = network.eval().requires_grad_(False), device
        self.name, self.hash = "inception, pooled", hash_tensors("inception", *(weights[k] for k in sorted(weights)))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        batches = (
            ((resize_bicubic(chunk, INPUT_SIZE) - 128) / 128).to(self.device)
            for chunk in torch.split(images, BATCH_SIZE)
        )
        return torch.cat([self.network(batch).cpu() for batch in batches])


class _VisionTransformer:
    """A vision transformer of the package transformers, and how images are prepared for it."""

    def __init__(self, class_name: str, option: str, source: str, device: str, normalization: MeanStd) -> None:
        self.network, self.device = _load_from_hub(class_name, option, source).to(device), device
        config = self.network.config
        self.image_size: int = getattr(config, "vision_config", config).image_size
        self.normalization = [torch.tensor(c).view(3, 1, 1) for c in normalization]
        state = self.network.state_dict()
        self.name, self.hash = f"{option} {Path(source).name}", hash_tensors(option, *(state[k] for k in sorted(state)))

    def preprocess(self, images: Tensor, size: int) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 3, size, size), normalized."""
        mean, std = self.normalization
        return ((resize_bicubic(images, size) / 255 - mean) / std).to(self.device)


class DinoV2Features(_VisionTransformer):
    """DINOv2's class token for images of 224 × 224 pixels."""

    def __init__(self, source: str, device: str) -> None:
        super().__init__("Dinov2Model", "dinov2", source or DINOV2_REPO, device, _IMAGENET_MEAN_STD)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        size = 16 * self.network.config.patch_size  # 224 for patches of 14, whatever size it was trained with
        batches = (self.preprocess(chunk, size) for chunk in torch.split(images, BATCH_SIZE))
        return torch.cat([self.network(pixel_values=batch).pooler_output.float().cpu() for batch in batches])


class ClipFeatures(_VisionTransformer):
    """CLIP's embeddings of images and of captions, of length 1."""

    def __init__(self, source: str, device: str) -> None:
        super().__init__("CLIPModel", "clip", source or CLIP_REPO, device, _CLIP_MEAN_STD)
        self.tokenizer = _load_from_hub("CLIPTokenizer", "clip", source or CLIP_REPO)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        embeddings = []
        for chunk in torch.split(images, BATCH_SIZE):
            pooled = self.network.vision_model(pixel_values=self.preprocess(chunk, self.image_size)).pooler_output
            embeddings.append(F.normalize(self.network.visual_projection(pooled).float(), dim=1).cpu())
        return torch.cat(embeddings)

    @torch.no_grad()
    def embed_captions(self, captions: list[str]) -> Tensor:
        """(N, D): the captions' embeddings; captions are cut off after 77 tokens."""
        embeddings = []
        for first in range(0, len(captions), BATCH_SIZE):
            tokens = self.tokenizer(
                captions[first : first + BATCH_SIZE], padding=True, truncation=True, return_tensors="pt"
            )
            pooled = self.network.text_model(**tokens.to(self.device)).pooler_output
            embeddings.append(F.normalize(self.network.text_projection(pooled).float(), dim=1).cpu())
        return torch.cat(embeddings)

    @staticmethod
    def clip_score(image_embeddings: Tensor, caption_embeddings: Tensor) -> float:
        """The mean of 100 · max(cos, 0) of the embeddings (N, D) of images and of their captions.

        After Hessel et al. 2021, whose factor is 2.5 instead of 100.
        """
        return float(100 * (image_embeddings * caption_embeddings).sum(1).clamp(min=0).mean())


def resize_bicubic(images: Tensor, size: int) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, size, size) of 0 to 255.

    Each channel is resized by Pillow's antialiased bicubic filter without rounding (Parmar et al. 2022).
    """
    channels = images.cpu().flatten(0, 1).to(torch.float32).numpy()
    resized = [Image.fromarray(channel).resize((size, size), Image.Resampling.BICUBIC) for channel in channels]
    return (
        torch.from_numpy(np.stack([np.asarray(channel) for channel in resized])).clamp(0, 255).view(-1, 3, size, size)
    )


def _load_inception_weights(path: str) -> dict[str, Tensor]:
    """The published file from a local path, or if that is empty from torch's cache or the web."""
    file_name = INCEPTION_URL.rsplit("/")[-1]
    try:
        if path:
            if not Path(path).is_file():
                raise InputError(f"--features inception:{path}: there is no such file; give the path of {file_name}")
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        else:
            tensors = torch.hub.load_state_dict_from_url(
                INCEPTION_URL, map_location="cpu", weights_only=True, check_hash=True, progress=False
            )
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as e:
        reason = " ".join(str(e).split())[:80]
        raise InputError(
            f"--features inception: {path or INCEPTION_URL} cannot be read ({reason}); download it again"
        ) from e
    except OSError as e:  # URLError is one, too
        raise InputError(
            f"--features inception: {INCEPTION_URL} cannot be downloaded; give a local copy as inception:FILE"
        ) from e
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise InputError(f"--features inception:{path}: contains no named tensors; download {INCEPTION_URL}")
    return tensors


def _load_from_hub(class_name: str, option: str, source: str) -> Any:
    """An object of a class of transformers, from a local folder, the hub's cache or the hub."""
    try:
        import transformers
    except ImportError as e:
        raise InputError(
            f"--features {option}: needs the package transformers; install it with pip install 'unspeckle[score]'"
        ) from e
    hf_logging: Any = transformers.utils.logging
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    safetensors_options = {} if class_name.endswith("Tokenizer") else {"use_safetensors": True}
    try:
        loaded = getattr(transformers, class_name).from_pretrained(source, **safetensors_options)
    except Exception as e:  # transformers and its dependencies raise all kinds for files that do not fit
        reason = " ".join(str(e).split())[:100]
        raise InputError(
            f"--features {option}:{source}: cannot be loaded ({reason}); give {option}:FOLDER, a folder with "
            "config.json and model.safetensors, or a name on the Hugging Face hub"
        ) from e
    return loaded.eval().requires_grad_(False) if isinstance(loaded, nn.Module) else loaded
