"""The judge that a run's configuration names, asked behind each iteration about the held-out answers so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax.errors import JaxRuntimeError
from rich.console import Console

from isrdpo_jax.errors import IsrdpoError, StoppedError
from isrdpo_jax.evaluation.evaluate import Evaluation, evaluate
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.runs.preemption import StopSignal
from isrdpo_jax.schema import Config


def names_another_judge(config: Config) -> bool:
    """Whether somebody else than the rules of the data set is to judge; those are asked anyway."""
    return config.evaluation.judge.kind != "exact"


def check_judge(config: Config, run: RunLayout, console: Console) -> None:
    """Refuses, before any compute, a judge that cannot be asked.

    Raises:
        IsrdpoError: with what to do.
    """
    if names_another_judge(config):
        Evaluation(config, run.judged, console, StopSignal()).check()


def judge_iterations(config: Config, run: RunLayout, console: Console, say: Callable[[str], None]) -> None:
    """Has all iterations' stored answers judged, as `isrdpo eval RUN` would; what was asked before is not asked again.

    The verdicts and figures lie in `run.judged`. A judge that fails costs its verdicts and never the run.

    Raises:
        StoppedError: on request.
    """
    try:
        summary = evaluate([str(run.root)], config, run.judged, console)
    except StoppedError:
        raise
    except (IsrdpoError, OSError, JaxRuntimeError) as error:  # the last: a judge that memory has no room for
        say(f"  [yellow]not judged[/]: {error} The run goes on; `isrdpo eval` judges its answers later.")
        return
    say(f"  judged by {summary['judge']['name']}: {_told(summary['rows'][-1])}")


def _told(row: dict[str, Any]) -> str:
    figures = [f"{name} {row[name]['value']:.3f}" for name in ("accuracy", "score") if row[name]["value"] is not None]
    return ", ".join([*figures, f"{row['judged']} of {row['total']} answers judged"])
