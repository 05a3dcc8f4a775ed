"""Read a run's files into plain records, taking what is there: a run may be unfinished, or be writing at this moment.

Only what every figure of the report needs is kept in memory; texts are read in a second pass (`examples.py`). What
cannot be read is named in `Run.notes` and never stops the report.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from isrdpo_jax.data.shapes_world.language import better_response
from isrdpo_jax.data.shapes_world.revision import Revision, revision
from isrdpo_jax.errors import DataError
from isrdpo_jax.report.retrospection import Rewriting, rewriting
from isrdpo_jax.runs.layout import STAGES, IterationLayout, RunLayout
from isrdpo_jax.stages.tally import Tally
from isrdpo_jax.yaml_tree import CoreLoader

T = TypeVar("T")
Truths = Mapping[str, Mapping[str, Any]]  # by video id


@dataclass(frozen=True)
class Estimate:
    """A measured number as `evaluation/summary.json` holds it: value, denominator, 95 % interval where there is one."""

    value: float
    count: int | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Judgement:
    """A verdict without its texts.

    Attributes:
        question: its text; empty where no response is on disk.
        log_odds: log p(y1 is better) - log p(y2 is better) in each order; empty where nothing was asked.
        words: words of the two responses.
        better: the truly better response; None where nobody knows, or neither is.
    """

    id: str
    video: str
    question: str
    log_odds: tuple[float, ...]
    margin: float | None
    verdict: int | None
    reason: str
    words: tuple[int, int] | None
    better: int | None = None


@dataclass(frozen=True)
class _Asked:
    """What the responses to a question tell a judgement."""

    question: str = ""
    words: tuple[int, int] | None = None
    better: int | None = None


@dataclass(frozen=True)
class Description:
    """One description c_t, and what it made of c_{t-1}, where it saw one.

    Attributes:
        change: 1 - |words in c_{t-1} and c_t| / |words in either|.
        revision: the same against the truth, where it is known.
    """

    video: str
    words: int
    cut: bool
    change: float | None = None
    rewriting: Rewriting | None = None
    revision: Revision | None = None


@dataclass(frozen=True)
class Rejudged:
    """What another judge said of the stored responses; `label` is what it does otherwise."""

    label: str
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True)
class Answer:
    """A held-out answer without its text."""

    id: str
    video: str
    words: int


@dataclass(frozen=True)
class Agreement:
    """A judge of the iteration beside somebody's labels; `equal` and `decided` are shares, `kappa` is Cohen's."""

    rater: str
    judge: str
    equal: Estimate | None
    kappa: Estimate | None
    decided: Estimate | None


@dataclass(frozen=True)
class Iteration:
    """What an iteration left on disk; 0 is the start policy, which has an evaluation only."""

    layout: IterationLayout
    done: tuple[str, ...]
    judgements: tuple[Judgement, ...] = ()
    descriptions: tuple[Description, ...] = ()
    pairs: tuple[tuple[str, int, int], ...] | None = None  # (id, words chosen, words rejected); None: not built yet
    metrics: tuple[dict[str, Any], ...] = ()
    summary: dict[str, Estimate] | None = None
    rejudged: tuple[Rejudged, ...] = ()
    answers: tuple[Answer, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    speed: tuple[tuple[str, Tally], ...] = ()  # of each session of a stage that held dialogues

    @property
    def number(self) -> int:
        """t."""
        return self.layout.index

    @property
    def kept(self) -> frozenset[str]:
        """Ids of the questions that gave a pair."""
        return frozenset(pair[0] for pair in self.pairs or ())


@dataclass(frozen=True)
class Run:
    """One run. `iterations` are in order, the start first where it is there."""

    name: str
    path: Path
    config: dict[str, Any]
    iterations: tuple[Iteration, ...]
    notes: tuple[str, ...]

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A value of the run's config by its dotted key."""
        node: Any = self.config
        for key in dotted.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        return default if node is None else node

    @property
    def planned(self) -> int | None:
        """N, the number of iterations that the config asks for."""
        return self.setting("run.iterations")

    @property
    def trained(self) -> tuple[Iteration, ...]:
        """The iterations behind the start."""
        return tuple(iteration for iteration in self.iterations if iteration.number > 0)

    @property
    def last_stage(self) -> str:
        """The stage that ends an iteration."""
        own = {"video_qa": "data.eval_path", "llava_hound": "data.test_sets"}.get(self.setting("data.dataset"))
        heldout = self.setting(own) if own else self.setting("data.eval_videos", 1)
        return "evaluate" if self.setting("evaluation.enabled", True) and heldout else "optimize"

    def state(self, iteration: Iteration) -> str:
        """In words: "done", or what is still to come."""
        if iteration.number == 0:
            if self.last_stage != "evaluate":
                return "evaluation disabled"
            return "done" if iteration.summary else "not evaluated yet"
        if self.last_stage in iteration.done:
            return "done"
        missing = [stage for stage in STAGES if stage not in iteration.done]
        return f"in progress: {missing[0]}"

    @property
    def progress(self) -> str:
        """In words: how far the run is."""
        finished = sum(self.state(iteration) == "done" for iteration in self.trained)
        if self.planned and finished >= self.planned:
            return f"finished: {finished} iterations"
        of = f" of {self.planned}" if self.planned else ""
        running = next((i for i in reversed(self.trained) if self.state(i) != "done"), None)
        now = "" if running is None else f"; {running.number} is {self.state(running)}"
        return f"unfinished: {finished}{of} iterations done{now}"


@dataclass
class Notes:
    """What could not be read, counted per file."""

    unreadable: Counter[str] = field(default_factory=Counter)

    def lines(self) -> tuple[str, ...]:
        return tuple(f"{name}: {n} unreadable record{'s' * (n > 1)} left out" for name, n in self.unreadable.items())


def load_run(path: Path, truths: Truths | None = None) -> Run:
    """Reads a run folder.

    Args:
        path: the folder `runs/NAME`.
        truths: the truth about its videos, where it is known.

    Raises:
        DataError: if there is no such folder, or it is no run.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such run folder; name the folder of a run, for example runs/shapes")
    notes = Notes()
    layout = RunLayout(path)
    iterations = tuple(_load_iteration(iteration, truths or {}, notes) for iteration in layout.iterations())
    if not iterations and not layout.config.is_file():
        raise DataError(f"{path}: holds neither a config.yaml nor an iteration; name the folder of a run")
    return Run(path.resolve().name, path, _read_config(layout.config, notes), iterations, notes.lines())


def read_rows(paths: list[Path], parse: Callable[[dict[str, Any]], T], notes: Notes) -> Iterator[T]:
    """Parses JSON lines one by one; lines that do not parse (a torn end, a lacking field) are counted in `notes`."""
    for path in paths:
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.strip():
                    continue
                try:
                    row = parse(json.loads(line, parse_constant=_no_constant))
                except (ValueError, KeyError, TypeError, IndexError, AttributeError):
                    notes.unreadable["/".join(path.parts[-3:])] += 1
                    continue
                yield row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def count_words(text: str) -> int:
    """Words as the evaluation counts them: runs of non-blank characters."""
    return len(text.split())


def _load_iteration(layout: IterationLayout, truths: Truths, notes: Notes) -> Iteration:
    asked = dict(read_rows(layout.parts("responses"), lambda row: _asked(row, truths), notes))
    judgements = read_rows(layout.parts("judgements"), lambda row: _judgement(row, asked), notes)
    descriptions = read_rows(layout.parts("descriptions"), lambda row: _description(row, truths), notes)
    return Iteration(
        layout=layout,
        done=tuple(stage for stage in STAGES if layout.manifest(stage).is_file()),
        judgements=tuple(judgements),
        descriptions=tuple(descriptions),
        pairs=tuple(read_rows([layout.pairs], _pair, notes)) if layout.pairs.is_file() else None,
        metrics=tuple(read_rows([layout.metrics], _metrics, notes)),
        summary=_read_summary(layout.evaluation / "summary.json", notes),
        rejudged=tuple(_rejudged(path, asked, notes) for path in sorted(layout.rejudged.glob("*.jsonl"))),
        answers=tuple(read_rows([layout.evaluation / "answers.jsonl"], _answer, notes)),
        speed=tuple(read_rows([layout.speed], _speed, notes)),
        agreement=tuple(one for path in sorted(layout.agreement.glob("*.json")) for one in _agreement(path, notes)),
    )


def _agreement(path: Path, notes: Notes) -> list[Agreement]:
    try:
        raters = json.loads(path.read_text(encoding="utf-8"))["raters"]
        return [
            Agreement(rater, judge, *(_estimate(found[name]) for name in ("equal", "kappa", "decided")))
            for rater, result in raters.items()
            for judge, found in result["judges"].items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        notes.unreadable["/".join(path.parts[-3:])] += 1
        return []


def _rejudged(path: Path, asked: Mapping[str, _Asked], notes: Notes) -> Rejudged:
    card = path.with_suffix(".json")
    try:
        changed = json.loads(card.read_text(encoding="utf-8"))["changed"]
        label = ", ".join(f"{key} {value}" for key, value in changed.items()) or "unchanged"
    except (OSError, ValueError, KeyError, AttributeError):
        label = path.stem
    return Rejudged(label, tuple(read_rows([path], lambda row: _judgement(row, asked), notes)))


def _answer(row: dict[str, Any]) -> Answer:
    return Answer(row["id"], row["video"], count_words(row["text"]))


def _asked(row: dict[str, Any], truths: Truths) -> tuple[str, _Asked]:
    texts = [response["text"] for response in row["responses"]]
    first, second = map(count_words, texts)
    truth = truths.get(row["video"])
    better = None if truth is None else better_response(texts, row["question"], truth)
    return row["id"], _Asked(sys.intern(row["question"]), (first, second), better)


def _judgement(row: dict[str, Any], asked: Mapping[str, _Asked]) -> Judgement:
    margin, about = row.get("margin"), asked.get(row["id"], _Asked())
    return Judgement(
        id=row["id"],
        video=row["video"],
        question=about.question,
        log_odds=tuple(float(x) for x in row.get("log_odds") or () if x is not None),
        margin=None if margin is None else float(margin),
        verdict=row.get("verdict"),
        reason=row["reason"],
        words=about.words,
        better=about.better,
    )


def _description(row: dict[str, Any], truths: Truths) -> Description:
    text, previous = row["text"], row.get("previous") or ""
    words, cut = count_words(text), row.get("finish") == "length"
    new, old = set(text.split()), set(previous.split())
    if not old:
        return Description(row["video"], words, cut)
    truth = truths.get(row["video"])
    revised = None if truth is None else revision(previous, text, truth)
    change = 1 - len(new & old) / len(new | old)
    return Description(row["video"], words, cut, change, rewriting(previous, text), revised)


def _pair(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["id"], count_words(row["chosen"]), count_words(row["rejected"])


def _speed(row: dict[str, Any]) -> tuple[str, Tally]:
    return row["stage"], Tally(**{field.name: row[field.name] for field in fields(Tally)})


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    return {"step": int(row["step"]), **{key: value for key, value in row.items() if key != "step"}}


def _read_summary(path: Path, notes: Notes) -> dict[str, Estimate] | None:
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = {key: _estimate(entry) for key, entry in raw.items() if isinstance(entry, dict)}
        return {key: estimate for key, estimate in found.items() if estimate is not None}
    except (ValueError, AttributeError):
        notes.unreadable["/".join(path.parts[-3:])] += 1
        return None


def _estimate(entry: dict[str, Any]) -> Estimate | None:
    """None where nothing was measured."""
    if entry.get("value") is None:
        return None
    return Estimate(entry["value"], entry.get("count"), entry.get("low"), entry.get("high"))


def _read_config(path: Path, notes: Notes) -> dict[str, Any]:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), CoreLoader) if path.is_file() else {}
    except (yaml.YAMLError, ValueError):
        notes.unreadable[path.name] += 1
        return {}
    return config if isinstance(config, dict) else {}
