"""The embeddings of images that an unCLIP model draws from: of given images, mixed or moved by words, instead of those
that its prior draws from the prompt."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from unspeckle.errors import InputError
from unspeckle.generation.request import Request
from unspeckle.model import Model
from unspeckle.unclip import UnCLIPModel

# How far the second of two images, or a text difference, counts if nobody says
DEFAULT_MIX, DEFAULT_WORDS_MIX = 0.5, 0.4
# Options that are about images to draw like
IMAGE_PROMPT_OPTIONS = ("like", "mix", "from_words", "to_words")


def check_image_prompts(model: Model, request: Request) -> float | None:
    """The request's mix, checked or chosen; None where nothing is mixed. InputError where images to draw like do not
    fit the model or one another."""
    given = [name for name in IMAGE_PROMPT_OPTIONS if getattr(request, name) not in (None, (), "")]
    if not given:
        return None
    if not isinstance(model, UnCLIPModel):
        raise InputError(
            f": needs a model of `train --kind unclip`, and {model.card.name!r} is none; choose one with `model`",
            given[0],
        )
    if not request.like:
        raise InputError(": there is no image to change; give `like` as well", given[0])
    if any(not isinstance(image, Image.Image) for image in request.images_like) or len(request.images_like) > 2:
        raise InputError(": must be one or two PIL images", "like")
    has_words = bool(request.from_words or request.to_words)
    if has_words and len(request.images_like) > 1:
        raise InputError(": goes with one image only; leave out the second `like`", "to_words")
    if has_words and not (request.from_words and request.to_words):
        missing = "to_words" if request.from_words else "from_words"
        raise InputError(
            f": the difference of two texts moves the image; give `{missing}` as well",
            "from_words" if request.from_words else "to_words",
        )
    if len(request.images_like) == 1 and not has_words:
        if request.mix is not None:
            raise InputError(": there is nothing to mix; give a second `like`, or `from_words` and `to_words`", "mix")
        return None
    mix = request.mix if request.mix is not None else DEFAULT_WORDS_MIX if has_words else DEFAULT_MIX
    if isinstance(mix, bool) or not isinstance(mix, int | float) or not 0 <= mix <= 1:
        raise InputError(f" {mix!r}: must be a number from 0 to 1", "mix")
    return float(mix)


def embed_image_prompts(model: UnCLIPModel, request: Request) -> Tensor:
    """The embedding (1, D) of the images to draw like: of one, of both mixed, or of one moved from some words to
    others."""
    images = model.embed_images(request.images_like)
    if len(images) == 2:
        return slerp(images[:1], images[1:], request.mix or 0.0)
    if not request.to_words:
        return images
    to_text, from_text = model.embed_texts([request.to_words, request.from_words])
    # Ramesh et al. 2022, section 3.3: toward the difference of the texts
    difference = torch.nn.functional.normalize(to_text - from_text, dim=0)[None]
    return slerp(images, difference, request.mix or 0.0)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From unit vectors a (B, D) to b (B, D) along the sphere: a at share 0, b at share 1 (Shoemake 1985)."""
    if share in (0.0, 1.0):
        return b if share else a
    angle = (a * b).sum(dim=1, keepdim=True).clamp(-1, 1).acos()
    if bool((angle.sin() < 1e-4).any()):
        return torch.nn.functional.normalize((1 - share) * a + share * b, dim=1)
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


def prior_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds of the prior's noise for images of these seeds, which have noise of their own."""
    return [seed ^ (1 << 63) for seed in seeds]


def upsampler_seeds(seeds: Sequence[int]) -> list[int]:
    """The same for an upsampler's noise."""
    return [seed ^ (1 << 62) for seed in seeds]
