"""`report/index.html`: runs side by side, with the data of all their questions beside it; it needs no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from isrdpo_jax.report import curves, measures, plots
from isrdpo_jax.report.examples import MAX_STRIPS, PAGE, Written, remove_other_data, write_examples
from isrdpo_jax.report.ledger import Entry, baseline_of, ledger
from isrdpo_jax.report.load import Iteration, Run, load_run
from isrdpo_jax.report.tallies import (
    REASONS,
    JudgePanel,
    Lengths,
    PairCounts,
    Retrospection,
    Share,
    judge_panel,
    lengths,
    pair_counts,
    retrospection,
    same_verdict,
    speed,
)
from isrdpo_jax.report.training import MEANINGS, Training, read_training
from isrdpo_jax.report.videos import Videos
from isrdpo_jax.runs.atomic import write_text

KEY_SETTINGS = (
    "start",
    "run.seed",
    "judge.mode",
    "judge.context",
    "judge.video",
    "judge.inconsistent",
    "dpo.loss",
    "dpo.beta",
    "dpo.learning_rate",
    "dpo.reference",
)
NOT_SETTINGS = ("run.name", "run.dir")
REASON_TEXTS = {
    "tie": "a tie",
    "identical": "the responses are identical",
    "unfinished": "a response hit the length limit",
    "invalid": "the verdict could not be parsed",
    "inconsistent": "the two orders disagree",
    "empty": "a response is empty",
    "too_long": "a prompt is longer than the context window, or than collect.turn_tokens",
    "no_context": "the description could not be made",
}


@dataclass(frozen=True)
class Row:
    """Everything the tables say about one iteration of one run."""

    iteration: Iteration
    state: str
    counts: PairCounts
    judge: JudgePanel
    lengths: Lengths
    training: Training
    retrospection: Retrospection
    again: tuple[Again, ...]
    speed: dict[str, dict[str, float | int]]


@dataclass(frozen=True)
class Again:
    """What another judge said of the same responses."""

    label: str
    judge: JudgePanel
    same: Share


@dataclass(frozen=True)
class Column:
    """One run of the report."""

    index: int
    label: str
    run: Run
    swatch: Markup
    rows: tuple[Row, ...]
    ledger: tuple[Entry, ...]


def build_report(
    run_dirs: Sequence[Path], out: Path, videos_of: Callable[[Path], Videos], max_strips: int = MAX_STRIPS
) -> Path:
    """Renders the report of one or more runs.

    Args:
        run_dirs: run folders; finished, unfinished, or being written.
        out: the folder that receives `index.html` and the data of all questions.
        videos_of: what is known of the videos of a run folder.
        max_strips: videos whose frames are shown at most.

    Returns:
        The path of `index.html`.

    Raises:
        DataError: if a folder is not a run.
    """
    videos = [videos_of(Path(path)) for path in run_dirs]
    runs = [load_run(Path(path), known.truths) for path, known in zip(run_dirs, videos, strict=True)]
    labels = _labels(runs)
    baseline = baseline_of(runs)
    columns = [
        _column(i, label, run, None if i == baseline else runs[baseline])
        for i, (label, run) in enumerate(zip(labels, runs, strict=True))
    ]
    headline = [measure for measure in measures.MEASURES if measure.headline]
    examples = write_examples(out, runs, videos, max_strips)
    page = (
        _environment()
        .get_template("template.html.j2")
        .render(
            columns=columns,
            summary=[_summarise(column) for column in columns],
            settings=_settings(runs),
            changes=[[measures.change(run, measure) for run in runs] for measure in headline],
            curves=[(measure, curves.measure_curve(runs, labels, measure)) for measure in headline],
            length_curves=curves.length_curves(runs, labels),
            training_curves=curves.training_curves(runs, labels),
            baseline=columns[baseline],
            examples=examples,
            manifest=_manifest(columns, examples),
            script=Markup((files(__package__) / "examples.js").read_text(encoding="utf-8")),
            truth_known=any(known.truths for known in videos),
            reasons=REASONS,
            meanings=_meanings(columns),
        )
    )
    path = out / "index.html"
    write_text(path, page)
    remove_other_data(out, examples.folder)
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files(__package__) / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=measures.number, signed=measures.signed, percent=measures.percent)
    environment.globals.update(
        interval=measures.interval,
        measure=measures.BY_KEY,
        reason_texts=REASON_TEXTS,
        dash=measures.DASH,
    )
    return environment


def _column(index: int, label: str, run: Run, baseline: Run | None) -> Column:
    rows = tuple(_row(run, iteration) for iteration in run.trained)
    return Column(index, label, run, plots.swatch(index), rows, tuple(ledger(run, baseline)))


def _row(run: Run, one: Iteration) -> Row:
    return Row(
        iteration=one,
        state=run.state(one),
        counts=pair_counts(one),
        judge=judge_panel(one.judgements),
        lengths=lengths(one),
        training=read_training(run, one),
        retrospection=retrospection(one),
        again=tuple(
            Again(other.label, judge_panel(other.judgements), same_verdict(one.judgements, other.judgements))
            for other in one.rejudged
        ),
        speed=speed(one),
    )


def _labels(runs: Sequence[Run]) -> list[str]:
    """Folder names, with as much of the path as tells them apart."""
    names = Counter(run.name for run in runs)
    return [run.name if names[run.name] == 1 else str(run.path) for run in runs]


def _manifest(columns: Sequence[Column], examples: Written) -> dict[str, Any]:
    """What the page's script has to know."""
    return {
        **asdict(examples),
        "page": PAGE,
        "runs": [{"label": c.label, "context": c.run.setting("judge.context")} for c in columns],
        "reasons": REASON_TEXTS,
    }


def _summarise(column: Column) -> str:
    """One sentence: from where to where in how many iterations."""
    told = []
    for key, words in (
        ("accuracy", "held-out accuracy"),
        ("false_share", "false statements"),
        ("words", "words per answer"),
    ):
        change = measures.change(column.run, measures.BY_KEY[key])
        if change.first is not None and change.last is not None and change.difference is not None:
            first, last = (change.measure.write(point.estimate.value) for point in (change.first, change.last))
            told.append((f"{words} {first} → {last}", change.last.iteration))
    if not told:
        return "There are no two evaluations to compare yet."
    iterations = told[0][1]
    plural = "" if iterations == 1 else "s"
    return f"In {iterations} iteration{plural}: {', '.join(text for text, _ in told)}."


def _settings(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """(key, value per run, whether they differ): the settings that matter most, and all that differ."""
    flat = [_flatten(run.config) for run in runs]
    others = {key for config in flat for key in config} - {*KEY_SETTINGS, *NOT_SETTINGS}
    keys = [*KEY_SETTINGS, *sorted(others)]
    table = []
    for key in keys:
        values = [measures.DASH if config.get(key) is None else str(config[key]) for config in flat]
        differ = len(set(values)) > 1
        if differ or (key in KEY_SETTINGS and any(key in config for config in flat)):
            table.append((key, values, differ))
    return table


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _meanings(columns: Sequence[Column]) -> list[tuple[str, str]]:
    """The readings that occur, each with what it means."""
    occur = {row.training.reading for column in columns for row in column.rows}
    return [(reading, meaning) for reading, meaning in MEANINGS.items() if reading in occur]
