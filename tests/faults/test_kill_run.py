"""A whole run under real faults: kill -9 in every stage, SIGTERM, a second writer, flipped bytes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import pytest
from tiny import assert_trees_equal
from tiny_run import ITERATIONS, Lab, Ran, records, weights

from isrdpo_jax import cli
from isrdpo_jax.report.status import read_status
from isrdpo_jax.runs.layout import STAGES, IterationLayout, RunLayout, Stage

KILLS = 5  # in each stage
SEEDS = (1, 2)  # one chain of killed runs each, at the same time; then more, should a stage have got fewer kills
MOST_CHAINS = 16
FILES = {"collect": 9, "pairs": 1, "reference": 5, "optimize": 5, "evaluate": 3}  # that a stage makes, or rows


def made(one: IterationLayout, stage: Stage) -> int:
    """How far a stage is: its files that are there, or rows of metrics."""
    match stage:
        case "collect":
            return sum(len(one.parts(kind)) for kind in ("responses", "descriptions", "judgements"))
        case "pairs":
            return int(one.pairs.exists())
        case "reference":
            return len(one.parts("reference"))
        case "optimize":
            return one.metrics.read_bytes().count(b"\n") if one.metrics.exists() else 0
        case "evaluate":
            return len(list(one.evaluation.glob("*.json*")))


def at_work(run: RunLayout) -> tuple[int, Stage] | None:
    """Iteration and stage that are to be done next, from the manifests; none when all are done."""
    for t in range(1, ITERATIONS + 1):
        for stage in STAGES:
            if not run.iteration(t).manifest(stage).exists():
                return t, stage
    return None


class Running:
    """A run in a process of its own, and how far it is."""

    def __init__(self, lab: Lab, name: str):
        self.run = lab.layout(name)
        self.said = lab.root / f"{name}.said"
        with open(self.said, "w") as stderr:
            self.child = lab.start("run", lab.config, f"run.name={name}", stdout=subprocess.DEVNULL, stderr=stderr)

    def wait_for(self, t: int, stage: Stage) -> bool:
        """Returns when the process is in this stage or behind it; false when the process ended."""
        one = self.run.iteration(t)
        number = STAGES.index(stage)
        before = [one.manifest(STAGES[number - 1])] if number else []
        while not (f"iteration {t} of" in self.said.read_text() and all(path.exists() for path in before)):
            if self.child.poll() is not None:
                return False
            time.sleep(0.0005)
        return True

    def wait_until_made(self, t: int, stage: Stage, count: int) -> None:
        """Returns when the stage has made so much, or is done."""
        one = self.run.iteration(t)
        while made(one, stage) < count and not one.manifest(stage).exists() and self.child.poll() is None:
            time.sleep(0.0005)

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()


def check_what_is_visible(run: RunLayout) -> None:
    """Whenever a run is killed, what has its final name is whole (of metrics: all rows but the last)."""
    read_status(run.root)
    for path in (path for path in run.root.rglob("*") if path.suffix in (".json", ".jsonl")):
        content = path.read_text()
        if path.name == "metrics.jsonl":
            content = content[: content.rfind("\n") + 1]
        for text in content.splitlines() if path.suffix == ".jsonl" else [content]:
            json.loads(text)


def disturbed(lab: Lab, seed: int, landed: Counter[Stage], lock: Lock) -> RunLayout:
    """One run, killed again and again until it ends: in each stage of each iteration, once more in the first."""
    chance, name = random.Random(seed), f"killed_{seed}"
    run, here = lab.layout(name), Counter[tuple[int, Stage]]()

    def is_due(t: int, stage: Stage) -> bool:
        wanted = 2 if t == 1 else 1
        return here[t, stage] < wanted and landed[stage] < KILLS + 1

    def next_target() -> tuple[int, Stage] | None:
        """The first stage, from where the run is, that is to be disturbed."""
        now = at_work(run)
        if now is None:
            return None
        ahead = [(t, stage) for t in range(1, ITERATIONS + 1) for stage in STAGES]
        return next((place for place in ahead[ahead.index(now) :] if is_due(*place)), None)

    while target := next_target():
        t, stage = target
        running = Running(lab, name)
        if running.wait_for(t, stage):
            so_far = made(run.iteration(t), stage)
            more = chance.randint(0, max(0, FILES[stage] - so_far))
            running.wait_until_made(t, stage, so_far + more)
            longest = 0.001 if stage == "pairs" else 0.02 if more else 0.3  # pairs are made in milliseconds
            time.sleep(chance.uniform(0, longest))
        running.kill()
        if running.child.returncode == 0:
            break
        assert running.child.returncode == -signal.SIGKILL, running.said.read_text()
        check_what_is_visible(run)
        if place := at_work(run):
            here[place] += 1
            with lock:
                landed[place[1]] += 1
    last = Running(lab, name)
    assert last.child.wait(timeout=900) == 0, last.said.read_text()
    return run


def assert_same_run(run: RunLayout, undisturbed: RunLayout) -> None:
    """Bitwise: the records of every stage, the manifests that seal them, and the policies."""
    expected, found = records(undisturbed), records(run)
    assert [name for name in expected | found if expected.get(name) != found.get(name)] == []
    for one in undisturbed.iterations():
        assert_trees_equal(weights(run.iteration(one.index)), weights(one))


@pytest.mark.slow
def test_killed_in_every_stage_it_makes_the_same_run(lab: Lab, finished: Ran):
    landed: Counter[Stage] = Counter()
    lock = Lock()
    runs = []
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        runs += pool.map(lambda seed: disturbed(lab, seed, landed, lock), SEEDS)
    for seed in range(SEEDS[-1] + 1, MOST_CHAINS + 1):
        if all(landed[stage] >= KILLS for stage in STAGES):
            break
        runs.append(disturbed(lab, seed, landed, lock))
    print(f"seeds {[run.root.name for run in runs]}: kills {dict(landed)}")
    assert all(landed[stage] >= KILLS for stage in STAGES), landed
    for run in runs:
        assert_same_run(run, finished.layout)


@pytest.fixture
def stopped(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Running]:
    """A run that is in the stage of the test's parameter, and is halted there."""
    running = Running(lab, f"halted_{request.param}")
    assert running.wait_for(1, request.param)
    running.wait_until_made(1, request.param, 1)
    running.child.send_signal(signal.SIGSTOP)
    yield running
    running.kill()


@pytest.mark.parametrize("stopped", ["collect", "optimize"], indirect=True)
def test_sigterm_ends_the_unit_and_the_run_goes_on_later(
    stopped: Running, lab: Lab, finished: Ran, isrdpo: Callable, request: pytest.FixtureRequest
):
    stage = request.node.callspec.params["stopped"]
    refused = isrdpo("run", lab.config, f"run.name={stopped.run.root.name}")
    assert refused[0] == 2 and f"is being written by process {stopped.child.pid} on " in refused[1]
    assert read_status(stopped.run.root)["state"] == "running"

    stopped.child.terminate()
    stopped.child.send_signal(signal.SIGCONT)
    assert stopped.child.wait(timeout=900) == 75
    said = stopped.said.read_text()
    assert "Stopped by SIGTERM; all finished work is saved. Run the same command again to go on." in said
    assert "Traceback" not in said
    assert at_work(stopped.run) == (1, stage) and made(stopped.run.iteration(1), stage) >= 1
    if stage == "collect":
        kinds = [len(stopped.run.iteration(1).parts(kind)) for kind in ("responses", "descriptions", "judgements")]
        assert len(set(kinds)) == 1, "the batch at hand was finished"
    else:
        rows = made(stopped.run.iteration(1), stage)
        assert stopped.run.iteration(1).train_steps()[-1] == rows, "the state behind the last update was saved"

    again = lab.isrdpo("run", lab.config, f"run.name={stopped.run.root.name}")
    if stage == "optimize":
        assert f"going on behind update {rows} of 5" in again.stderr
    assert_same_run(stopped.run, finished.layout)


@pytest.fixture
def isrdpo(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """The command line without a process of its own: exit code and stderr."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["isrdpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capfd.readouterr().err

    return run


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


VICTIMS = {
    "the start": lambda run: largest(run.iteration(0).checkpoint),
    "a policy": lambda run: largest(run.iteration(1).checkpoint),
    "responses": lambda run: run.iteration(1).parts("responses")[1],
    "judgements": lambda run: run.iteration(2).parts("judgements")[0],
    "pairs": lambda run: run.iteration(1).pairs,
    "reference": lambda run: run.iteration(2).parts("reference")[3],
    "metrics": lambda run: run.iteration(1).metrics,
    "evaluation": lambda run: run.iteration(2).evaluation / "answers.jsonl",
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_flipped_byte_is_found_before_use(lab: Lab, finished: Ran, isrdpo: Callable, victim: str):
    run = lab.layout("flipped")
    shutil.rmtree(run.root, ignore_errors=True)
    shutil.copytree(finished.layout.root, run.root)
    path = VICTIMS[victim](run)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, err = isrdpo("run", lab.config, "run.name=flipped")
    assert code == 2 and f"{path} was changed" in err and err.count("error:") == 1
    assert path.read_bytes() == content
    if "checkpoint" in str(path):
        code, err = isrdpo("ask", path.parents[len(path.relative_to(run.root).parts) - 2], lab.video, "What moves?")
        assert code == 2 and f"{path} was changed" in err
