"""Features of pretrained networks: equal to other implementations, with small files in the hubs' own layout."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scoring_examples import random_images
from torch import Tensor
from torch.nn import functional as F

from unspeckle.errors import InputError
from unspeckle.scoring.distances import cmmd, frechet_distance, kid
from unspeckle.scoring.inception import InceptionV3
from unspeckle.scoring.pretrained import ClipFeatures, InceptionFeatures, load_pretrained_features, resize_bicubic


def peer(name: str) -> Any:
    """A package to compare with; the test is skipped if it is not installed."""
    return pytest.importorskip(name, reason=f"{name}, to compare with, is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InceptionV3]:
    torch.manual_seed(0)
    network = InceptionV3().eval()
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save({k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}, path)
    return path, network


def test_inception_is_that_of_torch_fidelity(inception: tuple[Path, InceptionV3]) -> None:
    peer_module = peer("torch_fidelity.feature_extractor_inceptionv3")
    path, network = inception
    torch.save(network.state_dict(), path.with_name("all.pth"))
    other = peer_module.FeatureExtractorInceptionV3(
        "peer", ["2048"], feature_extractor_weights_path=str(path.with_name("all.pth"))
    )
    images = random_images(2, 3, 299, 299)  # of the network's size, so that nothing is resized
    expected = other(images)[0]
    assert torch.allclose(network((images.float() - 128) / 128), expected, atol=1e-5, rtol=1e-4)
    ours = load_pretrained_features("inception", str(path), "cpu")
    assert torch.allclose(ours(images), expected, atol=1e-5, rtol=1e-4)


def test_inception_has_the_tensors_of_the_published_file() -> None:
    """Names and shapes as torch-fidelity declares them for pt_inception-2015-12-05."""
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in InceptionV3().state_dict().items() if "num_batches" not in k}
    assert len(shapes) == 472
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 23_885_392
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1) and shapes["fc.weight"] == (1008, 2048)


def test_images_are_resized_as_clean_fid_does() -> None:
    peer_module = peer("cleanfid.resize")
    for side in (32, 64, 350):
        image = random_images(1, 3, side, side, seed=side)
        expected = peer_module.build_resizer("clean")(image[0].permute(1, 2, 0).numpy())
        assert torch.equal(resize_bicubic(image, 299)[0].permute(1, 2, 0), torch.from_numpy(expected))


def test_shrinking_averages_and_does_not_round() -> None:
    checkerboard = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    checkerboard[:, :, ::2, ::2] = checkerboard[:, :, 1::2, 1::2] = 255
    small = resize_bicubic(checkerboard, 8)
    assert small[0, :, 2:-2, 2:-2].flatten().tolist() == pytest.approx([127.5] * 48, abs=0.5)
    ramp = torch.arange(64, dtype=torch.uint8).expand(1, 3, 64, 64)
    assert (resize_bicubic(ramp, 32) * 2 % 1).abs().max() > 0.01  # 127.5 stays, which bytes would round
    expected = Image.fromarray(ramp[0].permute(1, 2, 0).contiguous().numpy()).resize((32, 32), Image.Resampling.BICUBIC)
    difference = resize_bicubic(ramp, 32)[0].permute(1, 2, 0) - torch.from_numpy(np.asarray(expected).copy())
    assert difference.abs().max() <= 0.51


def test_fid_and_kid_are_those_of_torchmetrics() -> None:
    fid_module = peer("torchmetrics.image.fid")

    class Pool(torch.nn.Module):
        """A tiny feature extractor, the same for both."""

        num_features = 12

        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)

    real, generated = random_images(40, 3, 8, 8, seed=1), random_images(30, 3, 8, 8, seed=2) // 2
    fid = fid_module.FrechetInceptionDistance(feature=Pool(), input_img_size=(3, 8, 8))
    fid.set_dtype(torch.float64)
    fid.update(real, real=True)
    fid.update(generated, real=False)
    a, b = Pool()(real), Pool()(generated)
    assert frechet_distance(a, b) == pytest.approx(float(fid.compute()), rel=1e-5)
    peer_kid = peer("torchmetrics.image.kid").KernelInceptionDistance(feature=Pool(), subsets=1, subset_size=30)
    peer_kid.update(real[:30], real=True)
    peer_kid.update(generated, real=False)
    assert kid(a[:30], b) == pytest.approx(float(peer_kid.compute()[0]), rel=1e-5)


def test_cmmd_is_the_sum_over_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(n, 5, generator=generator, dtype=torch.float64), dim=1) for n in (6, 4))

    def kernel(p: Tensor, q: Tensor) -> float:
        return sum(float((-(x - y).square().sum() / 200).exp()) for x in p for y in q) / len(p) / len(q)

    assert cmmd(a, b) == pytest.approx(1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)), rel=1e-9)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = peer("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    path = tmp_path_factory.mktemp("hub") / "dinov2-tiny"
    transformers.Dinov2Model(config).save_pretrained(path)
    return path


def test_dinov2_from_a_folder(dinov2: Path) -> None:
    transformers = peer("transformers")
    network = transformers.Dinov2Model.from_pretrained(dinov2).eval()
    images = random_images(18, 3, 40, 40)
    features = load_pretrained_features("dinov2", str(dinov2), "cpu")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (resize_bicubic(images, 224) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        token = network.layernorm(network.encoder(network.embeddings(x))[0])[:, 0]
    assert torch.allclose(features(images), token, atol=1e-5)
    assert (
        features.name == "dinov2 dinov2-tiny"
        and features.hash == load_pretrained_features("dinov2", str(dinov2), "cpu").hash
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = peer("transformers")
    torch.manual_seed(1)
    vocabulary_words = [
        "frog</w>",
        "red</w>",
        "a</w>",
        "re",
        "fr",
        "fro",
        *(f"{c}{end}" for c in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")),
    ]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(vocabulary_words))}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    path = tmp_path_factory.mktemp("hub") / "clip-tiny"
    special_tokens = {
        "bos_token_id": len(vocabulary) - 2,
        "eos_token_id": len(vocabulary) - 1,
        "pad_token_id": len(vocabulary) - 1,
    }
    text = {"vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16, **special_tokens}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(path)
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    merges = ["#version: 0.2", "r e", "re d</w>", "f r", "fr o", "fro g</w>"]
    (path / "merges.txt").write_text("\n".join(merges) + "\n")
    (path / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 16, "tokenizer_class": "CLIPTokenizer"})
    )
    return path


def test_clip_from_a_folder(clip: Path) -> None:
    transformers = peer("transformers")
    network = transformers.CLIPModel.from_pretrained(clip).eval()
    features = load_pretrained_features("clip", str(clip), "cpu")
    assert isinstance(features, ClipFeatures)
    images, captions = random_images(3, 3, 40, 40), ["a red frog", "frog", "a red red frog"]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    x = (resize_bicubic(images, 28) / 255 - mean) / std
    tokens = transformers.CLIPTokenizer.from_pretrained(clip)(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = network(pixel_values=x, **tokens)  # its logits are exp(scale) · cos
    image_embeddings, caption_embeddings = features(images), features.embed_captions(captions)
    assert torch.allclose(image_embeddings, outputs.image_embeds, atol=1e-5)
    assert torch.allclose(caption_embeddings, outputs.text_embeds, atol=1e-5)
    cosines = outputs.logits_per_image.diagonal() / network.logit_scale.exp()
    assert ClipFeatures.clip_score(image_embeddings, caption_embeddings) == pytest.approx(
        100 * float(cosines.clamp(min=0).mean()), rel=1e-4, abs=1e-4
    )
    assert image_embeddings.norm(dim=1).tolist() == pytest.approx([1] * 3, abs=1e-6)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('code in a weights file was run')",)


def test_weights_that_cannot_be_read_are_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        load_pretrained_features("inception", str(tmp_path / "nothing.pth"), "cpu")
    (tmp_path / "text.pth").write_text("Dear network")
    with pytest.raises(InputError, match="cannot be read"):
        load_pretrained_features("inception", str(tmp_path / "text.pth"), "cpu")
    torch.save({"weights": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="cannot be read"):
        load_pretrained_features("inception", str(tmp_path / "evil.pth"), "cpu")
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="not the Inception network of FID"):
        load_pretrained_features("inception", str(tmp_path / "other.pth"), "cpu")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(InputError, match="contains no named tensors"):
        load_pretrained_features("inception", str(tmp_path / "list.pth"), "cpu")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'unspeckle\[score\]'"):
        load_pretrained_features("dinov2", "", "cpu")


def test_an_unreachable_hub_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(InputError, match="inception:FILE"):
        load_pretrained_features("inception", "", "cpu")
    peer("transformers")
    with pytest.raises(InputError, match="dinov2:FOLDER"):
        load_pretrained_features("dinov2", str(tmp_path / "nothing"), "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(InputError, match="clip:FOLDER") as caught:
        load_pretrained_features("clip", str(tmp_path), "cpu")
    assert "\n" not in str(caught.value)


def test_inception_in_batches(inception: tuple[Path, InceptionV3], monkeypatch: pytest.MonkeyPatch) -> None:
    features = load_pretrained_features("inception", str(inception[0]), "cpu")
    assert isinstance(features, InceptionFeatures)
    images = random_images(3, 3, 32, 32)
    expected = features(images)
    monkeypatch.setattr("unspeckle.scoring.pretrained.BATCH_SIZE", 2)
    assert torch.allclose(features(images), expected, atol=1e-5)
