"""A peer in PyTorch: a process of its own that holds the same weights and answers commands, a line each.

The peer's interpreter is `ISRDPO_TORCH_PYTHON`, or the one that runs the benchmark (`make bench-setup`). Between two
commands the process is stopped, so that no thread of it spins while ours run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.schema import ModelConfig
from isrdpo_jax.weights.layouts import published_tensors
from isrdpo_jax.weights.tensors import by_name


def use_threads(count: int) -> None:
    """Confines this process, and the peer that it will start, to so many cores. To be called before JAX computes.

    XLA has as many threads as there are cores that the process may use.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def write_weights(folder: Path, config: ModelConfig, params: Params) -> None:
    """Projector and decoder as transformers names them, and the decoder's configuration."""
    leaves = by_name(params)
    tensors = {}
    for one in published_tensors(config, "original"):
        if one.path.startswith(("llama.", "projector.")):
            leaf = leaves[one.path] if one.layer is None else leaves[one.path][one.layer]
            tensors[one.name] = np.ascontiguousarray(one.to_published(np.asarray(jax.device_get(leaf), np.float32)))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "weights.safetensors"))
    llama = config.llama
    described = {
        "vocab_size": llama.vocab_size,
        "hidden_size": llama.hidden_size,
        "intermediate_size": llama.intermediate_size,
        "num_hidden_layers": llama.num_layers,
        "num_attention_heads": llama.num_heads,
        "num_key_value_heads": llama.num_kv_heads,
        "rms_norm_eps": llama.rms_norm_eps,
        "rope_theta": llama.rope_theta,
        "max_position_embeddings": llama.max_positions,
        "tie_word_embeddings": False,
    }
    (folder / "llama.json").write_text(json.dumps(described))


class TorchPeer:
    """The process, as a context manager; `ask` is answered by one JSON value.

    Args:
        script: in this folder. folder: what it reads. threads: of PyTorch.
    """

    def __init__(self, script: str, folder: Path, threads: int):
        python = os.environ.get("ISRDPO_TORCH_PYTHON", sys.executable)
        command = [python, str(Path(__file__).with_name(script)), str(folder), str(threads)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts: dict[str, str] = self._read()
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, command: str, **arguments: Any) -> Any:
        self._process.send_signal(signal.SIGCONT)
        print(json.dumps({"command": command, **arguments}), file=self._process.stdin, flush=True)
        answer = self._read()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def _read(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"The PyTorch peer ended with {self._process.wait()}; what it said is above. `make bench-setup` "
                "installs what it needs; ISRDPO_TORCH_PYTHON names another interpreter that has torch and trl."
            )
        return json.loads(line)

    def __enter__(self) -> TorchPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.close()
        self._process.wait()
