"""Line plots as inline SVG, drawn by matplotlib in colors of the page, so that they suit light and dark mode."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 440, 270  # units of the SVG's view box; about pixels
MIN_TICK_DISTANCE = 0.07  # of the axis's length, between two labels on the x-axis
MAX_TABLE_POINTS = 11  # points of each line in the table that replaces a plot

# Colors that matplotlib draws with, and the page's own that replace them (see templates/report.css)
LINE_COLORS = ("#1f5fbf", "#bf4f14", "#12806a")
_GRID, _TEXT, _BACKGROUND = "#e2dfd8", "#5d5d66", "#fffffe"
_CSS_VARIABLES = {
    **{color: f"var(--line-{number})" for number, color in enumerate(LINE_COLORS, 1)},
    _GRID: "var(--rule)",
    _TEXT: "var(--soft)",
    _BACKGROUND: "var(--card)",
}


@dataclass(frozen=True)
class PlotLine:
    """One line of a plot."""

    name: str  # for the legend
    xs: Sequence[float]  # increasing
    ys: Sequence[float]
    error_bars: Sequence[float] = ()  # half the length of each point's error bar, or none
    point_labels: Sequence[str] = ()  # shown when the mouse is over a point, or none
    has_dots: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis of a plot."""

    label: str
    log: bool = False
    low: float | None = None  # its ends; None: those of the data, on the y-axis rounded
    high: float | None = None
    ticks: Sequence[float] = ()  # where its labels are; none: at round numbers


@dataclass(frozen=True)
class Plot:
    """Lines over two axes."""

    title: str
    lines: Sequence[PlotLine]  # as many as there are LINE_COLORS, at most
    x: Axis
    y: Axis
    reference_y: float | None = None  # where a dotted line is drawn across the plot
    reference_name: str = ""  # what that line is

    def table(self) -> list[tuple[str, float, float]]:
        """(line, x, y) of at most MAX_TABLE_POINTS points of each line, for readers without matplotlib."""
        rows = []
        for line in self.lines:
            count = len(line.xs)
            indices = range(count)
            if count > MAX_TABLE_POINTS:
                last = MAX_TABLE_POINTS - 1
                indices = [i * (count - 1) // last for i in range(MAX_TABLE_POINTS)]  # type: ignore[assignment]
            rows += [(line.name, line.xs[i], line.ys[i]) for i in indices]
        return rows


def can_plot() -> bool:
    """Whether matplotlib is installed, which the extra `score` brings."""
    return find_spec("matplotlib") is not None


def render_svg(plot: Plot) -> str:
    """The plot as an <svg> element for an HTML page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": plot.title,
        "axes.autolimit_mode": "round_numbers",
        "axes.edgecolor": _TEXT,
        "axes.labelcolor": _TEXT,
        "xtick.color": _TEXT,
        "ytick.color": _TEXT,
        "text.color": _TEXT,
        "grid.color": _GRID,
        "font.size": 12.5,
    }
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        figure = draw_figure(plot)
        file = io.StringIO()
        FigureCanvasSVG(figure)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline_svg(file.getvalue(), plot)


def draw_figure(plot: Plot) -> "Figure":
    """The plot as a figure of matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.tick_params(length=0, pad=6)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel(plot.x.label)
    axes.set_ylabel(plot.y.label)
    for number, (line, color) in enumerate(zip(plot.lines, LINE_COLORS, strict=False), 1):
        style = {"color": color, "linewidth": 2.2, "linestyle": (0, (2.5, 2)) if line.dashed else "-"}
        if line.has_dots:
            style |= {"marker": "o", "markersize": 8, "markeredgecolor": _BACKGROUND, "markeredgewidth": 1.5}
        axes.plot(line.xs, line.ys, gid=f"line-{number}", clip_on=False, **style)  # type: ignore[arg-type]
        for x, y, error in zip(line.xs, line.ys, line.error_bars, strict=False):
            axes.plot([x, x], [y - error, y + error], color=color, linewidth=1.4, alpha=0.55)
    if plot.reference_y is not None:
        axes.axhline(plot.reference_y, color=_TEXT, linewidth=1, linestyle=(0, (2, 3)))
        axes.annotate(
            plot.reference_name,
            (0, plot.reference_y),
            (4, 3),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="left",
            va="bottom",
            fontsize=11.5,
        )
    _scale_axes(axes, plot)
    return figure


def _scale_axes(axes: "Axes", plot: Plot) -> None:
    """The scales, limits and ticks of both axes."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    xs = [x for line in plot.lines for x in line.xs]
    low, high = min(xs) if plot.x.low is None else plot.x.low, max(xs) if plot.x.high is None else plot.x.high
    if high <= low:
        low, high = (low / 2, low * 2) if plot.x.log and low > 0 else (low - 0.5, low + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_ylim(plot.y.low, plot.y.high)
    if plot.x.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low, high)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g}"))
    if plot.x.ticks:
        ticks, last_position = [], -1.0
        for tick in plot.x.ticks:
            position = axes.transAxes.inverted().transform(axes.transData.transform((tick, 0)))[0]
            if low <= tick <= high and position - last_position >= MIN_TICK_DISTANCE:
                ticks.append(tick)
                last_position = position
        axes.set_xticks(ticks)


def _inline_svg(document: str, plot: Plot) -> str:
    """matplotlib's SVG document as an element of a page: without namespaces, in the page's colors, with tooltips."""
    root = ElementTree.fromstring(document)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in [name for name in element.attrib if name.startswith("{")]:
            element.set(name.rpartition("}")[2], element.attrib.pop(name))
    for number, line in enumerate(plot.lines, 1):
        points = root.findall(f".//g[@id='line-{number}']//use")
        for point, label in zip(points, line.point_labels, strict=False):
            ElementTree.SubElement(point, "title").text = label
    referenced = set(re.findall(r"#([\w-]+)", " ".join(value for e in root.iter() for value in e.attrib.values())))
    for element in root.iter():
        if element.get("id") not in referenced:
            element.attrib.pop("id", None)
    for child in root.findall("metadata"):
        root.remove(child)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": plot.title}
    svg = ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)
    for color, variable in _CSS_VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg
