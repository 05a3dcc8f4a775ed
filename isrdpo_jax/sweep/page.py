"""A sweep's page: its table and, for every measure, the points' curves over the iterations. One file, no script."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from isrdpo_jax.report.measures import MEASURES, Measure
from isrdpo_jax.report.plots import Line, draw, swatch
from isrdpo_jax.sweep.points import Sweep

Row = dict[str, Any]


def sweep_page(sweep: Sweep, rows: Sequence[Row], table: tuple[list[str], list[list[str]]]) -> str:
    """The page as HTML.

    Args:
        rows: as `results.read_rows` gives them. table: titles, and the cells of each row.
    """
    measured = [
        (measure, _curve(rows, measure))
        for measure in MEASURES
        if measure.headline and any(measure.key in one for row in rows for one in row["iterations"])
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((files(__package__) / "page.html.j2").read_text(encoding="utf-8"))
    style = (files("isrdpo_jax.report") / "style.css").read_text(encoding="utf-8")
    titles, cells = table
    return template.render(
        sweep=sweep,
        style=Markup(style),
        titles=titles,
        points=[(swatch(i), row, cells[i]) for i, row in enumerate(rows)],
        curves=measured,
    )


def _curve(rows: Sequence[Row], measure: Measure) -> Markup:
    lines = []
    for i, row in enumerate(rows):
        found = [(one["iteration"], one[measure.key]) for one in row["iterations"] if measure.key in one]
        lines.append(
            Line(
                run=i,
                label=row["point"],
                x=[iteration for iteration, _ in found],
                y=[figure["value"] for _, figure in found],
                low=[figure["low"] for _, figure in found],
                high=[figure["high"] for _, figure in found],
            )
        )
    return draw(
        f"sweep-{measure.key.replace('_', '-')}",
        measure.title,
        lines,
        x_label="iteration",
        percent=measure.percent,
        integer_x=True,
    )
