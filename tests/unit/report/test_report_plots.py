import re
from xml.etree import ElementTree

import matplotlib
import pytest

from isrdpo_jax.report.curves import training_curves
from isrdpo_jax.report.load import Estimate, load_run
from isrdpo_jax.report.measures import BY_KEY, Change, Point, interval, number
from isrdpo_jax.report.plots import Line, draw


def test_a_panel_is_well_formed_and_takes_its_colours_from_the_page():
    before = dict(matplotlib.rcParams)
    lines = [
        Line(0, "a < b & c", [0, 1, 2], [0.1234, None, 0.5], [0.1, None, 0.4], [0.2, None, 0.6]),
        Line(1, "d", [0], [0.2]),
    ]
    svg = draw("p", "Accuracy", lines, x_label="iteration", percent=True, level=0.3, level_label="here", integer_x=True)
    root = ElementTree.fromstring(svg)
    assert "a < b & c: 12.3 % at 0, 50.0 % at 2." in root.get("aria-label")
    assert "var(--run-0)" in svg and "var(--run-1)" in svg and "currentColor" in svg and "var(--line)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "http" not in svg
    texts = ["".join(text.itertext()) for text in root.iter("text")]
    assert {"iteration", "here", "0", "1", "2"} <= set(texts)
    assert dict(matplotlib.rcParams) == before


def test_tick_labels_are_not_cut():
    svg = draw("p", "Loss", [Line(0, "a", [0, 1], [0.6925, 0.6935])], x_label="update")
    texts = {"".join(text.itertext()) for text in ElementTree.fromstring(svg).iter("text")}
    assert "0.69250" in texts and "0.69350" in texts


def test_training_curves_break_between_iterations(whole_runs):
    _, _, svg = training_curves([load_run(whole_runs[0])], ["isr"])[0]
    curves = [
        path for path in ElementTree.fromstring(svg).iter("path") if "stroke: var(--run-0)" in path.get("style", "")
    ]
    assert [path.get("d").count("M") for path in curves] == [3]


def test_nothing_to_draw_is_said():
    assert "Nothing measured yet." in draw("p", "Accuracy", [Line(0, "a", [0], [None])], x_label="iteration")


def test_numbers_for_people():
    assert [number(x) for x in (0, 0.1234, 1.5, 12.345, -0.5, 12345.6, None, float("nan"))] == [
        "0.00", "0.123", "1.50", "12.3", "−0.500", "12,345.6", "–", "–",
    ]  # fmt: skip
    accuracy = BY_KEY["accuracy"]
    assert interval(Estimate(0.5, 3, 0.25, 0.751), accuracy) == "[25.0, 75.1]"
    assert interval(Estimate(0.5, 1, None, None), accuracy) == ""


@pytest.mark.parametrize(
    ("key", "first", "last", "direction"),
    [
        ("accuracy", (0.3, 0.2, 0.4), (0.6, 0.5, 0.7), "better"),
        ("accuracy", (0.6, 0.5, 0.7), (0.3, 0.2, 0.4), "worse"),
        ("false_share", (0.6, 0.5, 0.7), (0.3, 0.2, 0.4), "better"),
        ("accuracy", (0.3, 0.2, 0.45), (0.5, 0.4, 0.6), ""),
        ("words", (9.0, 8.0, 10.0), (20.0, 19.0, 21.0), ""),
        ("accuracy", (0.3, None, None), (0.6, None, None), ""),
    ],
)
def test_better_is_said_only_where_intervals_do_not_overlap(key, first, last, direction):
    points = (Point(t, Estimate(value, 10, low, high)) for t, (value, low, high) in enumerate((first, last)))
    assert Change(BY_KEY[key], *points).direction == direction
