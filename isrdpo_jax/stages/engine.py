"""Dialogues with a policy about videos, many at a time: every video is read once, and decoding slots stay full.

The engine holds as many videos as there are places, gives free slots to whoever waits, and brings the next video as
soon as a dialogue (`stages.dialogue`) ends.

What comes next is decided from what waits alone, never from the clock: all processes that hold a lane decide alike.
What a record is told does not depend on the schedule, for a slot's tokens are its own (`programs.decode`).
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isrdpo_jax.data.feature_cache import FeatureCache
from isrdpo_jax.data.images import preprocess_image
from isrdpo_jax.data.packing import bucket
from isrdpo_jax.data.pixels import preprocess
from isrdpo_jax.ops.sampling import Style, Uses, base_key
from isrdpo_jax.programs.decode import decode
from isrdpo_jax.programs.encode import encode, encode_images
from isrdpo_jax.programs.prefill import prefill
from isrdpo_jax.programs.read import Prompts, Start, next_token_logprobs, read
from isrdpo_jax.programs.slots import (
    abstract_prefixes,
    abstract_slots,
    empty,
    halt,
    place_prefixes,
)
from isrdpo_jax.programs.unstack import unstacked_decoder
from isrdpo_jax.runs.processes import any_says, gather
from isrdpo_jax.schema import CollectConfig
from isrdpo_jax.stages.ahead import Ahead
from isrdpo_jax.stages.dialogue import Completion, Decoding, Dialogue, Look, Purpose, Say, Sight, Visit, Weigh
from isrdpo_jax.stages.hall import hall_that_fits, longest_turn, slot_columns
from isrdpo_jax.stages.policy import Policy
from isrdpo_jax.stages.shares import fetch_own, put_batch, put_whole, share_of
from isrdpo_jax.stages.tally import Tally

_PURPOSES: dict[Purpose, int] = {"respond": 0, "describe": 1, "judge": 2, "evaluate": 3}

PROMPTS = 2  # of a video that are read together: two samples of a response, two orders of a judgement
# The share of lanes that must have something for a program before it is called, while slots decode. A read, which feeds
# slots, costs least, and waits the less the more of them have nothing to say: it wants this share of the live share.
FULL_ENOUGH = {"weigh": 0.6, "look": 0.6, "read": 0.5}
_STEPS = 64  # most tokens a slot may say before the host looks at them
_STEPS_TO_STOP = 8  # the same, where a text may end at a string that only the host sees


@dataclass(frozen=True)
class _Seen:
    """A sight, prepared: the features that are kept of it, or pixels that the tower is to see."""

    id: str
    pixels: np.ndarray | None
    features: np.ndarray | None


@dataclass
class _Turn:
    """One thing that was asked: where its answer goes."""

    asked: Say | Weigh
    ids: list[int]
    guest: _Guest
    number: int

    @property
    def width(self) -> int:
        return bucket(len(self.ids))


@dataclass
class _Guest:
    """A video at its place, and the dialogue about it."""

    number: int
    dialogue: Dialogue
    lane: int
    place: int
    looks: _Seen | None
    waiting: list[_Turn] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    open: int = 0
    started: bool = False


class Engine:
    """A policy in conversation.

    Args:
        collect: how many videos it holds, and how many texts it says at a time.
        decodings: all that any `Say` will ask for.
        seed, iteration: of all that is drawn.
        features: of videos that were seen before, and where those of new ones are kept.
        image: what is looked at are images, seen by the image tower.

    Attributes:
        hall: what it holds. tally: what was done so far. room: positions of the context window behind a video.

    Raises:
        ConfigError: not even one video fits into memory.
    """

    def __init__(
        self,
        policy: Policy,
        collect: CollectConfig,
        decodings: Sequence[Decoding],
        *,
        seed: int = 0,
        iteration: int = 0,
        features: FeatureCache | None = None,
        image: bool = False,
    ):
        self.policy, self.tally, self._kept = policy, Tally(), features
        config, mesh = policy.config, policy.mesh
        vision = config.image if image else config.vision
        assert vision is not None
        self._encode = encode_images if image else encode
        self._pixels = partial(preprocess_image if image else preprocess, image_size=vision.image_size)
        side = (vision.image_size, vision.image_size, 3)
        self._no_pixels = np.zeros(side if image else (vision.num_frames, *side), np.float32)
        shape = (vision.tokens_per_video, vision.hidden_size)
        self._no_features = np.zeros(shape, jnp.dtype(config.compute_dtype))
        # Before memory is looked at: what it takes is not left to videos.
        self._llama = jax.block_until_ready(unstacked_decoder(policy.params["llama"], config=config))
        length = policy.prefix_length_of(image=image)
        self.room = config.llama.max_positions - length
        said = max((one.max_new_tokens for one in decodings), default=1)
        self._turn_tokens = longest_turn(collect, self.room)
        columns = slot_columns(self._turn_tokens, said)
        self.hall = hall = hall_that_fits(collect, config, mesh, length, columns)
        bays = hall.lanes * hall.bays
        self._prefixes = empty(abstract_prefixes(config, mesh, bays, hall.places, length, collect.int8_prefixes))
        self._slots = empty(abstract_slots(config, mesh, bays, hall.slots, columns, said))
        self._prefix_ids = put_whole(mesh, np.asarray(policy.prefix_ids, np.int32))
        base = np.asarray(jax.random.key_data(base_key(seed, iteration)))
        self._base = jax.random.wrap_key_data(put_whole(mesh, base))
        self._settings = {"config": config, "eos_id": policy.tokenizer.eos_id, "uses": uses_of(decodings)}
        self._steps = steps_of(decodings)
        self._lanes = len(share_of(mesh, hall.lanes).rows)  # of this process
        self._guests: list[list[_Guest | None]] = [[None] * (hall.bays * hall.places) for _ in range(self._lanes)]
        self._speakers: list[list[_Turn | None]] = [[None] * (hall.bays * hall.slots) for _ in range(self._lanes)]
        self._last_result: float | None = None

    def converse(
        self, visits: Sequence[Visit], between: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, Any]]:
        """Holds all dialogues; yields the number of each visit and what its dialogue returned, as they end.

        Args:
            visits: those of this process. between: called in all processes alike, behind every program.
        """
        programs: dict[str, Callable[..., Ended]] = {
            "look": self._look,
            "weigh": self._weigh,
            "read": self._read,
            "decode": self._decode,
        }
        began = time.perf_counter()
        with Ahead(visits, 2 * self._lanes, self._see) as ahead:
            while (action := self._next_action(ahead)) is not None:
                kind, *how = action
                ended = programs[kind](ahead, *how)
                self.tally.seconds += time.perf_counter() - began
                began = time.perf_counter()
                between()
                yield from ended

    def _next_action(self, ahead: Ahead) -> tuple | None:
        """The program that all processes run next; None when nothing is left to do.

        The fullest of those that bring work to slots or clear places and for which enough lanes have something, or of
        all when no slot is live; where there is none, slots go on.
        """
        offers, company = Counter[tuple](), Counter[tuple]()  # turns that wait, and lanes in which any does
        arriving = ahead.left
        looks, hosts = ahead.left, 0  # sights that are still to be brought, and lanes that have anything to do
        for lane, guests in enumerate(self._guests):
            chosen: dict[tuple, int] = {}
            if any(guest and guest.looks is not None for guest in guests):
                chosen["look",] = 1
                looks += 1
            elif arriving and None in guests:
                chosen["look",] = 1
                arriving -= 1
            for guest in filter(None, guests):
                for kind, turns in self._groups(lane, guest).items():
                    chosen[kind] = max(chosen.get(kind, 0), len(turns))
            offers.update(chosen)
            company.update(chosen.keys())
            hosts += bool(chosen) or any(guests)
        live = sum(turn is not None for lane in self._speakers for turn in lane)
        everybody = gather((offers, company, (live, looks, hosts)))
        offers = sum((one for one, *_ in everybody), Counter[tuple]())
        company = sum((one for _, one, _ in everybody), Counter[tuple]())
        live, looks, hosts = (sum(numbers) for numbers in zip(*(one for *_, one in everybody), strict=True))
        ways = len(everybody) * self._lanes / self.hall.lanes  # processes that offer for the same lane
        busy = live / (self.hall.all_slots * ways)
        best: tuple | None = None
        most = 0.0
        for kind in sorted(offers, key=lambda kind: (_ORDER[kind[0]], kind)):
            full = offers[kind] / (self.hall.lanes * ways * (1 if kind[0] == "look" else PROMPTS))
            enough = FULL_ENOUGH[kind[0]] * (busy if kind[0] == "read" else 1)
            expected = min(hosts, looks) if kind[0] == "look" else hosts
            if full > most and (company[kind] >= enough * expected or not busy):
                best, most = kind, full
        return best or (("decode",) if busy else None)

    def _groups(self, lane: int, guest: _Guest) -> dict[tuple, list[_Turn]]:
        """What of a guest's waiting turns could be read together, by the program that would read them."""
        groups: dict[tuple, list[_Turn]] = {}
        bay = guest.place // self.hall.places
        free = self._speakers[lane][bay * self.hall.slots : (bay + 1) * self.hall.slots].count(None)
        for turn in guest.waiting:
            asked = turn.asked
            kind = ("weigh", turn.width, asked.candidates) if isinstance(asked, Weigh) else ("read", turn.width)
            group = groups.setdefault(kind, [])
            if len(group) < (PROMPTS if isinstance(asked, Weigh) else min(PROMPTS, free)):
                group.append(turn)
        return {kind: group for kind, group in groups.items() if group}

    def _look(self, ahead: Ahead) -> Ended:
        """Brings a video to every lane that waits for one: a new one, or what a dialogue wants to look at."""
        seen: list[_Seen | None] = []
        at = np.full(self._lanes, self.hall.bays * self.hall.places, np.int32)
        arrived: list[_Guest] = []
        for lane, guests in enumerate(self._guests):
            asking = next((guest for guest in guests if guest and guest.looks is not None), None)
            if asking is None and ahead.left and None in guests:
                began = time.perf_counter()
                number, dialogue, looks = ahead.take()
                self.tally.waited_s += time.perf_counter() - began
                asking = _Guest(number, dialogue, lane, guests.index(None), looks)
                guests[asking.place] = asking
                self.tally.videos += 1
            if asking is None:
                seen.append(None)
                continue
            at[lane] = asking.place
            seen.append(asking.looks)
            asking.looks = None
            arrived.append(asking)
            self.tally.prefills += 1
        self._begins_work()
        new = prefill(self.policy.params, self._prefix_ids, self._features(seen), config=self.policy.config)
        self._prefixes = place_prefixes(self._prefixes, new, put_batch(self.policy.mesh, at))
        return [ended for guest in arrived for ended in self._go_on(guest)]

    def _see(self, sight: Sight) -> _Seen:
        features = self._kept.get(sight.id) if self._kept is not None and sight.id else None
        return _Seen(sight.id, self._pixels(sight.frames) if features is None else None, features)

    def _features(self, seen: Sequence[_Seen | None]) -> jax.Array:
        """What the tower makes of the lanes' sights, [l, n, d_vision]: kept, or computed now (and kept)."""
        mesh = self.policy.mesh
        kept = [None if one is None else one.features for one in seen]
        features = put_batch(mesh, np.stack([self._no_features if one is None else one for one in kept]))
        new = [None if one is None else one.pixels for one in seen]
        if not any_says(any(one is not None for one in new)):
            return features
        pixels = put_batch(mesh, np.stack([self._no_pixels if one is None else one for one in new]))
        encoded = self._encode(self.policy.params, pixels, config=self.policy.config)
        if self._kept is not None:
            for one, made in zip(seen, fetch_own(mesh, encoded), strict=True):
                if one is not None and one.pixels is not None and one.id:
                    self._kept.put(one.id, made)
        if not any_says(any(one is not None for one in kept)):
            return encoded
        was_kept = put_batch(mesh, np.array([one is not None for one in kept]))
        return jnp.where(was_kept[:, None, None], features, encoded)

    def _weigh(self, ahead: Ahead, width: int, candidates: tuple[int, ...]) -> Ended:
        """Log-probs of the candidates behind the turns of one video in each lane."""
        turns = self._take(("weigh", width, candidates))
        prompts = self._prompts(turns, width)
        self._begins_work()
        tokens = put_whole(self.policy.mesh, np.asarray(candidates, np.int32))
        out = next_token_logprobs(self._llama, self._prefixes, prompts, tokens, config=self.policy.config)
        logprobs = self._fetch(out)
        return [
            ended
            for lane, group in enumerate(turns)
            for j, turn in enumerate(group)
            for ended in self._answer(turn, logprobs[lane, j])
        ]

    def _read(self, ahead: Ahead, width: int) -> Ended:
        """Reads turns of one video in each lane into free slots."""
        turns = self._take(("read", width))
        nobody = self.hall.bays * self.hall.slots
        shape = (self._lanes, PROMPTS)
        slot, limit = np.full(shape, nobody, np.int32), np.ones(shape, np.int32)
        purpose, record, sample = (np.zeros(shape, np.uint32) for _ in range(3))
        style = Style(*(np.zeros(shape, np.int32 if name == "top_k" else np.float32) for name in Style._fields))
        for lane, group in enumerate(turns):
            for j, turn in enumerate(group):
                asked = turn.asked
                assert isinstance(asked, Say)
                first = turn.guest.place // self.hall.places * self.hall.slots
                slot[lane, j] = self._speakers[lane].index(None, first)
                self._speakers[lane][slot[lane, j]] = turn
                how = asked.decoding
                limit[lane, j] = how.max_new_tokens
                purpose[lane, j], sample[lane, j] = _PURPOSES[asked.purpose], asked.sample
                record[lane, j] = record_hash(asked.record)
                for name, array in style._asdict().items():
                    array[lane, j] = getattr(how, name)
        prompts = self._prompts(turns, width)
        host = Start(slot, limit, purpose, record, sample, style)
        start = jax.tree.map(lambda x: put_batch(self.policy.mesh, x), host)
        self._begins_work()
        self._slots = read(self._slots, self._llama, self._prefixes, prompts, start, self._base, **self._settings)
        return []

    def _decode(self, ahead: Ahead) -> Ended:
        """Says tokens until some texts have ended."""
        self._begins_work()
        self._slots, taken = decode(
            self._slots, self._llama, self._prefixes, enough=self.hall.enough, steps=self._steps, **self._settings
        )
        steps, said = (int(number) for number in np.asarray(taken))
        slots = self._slots
        live, count, tokens = (self._fetch(x) for x in (slots.live, slots.count, slots.tokens))
        self.tally.steps += steps
        self.tally.slot_steps += steps * self.hall.all_slots
        self.tally.decoded += said
        ended: Ended = []
        stopped = np.zeros(live.shape, bool)
        for lane, speakers in enumerate(self._speakers):
            for i, turn in enumerate(speakers):
                if turn is None:
                    continue
                told = self._told(turn, tokens[lane, i, : count[lane, i]].tolist(), bool(live[lane, i]))
                if told is not None:
                    stopped[lane, i] = live[lane, i]
                    speakers[i] = None
                    ended += self._answer(turn, told)
        if self._steps == _STEPS_TO_STOP:  # a rule of the settings and not of what was said: all processes call it
            shape = (-1, self.hall.slots)
            self._slots = halt(self._slots, put_batch(self.policy.mesh, stopped.reshape(shape)))
        return ended

    def _told(self, turn: _Turn, tokens: list[int], live: bool) -> Completion | None:
        """What a slot has said, if it has ended by itself or at a string that ends it."""
        assert isinstance(turn.asked, Say)
        tokenizer = self.policy.tokenizer
        if cut := stopped_at(tokens, turn.asked.decoding.stop, tokenizer.decode_whole):
            return Completion(cut[0], tuple(tokens[: cut[1]]), "stop")
        if live:
            return None
        ended = tokens[-1] == tokenizer.eos_id
        return Completion(tokenizer.decode(tokens), tuple(tokens), "stop" if ended else "length")

    def _take(self, kind: tuple) -> list[list[_Turn]]:
        """For each lane, the most turns of one guest that this program reads together; they no longer wait."""
        taken: list[list[_Turn]] = []
        for lane, guests in enumerate(self._guests):
            groups = [self._groups(lane, guest).get(kind, []) for guest in guests if guest]
            best = max(groups, key=len, default=[])
            for turn in best:
                turn.guest.waiting.remove(turn)
            taken.append(best)
        return taken

    def _prompts(self, turns: Sequence[Sequence[_Turn]], width: int) -> Prompts:
        at = np.zeros(self._lanes, np.int32)
        tokens, lengths = np.zeros((self._lanes, PROMPTS, width), np.int32), np.zeros((self._lanes, PROMPTS), np.int32)
        for lane, group in enumerate(turns):
            for j, turn in enumerate(group):
                at[lane] = turn.guest.place
                tokens[lane, j, : len(turn.ids)] = turn.ids
                lengths[lane, j] = len(turn.ids)
        self.tally.prompts += sum(map(len, turns))
        self.tally.prompt_tokens += int(lengths.sum())
        self.tally.prompt_positions += tokens.size
        return jax.tree.map(lambda x: put_batch(self.policy.mesh, x), Prompts(at, tokens, lengths))

    def _answer(self, turn: _Turn, answer: Any) -> Ended:
        """Keeps an answer; goes on with the dialogue when it was the last one that is waited for."""
        guest = turn.guest
        guest.answers[turn.number] = answer
        guest.open -= 1
        return [] if guest.open else self._go_on(guest)

    def _go_on(self, guest: _Guest) -> Ended:
        """Tells a dialogue what it has asked for, and takes up what it asks next, until that needs a program."""
        while not guest.open:
            try:
                asked = guest.dialogue.send(guest.answers if guest.started else None)
            except StopIteration as end:
                self._guests[guest.lane][guest.place] = None
                return [(guest.number, end.value)]
            guest.started = True
            if isinstance(asked, Look):
                guest.looks, guest.answers = self._see(asked.sight), []
                return []
            guest.answers = [None] * len(asked)
            for number, one in enumerate(asked):
                ids = [*self.policy.tokenizer.encode_turn(one.turn), *(one.begun if isinstance(one, Weigh) else ())]
                if isinstance(one, Say):
                    fits = len(ids) <= self._turn_tokens and bucket(len(ids)) + one.decoding.max_new_tokens <= self.room
                    guest.answers[number] = None if fits else Completion("", (), "too_long")
                else:
                    fits = bucket(len(ids)) < self.room
                if fits:
                    guest.waiting.append(_Turn(one, ids, guest, number))
                    guest.open += 1
        return []

    def _begins_work(self) -> None:
        """Call it before a program is dispatched: the device had nothing to do since the last result was fetched."""
        if self._last_result is not None:
            self.tally.idle_s += time.perf_counter() - self._last_result
            self._last_result = None

    def _fetch(self, array: jax.Array) -> np.ndarray:
        """The rows of this process, [own lanes, slots of a lane, ...]."""
        own = fetch_own(self.policy.mesh, array)
        self._last_result = time.perf_counter()
        return own.reshape(self._lanes, -1, *own.shape[2:])


Ended = list[tuple[int, Any]]
_ORDER = {"weigh": 0, "read": 1, "look": 2}  # of programs that are equally full: what clears places comes first


def record_hash(record_id: str) -> int:
    """A stable 32-bit number of a record's id, for its sampling keys."""
    return int.from_bytes(hashlib.sha256(record_id.encode()).digest()[:4], "little")


def stopped_at(
    tokens: Sequence[int], stops: Sequence[str], text_of: Callable[[Sequence[int]], str]
) -> tuple[str, int] | None:
    """The text before the first stop string, stripped, and how many tokens say it with the string; None without one.

    Args:
        text_of: white space at the end included, which may be such a string.
    """
    if not any(stop in text_of(tokens) for stop in stops):
        return None
    for count in range(1, len(tokens) + 1):
        text = text_of(tokens[:count])
        if found := [text.index(stop) for stop in stops if stop in text]:
            return text[: min(found)].strip(), count
    return None


def steps_of(decodings: Sequence[Decoding]) -> int:
    """The most tokens that a slot says in a call of `decode`."""
    return _STEPS_TO_STOP if any(one.stop for one in decodings) else _STEPS


def uses_of(decodings: Sequence[Decoding]) -> Uses:
    """What the program must be able to do for any of them."""
    drawn = [one for one in decodings if one.temperature > 0]
    return Uses(
        noise=bool(drawn),
        top_p=any(one.top_p < 1 for one in drawn),
        most_top_k=max((one.top_k for one in drawn), default=0),
        min_p=any(one.min_p > 0 for one in drawn),
        repetition_penalty=any(one.repetition_penalty != 1 for one in decodings),
    )
