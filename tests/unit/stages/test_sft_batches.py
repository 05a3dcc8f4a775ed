"""Labelled rows become segments, and a phase's batches depend on seed, phase and step alone."""

import numpy as np
import pytest

from isrdpo_jax.data.packing import Segment
from isrdpo_jax.data.records import SftRow
from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.errors import ConfigError
from isrdpo_jax.schema import SftPhase
from isrdpo_jax.stages.sft import longest, phase_batches, to_segment
from isrdpo_jax.weights.policy_folder import packaged_tokenizer

FRAMES = np.zeros((2, 16, 16, 3), np.uint8)
SEGMENTS = [
    {
        "describe": [Segment.of_response((1, 2), (10 + i, 3))],
        "judge": [Segment.of_response((4, 5, 6), (20 + i, 3)), Segment.of_response((4, 5, 6), (40 + i, 3))],
    }
    for i in range(6)
]
PHASE = SftPhase(
    steps=8, learning_rate=1e-3, batch_videos=4, mixture={"describe": 1.0, "judge": 0.5}, text_rows=3, text_weight=0.5
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(packaged_tokenizer("shapes"))


def batches(first_step: int = 0, phase: SftPhase = PHASE):
    return list(
        phase_batches(phase, 0, 7, SEGMENTS, lambda _: FRAMES, prefix_length=5, image_size=16, first_step=first_step)
    )


def test_a_process_label_is_predicted_at_the_last_token_of_its_word(tokenizer):
    prompt = "Response A: The red circle moves left."
    labels = ((prompt.index("circle") + 6, "yes"), (prompt.index("left") + 4, "no"))
    segment = to_segment(SftRow("judge", prompt, "B", labels), tokenizer, label_weight=0.25, verdict_weight=1.0)
    told = [
        (tokenizer.decode([segment.tokens[i]]), tokenizer.decode([target]), w) for i, target, w in segment.predictions
    ]
    assert told[:2] == [("circle", "yes", 0.25), ("left", "no", 0.25)]
    assert told[2][1:] == ("B", 1.0) and told[2][0] == ":"
    assert segment.predictions[-1][1] == tokenizer.eos_id


def test_the_verdict_has_its_own_weight(tokenizer):
    judge, answer = (
        to_segment(SftRow(kind, "A or B?", "A"), tokenizer, label_weight=1.0, verdict_weight=3.0)
        for kind in ("judge_plain", "answer")
    )
    assert {weight for _, _, weight in judge.predictions} == {3.0}
    assert {weight for _, _, weight in answer.predictions} == {1.0}


def test_a_resumed_phase_sees_the_same_batches():
    whole, rest = batches(), batches(first_step=5)
    assert len(whole) == 8 and len(rest) == 3
    for a, b in zip(whole[5:], rest, strict=True):
        for left, right in zip((*a.video_rows, a.video_weights), (*b.video_rows, b.video_weights), strict=True):
            np.testing.assert_array_equal(left, right)


def test_an_epoch_shows_every_video_once():
    first_tokens = [int(row) for batch in batches()[:3] for row in batch.video_rows.targets[:, 0]]
    seen = [token for token in first_tokens if 10 <= token < 16]
    assert sorted(seen[:6]) == [10, 11, 12, 13, 14, 15]


def test_a_fractional_kind_joins_all_rows_of_some_steps():
    with_judge = [bool((batch.video_rows.segments == 2).any()) for batch in batches()]
    assert 0 < sum(with_judge) < 8
    for batch, present in zip(batches(), with_judge, strict=True):
        assert ((batch.video_rows.segments == 2).any(axis=1) == present).all()


def test_text_rows_hold_one_judge_row_each():
    batch = batches()[0]
    assert batch.text_rows is not None and batch.text_rows.tokens.shape[0] == 3
    assert set(np.unique(batch.text_rows.segments)) <= {-1, 1}
    assert batch.text_rows.positions[0, 0] == 5


def test_the_longest_row_of_each_kind_sets_the_room():
    assert longest(SEGMENTS) == {"describe": (4, 2), "judge": (5, 2)}


def test_an_unknown_kind_is_refused():
    phase = PHASE.model_copy(update={"mixture": {"sing": 1.0}})
    with pytest.raises(ConfigError, match="sing"):
        batches(phase=phase)
