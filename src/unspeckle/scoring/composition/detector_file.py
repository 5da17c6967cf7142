"""A detector as one safetensors file: its configuration in the metadata, its tensors by name."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unspeckle import configuration, old_names
from unspeckle.atomic import replace_file
from unspeckle.errors import InputError
from unspeckle.scoring.composition.detector import Detector, DetectorConfig

DETECTOR_METADATA_KEY = "unspeckle detector"


def save_detector(detector: Detector, path: Path) -> None:
    """Write the detector atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    with replace_file(path) as temporary_path:
        save_file(tensors, temporary_path, {DETECTOR_METADATA_KEY: json.dumps(configuration.to_json(detector.config))})


def load_detector(path: Path) -> Detector:
    """Read a detector, of this version or of 0.1.

    InputError if the file is missing, is not a detector, or does not fit its own configuration.
    """
    hint = "delete it, and it will be trained again"
    try:
        with safe_open(path, framework="pt") as file:
            config_json = (file.metadata() or {}).get(DETECTOR_METADATA_KEY)
            tensors = {
                old_names.rename_tensor("detector", name): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
            }
        if config_json is None:
            raise InputError(f"{path}: is not a detector of unspeckle; {hint}")
        config = old_names.rename_fields(json.loads(config_json), old_names.DETECTOR)
        detector = Detector(configuration.from_json(DetectorConfig, config, str(path)))
        detector.load_state_dict(tensors)
    except (OSError, SafetensorError, AttributeError, ValueError, RuntimeError) as e:
        raise InputError(f"{path}: cannot be read as a detector ({' '.join(str(e).split())[:100]}); {hint}") from e
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(f"{path}: contains values that are not finite; {hint}")
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return detector.eval()
