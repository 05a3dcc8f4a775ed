"""The engine: what it does not waste, what ends a text, and that trouble stays with its record."""

from __future__ import annotations

import copy
import dataclasses
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_policy import noise_video, tiny_policy

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.schema import CollectConfig, MeshConfig
from isrdpo_jax.sharding import make_mesh
from isrdpo_jax.stages.dialogue import Completion, Decoding, Look, Say, Sight, Weigh
from isrdpo_jax.stages.engine import Engine, stopped_at
from isrdpo_jax.stages.hall import GIB, SPARE, Hall, hall_that_fits, memory_budget
from isrdpo_jax.stages.policy import Policy

FREE = Decoding(24, 1.0)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


def engine_of(policy: Policy, *decodings: Decoding, **collect) -> Engine:
    return Engine(policy, CollectConfig(**({"batch_videos": 4, "lanes": 1} | collect)), decodings or [FREE])


def asks(*requests):
    """A dialogue that asks all this at once."""
    return (yield list(requests))


def say(turn: str, record: str = "r", how: Decoding = FREE, sample: int = 0) -> Say:
    return Say(turn, record, how, "respond", sample)


def ask(engine: Engine, *requests) -> list:
    """What is answered about a single video."""
    ((_, answers),) = engine.converse([lambda: (asks(*requests), Sight(noise_video("a").frames))])
    return answers


@pytest.mark.parametrize(("lanes", "least"), [(1, 0.85), (4, 0.65)])
def test_slots_stay_full_while_videos_wait(policy, lanes, least):
    """Texts of given lengths with a long tail up to the limit; there is no EOS. One turn of three is longer."""
    turns = ("What?", "What?", "the red circle " * 12)
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 12, (160, 3)), 48)
    decodings = {int(n): Decoding(int(n), 1.0) for n in np.unique(lengths)}
    visits = [
        lambda i=i: (
            asks(*(say(turns[j], f"{i}", decodings[int(n)], j) for j, n in enumerate(lengths[i]))),
            Sight(noise_video(f"{i}").frames),
        )
        for i in range(len(lengths))
    ]
    tokenizer = copy.copy(policy.tokenizer)
    tokenizer.eos_id = -1
    endless = dataclasses.replace(policy, tokenizer=tokenizer)
    engine = engine_of(endless, *decodings.values(), batch_videos=8 * lanes, lanes=lanes)
    told = dict(engine.converse(visits))
    for i, row in enumerate(lengths):
        assert [len(one.tokens) for one in told[i]] == row.tolist()
    figures = engine.tally.figures()
    assert figures["prefills_per_video"] == 1
    assert engine.tally.decoded == lengths.sum() - lengths.size  # the first token of a text is drawn when it is read
    assert figures["slot_use"] > least
    assert 0 < figures["padding_share"] < 1


def test_a_turn_that_does_not_fit_costs_that_request_alone(policy):
    long, never = "the red circle " * 40, "the red circle " * 200
    engine = engine_of(policy, turn_tokens=64)
    short, too_long, weighed, unweighed = ask(
        engine, say("What?"), say(long), Weigh(long, (4, 5)), Weigh(never, (4, 5))
    )
    assert short.finish in ("stop", "length") and short.tokens
    assert too_long == Completion("", (), "too_long")
    assert np.isfinite(weighed).all() and weighed.shape == (2,)
    assert unweighed is None


def test_a_dialogue_in_which_nothing_fits_goes_on(policy):
    def insists():
        (first,) = yield [say("the red circle " * 40)]
        (second,) = yield [say("What?")]
        return first.finish, second.finish

    ((_, finishes),) = engine_of(policy, turn_tokens=64).converse([lambda: (insists(), Sight(noise_video("a").frames))])
    assert finishes[0] == "too_long" and finishes[1] in ("stop", "length")


def test_looking_elsewhere_changes_what_is_seen_and_nothing_else(policy):
    def looks(frames):
        (before,) = yield [Weigh("What?", tuple(range(50)))]
        nothing = yield Look(Sight(frames))
        (after,) = yield [Weigh("What?", tuple(range(50)))]
        return before, nothing, after

    a, b = noise_video("a").frames, noise_video("b").frames
    engine = engine_of(policy)
    ways = [(a, b), (b, a), (a, a)]
    told = dict(engine.converse([lambda one=one, two=two: (looks(two), Sight(one)) for one, two in ways]))
    assert all(nothing == [] for _, nothing, _ in told.values())
    np.testing.assert_array_equal(told[0][0], told[1][2])
    np.testing.assert_array_equal(told[0][2], told[1][0])
    np.testing.assert_array_equal(told[2][0], told[2][2])
    assert np.abs(told[0][0] - told[0][2]).max() > 1e-3
    assert (engine.tally.videos, engine.tally.prefills) == (3, 6)


def test_a_string_ends_a_text_wherever_it_comes(policy):
    free = ask(engine_of(policy), *(say("What?", f"{i}") for i in range(6)))
    stop = free[0].text[4:6]
    how = Decoding(24, 1.0, stop=(stop, "never said"))
    ended = ask(engine_of(policy, how), *(say("What?", f"{i}", how) for i in range(6)))
    cut = 0
    for one, other in zip(free, ended, strict=True):
        if stop in one.text:
            cut += 1
            assert other.finish == "stop"
            assert other.text == one.text[: one.text.index(stop)].strip()
            assert other.tokens == one.tokens[: len(other.tokens)]
        else:
            assert other == one
    assert cut >= 1


def test_the_first_of_several_strings_ends_a_text():
    text_of = "".join
    assert stopped_at(["ab", "c", "d", "e"], ("d", "bc"), text_of) == ("a", 2)
    assert stopped_at(["ab", "c"], ("x",), text_of) is None
    assert stopped_at(["ab"], (), text_of) is None


def test_white_space_may_end_a_text_and_no_token_behind_it_is_counted(policy):
    whole = policy.tokenizer.decode_whole
    first, second = (
        policy.tokenizer.encode_response(text)[:-1] for text in ("The red circle moves left.", "\nThe blue")
    )
    newline = next(i for i in range(1, len(second)) if "\n" in whole([*first, *second[:i]]))
    assert stopped_at([*first, *second], ("\n",), whole) == ("The red circle moves left.", len(first) + newline)


def test_texts_are_drawn_as_each_of_them_says(policy):
    """Greedy, nearly greedy and free texts beside each other are what they are alone."""
    ways = [Decoding(12, 0.0), Decoding(12, 1.0, top_k=1), Decoding(12, 1.0, min_p=1.0), Decoding(12, 5.0)]
    together = ask(engine_of(policy, *ways), *(say("What?", "r", how) for how in ways))
    assert together[0].tokens == together[1].tokens == together[2].tokens != together[3].tokens
    for how, one in zip(ways, together, strict=True):
        assert ask(engine_of(policy, *ways), say("What?", "r", how)) == [one]
    once = Decoding(12, 0.0, repetition_penalty=1e6)
    (varied,) = ask(engine_of(policy, once), say("What?", "r", once))
    assert len(set(varied.tokens)) == len(varied.tokens) > len(set(together[0].tokens))


def test_videos_are_loaded_a_few_ahead_and_a_slow_loader_slows_and_does_not_fill_memory(policy):
    alive, most, lock = set(), 0, threading.Lock()

    def visit(i: int):
        nonlocal most
        with lock:
            alive.add(i)
            most = max(most, len(alive))
        time.sleep(0.01)
        return asks(say("What?", f"{i}")), Sight(noise_video(f"{i}").frames)

    engine = engine_of(policy)
    for i, _ in engine.converse([lambda i=i: visit(i) for i in range(30)]):
        with lock:
            alive.discard(i)
    assert most <= 4 + 2 + 1  # places, ahead in one lane, being loaded
    assert engine.tally.waited_s > 0


def test_a_loader_that_fails_ends_the_conversation_with_its_error(policy):
    def broken():
        raise OSError("the disk is gone")

    visits = [lambda: (asks(say("What?")), Sight(noise_video("a").frames)), broken]
    with pytest.raises(OSError, match="the disk is gone"):
        list(engine_of(policy).converse(visits))


def test_an_error_in_a_dialogue_is_the_callers(policy):
    def breaks():
        yield [say("What?")]
        raise ValueError("my own fault")

    with pytest.raises(ValueError, match="my own fault"):
        list(engine_of(policy).converse([lambda: (breaks(), Sight(noise_video("a").frames))]))


def test_a_hall_is_pairs_of_videos_where_that_divides():
    assert Hall.of(8, 2, 3) == Hall(lanes=2, bays=2, places=2, slots=3)
    assert Hall.of(6, 2, 3) == Hall(lanes=2, bays=3, places=1, slots=2)
    assert Hall.of(1, 1, 1) == Hall(lanes=1, bays=1, places=1, slots=1)
    assert Hall.of(8, 2, 3).videos == 8 and Hall.of(8, 2, 3).all_slots == 12


def fitting(policy: Policy, gib: float | None, **collect) -> Hall:
    settings = CollectConfig(**({"batch_videos": 8, "lanes": 1} | collect), memory_gib=gib)
    return hall_that_fits(settings, policy.config, policy.mesh, prefix=100, columns=40)


def test_memory_decides_how_many_videos_are_held(policy):
    whole = fitting(policy, None)
    assert whole == Hall(1, 4, 2, 3)
    needed = whole.bytes_on_device(policy.config, policy.mesh, 100, 40)
    assert needed == 2 * 2 * 2 * 4 * 4 * (8 * 100 + 12 * 40)  # k and v, layers, heads, their size, float32, positions
    assert fitting(policy, needed / GIB) == whole
    assert fitting(policy, 0.6 * needed / GIB) == Hall(1, 2, 2, 3)
    assert fitting(policy, 0.2 * needed / GIB) == Hall(1, 1, 1, 2)


def test_a_device_has_room_for_what_parameters_and_a_prefix_that_arrives_leave(policy):
    """Of the least of all devices; one that says nothing of its memory limits nothing."""
    settings, prefix = CollectConfig(batch_videos=8, lanes=2), 100
    told = [{"bytes_limit": 10**9, "bytes_in_use": used} for used in (3 * 10**8, 2 * 10**8)]

    def budget(stats):
        devices = [SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
        mesh = SimpleNamespace(shape=policy.mesh.shape, local_devices=devices)
        return memory_budget(settings, policy.config, mesh, prefix)

    arriving = 2 * 2 * 2 * 4 * 4 * (2 * prefix)  # k and v, layers, heads, their size, float32, positions of two lanes
    left = int(10**9 * (1 - SPARE)) - 3 * 10**8 - arriving
    assert left - 2**20 < budget(told) <= left  # in whole MiB
    assert budget([None]) is None
    assert budget([{}, told[1]]) > budget(told)


def test_rounded_prefixes_take_less_and_change_little(policy):
    exact, rounded = engine_of(policy), engine_of(policy, int8_prefixes=True)
    requests = say("What?", how=Decoding(24, 0.0)), Weigh("What?", tuple(range(50)))
    (text, logprobs), (text_rounded, logprobs_rounded) = ask(exact, *requests), ask(rounded, *requests)
    assert text_rounded.tokens[0] == text.tokens[0]
    moved = np.abs(logprobs_rounded - logprobs).max()
    assert 0 < moved < 0.02
    kept = {leaf.dtype.name for leaf in jax.tree.leaves(rounded._prefixes)}
    assert kept == {"int8", "float32"}
    whole = fitting(policy, None)
    sizes = [whole.bytes_on_device(policy.config, policy.mesh, 100, 40, int8) for int8 in (False, True)]
    assert sizes[0] - sizes[1] == 2 * 2 * 2 * 8 * 100 * (4 * 4 - (4 + 4))  # a head of 4 float32, or 4 int8 and a scale
    assert fitting(policy, sizes[1] / GIB) != whole
    assert fitting(policy, sizes[1] / GIB, int8_prefixes=True) == whole


def test_memory_for_not_even_one_video_is_refused_with_what_to_change(policy):
    with pytest.raises(ConfigError, match=r"one video in each of 1 lanes.*Lower collect.turn_tokens"):
        fitting(policy, 1e-6)


def test_numbers_that_do_not_divide_are_refused(policy):
    with pytest.raises(ConfigError, match="collect.batch_videos=8, collect.lanes=3"):
        fitting(policy, None, lanes=3)
    mesh = make_mesh(MeshConfig(fsdp=8))
    with pytest.raises(ConfigError, match="data x fsdp = 8 devices"):
        hall_that_fits(CollectConfig(batch_videos=8, lanes=4), policy.config, mesh, 100, 40)
