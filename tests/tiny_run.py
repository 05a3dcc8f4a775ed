"""Whole runs with a tiny policy: its folder, a small world that is prepared once, and commands as a user types them."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from rich.console import Console
from tiny import random_params

from isrdpo_jax import pipeline, start_policy
from isrdpo_jax.config import load_config
from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.evaluation import rejudge
from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.runs.atomic import read_jsonl
from isrdpo_jax.runs.layout import STAGES, IterationLayout, RunLayout, Stage
from isrdpo_jax.schema import LlamaConfig, MeshConfig, ModelConfig, VisionConfig
from isrdpo_jax.sharding import make_mesh
from isrdpo_jax.weights.policy_folder import PolicyFolder, load_params, packaged_tokenizer, write_policy

VIDEOS, QUESTIONS = 20, 40  # two questions a video; the third batch of eight videos is half empty
ITERATIONS = 2
MODEL = ModelConfig(
    vision=VisionConfig(
        image_size=32, patch_size=16, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_frames=4
    ),
    llama=LlamaConfig(
        vocab_size=650,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        max_positions=256,
    ),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "run": {"name": "run", "iterations": ITERATIONS},
    "data": {"train_videos": VIDEOS, "eval_videos": 12},
    "collect": {"batch_videos": 8, "turn_tokens": 96},
    "sampling": {"max_new_tokens": 8, "keep_unfinished": True},
    "describe": {"max_new_tokens": 8},
    "evaluation": {"max_new_tokens": 8, "bootstrap_samples": 50},
    "dpo": {"batch_size": 8, "learning_rate": 1e-3},
    "checkpoint": {"every_steps": 2},
}


def letter_policy() -> Params:
    """Random weights, but for three words of the head: a turn is often answered by a letter, the video and the prompt
    have a say in which, and behind a letter the answer ends. So there are verdicts, and finished responses."""
    params = jax.tree.map(np.array, random_params(MODEL))
    tokenizer = load_tokenizer(packaged_tokenizer("shapes"))
    llama = params["llama"]
    llama["embedding"] *= 4
    for name in ("out", "down"):
        llama["layers"][name]["kernel"] *= 0.3
    words = llama["embedding"] / np.linalg.norm(llama["embedding"], axis=1, keepdims=True)
    first, second = tokenizer.letter_ids
    behind = words[tokenizer.encode_turn("?")[-1]]
    difference = np.random.default_rng(0).normal(size=MODEL.llama.hidden_size)
    difference -= behind * (behind @ difference)
    llama["head"][:, first] = 1.4 * behind + 0.2 * difference
    llama["head"][:, second] = 1.4 * behind - 0.2 * difference
    llama["head"][:, tokenizer.eos_id] = 2.4 * (words[first] + words[second])
    return params


@dataclass(frozen=True)
class Lab:
    """A folder with a start policy, a config and prepared data, for any number of runs.

    Attributes:
        root: its folder; runs lie in `root/runs`.
        config: the config file; `SETTINGS` with this lab's folders.
    """

    root: Path
    config: Path

    @property
    def policy(self) -> Path:
        return self.root / "policy"

    @property
    def video(self) -> Path:
        """One of the prepared videos."""
        return min(self.root.glob("data/*/videos/*/*.mp4"))

    def layout(self, name: str) -> RunLayout:
        return RunLayout(self.root / "runs" / name)

    def environment(self) -> dict[str, str]:
        """Of a process of its own: one CPU device, and what was compiled once is not compiled again."""
        kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        return kept | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.root / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "COLUMNS": "200",
        }

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """`isrdpo ARGUMENTS` in a process of its own."""
        command = [sys.executable, "-m", "isrdpo_jax", *map(str, arguments)]
        usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environment()}
        return subprocess.Popen(command, cwd=self.root, text=True, **(usual | options))

    def isrdpo(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs the command to its end, which has this exit code and no traceback."""
        child = self.start(*arguments)
        out, err = child.communicate(timeout=900)
        assert child.returncode == code, err
        assert "Traceback" not in err
        return subprocess.CompletedProcess(arguments, code, out, err)

    def answer(self, *arguments: object) -> dict[str, Any]:
        """What the command says with `--json`: exactly one object on stdout."""
        return json.loads(self.isrdpo(*arguments, "--json").stdout)

    def run(self, name: str, *overrides: str, until: Stage | None = None, config: Path | None = None) -> Ran:
        """A run in this process."""
        said = StringIO()
        loaded = load_config(config or self.config, [f"run.name={name}", *overrides])
        return Ran(pipeline.run(loaded.config, until=until, console=Console(file=said, width=200)), said.getvalue())


@dataclass(frozen=True)
class Ran:
    """A run and what it told the user."""

    layout: RunLayout
    said: str


def open_lab(root: Path) -> Lab:
    write_policy(root / "policy", MODEL, packaged_tokenizer("shapes"), letter_policy(), {})
    settings = SETTINGS | {
        "start": str(root / "policy"),
        "run": SETTINGS["run"] | {"dir": str(root / "runs")},
        "data": SETTINGS["data"] | {"dir": str(root / "data")},
    }
    (root / "run.yaml").write_text(yaml.safe_dump(settings))
    return Lab(root, root / "run.yaml")


def on_one_device(patch: pytest.MonkeyPatch) -> None:
    """Runs in this process take one of its devices, as in a process of their own."""
    for module in (pipeline, rejudge, start_policy):
        patch.setattr(module, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))


def rows(layout: IterationLayout, kind: str) -> list[dict[str, Any]]:
    """All rows of a kind, in the order of the records."""
    return [row for part in sorted((layout.root / kind).glob("*.jsonl")) for row in read_jsonl(part)]


def weights(layout: IterationLayout) -> Params:
    """The policy that the iteration made, as numpy arrays."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return jax.device_get(load_params(PolicyFolder(layout.root.parent, layout.checkpoint), mesh)[0])


def records(run: RunLayout) -> dict[str, bytes]:
    """What equal runs have in common, byte for byte: the records of every stage and the stages' manifests."""
    return {str(path.relative_to(run.root)): path.read_bytes() for one in run.iterations() for path in _records(one)}


def _records(one: IterationLayout) -> Iterator[Path]:
    yield from (one.manifest(stage) for stage in STAGES if one.manifest(stage).exists())
    yield from (path for path in (one.pairs, one.metrics) if path.exists())
    for folder in (one.responses, one.descriptions, one.judgements, one.reference, one.evaluation):
        yield from folder.glob("*.json*")
