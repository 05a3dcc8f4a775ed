"""Rows in the forms of other people's preference data are questions: their responses are not read."""

from __future__ import annotations

import pytest

from isrdpo_jax.data.row_files import Refused
from isrdpo_jax.data.row_formats import question_fields

FIELDS = {"video": "clips/a.mp4", "question": "What moves?"}


def turns(*texts, keys=("role", "content"), roles=("user", "assistant")):
    return [{keys[0]: role, keys[1]: text} for role, text in zip(roles, texts, strict=False)]


def human(*texts):
    return turns(*texts, keys=("from", "value"), roles=("human", "gpt"))


PREFERENCES = {
    "trl, plain": {"video": "clips/a.mp4", "prompt": "What moves?", "chosen": "A cat.", "rejected": "A <video>."},
    "trl, conversational": {
        "video": "clips/a.mp4",
        "prompt": turns("What moves?"),
        "chosen": [{"role": "assistant", "content": "A cat."}],
        "rejected": [{"role": "assistant", "content": "A dog."}],
    },
    "trl, with parts": {
        "videos": ["clips/a.mp4"],
        "prompt": [
            {"role": "user", "content": [{"type": "video", "text": None}, {"type": "text", "text": "What moves?"}]}
        ],
        "chosen": "A cat.",
        "rejected": "A dog.",
    },
    "trl, prompt inside chosen": {
        "video": "clips/a.mp4",
        "chosen": turns("What moves?", "A cat."),
        "rejected": turns("What moves?", "A dog."),
    },
    "llama-factory": {
        "conversations": human("<video>What moves?"),
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A dog."},
        "videos": ["clips/a.mp4"],
    },
    "ms-swift": {
        "messages": turns("<video>What moves?", "A cat."),
        "rejected_response": "A dog.",
        "videos": ["clips/a.mp4"],
    },
    "ms-swift, system turn": {
        "messages": [{"role": "system", "content": "Be brief."}, *turns("<video>What moves?", "A cat.")],
        "rejected_response": "A dog.",
        "videos": "clips/a.mp4",
    },
    "llava-hound": {
        "video": "clips/a.mp4",
        "prompt": "<video>\nWhat moves?",
        "answer": "A cat, which </s>",
        "chosen": "",
        "chosen_score": 5,
        "rejected": "A <video> ASSISTANT: ",
        "rejected_score": 1,
    },
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_preference_row_is_a_question(name):
    assert question_fields(PREFERENCES[name]) == FIELDS


def test_a_test_row_of_llava_hound_keeps_its_answer_and_caption():
    row = {"id": "8467_2_0", "video": "test/webvid/8467", "caption": "A cat runs."}
    row["conversations"] = human("<video>\nWhat moves?", "A cat.")
    answered = {"video": "test/webvid/8467", "question": "What moves?", "answer": "A cat."}
    assert question_fields(row) == answered | {"id": "8467_2_0", "caption": "A cat runs."}


def test_ids_of_others_may_be_numbers_or_called_idx():
    assert question_fields({"idx": 7, "video": "a", "prompt": "Who?"})["id"] == "7"
    with pytest.raises(Refused, match="field id must be a string, not true"):
        question_fields({"id": True, "video": "a", "prompt": "Who?"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Who?", "chosen": "a", "rejected": "b"}, "missing_field"),
        ({"videos": [], "prompt": "Who?"}, "missing_field"),
        ({"videos": ["a", "b"], "messages": turns("Who?")}, "several_videos"),
        ({"video": "a", "chosen": "Who? I.", "rejected": "Who? You."}, "missing_field"),
        ({"video": "a", "messages": "Who?"}, "wrong_type"),
        ({"video": "a", "messages": ["Who?"]}, "wrong_type"),
        ({"video": "a", "messages": [{"role": "tool", "content": "Who?"}]}, "wrong_type"),
        ({"video": "a", "messages": [{"role": "user", "content": 7}]}, "wrong_type"),
        ({"video": "a", "messages": turns("Who?") * 2}, "several_turns"),
        ({"video": "a", "messages": []}, "empty_question"),
        ({"video": "a", "prompt": "<video>\n"}, "empty_question"),
        ({"video": "a", "prompt": "<image>\nWho?"}, "video_marker"),
        ({"video": "a", "conversations": human("Who?", "The <video>.")}, "video_marker"),
    ],
)
def test_what_is_no_question_is_refused(row, reason):
    with pytest.raises(Refused) as caught:
        question_fields(row)
    assert caught.value.reason == reason
