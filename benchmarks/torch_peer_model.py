"""The peer's side: the model in PyTorch, with our weights, and the loop that answers commands. Nothing of ours."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


def load(folder: Path) -> tuple[nn.Module, LlamaForCausalLM]:
    """The projector and the decoder, with PyTorch's scaled-dot-product attention."""
    tensors = load_file(str(folder / "weights.safetensors"))
    prefix = "model.mm_projector."
    projector = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    d, vision = projector["0.weight"].shape
    layers = nn.Sequential(nn.Linear(vision, d), nn.GELU(), nn.Linear(d, d))
    layers.load_state_dict(projector)
    config = LlamaConfig(**json.loads((folder / "llama.json").read_text()), attn_implementation="sdpa")
    llama = LlamaForCausalLM(config)
    llama.load_state_dict(tensors)
    return layers.requires_grad_(False), llama


def serve(make: Callable[[Path], Callable[..., Any]]) -> None:
    """Answers every line of stdin by one line, until stdin is closed.

    Args:
        make: from the folder that the benchmark wrote to a function of a command and its arguments.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    torch.set_num_threads(int(sys.argv[2]))
    answer = make(Path(sys.argv[1]))
    facts = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)
