"""Names on the hub: what is fetched of a repository, and what is found in the hub's cache, whoever put it there."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import stable_diffusion_files
import unspeckle
from conftest import SDFolder
from unspeckle.errors import InputError
from unspeckle.model_io import hub

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TENSORS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
SPARE = ("README.md", "v1-pruned.safetensors", "safety_checker/config.json", "safety_checker/model.safetensors",
         "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
         "text_encoder/flax_model.msgpack", "vae_decoder/model.onnx")  # fmt: skip


@pytest.fixture
def folder(sd_folder: SDFolder) -> Path:
    return sd_folder("1", half=True)


def repository(folder: Path, place: Path, spare: tuple[str, ...] = SPARE) -> list[str]:
    """A repository like many on the hub: the folder with other things in it; the names of its files."""
    shutil.copytree(folder, place)
    for name in spare:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"not to be read")
    return sorted(file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file())


def cached(cache: Path, folder: Path, files: list[str], monkeypatch: Any) -> Path:
    """The folder as snapshot of someone/tiny in the hub's cache, which knows which files the repository has."""
    place = cache / "models--someone--tiny"
    shutil.copytree(folder, place / "snapshots" / COMMIT)
    for name, text in (
        ("refs/main", COMMIT),
        (f"trees/{COMMIT}.json",
         json.dumps({"format_version": 1, "files": {file: {"size": 14, "blob_id": "0" * 40} for file in files}})),
    ):  # fmt: skip
        (place / name).parent.mkdir()
        (place / name).write_text(text)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return place / "snapshots" / COMMIT


def test_a_snapshot_is_found_though_its_repository_has_more(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    here = cached(tmp_path / "cache", folder, repository(folder, tmp_path / "all"), monkeypatch)
    assert hub.download_snapshot("someone/tiny") == here
    assert unspeckle.load("someone/tiny").hash == unspeckle.load(folder).hash
    with pytest.raises(InputError, match="someone/else: no such file, and the hub's cache has no model of that name"):
        unspeckle.load("someone/else")


def test_a_snapshot_is_found_that_another_program_fetched_in_half_precision(
    folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    files = repository(folder, tmp_path / "all")
    here = cached(tmp_path / "cache", folder, files, monkeypatch)
    for part, name in TENSORS.items():
        (here / part / f"{name}.safetensors").rename(here / part / f"{name}.fp16.safetensors")
    assert hub.download_snapshot("someone/tiny") == here


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "unet: holds no .safetensors file"),
        ("text_encoder/config.json", "text_encoder/config.json: is not there"),
        ("scheduler/scheduler_config.json", "scheduler_config.json: is not there"),
        ("model_index.json", "no model of that name"),
        ("tokenizer", "tokenizer is not there"),
    ],
)
def test_a_snapshot_that_lacks_what_is_read_is_none(
    gone: str, says: str, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    here = cached(tmp_path / "cache", folder, repository(folder, tmp_path / "all"), monkeypatch)
    (shutil.rmtree if gone == "tokenizer" else Path.unlink)(here / gone)
    with pytest.raises(InputError) as caught:
        hub.download_snapshot("someone/tiny")
    assert says in str(caught.value) and "HF_HUB_OFFLINE" in str(caught.value) and "\n" not in str(caught.value)


def test_of_each_part_one_precision_is_wanted() -> None:
    plain, small, shard = "unet/a.safetensors", "unet/a.fp16.safetensors", "unet/a{}-0000{}-of-00002{}.safetensors"
    shards = [shard.format("", n, "") for n in (1, 2)]
    for small_shards in (
        [shard.format(".fp16", n, "") for n in (1, 2)],
        [shard.format("", n, ".fp16") for n in (1, 2)],
    ):
        small_shards += ["unet/a.safetensors.index.fp16.json"]
        assert hub.files_to_download(["unet/config.json", *small_shards]) == ["unet/config.json", *small_shards]
        assert hub.files_to_download([*small_shards, *shards, "unet/a.safetensors.index.json"]) == [
            *shards, "unet/a.safetensors.index.json"
        ]  # fmt: skip
    assert hub.files_to_download([small, plain, "unet/a.bf16.safetensors"]) == [plain]
    assert hub.files_to_download(["unet/a.bf16.safetensors", small, "unet/a.non_ema.safetensors"]) == [small]
    assert hub.files_to_download([plain, "vae/b.fp16.safetensors"]) == [plain, "vae/b.fp16.safetensors"]
    assert hub.files_to_download([f"{part}/x.safetensors" for part in ("safety_checker", "vae_1_0", "unet/onnx")]) == []
    assert hub.files_to_download(["model_index.json", "whole.safetensors", "config.json"]) == ["model_index.json"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: Any) -> Iterator[Path]:
    """A folder whose folders OWNER/NAME are repositories of the hub that the client asks."""
    place = tmp_path / "site"

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/models/").lstrip("/")
            name = "/".join(path.split("/")[:2])
            files = [file for file in (place / name).rglob("*") if file.is_file()]
            about = {"id": name, "sha": COMMIT, "siblings": []}
            listed = [
                {"type": "file", "path": file.relative_to(place / name).as_posix(), "size": file.stat().st_size,
                 "oid": "0" * 40}
                for file in files
            ]  # fmt: skip
            asked: Any = None
            if "/resolve/" in path:
                asked = (place / name / path.split(f"/resolve/{COMMIT}/")[1]).read_bytes()
            elif files:
                asked = json.dumps(listed if "/tree/" in path else about).encode()
            self.send_response(404 if asked is None else 200)
            for header, value in (
                ("Content-Length", str(len(asked or b""))), ("X-Repo-Commit", COMMIT),
                ("ETag", f'"{abs(hash(asked)):x}"'), ("X-Error-Code", "" if asked else "RepoNotFound"),
            ):  # fmt: skip
                self.send_header(header, value)
            self.end_headers()
            if asked and self.command == "GET":
                self.wfile.write(asked)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", here + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield place
    server.shutdown()


def test_a_repository_is_fetched_and_then_found_without_a_network(folder: Path, site: Path, monkeypatch: Any) -> None:
    (site / "someone").mkdir(parents=True)
    repository(folder, site / "someone" / "tiny")
    half = site / "someone" / "half"
    shutil.copytree(folder, half)
    for part, name in TENSORS.items():
        (half / part / f"{name}.safetensors").rename(half / part / f"{name}.fp16.safetensors")
    (site / "someone" / "other").mkdir()
    (site / "someone" / "other" / "model.safetensors").write_bytes(b"")
    for name in ("someone/tiny", "someone/half"):
        assert unspeckle.load(name).hash == unspeckle.load(folder).hash
        assert name == "someone/half" or not [
            spare for spare in SPARE if (hub.download_snapshot(name) / spare).exists()
        ]
    with pytest.raises(InputError, match=r"someone/other: is on the hub without a model_index.json"):
        hub.download_snapshot("someone/other")
    flux = site / "someone" / "flux"
    shutil.copytree(folder, flux)
    (flux / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(InputError, match="is a FluxPipeline; only Stable Diffusion 1, 2 and XL are known here"):
        hub.download_snapshot("someone/flux")
    assert not list(site.parent.glob("cache/models--someone--flux/snapshots/*/unet/*"))  # gigabytes, elsewhere
    with pytest.raises(InputError, match="someone/none: no such file, the hub's cache has no model of that name, and"):
        hub.download_snapshot("someone/none")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert [hub.download_snapshot(name).parents[1].name for name in ("someone/tiny", "someone/half")] == [
        "models--someone--tiny", "models--someone--half"
    ]  # fmt: skip
