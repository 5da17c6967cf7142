"""Names on the hub: what is downloaded of a repository, and what is found in the hub's cache, whoever put it there."""

import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import unspeckle
from conftest import SDFolder
from unspeckle.errors import InputError
from unspeckle.formats.stable_diffusion.diffusers_folder import UNET_COMPONENTS
from unspeckle.model_io import hub

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TENSORS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
OTHER_FILES = ("README.md", "v1-pruned.safetensors", "safety_checker/config.json", "safety_checker/model.safetensors",
         "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
         "text_encoder/flax_model.msgpack", "vae_decoder/model.onnx")  # fmt: skip


@pytest.fixture
def folder(sd_folder: SDFolder) -> Path:
    return sd_folder("1", half=True)


def make_repository(folder: Path, repository: Path, other_files: tuple[str, ...] = OTHER_FILES) -> list[str]:
    """Make a repository like many on the hub, the folder with other files in it; returns the names of all files."""
    shutil.copytree(folder, repository)
    for name in other_files:
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_bytes(b"not to be read")
    return sorted(file.relative_to(repository).as_posix() for file in repository.rglob("*") if file.is_file())


def cache_snapshot(cache: Path, folder: Path, files: list[str], monkeypatch: Any) -> Path:
    """Put the folder into the hub's cache as the snapshot of someone/tiny, with the list of the repository's files."""
    repository = cache / "models--someone--tiny"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    for name, text in (
        ("refs/main", COMMIT),
        (f"trees/{COMMIT}.json",
         json.dumps({"format_version": 1, "files": {file: {"size": 14, "blob_id": "0" * 40} for file in files}})),
    ):  # fmt: skip
        (repository / name).parent.mkdir()
        (repository / name).write_text(text)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository / "snapshots" / COMMIT


def test_a_snapshot_is_found_though_its_repository_has_more(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    snapshot = cache_snapshot(tmp_path / "cache", folder, make_repository(folder, tmp_path / "all"), monkeypatch)
    assert hub.download_snapshot("someone/tiny") == snapshot
    assert unspeckle.load("someone/tiny").hash == unspeckle.load(folder).hash
    with pytest.raises(InputError, match="someone/else: no such file, and the hub's cache has no model of that name"):
        unspeckle.load("someone/else")


def test_a_snapshot_in_half_precision_is_found(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    files = make_repository(folder, tmp_path / "all")
    snapshot = cache_snapshot(tmp_path / "cache", folder, files, monkeypatch)
    for part, name in TENSORS.items():
        (snapshot / part / f"{name}.safetensors").rename(snapshot / part / f"{name}.fp16.safetensors")
    assert hub.download_snapshot("someone/tiny") == snapshot


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "unet: holds no .safetensors file"),
        ("text_encoder/config.json", "text_encoder/config.json: does not exist"),
        ("scheduler/scheduler_config.json", "scheduler_config.json: does not exist"),
        ("model_index.json", "no model of that name"),
        ("tokenizer", "tokenizer does not exist"),
    ],
)
def test_an_incomplete_snapshot_is_refused(
    removed: str, message: str, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    snapshot = cache_snapshot(tmp_path / "cache", folder, make_repository(folder, tmp_path / "all"), monkeypatch)
    (shutil.rmtree if removed == "tokenizer" else Path.unlink)(snapshot / removed)
    with pytest.raises(InputError) as caught:
        hub.download_snapshot("someone/tiny")
    assert message in str(caught.value) and "HF_HUB_OFFLINE" in str(caught.value) and "\n" not in str(caught.value)


def test_of_each_component_one_precision_is_downloaded() -> None:
    needed_files = partial(hub.files_to_download, components=UNET_COMPONENTS)
    plain, half, shard = "unet/a.safetensors", "unet/a.fp16.safetensors", "unet/a{}-0000{}-of-00002{}.safetensors"
    shards = [shard.format("", n, "") for n in (1, 2)]
    for half_shards in (
        [shard.format(".fp16", n, "") for n in (1, 2)],
        [shard.format("", n, ".fp16") for n in (1, 2)],
    ):
        half_shards += ["unet/a.safetensors.index.fp16.json"]
        assert needed_files(["unet/config.json", *half_shards]) == ["unet/config.json", *half_shards]
        assert needed_files([*half_shards, *shards, "unet/a.safetensors.index.json"]) == [
            *shards, "unet/a.safetensors.index.json"
        ]  # fmt: skip
    assert needed_files([half, plain, "unet/a.bf16.safetensors"]) == [plain]
    assert needed_files(["unet/a.bf16.safetensors", half, "unet/a.non_ema.safetensors"]) == [half]
    assert needed_files([plain, "vae/b.fp16.safetensors"]) == [plain, "vae/b.fp16.safetensors"]
    assert needed_files([f"{part}/x.safetensors" for part in ("safety_checker", "vae_1_0", "unet/onnx")]) == []
    assert needed_files(["model_index.json", "whole.safetensors", "config.json"]) == ["model_index.json"]


@pytest.fixture
def hub_site(tmp_path: Path, monkeypatch: Any) -> Iterator[Path]:
    """A folder whose folders OWNER/NAME are repositories of a hub that the client is directed to."""
    site = tmp_path / "site"

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/models/").lstrip("/")
            name = "/".join(path.split("/")[:2])
            files = [file for file in (site / name).rglob("*") if file.is_file()]
            description = {"id": name, "sha": COMMIT, "siblings": []}
            listing = [
                {"type": "file", "path": file.relative_to(site / name).as_posix(), "size": file.stat().st_size,
                 "oid": "0" * 40}
                for file in files
            ]  # fmt: skip
            content: Any = None
            if "/resolve/" in path:
                content = (site / name / path.split(f"/resolve/{COMMIT}/")[1]).read_bytes()
            elif files:
                content = json.dumps(listing if "/tree/" in path else description).encode()
            self.send_response(404 if content is None else 200)
            for header, value in (
                ("Content-Length", str(len(content or b""))), ("X-Repo-Commit", COMMIT),
                ("ETag", f'"{abs(hash(content)):x}"'), ("X-Error-Code", "" if content else "RepoNotFound"),
            ):  # fmt: skip
                self.send_header(header, value)
            self.end_headers()
            if content and self.command == "GET":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield site
    server.shutdown()


def test_a_repository_is_downloaded_and_then_found_without_a_network(
    folder: Path, hub_site: Path, monkeypatch: Any
) -> None:
    (hub_site / "someone").mkdir(parents=True)
    make_repository(folder, hub_site / "someone" / "tiny")
    half = hub_site / "someone" / "half"
    shutil.copytree(folder, half)
    for part, name in TENSORS.items():
        (half / part / f"{name}.safetensors").rename(half / part / f"{name}.fp16.safetensors")
    (hub_site / "someone" / "other").mkdir()
    (hub_site / "someone" / "other" / "model.safetensors").write_bytes(b"")
    for name in ("someone/tiny", "someone/half"):
        assert unspeckle.load(name).hash == unspeckle.load(folder).hash
        assert name == "someone/half" or not [
            file for file in OTHER_FILES if (hub.download_snapshot(name) / file).exists()
        ]
    with pytest.raises(InputError, match=r"someone/other: has no model_index.json on the hub"):
        hub.download_snapshot("someone/other")
    flux = hub_site / "someone" / "flux"
    shutil.copytree(folder, flux)
    (flux / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(InputError, match="is a FluxPipeline; only Stable Diffusion 1, 2 and XL are supported"):
        hub.download_snapshot("someone/flux")
    assert not list(hub_site.parent.glob("cache/models--someone--flux/snapshots/*/unet/*"))  # gigabytes, elsewhere
    with pytest.raises(InputError, match="someone/none: no such file, the hub's cache has no model of that name, and"):
        hub.download_snapshot("someone/none")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert [hub.download_snapshot(name).parents[1].name for name in ("someone/tiny", "someone/half")] == [
        "models--someone--tiny", "models--someone--half"
    ]  # fmt: skip
