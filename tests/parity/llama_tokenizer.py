"""A small SentencePiece tokenizer in LLaMA's fashion, and what the sentencepiece library makes of a conversation.

Imports nothing of ours; the published facts are those of LLaVA-Hound's checkpoints (slow `LlamaTokenizer`, not legacy).
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
from transformers import LlamaTokenizer

MARKER = "<video>"
BOS, EOS = 1, 2
TEXTS = (
    "USER: What does the small dog do in the garden? ASSISTANT: It runs after the red ball.",
    "USER: What is on the table? ASSISTANT: The cup of milk is on the table, and the table is green.",
    "The small dog waits for 250 ml of milk, and then it sleeps in the garden.",
)
CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "add_bos_token": True,
    "add_eos_token": False,
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<unk>",
    "padding_side": "right",
    "model_max_length": 2048,
    "clean_up_tokenization_spaces": False,
    "sp_model_kwargs": {},
}


def train(folder: Path, texts: list[str], vocab_size: int) -> None:
    """Writes `tokenizer.model` and `tokenizer_config.json`: ids `<unk>` `<s>` `</s>`, 256 bytes, pieces of `texts`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=1,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")


def encode(folder: Path, system: str, prompt: str, response: str) -> tuple[list[int], list[int], list[int]]:
    """Ids before the video (BOS first), between video and response, and of the response (EOS last).

    The conversation is cut at the marker, and each chunk is tokenised by itself; transformers must agree.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    theirs = LlamaTokenizer.from_pretrained(folder)
    asked = f"{system} USER: {MARKER}\n{prompt} ASSISTANT:"
    before, behind = (pieces.encode(chunk) for chunk in f"{asked} {response}".split(MARKER))
    turn = pieces.encode(asked.split(MARKER)[1])
    for chunk, ids in zip(f"{asked} {response}".split(MARKER), (before, behind), strict=True):
        assert theirs(chunk, add_special_tokens=False).input_ids == ids, chunk
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (BOS, EOS, 0)
    assert behind[: len(turn)] == turn, "the response's first word must not merge with the turn"
    return [BOS, *before], turn, [*behind[len(turn) :], EOS]
