"""The peer of `dpo_step.py`: TRL's DPO loss on a transformers LLaMA, chosen and rejected concatenated, AdamW.

    python benchmarks/torch_peer_dpo.py FOLDER THREADS

At its best: tower features are given and projected once per pair, logits exist at response positions only (TRL's own
head computes all of them on a CPU), no gradient checkpointing, no padding, a fused optimizer.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import nn
from torch_peer_model import load, serve
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer


class VideoLlama(nn.Module):
    """What the trainer's loss calls: rows of text before the video, video, turn, response; log-probs of responses."""

    def __init__(self, projector: nn.Module, llama: LlamaForCausalLM, response_length: int):
        super().__init__()
        self.projector, self.llama, self.m = projector, llama, response_length

    def forward(self, input_ids: torch.Tensor, features: torch.Tensor, before: int, **_: Any) -> SimpleNamespace:
        """input_ids: [2b, before + turn + m], the text alone. features: [b, n, d_vision]."""
        visual = self.projector(features)
        text = self.llama.model.embed_tokens(input_ids)
        x = torch.cat([text[:, :before], torch.cat([visual, visual]), text[:, before:]], dim=1)
        hidden = self.llama.model(inputs_embeds=x, use_cache=False).last_hidden_state
        logits = self.llama.lm_head(hidden[:, -self.m - 1 : -1])
        targets = input_ids[:, -self.m :, None]
        log_probs = logits.gather(-1, targets)[..., 0] - logits.logsumexp(-1)
        log_probs = nn.functional.pad(log_probs, (input_ids.shape[1] - 1 - self.m, 0))
        nothing = torch.zeros_like(log_probs)
        return SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def trainer(beta: float, stored: bool) -> DPOTrainer:
    """A real one, for its loss; the model and the row that it is made with are not used."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    small = LlamaConfig(vocab_size=3, hidden_size=4, intermediate_size=4, eos_token_id=1, **sizes)
    with tempfile.TemporaryDirectory() as out:
        made = DPOTrainer(
            model=LlamaForCausalLM(small),
            ref_model=LlamaForCausalLM(small),
            args=DPOConfig(
                output_dir=out, report_to="none", use_cpu=True, bf16=False, activation_checkpointing=False, beta=beta
            ),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "a"}]),
            processing_class=tokenizer,
        )
    made.precompute_ref_logps = stored
    return made


class Steps:
    """Answers commands; the policy goes on from update to update."""

    def __init__(self, folder: Path):
        settings = json.loads((folder / "settings.json").read_text())
        with np.load(folder / "inputs.npz") as arrays:
            self.inputs = {name: torch.from_numpy(arrays[name]) for name in arrays}
        self.pairs, self.micro, self.m = settings["pairs"], settings["micro_batch"], self.inputs["chosen"].shape[1]
        projector, llama = load(folder)
        self.policy = VideoLlama(projector, llama, self.m).train()
        self.reference = copy.deepcopy(self.policy).eval().requires_grad_(False)
        self.trainers = {stored: trainer(settings["beta"], stored) for stored in (False, True)}
        for one in self.trainers.values():
            one.ref_model = self.reference
        adam = {name: settings[name] for name in ("lr", "eps", "weight_decay")}
        betas = (settings["b1"], settings["b2"])
        self.optimizer = torch.optim.AdamW(llama.parameters(), betas=betas, fused=True, **adam)

    def __call__(self, command: str, **arguments: Any) -> Any:
        return getattr(self, command)(**arguments)

    def batches(self, reference: list[list[float]] | None) -> Iterator[dict[str, Any]]:
        for start in range(0, self.pairs, self.micro):
            some = slice(start, start + self.micro)
            text = {name: self.inputs[name][some] for name in ("before", "turn", "chosen", "rejected")}
            sides = [torch.cat([text["before"], text["turn"], text[side]], 1) for side in ("chosen", "rejected")]
            ids = torch.cat(sides)
            completion = torch.zeros_like(ids)
            completion[:, -self.m :] = 1
            batch = {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),  # the trainer counts tokens with it
                "features": self.inputs["features"][some],
                "before": text["before"].shape[1],
                "completion_mask": completion,
            }
            if reference is not None:
                stored = torch.tensor(reference)[some]
                batch |= {"ref_chosen_logps": stored[:, 0], "ref_rejected_logps": stored[:, 1]}
            yield batch

    @torch.no_grad()
    def logps(self) -> list[list[float]]:
        """Sequence log-probs of every pair's responses, under the policy as it is."""
        sums = []
        for batch in self.batches(None):
            said = self.policy(batch["input_ids"], batch["features"], batch["before"]).log_probs.sum(-1)
            sums += torch.stack(said.chunk(2), -1).tolist()
        return sums

    def step(self, reference: list[list[float]] | None) -> dict[str, float]:
        """One update, with the reference's log-probs given, or by its own forward."""
        began = time.perf_counter()
        loss = 0.0
        for batch in self.batches(reference):
            share = self.trainers[reference is not None]._compute_loss(self.policy, batch, return_outputs=False)
            share = share * self.micro / self.pairs
            share.backward()
            loss += share.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": float(loss), "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    serve(Steps)
