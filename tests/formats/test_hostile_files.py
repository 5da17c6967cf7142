"""Files that are damaged or made to harm: one line says what is wrong, nothing crashes and nothing is run."""

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import stable_diffusion_files
from unspeckle.cli import main
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion import writing
from unspeckle.model_io.loading import open_checkpoint

JUNK: list[Any] = [None, -1, 0, 1e300, "x", "", [], {}, [0], [[64]], True, 1 << 70, {"a": [None]}, "é" * 999, [64, "x"]]
_UNREAD = {  # settings that say nothing of how a picture is computed here
    "attention_type", "dropout", "attention_dropout", "initializer_factor", "initializer_range", "force_upcast",
    "transformers_version", "dtype", "upcast_attention", "mid_block_only_cross_attention", "clip_sample_range",
    "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "pad_token_id", "bos_token_id",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    """A folder "pipe" and a single file "model.safetensors" of the same tiny model, with its vocabulary."""
    root = tmp_path_factory.mktemp("hostile")
    stable_diffusion_files.tiny_pipeline("1", root / "scratch").to(torch.float16).save_pretrained(root / "pipe")
    for file in (root / "pipe" / "tokenizer").iterdir():
        shutil.copy(file, root / file.name)
    found = open_checkpoint(root / "pipe")
    assert found is not None
    writing.write_single_file(found, root / "model.safetensors")
    return root


def refused(path: Path) -> str:
    """The one line with which the path is refused, "" where it is read after all."""
    try:
        open_checkpoint(path)
    except InputError as e:
        line = str(e)
        if "\n" in line or len(line) > 1200:
            pytest.fail(line[:300])
        return line
    return ""


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: Any, rest: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + rest


def test_200_damaged_single_files(place: Path) -> None:
    file, draw = place / "mutated.safetensors", random.Random(0)
    data = (place / "model.safetensors").read_bytes()
    header, rest = header_of(data)
    names = [name for name in header if name != "__metadata__"]
    mutants = [data[: draw.randrange(len(data))] for _ in range(30)]
    for _ in range(60):  # flipped bytes in the header
        many = bytearray(data[: len(data) - len(rest)])
        for _ in range(draw.choice((1, 3, 30))):
            many[draw.randrange(len(many))] = draw.randrange(256)
        mutants.append(bytes(many) + rest)
    for length in (0, 1, 2**31, 2**63, 2**64 - 1, len(data)):
        mutants.append(with_header(header, rest, length))
    for _ in range(110):  # entries that lie
        lies, name = json.loads(json.dumps(header)), draw.choice(names)
        match draw.randrange(7):
            case 0:
                del lies[name]
            case 1:
                lies[draw.choice((name + "x", "model.diffusion_model.spare", "..", "x" * 5000))] = lies.pop(name)
            case 2:
                lies[name]["shape"] = draw.choice((lies[name]["shape"][::-1], [1 << 62, 4], [-1], [], "x", [0]))
            case 3:
                lies[name]["dtype"] = draw.choice(("F64", "I64", "F8_E4M3", "BOOL", "F4", "U8", "", 7))
            case 4:
                lies[name]["data_offsets"] = draw.choice(([0, 2**63], [5, 1], [0, 0], lies[draw.choice(names)]))
            case 5:
                lies[name] = draw.choice(JUNK)
            case _:
                lies["__metadata__"] = draw.choice(JUNK)
        mutants.append(with_header(lies, rest))
    mutants += [b"", b"{", b"PK\3\4", b"\x80\x02" + data, bytes(99), with_header([], b""), with_header({}, b"")]
    mutants.append(struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_990 + b"\n" * 5)
    assert len(mutants) >= 200
    said = []
    for mutant in mutants:
        file.write_bytes(mutant)
        said.append(refused(file))
    assert sum(bool(line) for line in said) >= 0.9 * len(mutants)  # some bytes of a header do not matter
    assert all(str(file) in line for line in said if line)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda held, name: held.pop(name), "lacks the tensor '{}'"),
        (lambda held, name: held.update({name + ".more": held[name].clone()}), "has a spare tensor '{}.more'"),
        (lambda held, name: held.update({name: held[name][:1]}), "tensor '{}' is "),
        (
            lambda held, name: held.update({name: held[name] * torch.nan}),
            "tensor '{}' holds values that are not finite",
        ),
        (lambda held, name: held.update({name: held[name].long()}), "tensor '{}' holds torch.int64"),
    ],
)
@pytest.mark.parametrize(
    "name",
    ["model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn2.to_v.weight",
     "first_stage_model.decoder.up.1.block.0.norm1.bias",
     "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.weight"],
)  # fmt: skip
def test_each_fault_is_named(place: Path, damage: Any, says: str, name: str) -> None:
    held = load_file(place / "model.safetensors")
    damage(held, name)
    save_file(held, place / "faulty.safetensors")
    line = refused(place / "faulty.safetensors")
    assert says.split("{}")[0] in line and ".".join(name.split(".")[-3:]) in line, line


def test_damaged_folders(place: Path, tmp_path: Path) -> None:
    """Every setting of every JSON file replaced by junk, one at a time, and whole files that are none."""
    folder, draw = tmp_path / "pipe", random.Random(1)
    shutil.copytree(place / "pipe", folder)
    files = [folder / "model_index.json", *sorted(folder.glob("*/*config.json"))]
    count = refusals = 0
    for file in files:
        text = file.read_text()
        said = json.loads(text)
        for key in said:
            if key.startswith("_") or key in _UNREAD or (said[key] is None and draw.random() < 0.5):
                continue
            file.write_text(json.dumps({**said, key: draw.choice(JUNK)}))
            refusals += bool(refused(folder))
            count += 1
        for whole in ("", "[]", "nul", "[" * 100_000, "\xff"):
            file.write_text(whole, encoding="latin-1")
            assert file.name == "tokenizer_config.json" or refused(folder), (file, whole[:9])
        file.write_text(text)
    assert refused(folder) == "" and count > 50 and refusals > 35


@pytest.mark.parametrize(
    ("names", "says"),
    [(["lora_unet_down_blocks_0.lora_up.weight"], "is a LoRA"), (["decoder.conv_in.weight"], "is an autoencoder"),
     (["double_blocks.0.img_attn.qkv.weight"], r"holds no U-Net that is known here but 1 tensors like 'double_blocks"),
     (["model.diffusion_model.input_blocks.0.0.weight"], "lacks the tensor"), ([], "is empty")],
)  # fmt: skip
def test_what_else_it_may_be(tmp_path: Path, names: list[str], says: str) -> None:
    save_file({name: torch.zeros(4, 4) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=says):
        open_checkpoint(tmp_path / "other.safetensors")


def test_the_command_line_says_one_line(place: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "bad.safetensors").write_bytes((place / "model.safetensors").read_bytes()[:5000])
    assert main(["draw", "a frog", "--model", str(tmp_path / "bad.safetensors"), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "bad.safetensors: is damaged or cut off" in said.err
