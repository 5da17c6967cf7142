"""The report: one file that holds what was measured, and plots whose points lie where their numbers are."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from test_scores import scores
from torch import Tensor

from unspeckle.scoring.charts import plot_steps
from unspeckle.scoring.composition.hybrids import SCORED_METHODS, hybrid_prompt
from unspeckle.scoring.images import MAX_SIDE, image_strip_tag, image_tag
from unspeckle.scoring.plots import Axis, PlotLine, render_plot
from unspeckle.scoring.report import render_report
from unspeckle.scoring.task import NearestPair, ReportImages

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Checks that every element is closed, and notes texts, pictures and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[Image.Image] = []
        self.text = ""
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.addresses.append(value or "")
        if tag == "img":
            source = dict(attributes)["src"] or ""
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def album() -> ReportImages:
    some = noise(3, 3, 8, 8)
    pair = NearestPair(some[0], some[1], "a frog & <b>two</b> hats", 12.34)
    return ReportImages(
        some, ["a <frog>", "b", "c"], some.flip(0), [pair] * 2, [noise(4, 3, 8, 8)] * len(scores().by_steps),
        [noise(4, 3, 8, 8)] * len(scores().by_guidance_scale), [noise(2, 3, 8, 8)] * len(SCORED_METHODS),
    )  # fmt: skip


def test_it_says_the_licence_of_the_model() -> None:
    said = [
        read(render_report(replace(scores(), licence=name), album(), "unspeckle score")).text
        for name in ("", "A & B <1>")
    ]
    assert "licence" not in said[0] and "licence of the model: A & B <1>." in said[1]


def test_it_holds_what_was_measured_and_asks_no_network() -> None:
    found = read(render_report(scores(), album(), "unspeckle score MODEL --corpus FOLDER"))
    assert len(found.pictures) == 2 * 3 + 2 * 2 + 5 + 3 + 6
    assert np.array_equal(np.asarray(found.pictures[0]), album().generated_images[0].permute(1, 2, 0).numpy())  # type: ignore[index]
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert "http" not in render_report(scores(), album(), "x").replace("data:image/png", "")
    for said in (
        "How well a <model> draws", "0123456789ab", "scenes & more", "30.0", "(28.4 to 31.6)", "Fréchet distance",
        "a <frog>", "12.3: a frog & <b>two</b> hats", "3.100 ± 0.040", "No sign of memorisation", "abababababab",
        "unspeckle score MODEL --corpus FOLDER", "dpmpp_2m, 48", "scale 7",
    ):  # fmt: skip
        assert said in found.text, said
    assert "Read with care" not in found.text


def test_it_says_what_is_missing_and_what_to_distrust() -> None:
    full, nothing = scores(), {"kid": None, "kid_error": None, "precision": None, "recall": None, "coverage": None}
    bare = replace(
        full, corpus=None, features=None, distances=(), loss=None, bits=None, memorisation=None, hybrids=None,
        by_steps=tuple(replace(p, **nothing) for p in full.by_steps),
        by_scale=tuple(replace(p, **nothing) for p in full.by_guidance_scale),
        missing=("without --corpus there are no distances",), warnings=("fewer than three seeds",),
    )  # fmt: skip
    only = ReportImages(by_steps=album().by_steps, by_guidance_scale=album().by_guidance_scale)
    found = read(render_report(bare, only, "x"))
    assert "Without --corpus there are no distances." in found.text and "Fewer than three seeds." in found.text
    assert "ms a picture" in found.text and len(found.pictures) == 8
    assert "Memorisation" not in found.text and "Distance from real pictures" not in found.text


def test_words_have_their_table() -> None:
    categories = [
        {
            "name": "two <objects>",
            "prompts": 25,
            "pictures": 50,
            "share": 0.42,
            "low": 0.3,
            "high": 0.5,
            "ceiling": 0.97,
            "floor": 0.03,
        }
    ]
    words = {"mean": 0.42, "low": 0.37, "high": 0.47, "categories": categories}
    html = render_report(replace(scores(), words=words), album(), "x")
    found = read(html)
    assert "two <objects>" in found.text and "42 % (30 to 50)" in found.text and "(37 to 47)" in found.text
    assert "25 prompts of each kind, 2 pictures of each; the protocol has 100 by 4" in found.text
    assert 'style="width:42.0%"' in html and 'style="left:97.0%"' in html


def test_hybrids_have_their_table_and_a_row_of_pictures_of_each_way() -> None:
    html = render_report(scores(), album(), "x")
    found = read(html.partition("<h2>Two in one</h2>")[2].partition("</section>")[0])
    assert "2 of 16 pairs, 2 pictures of each" in found.text and "cat and panda, fox and owl" in found.text
    for way in SCORED_METHODS:
        assert hybrid_prompt(way, ("cat", "panda")) in found.text
    assert (
        found.text.count("3 of 4")
        == found.text.count("75 % (30 to 95)")
        == html.count('width:75.0%"')
        == len(SCORED_METHODS)
    )
    assert [picture.size for picture in found.pictures] == [(16, 8)] * len(SCORED_METHODS)
    many = [noise(11, 3, 8, 8)] * len(SCORED_METHODS)
    assert len(read(render_report(scores(), replace(album(), hybrids=many), "x")).pictures) == len(read(html).pictures)
    assert "Two in one" not in render_report(replace(scores(), hybrids=None), album(), "x")


def test_the_precision_is_named() -> None:
    assert "guidance scale 3, in float32" in render_report(scores(), album(), "x")
    assert "guidance scale 3, in int8" in render_report(replace(scores(), precision="int8"), album(), "x")


def test_points_lie_where_their_numbers_are() -> None:
    drawn = render_plot(
        [PlotLine("a", [1, 10, 100], [0, 5, 10], point_labels=["x", "y", "z"])], Axis("x", log=True, ticks=(1, 10, 100)),
        Axis("y", low=0, high=10), "t", 5.0, "half",
    )  # fmt: skip
    places = [(float(a), float(b)) for a, b in re.findall(r'<circle class="dot s1" cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    (x1, y1), (x2, y2), (x3, y3) = places
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.11) and y1 - y2 == pytest.approx(y2 - y3, abs=0.11) and y1 > y2
    ticks = {said: float(x) for x, said in re.findall(r'<text class="tick x" x="([\d.]+)"[^>]*>([^<]+)<', drawn)}
    assert ticks == {"1": x1, "10": x2, "100": x3}
    (mark,) = re.findall(r'<line class="mark"[^>]*y1="([\d.]+)"', drawn)
    assert float(mark) == y2
    assert re.findall("<title>(.)</title>", drawn) == ["x", "y", "z"]


def test_bars_reach_as_far_as_their_errors() -> None:
    drawn = render_plot([PlotLine("a", [0, 1], [10, 20], error_bars=[5, 0])], Axis("x"), Axis("y", low=0, high=30), "t")
    (low, high) = re.findall(r'<line class="bar s1"[^>]*y1="([\d.]+)" y2="([\d.]+)"', drawn)[0]
    ticks = {said: float(y) for y, said in re.findall(r'<text class="tick y"[^>]*y="([\d.]+)">([^<]+)<', drawn)}
    pixels = (ticks["0"] - ticks["30"]) / 30 if "30" in ticks else (ticks["0"] - ticks["20"]) / 20
    assert float(low) - float(high) == pytest.approx(10 * pixels, abs=0.2)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 17), (0.001, 0.0042), (5, 5), (-1e5, 2e6)])
def test_ticks_are_round_and_enclose(low: float, high: float) -> None:
    drawn = render_plot([PlotLine("a", [0, 1], [low, high])], Axis("x"), Axis("y"), "t")
    ticks = re.findall(r'<text class="tick y"[^>]*>([^<]+)<', drawn)
    assert 3 <= len(ticks) <= 9 and len(set(ticks)) == len(ticks)
    values = [float(tick.replace("−", "-")) for tick in ticks]
    assert min(values) <= low + 1e-9 and max(values) >= high - 1e-9
    heights = [float(y) for y in re.findall(r'<circle class="dot s1"[^>]*cy="([-\d.]+)"', drawn)]
    assert all(13.9 <= y <= 226.1 for y in heights)


def test_samplers_of_two_calls_a_step_stand_at_their_calls() -> None:
    points = [
        replace(scores().by_steps[0], sampler="heun", steps=4),
        replace(scores().by_steps[0], sampler="ddim", steps=8),
    ]
    drawn = plot_steps(replace(scores(), by_steps=tuple(points))).partition("</svg>")[0]
    heun, ddim = re.findall(r'<circle [^>]*cx="([\d.]+)"', drawn)
    assert heun == ddim


def test_large_pictures_are_shrunk() -> None:
    for html, size in (
        (image_tag(noise(3, 300, 200), "x"), (85, MAX_SIDE)),
        (image_strip_tag(noise(4, 3, 300, 300), "x"), (4 * MAX_SIDE, MAX_SIDE)),
    ):
        (picture,) = read(html).pictures
        assert picture.size == size
