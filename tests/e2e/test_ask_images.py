"""`isrdpo ask` and `isrdpo score` about images: with an image tower, without one, and with what is no image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import TINY_WITH_IMAGES, random_params
from tiny_policy import with_words

from isrdpo_jax.data.packing import bucket
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.weights.policy_folder import packaged_tokenizer, write_policy

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policies that share what they have: `seeing` has an image tower, `other` another one, `blind` none."""
    root = tmp_path_factory.mktemp("images")
    seeing = with_words(TINY_WITH_IMAGES)
    params = random_params(seeing)
    shared = {name: part for name, part in params.items() if name != "image_tower"}
    tower = random_params(seeing, seed=1)["image_tower"]
    for name, config, held in (
        ("seeing", seeing, params),
        ("other", seeing, {**shared, "image_tower": tower}),
        ("blind", seeing.model_copy(update={"image": None}), shared),
    ):
        write_policy(root / name, config, packaged_tokenizer("shapes"), held, {})
    rng = np.random.default_rng(0)
    (root / "frames").mkdir()
    for name in ("one.png", "two.png", *(f"frames/{i}.png" for i in range(3))):
        Image.fromarray(rng.integers(0, 256, (10, 14, 3), np.uint8)).save(root / name)
    (root / "still").mkdir()
    for i in range(3):
        (root / f"still/{i}.png").write_bytes((root / "one.png").read_bytes())
    (root / "text.png").write_text("no image")
    return root


@pytest.fixture
def score(root: Path, isrdpo):
    def run(policy: str, seen: str) -> float:
        said = isrdpo("score", root / policy, root / seen, QUESTION, "A red circle.", "--json")
        assert said.code == 0, said.err
        return json.loads(said.out)["logprob"]

    return run


def test_an_image_is_seen_by_the_image_tower(score):
    one = score("seeing", "one.png")
    assert len({one, score("seeing", "two.png"), score("seeing", "still"), score("other", "one.png")}) == 4
    assert score("seeing", "frames") == score("other", "frames") == score("blind", "frames")


def test_an_image_is_answered(root: Path, isrdpo):
    said = isrdpo("ask", root / "seeing", root / "one.png", QUESTION, "--max-new-tokens", 6, "--json")
    assert said.code == 0 and said.err == ""
    answer = json.loads(said.out)
    assert len(answer["tokens"]) == 6 or answer["finish"] == "stop"
    scored = isrdpo("ask", root / "seeing", root / "two.png", QUESTION, "--max-new-tokens", 6, "--json")
    assert json.loads(scored.out)["tokens"] != answer["tokens"]


def test_an_answer_may_fill_the_window_behind_an_image(root: Path, isrdpo):
    """The image takes 9 positions where a video takes 12; the turn fills its bucket, so that no room is left over."""
    tokenizer = load_tokenizer(packaged_tokenizer("shapes"))
    turn = load_prompts().answer(QUESTION)
    short = bucket(len(tokenizer.encode_turn(turn))) - len(tokenizer.encode_turn(turn))
    question = QUESTION + " it" * short
    limits = {}
    for seen in ("one.png", "frames"):
        said = isrdpo("ask", root / "seeing", root / seen, question, "--max-new-tokens", 1000, "--json")
        limits[seen] = len(json.loads(said.out)["tokens"])
    assert limits["one.png"] - limits["frames"] == 3


def test_without_an_image_tower_an_image_is_a_video_that_stands_still(root: Path, isrdpo, score, caplog):
    assert score("blind", "one.png") == score("blind", "still")
    assert caplog.messages == [
        f"{root / 'one.png'}: the model has no image tower, so the image is seen as a video that stands still."
    ]


@pytest.mark.parametrize(
    ("seen", "question", "message"),
    [
        ("gone.png", QUESTION, "no such file [missing]"),
        ("text.png", QUESTION, "not a readable image"),
        ("one.png", "What is <image>?", "the question: a literal <image>"),
        ("one.png", "What? " * 600, "no room for an answer"),
    ],
)
def test_what_cannot_be_asked_is_one_paragraph(root: Path, isrdpo, seen, question, message):
    said = isrdpo("ask", root / "seeing", root / seen, question)
    assert said.code == 2 and said.out == ""
    assert said.err.startswith("error:") and message in said.err and "Traceback" not in said.err
