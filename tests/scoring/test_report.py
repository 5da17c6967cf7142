"""The report: one file with everything that was measured, and plots whose points are where their numbers are."""

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scoring_examples import example_composition, example_report_images, example_scores, random_images

from unspeckle.scoring import plots
from unspeckle.scoring.charts import steps_plots
from unspeckle.scoring.composition.hybrids import SCORED_METHODS, hybrid_prompt
from unspeckle.scoring.html_images import MAX_SIDE, encode_image, encode_image_strip
from unspeckle.scoring.plots import Axis, Plot, PlotLine, draw_figure, render_svg
from unspeckle.scoring.report import render_report
from unspeckle.scoring.scoring_run import ReportImages

VOID_TAGS = {"meta", "img"}


class Reader(HTMLParser):
    """Checks that every element is closed, and collects texts, images and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.images: list[Image.Image] = []
        self.text = ""
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.addresses.append(value or "")
        if tag == "img":
            source = dict(attributes)["src"] or ""
            self.images.append(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID_TAGS:
            self.open_tags.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open_tags == []
    return reader


def test_it_names_the_license_of_the_model() -> None:
    plain, licensed = (
        read(render_report(replace(example_scores(), license=name), example_report_images(), "unspeckle score")).text
        for name in ("", "A & B <1>")
    )
    assert "license" not in plain and "license of the model: A & B <1>." in licensed


def test_it_contains_what_was_measured_and_needs_no_network() -> None:
    images = example_report_images()
    html = render_report(example_scores(), images, "unspeckle score MODEL --corpus FOLDER")
    reader = read(html)
    assert html.lstrip().startswith("<!doctype html>")
    assert len(reader.images) == 2 * 3 + 2 * 2 + 5 + 3 + 6
    assert images.generated_images is not None
    assert np.array_equal(np.asarray(reader.images[0]), images.generated_images[0].permute(1, 2, 0).numpy())
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in reader.addresses)
    assert "http" not in html and "<script" not in html and "@import" not in html
    for text in (
        "How well a <model> draws", "0123456789ab", "scenes & more", "30.0", "(28.4 to 31.6)", "Fréchet distance",
        "a <frog>", "12.3: a frog & <b>two</b> hats", "3.100 ± 0.040", "No sign of memorization", "abababababab",
        "unspeckle score MODEL --corpus FOLDER", "dpmpp_2m, 48", "scale 7", "Distance to the nearest training image",
    ):  # fmt: skip
        assert text in reader.text, text
    assert "Please note" not in reader.text and html.count("<svg") == 7


def test_it_says_what_is_missing_and_what_to_doubt() -> None:
    scores, images = example_scores(), example_report_images()
    nothing = {"kid": None, "kid_standard_error": None, "precision": None, "recall": None, "coverage": None}
    scores = replace(
        scores, corpus=None, features=None, distances=(), loss=None, bits_per_dim=None, memorization=None,
        hybrids=None, by_steps=tuple(replace(p, **nothing) for p in scores.by_steps),  # type: ignore[arg-type]
        by_guidance_scale=tuple(replace(p, **nothing) for p in scores.by_guidance_scale),  # type: ignore[arg-type]
        missing=("without --corpus there are no distances",), warnings=("fewer than three seeds",),
    )  # fmt: skip
    sweeps = ReportImages(by_steps=images.by_steps, by_guidance_scale=images.by_guidance_scale)
    reader = read(render_report(scores, sweeps, "x"))
    assert "Without --corpus there are no distances." in reader.text and "Fewer than three seeds." in reader.text
    assert "ms per image" in reader.text and len(reader.images) == 8
    assert "Memorization" not in reader.text and "Distance from real images" not in reader.text


def test_composition_has_its_table() -> None:
    html = render_report(replace(example_scores(), composition=example_composition()), example_report_images(), "x")
    reader = read(html)
    assert "two <objects>" in reader.text and "42 % (30 to 50)" in reader.text and "(37 to 47)" in reader.text
    assert "25 prompts of each category, of free wording up to three times as many, 2 images of each; a" in reader.text
    assert 'style="width:42.0%"' in html and 'style="left:97.0%"' in html


def test_hybrids_have_their_table_and_a_row_of_images_for_each_method() -> None:
    html = render_report(example_scores(), example_report_images(), "x")
    reader = read(html.partition("<h2>Two in one</h2>")[2].partition("</section>")[0])
    assert "2 of 16 pairs, 2 images of each" in reader.text and "cat and panda, fox and owl." in reader.text
    for method in SCORED_METHODS:
        assert hybrid_prompt(method, ("cat", "panda")) in reader.text
    for text in ("3 of 4", "75 % (30 to 95)"):
        assert reader.text.count(text) == len(SCORED_METHODS)
    assert html.count('width:75.0%"') == len(SCORED_METHODS)
    assert [image.size for image in reader.images] == [(16, 8)] * len(SCORED_METHODS)
    many = replace(example_report_images(), hybrids=[random_images(11, 3, 8, 8)] * len(SCORED_METHODS))
    assert len(read(render_report(example_scores(), many, "x")).images) == len(read(html).images)
    assert "Two in one" not in render_report(replace(example_scores(), hybrids=None), example_report_images(), "x")


def test_it_names_the_precision() -> None:
    assert "guidance scale 3, in float32" in render_report(example_scores(), example_report_images(), "x")
    int8 = replace(example_scores(), precision="int8")
    assert "guidance scale 3, in int8" in render_report(int8, example_report_images(), "x")


def test_without_matplotlib_tables_take_the_place_of_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    html = render_report(example_scores(), example_report_images(), "x")
    reader = read(html)
    assert "Plots need matplotlib" in reader.text and "unspeckle[score]" in reader.text and "<svg" not in html
    for title in ("Quality against steps", "Where the bits are spent", "Distance to the nearest training image"):
        assert title in reader.text
    rows = re.findall(r"<tr><td>dpmpp_2m</td><td>([\d.]+)</td><td>([\d.]+)</td></tr>", html)
    points = [(str(p.steps), 1000 * (p.kid or 0)) for p in example_scores().by_steps]
    assert [(x, float(y)) for x, y in rows[: len(points)]] == [(x, pytest.approx(y, rel=1e-3)) for x, y in points]


PLOT = Plot(
    "title <1>",
    [PlotLine("a", [1, 10, 100], [0, 5, 10], error_bars=[0, 2, 1], point_labels=["first", "<b>", "third"])],
    Axis("x", log=True, ticks=(1, 10, 100)),
    Axis("y", low=0, high=10),
    reference_y=5.0,
    reference_name="half",
)


def test_points_are_where_their_numbers_are() -> None:
    axes = draw_figure(PLOT).axes[0]
    line, first_bar, second_bar, third_bar, reference = axes.lines
    assert line.get_xydata().tolist() == [[1, 0], [10, 5], [100, 10]]  # type: ignore[union-attr]
    ends = [bar.get_ydata() for bar in (first_bar, second_bar, third_bar)]
    assert [list(map(float, bar)) for bar in ends] == [[0, 0], [3, 7], [9, 11]]  # type: ignore[arg-type]
    assert set(reference.get_ydata()) == {5.0} and axes.texts[0].get_text() == "half"  # type: ignore[arg-type]
    assert axes.get_xscale() == "log" and axes.get_xlim() == (1, 100) and axes.get_ylim() == (0, 10)
    assert list(axes.get_xticks()) == [1, 10, 100]


def test_a_plot_is_svg_in_the_colors_of_the_page_with_its_tooltips() -> None:
    svg = render_svg(PLOT)
    reader = read(svg)
    assert svg.startswith("<svg ") and 'aria-label="title &lt;1&gt;"' in svg and "xmlns" not in svg
    points = [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*><title>', svg)]
    (x1, y1), (x2, y2), (x3, y3) = points
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.1) and y1 - y2 == pytest.approx(y2 - y3, abs=0.1) and y1 > y2
    assert re.findall("<title>(.*?)</title>", svg) == ["first", "&lt;b&gt;", "third"]
    assert not re.findall("#[0-9a-f]{6}", svg) and "var(--line-1)" in svg and "var(--soft)" in svg
    for text in ("half", "100", "x", "y"):
        assert text in reader.text
    assert render_svg(PLOT) == svg, "the same plot gives the same bytes"
    ids, used = re.findall(r'id="([^"]+)"', svg), re.findall(r"#([\w-]+)", svg)
    other_ids = re.findall(r'id="([^"]+)"', render_svg(replace(PLOT, title="another")))
    assert set(ids) == set(used) and not set(ids) & set(other_ids), "ids are unique within a page"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 17), (0.001, 0.0042), (5, 5), (-1e5, 2e6)])
def test_ticks_are_few_and_enclose_the_data(low: float, high: float) -> None:
    svg = render_svg(Plot("t", [PlotLine("a", [0, 1], [low, high])], Axis("x"), Axis("y")))
    figure = draw_figure(Plot("t", [PlotLine("a", [0, 1], [low, high])], Axis("x"), Axis("y")))
    assert "nan" not in svg
    bottom, top = figure.axes[0].get_ylim()
    assert bottom <= low and top >= high
    assert 2 <= sum(bottom <= tick <= top for tick in figure.axes[0].get_yticks()) <= 9
    assert math.isfinite(bottom) and math.isfinite(top)


def test_samplers_with_two_calls_a_step_are_at_their_calls() -> None:
    point = example_scores().by_steps[0]
    points = (replace(point, sampler="heun", steps=4), replace(point, sampler="ddim", steps=8))
    plot = steps_plots(replace(example_scores(), by_steps=points))[0]
    assert [list(line.xs) for line in plot.lines] == [[8], [8]]


def test_large_images_are_shrunk() -> None:
    for image, size in (
        (encode_image(random_images(3, 300, 200)), (85, MAX_SIDE)),
        (encode_image_strip(random_images(4, 3, 300, 300)), (4 * MAX_SIDE, MAX_SIDE)),
    ):
        assert (image.width, image.height) == size
        assert Image.open(io.BytesIO(base64.b64decode(image.src.partition(",")[2]))).size == size
