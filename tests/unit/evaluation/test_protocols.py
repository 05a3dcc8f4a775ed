"""What a judge is asked, and that a user's copy of the original prompt is known as such."""

import hashlib

import pytest

from isrdpo_jax.errors import DataError
from isrdpo_jax.evaluation import protocols
from isrdpo_jax.evaluation.protocols import Item, load_protocol
from isrdpo_jax.schema import EvaluationJudgeConfig

ITEM = Item("q", "v", "What?", "A cat.", "A cat sits.", "A {answer} dog.")


def judge(**values) -> EvaluationJudgeConfig:
    return EvaluationJudgeConfig(kind="endpoint", model="m", **values)


def test_the_caption_protocol_is_one_user_message_with_all_four_inputs():
    (message,) = load_protocol(judge()).messages(ITEM)
    assert message["role"] == "user"
    for value in ("What?", "A cat.", "A cat sits.", "A {answer} dog.", "Explanation:", "Score:"):
        assert value in message["content"]


def test_the_official_protocol_has_a_system_message_and_no_caption():
    system, user = load_protocol(judge(protocol="official")).messages(ITEM)
    assert (system["role"], user["role"]) == ("system", "user")
    assert "A cat sits." not in system["content"] + user["content"]
    assert '{"pred": "no", "score": 1}' in user["content"] and "A {answer} dog." in user["content"]


def test_an_answer_is_cut_behind_256_words():
    short, long = " ".join(["w"] * 256), " ".join(["w"] * 257)
    assert protocols.first_words(f"a\n {short[2:]}") == f"a\n {short[2:]}"
    assert protocols.first_words(long) == short
    assert not Item("q", "v", "?", "a", "c", short).is_cut and Item("q", "v", "?", "a", "c", long).is_cut


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"prediction": None}, "no answer"),
        ({"prediction": " "}, "no answer"),
        ({"reference": None}, "no reference answer"),
        ({"caption": None}, "no caption"),
    ],
)
def test_what_an_item_lacks_is_named(change, missing):
    item = Item(**{**ITEM.__dict__, **change})
    assert load_protocol(judge()).missing(item) == missing
    assert load_protocol(judge(protocol="official")).missing(item) == (None if "caption" in change else missing)


def test_a_prompt_of_ones_own_replaces_ours(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("{question} {answer} {prediction} in {'pred': 'yes'}\n")
    protocol = load_protocol(judge(protocol="official", prompt=str(path)))
    assert protocol.origin == "own"
    assert protocol.messages(ITEM) == [{"role": "user", "content": "What? A cat. A {answer} dog. in {'pred': 'yes'}"}]


def test_an_original_prompt_is_recognised_whatever_its_white_space(tmp_path, monkeypatch):
    text = "Original {caption} {question}\n {answer}\t{prediction}"
    normal = "Original {caption} {question} {answer} {prediction}"
    digest = hashlib.sha256(normal.encode()).hexdigest()
    monkeypatch.setattr(protocols, "ORIGINALS", {(len(normal), digest): "the original"})
    path = tmp_path / "original.txt"
    path.write_text(f"  {text}\n\n")
    assert load_protocol(judge(prompt=str(path))).origin == "the original"
    path.write_text(text.replace("Original", "original"))
    assert load_protocol(judge(prompt=str(path))).origin == "own"


def test_the_packaged_prompts_are_not_the_originals():
    for form in ("caption", "official"):
        protocol = load_protocol(judge(protocol=form))
        assert protocol.origin == "ours"
        assert not any(protocols.recognise(text) for text in (protocol.system or "", protocol.user))


def test_a_prompt_that_lacks_a_slot_is_refused(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("{question} {answer} {prediction}")
    with pytest.raises(DataError, match=r"\{caption\} is missing"):
        load_protocol(judge(prompt=str(path)))
    with pytest.raises(DataError, match="cannot be read"):
        load_protocol(judge(prompt=str(tmp_path / "none.txt")))
