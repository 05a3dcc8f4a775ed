"""TRL's DPO losses of given log-probs. Imports nothing of ours.

    python tests/parity/trl_losses.py IN.npz OUT.npz

IN: `policy` and `reference`, log-probs of response tokens [b, 2, m] of (chosen, rejected), 0 behind a response's end;
`mask` bool[b, 2, m]; `settings`, a JSON object NAME -> {`pairs`: how many of them, `arguments` of `trl.DPOConfig`}.
OUT: `NAME/loss`, `NAME/gradient` with respect to `policy`, and `NAME/METRIC` for what the trainer would log.
"""

import json
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer


class Table(nn.Module):
    """Stands where the trainer expects a model with a fused head: says the given log-probs [2b, m]."""

    def __init__(self, log_probs: torch.Tensor):
        super().__init__()
        self.log_probs = nn.Parameter(log_probs)

    def forward(self, **_) -> SimpleNamespace:
        zeros = torch.zeros_like(self.log_probs)
        return SimpleNamespace(log_probs=self.log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def trainer(folder: str, settings: dict) -> DPOTrainer:
    """A real one, of a model and a row that are not used."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    llama = LlamaConfig(vocab_size=3, hidden_size=4, intermediate_size=4, eos_token_id=1, **sizes)
    return DPOTrainer(
        model=LlamaForCausalLM(llama),
        ref_model=LlamaForCausalLM(llama),
        args=DPOConfig(output_dir=folder, report_to="none", use_cpu=True, bf16=False, **settings),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "a"}]),
        processing_class=tokenizer,
    )


def rows(array: np.ndarray) -> torch.Tensor:
    """[b, 2, m] -> [2b, m], the chosen ones first."""
    return torch.from_numpy(np.concatenate([array[:, 0], array[:, 1]]))


def said(dpo: DPOTrainer, policy: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """What the trainer makes of log-probs [b, 2, m]."""
    # One token of prompt in front, which is not predicted.
    completion_mask = torch.nn.functional.pad(rows(mask), (1, 0)).long()
    inputs = {
        "input_ids": torch.zeros_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
    }
    model, dpo.ref_model = Table(rows(policy)), Table(rows(reference))
    loss = dpo._compute_loss(model, inputs, return_outputs=False)
    loss.backward()
    gradient = np.zeros_like(policy)
    gradient[:, 0], gradient[:, 1] = np.split(model.log_probs.grad.numpy(), 2)
    metrics = {metric: np.float32(value[-1]) for metric, value in dpo._metrics["train"].items()}
    return metrics | {"loss": loss.detach().numpy(), "gradient": gradient}


def main() -> None:
    with np.load(sys.argv[1]) as given:
        arrays = [given[name] for name in ("policy", "reference", "mask")]
        settings = json.loads(str(given["settings"]))
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, setting in settings.items():
            seen = [array[: setting["pairs"]] for array in arrays]
            found = said(trainer(folder, setting["arguments"]), *seen)
            # Pairs that it does not see have no gradient.
            found["gradient"] = np.concatenate([found["gradient"], np.zeros_like(arrays[0][setting["pairs"] :])])
            out |= {f"{name}/{key}": value for key, value in found.items()}
    np.savez(sys.argv[2], **out)


if __name__ == "__main__":
    main()
