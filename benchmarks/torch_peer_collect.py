"""The peer of `collect.py`: transformers' `generate` on the same prompts, request by request or in batches.

    python benchmarks/torch_peer_collect.py FOLDER THREADS

At its best: inference mode, tower features given and projected once per video, no EOS to look for (every request stops
behind its own number of tokens), logits of a verdict at the last position only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_peer_model import load, serve
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList


class Lengths(StoppingCriteria):
    """A row is done behind its own number of new tokens; the batch, when all rows are."""

    def __init__(self, counts: Sequence[int]):
        self.counts, self.made = torch.tensor(counts), 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.made += 1
        return self.counts <= self.made


class Requests:
    """Answers commands. A request is `{video, turn: token ids, count: new tokens}`; a verdict has no count."""

    def __init__(self, folder: Path):
        settings = json.loads((folder / "settings.json").read_text())
        self.phases, self.letters = settings["phases"], settings["letters"]
        self.sampling = {name: settings[name] for name in ("temperature", "top_p")}
        projector, self.llama = load(folder)
        self.llama.eval()
        self.llama.generation_config.eos_token_id = None  # every request has its own end
        with np.load(folder / "inputs.npz") as arrays, torch.inference_mode():
            text = self.llama.model.embed_tokens(torch.from_numpy(arrays["prefix_ids"]))
            visual = projector(torch.from_numpy(arrays["features"]))
            self.prefixes = torch.cat([text.expand(len(visual), -1, -1), visual], dim=1)

    def __call__(self, command: str, **arguments: Any) -> Any:
        with torch.inference_mode():
            return getattr(self, command)(**arguments)

    def collect(self, batch: int, videos: Sequence[int]) -> dict[str, Any]:
        """All requests about these, so many at a time; seconds of each phase, and the log-odds of the verdicts."""
        seconds, odds, made = {}, [], 0
        for phase, all_requests in self.phases.items():
            requests = [one for one in all_requests if one["video"] in videos]
            began = time.perf_counter()
            for some in (requests[start : start + batch] for start in range(0, len(requests), batch)):
                if phase == "judge":
                    odds += self.verdicts(some)
                else:
                    made += sum(self.answers(some))
            seconds[phase] = time.perf_counter() - began
        return {"seconds": seconds, "log_odds": odds, "tokens": made}

    def prompts(self, requests: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Embeddings [b, n, d], padded on the left; a mask only where there is padding."""
        rows = [torch.cat([self.prefixes[one["video"]], self.embed(one["turn"])]) for one in requests]
        longest = max(len(row) for row in rows)
        x = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
        return {"inputs_embeds": x, "attention_mask": mask}

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        return self.llama.model.embed_tokens(torch.tensor(ids))

    def answers(self, requests: Sequence[dict[str, Any]]) -> Iterator[int]:
        """How many tokens of each request were sampled and are wanted."""
        counts = [one["count"] for one in requests]
        how = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=max(counts), pad_token_id=0, **self.sampling)
        criteria = StoppingCriteriaList([Lengths(counts)])
        out = self.llama.generate(**self.prompts(requests), generation_config=how, stopping_criteria=criteria)
        return (min(count, out.shape[1]) for count in counts)

    def verdicts(self, requests: Sequence[dict[str, Any]]) -> list[float]:
        """log p(A) - log p(B) behind each prompt."""
        prompts = self.prompts(requests)
        positions = (prompts["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = self.llama(**prompts, position_ids=positions, use_cache=False, logits_to_keep=1).logits[:, -1]
        return (logits[:, self.letters[0]] - logits[:, self.letters[1]]).tolist()


if __name__ == "__main__":
    serve(Requests)
