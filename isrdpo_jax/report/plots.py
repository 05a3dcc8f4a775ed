"""Curves as inline SVG: small, sharp, text that stays text, colours that follow the page (light or dark).

Matplotlib draws with figure objects only; its colours are placeholders that become the page's CSS variables.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

AXES = (0.15, 0.19, 0.83, 0.77)  # left, bottom, width, height; fixed, so that panels line up
SIZE = (3.5, 2.3)  # inches, at 72 points each
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (5, 1)), "v"), ((0, (1, 1)), "P"))
COLOURS = 6  # --run-0 … --run-5 in style.css; further runs reuse them with another line style
_TEXT, _GRID, _COLOUR = "#010101", "#010102", "#0102"  # placeholders; the last is followed by the run


@dataclass(frozen=True)
class Line:
    """One curve. `run` picks colour and style; `low` and `high` draw a band; `faint` marks the lesser of two curves."""

    run: int
    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    faint: bool = False


def draw(
    name: str,
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    percent: bool = False,
    level: float | None = None,
    level_label: str = "",
    breaks: Sequence[float] = (),
    integer_x: bool = False,
) -> Markup:
    """Draws one panel.

    Args:
        name: unique within the page; salts the ids inside the SVG.
        title: what is drawn, for the alternative text (the visible title is HTML).
        lines: the curves; without a single finite value nothing is drawn.
        x_label: label of the horizontal axis.
        percent: values are shares, written as percentages.
        level: a horizontal line of reference, named `level_label`.
        breaks: vertical lines, where one iteration ends and the next begins.
        integer_x: ticks at whole numbers only.

    Returns:
        `<svg role="img" aria-label=…>`, or a paragraph that says that there is nothing to draw.
    """
    drawn = [line for line in lines if np.isfinite(_floats(line.y)).any()]
    if not drawn:
        return Markup('<p class="missing">Nothing measured yet.</p>')
    figure = Figure(figsize=SIZE)
    FigureCanvasSVG(figure)
    axes = figure.add_axes(AXES)
    for line in drawn:
        _add(axes, line)
    if level is not None:
        axes.axhline(level, color=_TEXT, alpha=0.45, linewidth=0.9, linestyle=(0, (2, 2)))
        left = _leaves_room(drawn, level)
        axes.annotate(
            level_label,
            (0.01 if left else 0.99, level),
            xycoords=("axes fraction", "data"),
            ha="left" if left else "right",
            va="bottom",
            fontsize=8,
            color=_TEXT,
        )
    for position in breaks:
        axes.axvline(position, color=_GRID, linewidth=0.9)
    _dress(axes, x_label, percent, integer_x)
    alt = f"{title}. " + " ".join(_say(line, percent) for line in drawn)
    return Markup(_inline(figure, name, alt))


def swatch(run: int) -> Markup:
    """A piece of the run's line, for legends; it stands beside the run's name."""
    dashes = ("", "6 3", "2 3", "7 2 2 2", "9 2", "1 2")[run % len(STYLES)]
    return Markup(
        '<svg class="swatch" aria-hidden="true" viewBox="0 0 28 8">'
        f'<path d="M1 4H27" stroke="var(--run-{run % COLOURS})" stroke-width="2.5" stroke-dasharray="{dashes}"/></svg>'
    )


def _add(axes: Axes, line: Line) -> None:
    colour, (dashes, marker) = _colour(line.run), STYLES[line.run % len(STYLES)]
    x, y = _floats(line.x), _floats(line.y)
    many = len(x) > 20
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=dashes,
        linewidth=1.1 if many or line.faint else 1.8,
        alpha=0.5 if line.faint else 1.0,
        marker=None if many or line.faint else marker,
        markersize=4,
    )
    if len(line.low) == len(x):
        axes.fill_between(x, _floats(line.low), _floats(line.high), color=colour, alpha=0.14, linewidth=0)


def _leaves_room(lines: Sequence[Line], level: float) -> bool:
    """Whether the curves begin further from the level than they end."""
    known = [[y for y in line.y if y is not None and np.isfinite(y)] for line in lines]
    return min(abs(y[0] - level) for y in known) > min(abs(y[-1] - level) for y in known)


def _dress(axes: Axes, x_label: str, percent: bool, integer_x: bool) -> None:
    axes.set_xlabel(x_label, fontsize=9, color=_TEXT)
    axes.tick_params(colors=_TEXT, labelsize=9, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=integer_x, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


def _inline(figure: Figure, name: str, alt: str) -> str:
    """The figure's SVG, made fit to stand inside a page beside others."""
    buffer = io.StringIO()
    # The salt makes ids that no other panel of the page has, and the same ones every time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    for pattern, replacement in (
        (r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", ""),  # the style is for the page
        (r'<g id="[^"]*"', "<g"),
        (r"xlink:href", "href"),
        (r"font-family: [^;\"]*; ?", ""),  # the page's
        (r' transform="rotate\(-?0 [^"]*"', ""),
        (r"\s+", " "),
        (rf"{_COLOUR}0([0-9])", r"var(--run-\1)"),
    ):
        body = re.sub(pattern, replacement, body, flags=re.DOTALL)
    body = re.sub(r'="[^"]*"', lambda value: re.sub(r"(\d\.\d\d)\d+", r"\1", value[0]), body)  # 0.01 point is enough
    body = body.replace(_TEXT, "currentColor").replace(_GRID, "var(--line)")
    width, height = (72 * side for side in SIZE)
    return f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width:g} {height:g}">{body}'


def _say(line: Line, percent: bool) -> str:
    """First and last value in words, for those who do not see the curve."""
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None and np.isfinite(y)]
    (first_x, first), (last_x, last) = points[0], points[-1]
    write = (lambda v: f"{100 * v:.1f} %") if percent else (lambda v: f"{v:.3g}")
    return f"{line.label}: {write(first)} at {first_x:g}, {write(last)} at {last_x:g}."


def _colour(run: int) -> str:
    """The placeholder of --run-N."""
    return f"{_COLOUR}{run % COLOURS:02d}"


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
