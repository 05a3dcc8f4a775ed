"""Widths follow the config's limits and the user's counts."""

from __future__ import annotations

from synthetic_plan import CONFIG, MODEL

from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.plan.workload import Counts, estimated_tokens, make_workload
from isrdpo_jax.schema import Config

PROMPTS = load_prompts()


def work(config: Config = CONFIG, **counts):
    return make_workload(config, MODEL, PROMPTS, Counts(videos=10, **counts), estimated_tokens)


def test_four_characters_are_a_token():
    assert [estimated_tokens(text) for text in ("", "a", "abcd", "abcde")] == [0, 1, 1, 2]


def test_texts_are_as_long_as_the_config_allows_unless_they_are_said_to_be_shorter():
    assert (work().response_tokens, work().description_tokens) == (256, 256)
    assert work(response_tokens=100).response_tokens == 100
    assert work(response_tokens=10_000).response_tokens == 256


def test_a_judge_reads_question_responses_and_description():
    alone = CONFIG.model_copy(update={"judge": CONFIG.judge.model_copy(update={"context": "none"})})
    assert work().judge_tokens > 64 + 2 * 256 + 256 > work(alone).judge_tokens > 64 + 2 * 256


def test_a_rubric_reads_one_response_at_a_time():
    rubric = CONFIG.model_copy(update={"judge": CONFIG.judge.model_copy(update={"mode": "rubric"})})
    longer = work(rubric, response_tokens=200).judge_tokens - work(rubric, response_tokens=100).judge_tokens
    assert longer == 100 and work(rubric).judge_tokens > 64 + 256 + 256


def test_a_retrospective_description_reads_the_last_one():
    fresh = CONFIG.model_copy(update={"judge": CONFIG.judge.model_copy(update={"context": "fresh"})})
    assert work().describe_tokens > 256 > work(fresh).describe_tokens


def test_a_judgement_stays_in_the_context_window():
    described = CONFIG.model_copy(update={"describe": CONFIG.describe.model_copy(update={"max_new_tokens": 3000})})
    prefix = work().prefix_tokens + MODEL.vision.tokens_per_video
    assert work(described).judge_tokens + prefix <= MODEL.llama.max_positions


def test_pairs_are_what_is_kept_of_the_questions():
    assert work(questions=3, kept=0.5).pairs == 15
