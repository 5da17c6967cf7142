"""int8 weights: off by at most half a step of their row, and as strictly read as all others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from test_model_file import contents, refusal, written
from torch import nn

from tiny_models import random_model, save_random_model
from unspeckle.generation.pipeline import draw
from unspeckle.generation.request import Request
from unspeckle.model_io.loading import load
from unspeckle.model_io.model_file import METADATA_KEY
from unspeckle.model_io.weight_dtypes import SCALE_SUFFIX, decode_weights, encode_weights


def test_int8_is_off_by_half_a_step_of_its_row_at_most(tmp_path: Path) -> None:
    again, model = load(save_random_model(tmp_path, "int8")).state_dict(), random_model()
    matrices = {
        f"{prefix}.{name}.weight"
        for prefix, part in model.modules().items()
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert len(matrices) > 20  # those that begin as zeros among them
    for name, tensor in model.state_dict().items():
        if name in matrices:
            rows, found = tensor.flatten(1), again[name].flatten(1)
            step = rows.abs().amax(1, keepdim=True) / 127
            assert ((rows - found).abs() <= 0.5001 * step).all(), name
            assert not rows.any() or ((rows - found).abs().amax(1, keepdim=True) > 0.2 * step).any()
        else:
            assert torch.equal(again[name], tensor.bfloat16().float()), name


def test_int8_quarters_the_file_and_says_so(tmp_path: Path) -> None:
    path = save_random_model(tmp_path, "int8")
    size = path.stat().st_size
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()[METADATA_KEY])["dtype"] == "int8"
    matrices = sum(t.numel() for t in contents(path)[1].values() if t.dtype == torch.int8)
    rest = sum(t.numel() for t in random_model().state_dict().values()) - matrices
    assert size < matrices + 2 * rest + 60_000
    assert size < 0.45 * save_random_model(tmp_path).stat().st_size


def test_a_row_of_zeros_and_kernels_in_channels_last_order() -> None:
    layer = nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)
    with torch.no_grad():
        layer.weight[1] = 0
    found = decode_weights(encode_weights({"part": layer}, "int8"), Path("file"))["part.weight"]
    assert (found[1] == 0).all() and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        found, layer.weight.detach(), rtol=0, atol=float(layer.weight.detach().abs().max()) / 250
    )


def test_pictures_hardly_change(tmp_path: Path) -> None:
    ask = Request("a frog", seed=3)
    one, other = (
        np.asarray(draw(m, ask)[0], float) for m in (random_model(), load(save_random_model(tmp_path, "int8")))
    )
    assert 0 < np.abs(one - other).mean() < 5  # of 255, and this network was never trained to be smooth


def test_int8_is_read_strictly(tmp_path: Path) -> None:
    said, tensors = contents(save_random_model(tmp_path, "int8"))
    path, name = tmp_path / "bad.safetensors", "network.conv_in.weight"
    scale = name + SCALE_SUFFIX
    assert f"lacks the tensor '{scale}'" in refusal(
        written(path, said, {k: v for k, v in tensors.items() if k != scale})
    )
    for bad in (tensors[scale][1:].clone(), tensors[scale].long()):
        assert "does not fit" in refusal(written(path, said, {**tensors, scale: bad}))
    hollow = tensors[scale].clone()
    hollow[0] = torch.inf
    assert "not finite" in refusal(written(path, said, {**tensors, scale: hollow}))
    stray = {**tensors, "network.norm.weight" + SCALE_SUFFIX: torch.ones(3)}
    assert "spare tensor 'network.norm.weight.scale'" in refusal(written(path, said, stray))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_what_was_stored_is_stored_again_as_it_was(tmp_path: Path, dtype: str) -> None:
    from unspeckle.model_io.model_file import save

    model = load(save_random_model(tmp_path, dtype))
    save(model, tmp_path / "again.safetensors", dtype)
    assert load(tmp_path / "again.safetensors").hash == model.hash
