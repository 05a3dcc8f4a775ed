"""A laptop with tpu_scripts and a `gcloud` on the PATH that plays a pod (fake_gcloud.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "tpu_scripts"
MAKEFILE = """\
setup-tpu:
\tmkdir -p .venv/bin
\tprintf '#!/bin/sh\\nexec {python} "$$@"\\n' > .venv/bin/python
\tprintf '#!/bin/sh\\nexec {python} {isrdpo} "$$@"\\n' > .venv/bin/isrdpo
\tchmod +x .venv/bin/*
"""
COMMANDS = {
    "gcloud": f'exec {sys.executable} {HERE / "fake_gcloud.py"} "$@"',
    "python3.11": f'exec {sys.executable} "$@"',
    "mountpoint": '[ -L "$2" ]',
    "gcsfuse": 'echo "$@" >>"$FAKE_CLOUD/mounts"; rmdir shared; mkdir -p "$FAKE_CLOUD/shared"\n'
    'ln -s "$FAKE_CLOUD/shared" shared',
}


@dataclass(frozen=True)
class Cloud:
    """The laptop and the cloud of one test.

    Attributes:
        root: `cloud/` is what `gcloud` keeps, `repository/` the checkout, `laptop/` the home folder.
        environment: of the scripts.
    """

    root: Path
    environment: dict[str, str]

    def script(self, name: str, *words: str, answer: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs `tpu_scripts/NAME.sh WORDS` to its end."""
        return subprocess.run(
            [self.root / "repository" / "tpu_scripts" / f"{name}.sh", *words],
            env=self.environment,
            input=answer,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def ok(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        done = self.script(name, *words)
        assert done.returncode == 0, done.stderr
        return done

    def calls(self) -> list[list[str]]:
        """The calls of gcloud since the last look, without those that the workers make (storage)."""
        path = self.root / "cloud" / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [words[2:] for words in map(json.loads, lines) if words[:2] == ["compute", "tpus"]]

    def verbs(self) -> list[str]:
        """The calls since the last look, shortly: `tpu-vm ssh start`."""
        short = []
        for words in self.calls():
            command = next((word for word in words if word.startswith("--command=")), "")
            subject = [
                word for word in ("setup", "start", "stop", "state", "status", "progress") if f".sh {word}" in command
            ]
            short.append(" ".join([*words[:2], *subject[:1]]))
        return short

    def pod(self, **changes: Any) -> dict[str, Any]:
        return self._change("pod.json", changes)

    def play(self, **changes: Any) -> None:
        self._change("play.json", changes)

    def home(self, worker: int = 0) -> Path:
        return self.root / "cloud" / f"worker-{worker}"

    def bucket(self, path: str) -> Path:
        return self.root / "cloud" / "bucket" / path

    def ends(self, *ends: int | str, worker: int = 0) -> None:
        """How the next runs end on a worker; behind them runs end with 0."""
        (self.home(worker) / "ends").write_text("\n".join(map(str, ends)))

    def state(self, worker: int = 0) -> str:
        done = subprocess.run(
            ["bash", "isrdpo_jax/tpu_scripts/worker.sh", "state"],
            cwd=self.home(worker),
            env=self.environment | {"HOME": str(self.home(worker)), "HOSTNAME": "w"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip().removeprefix("w ")

    def log(self, worker: int = 0) -> str:
        path = self.home(worker) / "isrdpo_run" / "log"
        return path.read_text() if path.exists() else ""

    def preempt(self) -> None:
        """Takes the machines away: their processes die on the spot, and the VM is PREEMPTED."""
        self.kill_workers()
        self.pod(vm="PREEMPTED", request="SUSPENDED")

    def kill_workers(self) -> None:
        """Kills what runs on the workers, without a word."""
        for pid in (self.root / "cloud").glob("worker-*/isrdpo_run/pid"):
            group = f"-{pid.read_text().strip()}"
            subprocess.run(["kill", "-KILL", "--", group], stderr=subprocess.DEVNULL, check=False)

    def _change(self, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        path = self.root / "cloud" / name
        value = (json.loads(path.read_text()) if path.exists() else {}) | changes
        path.write_text(json.dumps(value))
        return value


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Waits until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def make_checkout(root: Path, config: str, isrdpo: str = str(HERE / "fake_isrdpo.py")) -> None:
    """A repository of one commit: the real tpu_scripts, configs/a.yaml, and a Makefile.

    Args:
        config: text of configs/a.yaml.
        isrdpo: what `make setup-tpu` installs as .venv/bin/isrdpo, in words for python.
    """
    shutil.copytree(SCRIPTS, root / "tpu_scripts")
    (root / "configs").mkdir()
    (root / "configs" / "a.yaml").write_text(config)
    (root / "Makefile").write_text(MAKEFILE.format(python=sys.executable, isrdpo=isrdpo))
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)


def open_cloud(root: Path, checkout: Path) -> Cloud:
    """An empty cloud, in which pods will have one worker."""
    for folder in ("cloud", "laptop", "bin"):
        (root / folder).mkdir()
    (root / "repository").symlink_to(checkout)
    for name, body in COMMANDS.items():
        (root / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (root / "bin" / name).chmod(0o755)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "XDG_", "HOSTNAME"))
    }
    own = {
        "PATH": f"{root / 'bin'}:{kept['PATH']}",
        "HOME": str(root / "laptop"),
        "TMPDIR": str(root),
        "FAKE_CLOUD": str(root / "cloud"),
    }
    cloud = Cloud(root, kept | own)
    cloud.pod(vm=None, request=None, workers=1)
    return cloud
