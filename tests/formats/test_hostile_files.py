"""Files that are damaged or made to do harm: one line says what is wrong, nothing crashes and no code is run."""

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import SDFolder
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion import writing
from unspeckle.formats.stable_diffusion.checkpoint import StableDiffusionCheckpoint
from unspeckle.model_io.loading import open_checkpoint

JUNK: list[Any] = [None, -1, 0, 1e300, "x", "", [], {}, [0], [[64]], True, 1 << 70, {"a": [None]}, "é" * 999, [64, "x"]]
# Settings that do not change how an image is computed
_IGNORED_SETTINGS = {
    "attention_type", "dropout", "attention_dropout", "initializer_factor", "initializer_range", "force_upcast",
    "transformers_version", "dtype", "upcast_attention", "mid_block_only_cross_attention", "clip_sample_range",
    "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "pad_token_id", "bos_token_id",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(sd_folder: SDFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder "pipe" and a single file "model.safetensors" of the same tiny model, with its vocabulary."""
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(sd_folder("1", half=True), folder / "pipe")
    for file in (folder / "pipe" / "tokenizer").iterdir():
        shutil.copy(file, folder / file.name)
    checkpoint = open_checkpoint(folder / "pipe")
    assert isinstance(checkpoint, StableDiffusionCheckpoint)
    writing.write_single_file(checkpoint, folder / "model.safetensors")
    return folder


def error_line(path: Path) -> str:
    """The one line with which the path is refused; "" where it is read after all."""
    try:
        open_checkpoint(path)
    except InputError as e:
        line = str(e)
        if "\n" in line or len(line) > 1200:
            pytest.fail(line[:300])
        return line
    return ""


def split_header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a .safetensors file, and the bytes behind it."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: Any, rest: bytes, length: int | None = None) -> bytes:
    """A .safetensors file of that header. length: what it says of the header's, if not the truth."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + rest


def with_wrong_entry(header: dict[str, Any], rest: bytes, rng: random.Random) -> bytes:
    """The file with one entry of its header changed."""
    names = [name for name in header if name != "__metadata__"]
    wrong, name = json.loads(json.dumps(header)), rng.choice(names)
    match rng.randrange(7):
        case 0:
            del wrong[name]
        case 1:
            wrong[rng.choice((name + "x", "model.diffusion_model.spare", "..", "x" * 5000))] = wrong.pop(name)
        case 2:
            wrong[name]["shape"] = rng.choice((wrong[name]["shape"][::-1], [1 << 62, 4], [-1], [], "x", [0]))
        case 3:
            wrong[name]["dtype"] = rng.choice(("F64", "I64", "F8_E4M3", "BOOL", "F4", "U8", "", 7))
        case 4:
            wrong[name]["data_offsets"] = rng.choice(([0, 2**63], [5, 1], [0, 0], wrong[rng.choice(names)]))
        case 5:
            wrong[name] = rng.choice(JUNK)
        case _:
            wrong["__metadata__"] = rng.choice(JUNK)
    return with_header(wrong, rest)


def test_200_damaged_single_files(root: Path) -> None:
    file, rng = root / "mutated.safetensors", random.Random(0)
    content = (root / "model.safetensors").read_bytes()
    header, rest = split_header(content)
    mutants = [content[: rng.randrange(len(content))] for _ in range(30)]
    for _ in range(60):  # changed bytes in the header
        header_bytes = bytearray(content[: len(content) - len(rest)])
        for _ in range(rng.choice((1, 3, 30))):
            header_bytes[rng.randrange(len(header_bytes))] = rng.randrange(256)
        mutants.append(bytes(header_bytes) + rest)
    for length in (0, 1, 2**31, 2**63, 2**64 - 1, len(content)):
        mutants.append(with_header(header, rest, length))
    mutants += [with_wrong_entry(header, rest, rng) for _ in range(110)]
    mutants += [b"", b"{", b"PK\3\4", b"\x80\x02" + content, bytes(99), with_header([], b""), with_header({}, b"")]
    mutants.append(struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_990 + b"\n" * 5)
    assert len(mutants) >= 200
    lines = []
    for mutant in mutants:
        file.write_bytes(mutant)
        lines.append(error_line(file))
    assert sum(bool(line) for line in lines) >= 0.9 * len(mutants)  # some bytes of a header do not matter
    assert all(str(file) in line for line in lines if line)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors, name: tensors.pop(name), "lacks the tensor '{}'"),
        (
            lambda tensors, name: tensors.update({name + ".more": tensors[name].clone()}),
            "has an unexpected tensor '{}.more'",
        ),
        (lambda tensors, name: tensors.update({name: tensors[name][:1]}), "tensor '{}' is "),
        (
            lambda tensors, name: tensors.update({name: tensors[name] * torch.nan}),
            "tensor '{}' holds values that are not finite",
        ),
        (lambda tensors, name: tensors.update({name: tensors[name].long()}), "tensor '{}' holds torch.int64"),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn2.to_v.weight",
        "first_stage_model.decoder.up.1.block.0.norm1.bias",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.weight",
    ],
)
def test_each_fault_is_named(root: Path, damage: Any, message: str, name: str) -> None:
    tensors = load_file(root / "model.safetensors")
    damage(tensors, name)
    save_file(tensors, root / "faulty.safetensors")
    line = error_line(root / "faulty.safetensors")
    assert message.split("{}")[0] in line and ".".join(name.split(".")[-3:]) in line, line


def test_damaged_folders(root: Path, tmp_path: Path) -> None:
    """Every setting of every JSON file replaced by junk, one at a time, and whole files that are no JSON."""
    folder, rng = tmp_path / "pipe", random.Random(1)
    shutil.copytree(root / "pipe", folder)
    files = [folder / "model_index.json", *sorted(folder.glob("*/*config.json"))]
    count = refusals = 0
    for file in files:
        text = file.read_text()
        settings = json.loads(text)
        for key in settings:
            if key.startswith("_") or key in _IGNORED_SETTINGS or (settings[key] is None and rng.random() < 0.5):
                continue
            file.write_text(json.dumps({**settings, key: rng.choice(JUNK)}))
            refusals += bool(error_line(folder))
            count += 1
        for broken in ("", "[]", "nul", "[" * 100_000, "\xff"):
            file.write_text(broken, encoding="latin-1")
            assert file.name == "tokenizer_config.json" or error_line(folder), (file, broken[:9])
        file.write_text(text)
    assert error_line(folder) == "" and count > 50 and refusals > 35


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight"], "is a LoRA"),
        (["decoder.conv_in.weight"], "is an autoencoder"),
        (["double_blocks.0.img_attn.qkv.weight"], r"no supported U-Net, only 1 tensors such as 'double_blocks"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "lacks the tensor"),
        ([], "is empty"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_described(tmp_path: Path, names: list[str], message: str) -> None:
    save_file({name: torch.zeros(4, 4) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path / "other.safetensors")


def test_the_command_line_prints_one_line(root: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "bad.safetensors").write_bytes((root / "model.safetensors").read_bytes()[:5000])
    assert main(["draw", "a frog", "--model", str(tmp_path / "bad.safetensors"), "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "bad.safetensors: is damaged or cut off" in printed.err
