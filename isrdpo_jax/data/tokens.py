"""Text to tokens and back, chunk by chunk around the video.

The conversation is cut at the video; its chunks are tokenised separately, and only the first begins with BOS. A
response is tokenised as the continuation of its prompt, with the leading space of the template and EOS.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from isrdpo_jax.data.prompts import Prompts
from isrdpo_jax.errors import DataError

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
_CUE = "ASSISTANT:"  # what every response continues
SCORES = (1, 2, 3, 4, 5)


class Tokenizer:
    """A LLaMA-like tokenizer, read through transformers.

    Attributes:
        bos_id, eos_id, pad_id: special tokens; padding is `<unk>` where the tokenizer names none, as in Vicuna.
        vocab_size: ids are below it.
        digest: SHA-256 of tokenizer.json, or of the serialised tokenizer where a folder has no such file.
    """

    def __init__(self, backend: tokenizers.Tokenizer, bos_id: int, eos_id: int, pad_id: int, digest: str):
        backend.encode_special_tokens = True  # a literal "</s>" in somebody's text is text
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._cue_ids = self._encode(_CUE)
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.digest = digest

    def encode_prefix(self, prompts: Prompts) -> list[int]:
        """BOS and all that stands before the video."""
        return [self.bos_id, *self._encode(prompts.prefix_text)]

    def encode_turn(self, user_text: str) -> list[int]:
        """All that stands between the video and the response."""
        return self._encode(Prompts.turn(user_text))

    def encode_turn_with_offsets(self, user_text: str) -> tuple[list[int], list[int]]:
        """As `encode_turn`, with every token's end as a character offset into `user_text`.

        Tokens of the template have ends outside 1 ... len(user_text).
        """
        turn = Prompts.turn(user_text)
        encoding = self._backend.encode(turn, add_special_tokens=False)
        before = turn.index(user_text)
        return encoding.ids, [end - before for _, end in encoding.offsets]

    def encode_response(self, text: str) -> list[int]:
        """The response with its leading space, and EOS."""
        return [*self._continuation(text), self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text, stripped; special tokens leave no trace."""
        return self.decode_whole(ids).strip()

    def decode_whole(self, ids: Sequence[int]) -> str:
        """The text with the white space around it."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    @property
    def letter_ids(self) -> tuple[int, int]:
        """The tokens of " A" and " B" at the beginning of a response."""
        return self.word_id(" A"), self.word_id(" B")

    @property
    def score_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The scores 1 to 5 at the beginning of a response: the tokens that all begin with, and the last one of each.

        LLaMA's tokenizer splits the leading space from a digit.

        Raises:
            DataError: a score takes more tokens than another.
        """
        scores = [self._continuation(str(score)) for score in SCORES]
        before = scores[0][:-1]
        if any(ids[:-1] != before for ids in scores) or len({ids[-1] for ids in scores}) < len(SCORES):
            raise DataError(
                "the tokenizer does not give every score from 1 to 5 one token; judge.mode=rubric needs it."
            )
        return tuple(before), tuple(ids[-1] for ids in scores)

    def word_id(self, word: str) -> int:
        """The one token of a word with its leading space, as the continuation of a text.

        Raises:
            DataError: the word takes several tokens.
        """
        ids = self._continuation(word.removeprefix(" "))
        if len(ids) != 1:
            raise DataError(f"the tokenizer splits {word!r} into {len(ids)} tokens; one is needed.")
        return ids[0]

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _continuation(self, text: str) -> list[int]:
        ids = self._encode(f"{_CUE} {text}")
        n = len(self._cue_ids)
        if ids[:n] != self._cue_ids:
            raise DataError(f"the tokenizer merges {_CUE!r} with the response behind it; it is not of the LLaMA kind.")
        return ids[n:]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Reads a tokenizer folder in the Hugging Face layout; never asks the network.

    Raises:
        DataError: there is none, or it has no BOS or EOS.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises to install PyTorch
    from transformers import AutoTokenizer  # takes a second to import

    if not Path(folder).is_dir():
        raise DataError(f"there is no tokenizer folder {folder}.")
    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no tokenizer that transformers can read ({error}).") from error
    if loaded.bos_token_id is None or loaded.eos_token_id is None:
        raise DataError(f"{folder}: the tokenizer names no BOS or no EOS token.")
    backend = loaded.backend_tokenizer
    pad_id = loaded.pad_token_id if loaded.pad_token_id is not None else loaded.unk_token_id
    file = Path(folder) / "tokenizer.json"
    content = file.read_bytes() if file.exists() else backend.to_str().encode()
    digest = hashlib.sha256(content).hexdigest()
    return Tokenizer(backend, loaded.bos_token_id, loaded.eos_token_id, pad_id or 0, digest)


def check_tokenizer(folder: str | Path, vocab_size: int) -> None:
    """Raises:
    DataError: the folder holds no tokenizer, or one with more tokens than a model's vocabulary of `vocab_size`.
    """
    tokens = load_tokenizer(folder).vocab_size
    if tokens > vocab_size:
        raise DataError(f"the tokenizer has {tokens} tokens, and the model's vocabulary {vocab_size}.")


def train_tokenizer(texts: Iterable[str], vocab_size: int, out: str | Path) -> None:
    """Trains a byte-fallback BPE in LLaMA's layout of ids and writes it as a Hugging Face folder.

    Ids: `<unk>` `<s>` `</s>`, 256 bytes, then pieces. Merges never cross words or punctuation, so that every word of
    the texts becomes one token if `vocab_size` allows; training ends early once they all have.
    """
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    first = [UNK, BOS, EOS, *byte_pieces]
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(first),
        min_frequency=1,
        show_progress=False,
        initial_alphabet=[chr(code) for code in range(0x21, 0x7F)],
    )
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = sorted((piece for piece in learnt["vocab"] if piece != "\n"), key=learnt["vocab"].__getitem__)
    vocab = {piece: i for i, piece in enumerate([*first, *pieces])}
    merges = [tuple(merge) for merge in learnt["merges"]]
    trained = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token=UNK, fuse_unk=True, byte_fallback=True))
    trained.pre_tokenizer = _pre_tokenizer()
    trained.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trained.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (UNK, BOS, EOS)])
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    trained.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNK,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": UNK,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Words carry their leading space as ▁; punctuation and line breaks stand alone; a chunk begins with a space."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True),
            pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}▁]"), behavior="isolated"),
        ]
    )
