"""The shipped tokenizer and the chunks around the video."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import isrdpo_jax
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.shapes_world import vocabulary
from isrdpo_jax.data.tokens import SCORES, load_tokenizer
from isrdpo_jax.errors import DataError

FOLDER = Path(isrdpo_jax.__file__).parent / "weights" / "shapes" / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(FOLDER)


def test_the_vocabulary_is_small_and_ids_follow_llama(tokenizer):
    assert tokenizer.vocab_size <= 1024
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.digest == hashlib.sha256((FOLDER / "tokenizer.json").read_bytes()).hexdigest()


def test_training_again_gives_the_shipped_file(tmp_path):
    vocabulary.main(str(tmp_path))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_every_word_of_the_world_is_one_token(tokenizer):
    ids = {word: tokenizer.word_id(f" {word}") for word in vocabulary.words()}
    assert len(set(ids.values())) == len(ids)
    assert {"The", "the", "circle", "Left", "A", "B", "yes", "no"} <= ids.keys()


def test_words_of_the_prompts_are_one_token(tokenizer):
    prompts = load_prompts()
    words = prompts.prefix_text.replace(".", " . ").replace(",", " , ").replace(":", " : ").replace("'", " ' ").split()
    assert len(tokenizer.encode_prefix(prompts)) == 1 + len(words) + 1  # BOS, and the lone space before the video


@pytest.mark.parametrize(
    "text",
    [
        "The red circle moves left.",
        "A small red circle moves left. The background is dark.",
        "Hello, wörld!\nA  second line (12 %).",
        "a literal </s> and <s>",
        "日本語",
        "A",
    ],
)
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode_response(text)
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.eos_id) == 1 and ids[-1] == tokenizer.eos_id
    assert tokenizer.bos_id not in ids and 0 not in ids


def test_bos_stands_once_and_only_before_the_video(tokenizer):
    prompts = load_prompts()
    prefix, turn = tokenizer.encode_prefix(prompts), tokenizer.encode_turn("What does the red object do?")
    assert prefix[0] == tokenizer.bos_id and (prefix + turn).count(tokenizer.bos_id) == 1
    assert tokenizer.eos_id not in prefix + turn


def test_the_turn_begins_like_llamas(tokenizer):
    space, newline = tokenizer.encode_turn("Why?")[:2]
    assert newline == 13  # <0x0A>, as in LLaMA
    assert tokenizer.encode_prefix(load_prompts())[-1] == space  # the lone space before the video


def test_the_response_continues_the_turn(tokenizer):
    turn, response = tokenizer.encode_turn("Why?"), tokenizer.encode_response("The red circle moves left.")
    together = tokenizer.encode_turn("Why? ASSISTANT: The red circle moves left.")
    assert together[: len(turn) + len(response) - 1] == turn + response[:-1]
    a, b = tokenizer.letter_ids
    assert a != b and tokenizer.encode_response("A") == [a, tokenizer.eos_id]


def test_scores_are_told_apart_by_their_last_token(tokenizer):
    """As in LLaMA, the leading space is a token of its own, in front of every digit."""
    before, scores = tokenizer.score_ids
    assert len(set(scores)) == 5
    for score, last in zip(SCORES, scores, strict=True):
        assert tokenizer.encode_response(str(score)) == [*before, last, tokenizer.eos_id]


def test_scores_of_several_tokens_are_refused(tokenizer, monkeypatch):
    monkeypatch.setattr("isrdpo_jax.data.tokens.SCORES", (1, 2, 3, 4, 10))
    with pytest.raises(DataError, match="judge.mode=rubric"):
        _ = tokenizer.score_ids


def test_offsets_are_characters_of_the_user_turn(tokenizer):
    text = "What does the red object do?\nResponse A: The red circle."
    ids, ends = tokenizer.encode_turn_with_offsets(text)
    assert ids == tokenizer.encode_turn(text)
    end = text.index(" object")
    assert ids[ends.index(end)] == tokenizer.word_id(" red")
    inside = [end for end in ends if 0 < end <= len(text)]
    assert inside == sorted(inside) and inside[-1] == len(text)


def test_a_word_of_several_tokens_is_refused(tokenizer):
    with pytest.raises(DataError, match="splits"):
        tokenizer.word_id(" hippopotamus")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match="no tokenizer folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no tokenizer that transformers can read"):
        load_tokenizer(tmp_path)
