"""Training metrics for Weights & Biases (the extra `[wandb]`): one of its runs per iteration, grouped by run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

from isrdpo_jax.runs.atomic import write_text

# Seconds. No answer from the network may hold up a run for longer; what was not sent stays in wandb's own folder.
LOGIN_S, START_S, FINISH_S = 20, 30, 60


@dataclass(frozen=True)
class WandbRun:
    """What it is told about an iteration.

    Attributes:
        folder: the iteration's folder; it keeps the id under which a resumed training goes on.
        config: the run's configuration.
    """

    project: str
    folder: Path
    config: Mapping[str, Any]


class WandbLog:
    """Sends rows; every method may raise anything that wandb does, and the caller must live with it."""

    def __init__(self, told: WandbRun):
        import wandb

        run = told.folder.parent.name
        self._run = wandb.init(
            project=told.project,
            group=run,
            name=f"{run}/{told.folder.name}",
            id=_id(told.folder / "wandb_id"),
            resume="allow",
            dir=str(told.folder),
            config=dict(told.config),
            settings=wandb.Settings(
                login_timeout=LOGIN_S, init_timeout=START_S, finish_timeout=FINISH_S, console="off", silent=True
            ),
        )

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """One row; wandb leaves out a step that it has already."""
        self._run.log({name: float(value) for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def _id(path: Path) -> str:
    """The id that an earlier attempt wrote, or a new one."""
    if not path.is_file():
        write_text(path, secrets.token_hex(8))
    return path.read_text()
