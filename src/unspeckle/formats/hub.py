"""A name on the Hugging Face hub as a folder: from its cache, or by its own client."""

import re
from pathlib import Path

from unspeckle.errors import InputError
from unspeckle.formats.folder import INDEX

_FILES = ("*.json", "*/*.json", "*/*.txt", "*/*.safetensors")
_OTHERS = ("*non_ema*", "*.fp16.*", "*.bf16.*", "safety_checker/*", "*flax*", "*openvino*", "*onnx*")


def is_name(text: str) -> bool:
    """Whether it looks like OWNER/NAME."""
    return re.fullmatch(r"[\w][\w.-]{0,95}[/\\][\w][\w.-]{0,95}", text) is not None


def fetch(name: str) -> Path:
    """The folder of the model of that name: as it lies in the hub's cache, else downloaded into it (in full precision;
    the safety checker stays there). InputError where it is in neither."""
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError as e:
        raise InputError(f"{name}: no such file; for a name on the hub: pip install 'unspeckle[hub]'") from e
    try:
        here = Path(snapshot_download(name, local_files_only=True))
        if (here / INDEX).is_file():
            return here
    except Exception:  # it is not there: the client has many words for that
        pass
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{name}: no such file, and the hub's cache has no model of that name (HF_HUB_OFFLINE is set)")
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES), ignore_patterns=list(_OTHERS)))
    except Exception as e:
        said = re.sub(r"\s+", " ", str(e))[:100]
        raise InputError(f"{name}: no such file, and not to be had from the hub ({type(e).__name__}: {said})") from e
