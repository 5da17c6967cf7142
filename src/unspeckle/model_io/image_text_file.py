"""The file of an ImageTextModel, a CLIP of our own: its tensors, and all that explains them as JSON in its metadata."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from unspeckle import configuration
from unspeckle.atomic import replace_file
from unspeckle.errors import InputError
from unspeckle.formats.safetensors_io import check_tensors, read_safetensors
from unspeckle.model_io.model_file import FORMAT, IMAGE_TEXT_KIND, MODEL_FILE, MODEL_METADATA_KEY, NoInitialization
from unspeckle.text.image_text_encoder import ImageTextCard, ImageTextConfig, ImageTextEncoder, ImageTextModel
from unspeckle.text.tokenizer import Tokenizer


def save_image_text_model(model: ImageTextModel, path: str | Path) -> None:
    """Write the model as one file, atomically."""
    metadata = {
        "format": FORMAT,
        "kind": IMAGE_TEXT_KIND,
        "encoder": configuration.to_json(model.encoder.config),
        "tokenizer": model.tokenizer.to_json(),
        "card": configuration.to_json(model.card),
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.encoder.state_dict().items()}
    with replace_file(Path(path)) as temp_file:
        save_file(tensors, temp_file, {MODEL_METADATA_KEY: json.dumps(metadata)})


def load_image_text_model(path: str | Path) -> ImageTextModel:
    """The model of a file, or of the RUN folder of `train --kind clip`. InputError, one line, where it is none, or
    damaged."""
    file = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a model of `train --kind clip`")
    all_metadata, tensors = read_safetensors(file)
    try:
        metadata: Any = json.loads(all_metadata.get(MODEL_METADATA_KEY, "{}"))
        if not isinstance(metadata, dict) or metadata.get("kind") != IMAGE_TEXT_KIND:
            raise InputError(f"{file}: is no model of `train --kind clip`")
        config = configuration.from_json(ImageTextConfig, metadata["encoder"], f"{file}: encoder")
        with NoInitialization():
            encoder = ImageTextEncoder(config)
        check_tensors(encoder.state_dict(), tensors, file)
        encoder.load_state_dict(tensors, assign=True)
        tokenizer = Tokenizer.from_json(metadata["tokenizer"])
        card = configuration.from_json(ImageTextCard, metadata["card"], f"{file}: card")
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, RecursionError) as e:
        raise InputError(f"{file}: cannot be read as a model ({type(e).__name__}: {str(e)[:100]})") from e
    encoder.eval().requires_grad_(False)
    return ImageTextModel(encoder, tokenizer, card)
