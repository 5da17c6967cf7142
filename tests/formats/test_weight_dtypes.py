"""int8 weights: off by at most half a step of their row, and read as strictly as all others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from model_files import load_error, read_model_file, write_model_file
from tiny_models import random_model, save_random_model
from unspeckle.formats.weight_dtypes import SCALE_SUFFIX, decode_weights, encode_weights
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import MODEL_METADATA_KEY, save


def test_int8_is_off_by_half_a_step_of_its_row_at_most(tmp_path: Path) -> None:
    loaded, model = load(save_random_model(tmp_path, "int8")).state_dict(), random_model()
    matrices = {
        f"{prefix}.{name}.weight"
        for prefix, module in model.modules().items()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    assert len(matrices) > 20  # those that are initialized to zero among them
    for name, tensor in model.state_dict().items():
        if name in matrices:
            rows, loaded_rows = tensor.flatten(1), loaded[name].flatten(1)
            step = rows.abs().amax(1, keepdim=True) / 127
            error = (rows - loaded_rows).abs()
            assert (error <= 0.5001 * step).all(), name
            assert not rows.any() or (error.amax(1, keepdim=True) > 0.2 * step).any()
        else:
            assert torch.equal(loaded[name], tensor.bfloat16().float()), name


def test_int8_quarters_the_file_and_says_so(tmp_path: Path) -> None:
    path = save_random_model(tmp_path, "int8")
    size = path.stat().st_size
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()[MODEL_METADATA_KEY])["dtype"] == "int8"
    matrix_values = sum(t.numel() for t in read_model_file(path)[1].values() if t.dtype == torch.int8)
    other_values = sum(t.numel() for t in random_model().state_dict().values()) - matrix_values
    assert size < matrix_values + 2 * other_values + 60_000
    assert size < 0.45 * save_random_model(tmp_path).stat().st_size


def test_a_row_of_zeros_and_kernels_in_channels_last_order() -> None:
    layer = nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)
    with torch.no_grad():
        layer.weight[1] = 0
    decoded = decode_weights(encode_weights({"part": layer}, "int8"), Path("file"))["part.weight"]
    assert (decoded[1] == 0).all() and decoded.is_contiguous(memory_format=torch.channels_last)
    weight = layer.weight.detach()
    torch.testing.assert_close(decoded, weight, rtol=0, atol=float(weight.abs().max()) / 250)


def test_images_hardly_change(tmp_path: Path) -> None:
    models = (random_model(), load(save_random_model(tmp_path, "int8")))
    exact, rounded = (np.asarray(draw(model, Request("a frog", seed=3))[0], float) for model in models)
    assert 0 < np.abs(exact - rounded).mean() < 5  # of 255, and this network was never trained to be smooth


def test_int8_is_read_strictly(tmp_path: Path) -> None:
    metadata, tensors = read_model_file(save_random_model(tmp_path, "int8"))
    scale_name = "network.conv_in.weight" + SCALE_SUFFIX

    def error(changed: dict[str, torch.Tensor]) -> str:
        return load_error(write_model_file(tmp_path / "bad.safetensors", metadata, changed))

    without = {name: tensor for name, tensor in tensors.items() if name != scale_name}
    assert f"lacks the tensor '{scale_name}'" in error(without)
    for misfit in (tensors[scale_name][1:].clone(), tensors[scale_name].long()):
        assert "does not fit" in error({**tensors, scale_name: misfit})
    infinite = tensors[scale_name].clone()
    infinite[0] = torch.inf
    assert "not finite" in error({**tensors, scale_name: infinite})
    stray_name = "network.norm.weight" + SCALE_SUFFIX
    assert f"unexpected tensor '{stray_name}'" in error({**tensors, stray_name: torch.ones(3)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_stored_weights_are_stored_again_as_they_were(tmp_path: Path, dtype: str) -> None:
    model = load(save_random_model(tmp_path, dtype))
    save(model, tmp_path / "again.safetensors", dtype)
    assert load(tmp_path / "again.safetensors").hash == model.hash
