"""`isrdpo eval`: greedy answers, verdicts on them, and figures, all kept in one folder.

    OUT/answers/<subject>-<identity>.jsonl             one row per question; again only what is missing
        replies.jsonl                                  what judges said, by everything that went into the call
        verdicts/<subject>-<identity>/<judge>.jsonl    one row per question, with the reply
        summary.json                                   what the last call reported

The same call with another judge judges the stored answers again, and compares with every judge before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from isrdpo_jax.data.loader import VideoSource, open_split
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.evaluation.endpoint import check_base_url, read_key
from isrdpo_jax.evaluation.figures import compare, figures
from isrdpo_jax.evaluation.heldout import Heldout, join, read_heldout
from isrdpo_jax.evaluation.local_judge import check_truth, judge_by_policy, judge_exactly
from isrdpo_jax.evaluation.protocols import Item, Protocol, load_protocol
from isrdpo_jax.evaluation.remote_judge import judge_remotely
from isrdpo_jax.evaluation.reply_log import ReplyLog
from isrdpo_jax.evaluation.subjects import Subject, answers_of, find_subjects, policy_digest, read_answers
from isrdpo_jax.evaluation.verdicts import Verdict
from isrdpo_jax.runs.atomic import read_jsonl, sweep_temporaries, write_json, write_jsonl
from isrdpo_jax.runs.lock import RunLock
from isrdpo_jax.runs.manifest import hash_json
from isrdpo_jax.runs.preemption import StopSignal
from isrdpo_jax.schema import Config
from isrdpo_jax.sharding import check_heads, make_mesh
from isrdpo_jax.stages.policy import Policy, open_policy
from isrdpo_jax.weights.policy_folder import PolicyFolder, find_policy

Start = Callable[[int], Callable[[], None]]


@dataclass(frozen=True)
class Evaluated:
    """One subject's answers and the verdicts on them."""

    subject: Subject
    answers: Path
    items: list[Item]
    verdicts: dict[str, Verdict]


class Evaluation:
    """What stays the same while subjects are evaluated: config, folder, mesh, splits, judge."""

    def __init__(self, config: Config, out: Path, console: Console, stop: StopSignal):
        self.config, self.out, self.console, self.stop = config, out, console, stop
        self.judge = config.evaluation.judge
        self.protocol: Protocol | None = None if self.judge.kind == "exact" else load_protocol(self.judge)
        self.prompts = load_prompts(config.prompts.dir)
        self.mesh: jax.sharding.Mesh | None = None
        self.log = ReplyLog(out / "replies.jsonl")
        self._sources: dict[int, tuple[VideoSource, Heldout]] = {}

    def check(self) -> None:
        """Refuses a judge that cannot be asked, before anybody answers."""
        if self.judge.kind == "endpoint":
            check_base_url(self.judge.base_url)
            read_key(self.judge.key_variable)

    def split(self, folder: PolicyFolder | None) -> tuple[VideoSource, Heldout]:
        """The held-out split as a policy sees it; for bare answers, as the config's start policy would."""
        frames = (folder or find_policy(self.config.start)).config.vision.num_frames
        if frames not in self._sources:
            source = open_split(self.config, "eval", num_frames=frames)
            self._sources[frames] = source, read_heldout(source)
        return self._sources[frames]

    def open_policy(self, folder: PolicyFolder) -> Policy:
        if self.mesh is None:
            self.mesh = make_mesh(self.config.mesh)
        check_heads(self.mesh, folder.config)
        return open_policy(folder, self.mesh, self.prompts, verify=self.config.checkpoint.verify)

    @contextmanager
    def progress(self, title: str) -> Iterator[Start]:
        """A bar; `start(total)` gives its tick."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:

            def start(total: int) -> Callable[[], None]:
                task = bar.add_task(title, total=total)
                return lambda: bar.advance(task)

            yield start

    @contextmanager
    def stoppable(self, title: str) -> Iterator[Start]:
        """A bar whose tick also honours a request to stop, since a unit of work has just been saved."""
        with self.progress(title) as start:

            def begin(total: int) -> Callable[[], None]:
                advance = start(total)

                def tick() -> None:
                    advance()
                    self.stop.check()

                return tick

            yield begin

    def answer(self, subject: Subject) -> tuple[Path, list[Item]]:
        source, heldout = self.split(subject.policy)
        if self.protocol is None:
            check_truth(heldout)
        with self.stoppable(f"{subject.name}: answer") as start:
            path = answers_of(
                subject,
                source,
                heldout.asked,
                self.config,
                self.prompts.digest,
                self.out / "answers",
                self.open_policy,
                start,
            )
        return path, join(heldout, read_answers(path), subject.name)

    def identity(self) -> dict[str, Any]:
        """Which judge this is: everything that could change a verdict on the same answer."""
        if self.protocol is None:
            return {"kind": "exact"}
        asked = {"protocol": self.protocol.form, "system": self.protocol.system, "user": self.protocol.user}
        about = {"kind": self.judge.kind, "model": self.judge.model, **asked}
        if self.judge.kind == "endpoint":
            return about | {"base_url": self.judge.base_url}
        folder = find_policy(str(self.judge.model))
        made_of = {"policy": policy_digest(folder), "conversation": self.prompts.prefix_text}
        return about | made_of | {"max_new_tokens": self.judge.max_new_tokens}

    def verdicts(self, subjects: Sequence[Subject], items: Sequence[list[Item]]) -> tuple[list[dict], dict[str, Any]]:
        """Each subject's verdicts by id, and what the calls took (endpoints)."""
        judge, protocol = self.judge, self.protocol
        if protocol is None:
            return [
                judge_exactly(one, self.split(subject.policy)[1]) for subject, one in zip(subjects, items, strict=True)
            ], {}
        if judge.kind == "endpoint":
            # All at once, under ids that tell the subjects apart: what several subjects say alike is asked once.
            flat = [
                Item(f"{i} {item.id}", item.video, item.question, item.reference, item.caption, item.prediction)
                for i, one in enumerate(items)
                for item in one
            ]
            with self.progress("judge") as start:
                judged = judge_remotely(flat, protocol, judge, self.log, stop=self.stop, start=start)
            found = [{item.id: judged.verdicts[f"{i} {item.id}"] for item in one} for i, one in enumerate(items)]
            return found, judged.calls
        folder = find_policy(str(judge.model))
        policy, source = self.open_policy(folder), self.split(folder)[0]
        found = []
        for subject, one in zip(subjects, items, strict=True):
            with self.stoppable(f"{subject.name}: judge") as start:
                found.append(
                    judge_by_policy(
                        policy,
                        source,
                        one,
                        protocol,
                        self.log,
                        collect=self.config.collect,
                        max_new_tokens=judge.max_new_tokens,
                        start=start,
                    )
                )
        return found, {}


def evaluate(names: Sequence[str], config: Config, out: Path, console: Console) -> dict[str, Any]:
    """Evaluates what the names stand for (see `subjects.find_subjects`), and compares all with the first.

    Returns:
        {"judge", "calls", "rows": one per subject, "paired": each subject against the first, "drift": this judge
        against the earlier ones on the same answers}; also in `out/summary.json`.

    Raises:
        IsrdpoError: with what to do; what was answered and judged is kept, and the same call goes on.
    """
    subjects = [subject for name in names for subject in find_subjects(name)]
    samples = config.evaluation.bootstrap_samples
    with StopSignal("the same command") as stop, RunLock(out / "lock"):
        sweep_temporaries(out)
        evaluation = Evaluation(config, out, console, stop)
        evaluation.check()
        identity = evaluation.identity()
        name = judge_name(identity)
        answered = [evaluation.answer(subject) for subject in subjects]
        verdicts, calls = evaluation.verdicts(subjects, [items for _, items in answered])
        done = [
            Evaluated(subject, path, items, found)
            for subject, (path, items), found in zip(subjects, answered, verdicts, strict=True)
        ]
        for one in done:
            write_verdicts(out, one, name, identity)
        rows = [
            {"subject": one.subject.name, "answers": str(one.answers), **figures(one.items, one.verdicts, samples)}
            for one in done
        ]
        paired = [
            {
                "subject": one.subject.name,
                "against": done[0].subject.name,
                **compare(videos_of(one.items), one.verdicts, done[0].verdicts, samples),
            }
            for one in done[1:]
        ]
        drift = [row for one in done for row in drift_of(out, one, name, samples)]
        shown = {key: value for key, value in identity.items() if key not in ("system", "user")}
        origin = {"prompt": evaluation.protocol.origin} if evaluation.protocol else {}
        summary = {
            "judge": {"name": name, **shown, **origin},
            "calls": calls,
            "rows": rows,
            "paired": paired,
            "drift": drift,
        }
        write_json(out / "summary.json", summary)
    return summary


def judge_name(identity: dict[str, Any]) -> str:
    """A file name for a judge; the digest tells judges apart that would be called the same."""
    if identity["kind"] == "exact":
        return "exact"
    model = "".join(c if c.isalnum() or c in "._-" else "-" for c in str(identity["model"])).strip(".-")
    return f"{identity['protocol']}-{model}-{hash_json(identity)[:8]}"


def videos_of(items: Sequence[Item]) -> dict[str, str]:
    return {item.id: item.video for item in items}


def verdict_folder(out: Path, answers: Path) -> Path:
    return out / "verdicts" / answers.stem


def write_verdicts(out: Path, one: Evaluated, judge: str, identity: dict[str, Any]) -> None:
    """One row per question, in the order of the split; and who judged."""
    folder = verdict_folder(out, one.answers)
    rows = [{"id": item.id, "video": item.video, **asdict(one.verdicts[item.id])} for item in one.items]
    write_jsonl(folder / f"{judge}.jsonl", rows)
    write_json(folder / f"{judge}.json", identity)


def drift_of(out: Path, one: Evaluated, judge: str, samples: int) -> list[dict[str, Any]]:
    """This judge against every other that judged the same answers."""
    videos = videos_of(one.items)
    return [
        {
            "subject": one.subject.name,
            "against": path.stem,
            **compare(videos, one.verdicts, read_verdicts(path), samples),
        }
        for path in sorted(verdict_folder(out, one.answers).glob("*.jsonl"))
        if path.stem != judge
    ]


def read_verdicts(path: Path) -> dict[str, Verdict]:
    """Stored verdicts by question id."""
    return {row["id"]: Verdict(row["outcome"], row["correct"], row["score"], row["reply"]) for row in read_jsonl(path)}
