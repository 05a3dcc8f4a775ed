"""Prompt files and the conversation around them."""

from __future__ import annotations

import hashlib

import pytest

from isrdpo_jax.data.prompts import check_text, load_prompts
from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.errors import DataError
from isrdpo_jax.weights.policy_folder import packaged_tokenizer

VICUNA_SYSTEM_SHA256 = "1fa69e2371b762d1882b0bd98d284f312a36c27add732016e12e52586f98a9f5"


def test_the_system_line_is_vicunas():
    assert hashlib.sha256(load_prompts().system.encode()).hexdigest() == VICUNA_SYSTEM_SHA256


def test_the_conversation():
    prompts = load_prompts()
    assert prompts.prefix_text == f"{prompts.system} USER: "
    assert prompts.turn(prompts.answer("Why?")) == "\nWhy? ASSISTANT:"


def test_the_first_description_has_no_previous_one():
    prompts = load_prompts()
    assert "None" not in prompts.describe(None)
    assert prompts.describe(None) != prompts.describe("A cat sleeps.")
    assert "A cat sleeps." in prompts.describe("A cat sleeps.")


@pytest.mark.parametrize("context", ["It rains {hard}.", None])
def test_spans_point_at_the_responses(context):
    turn = load_prompts().judge_turn("Why {x}?", "One {a}.", "Two {question}.", context)
    assert turn.text[slice(*turn.span_a)] == "One {a}."
    assert turn.text[slice(*turn.span_b)] == "Two {question}."
    assert ("It rains {hard}." in turn.text) == (context is not None)
    assert "None" not in turn.text


def test_own_files_replace_packaged_ones_and_change_the_digest(tmp_path):
    (tmp_path / "describe.txt").write_text("What happens?\n")
    own = load_prompts(str(tmp_path))
    assert own.describe(None) == "What happens?"
    assert own.answer("Why?") == load_prompts().answer("Why?")
    assert own.digest != load_prompts().digest
    assert load_prompts(str(tmp_path)).digest == own.digest


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("judge", "{context} {question} {response_a}", "response_b.* is missing"),
        ("answer", "{question} {context}", "unknown placeholder .*context"),
        ("answer", "{question} {", "literal brace"),
        ("answer", "{question} {question}", "twice"),
        ("answer", "{question} <video>", "<video>"),
        ("describe", " \n", "empty"),
        ("summary", "Sum up.", "no such prompt"),
    ],
)
def test_bad_templates_are_refused_with_their_file(tmp_path, name, text, message):
    (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        load_prompts(str(tmp_path))
    assert f"{name}.txt" in str(error.value)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        load_prompts(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("marker", ["<video>", "<image>"])
def test_a_literal_marker_is_refused(marker):
    prompts = load_prompts()
    check_text("a video or an image", "row 1")
    with pytest.raises(DataError, match="row 1"):
        check_text(f"a {marker}", "row 1")
    with pytest.raises(DataError, match=marker):
        prompts.answer(f"What is {marker}?")
    with pytest.raises(DataError, match="the question"):
        prompts.judge(f"Why {marker}?", "a", "b", None)


@pytest.mark.parametrize("marker", ["<video>", "<image>", "</s>"])
def test_what_a_model_wrote_may_hold_a_marker(marker):
    """It must cost no run; the tokenizer takes it for text."""
    prompts, tokenizer = load_prompts(), load_tokenizer(packaged_tokenizer("shapes"))
    for turn in (prompts.judge("Why?", "a", marker, f"{marker} c"), prompts.describe(f"a {marker}")):
        assert marker in turn
        assert tokenizer.decode(tokenizer.encode_turn(turn)).count(marker) == turn.count(marker)
