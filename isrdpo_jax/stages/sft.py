"""A start policy from labelled rows: tower, projector and decoder trained from nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from isrdpo_jax.data.packing import PackedArrays, Segment, bucket, pack_segments
from isrdpo_jax.data.pixels import preprocess
from isrdpo_jax.data.records import SftRow, Video
from isrdpo_jax.data.tokens import Tokenizer
from isrdpo_jax.errors import ConfigError, DivergedError
from isrdpo_jax.models.video_llava import abstract_params, init, logical_axes
from isrdpo_jax.programs.packed import PackedRows
from isrdpo_jax.programs.sft_step import SftBatch, sft_step
from isrdpo_jax.programs.update import TrainState, muon
from isrdpo_jax.schema import ModelConfig, SftConfig, SftPhase
from isrdpo_jax.sharding import batch_sharding, parameter_shardings, replicated

SegmentsByKind = Mapping[str, Sequence[Segment]]


def to_segment(row: SftRow, tokenizer: Tokenizer, *, label_weight: float, verdict_weight: float) -> Segment:
    """Tokens of a labelled row; process labels become predictions at the last token of the labelled word."""
    turn, ends = tokenizer.encode_turn_with_offsets(row.prompt)
    at_end = {end: index for index, end in enumerate(ends)}
    labels = [
        (at_end[offset], tokenizer.word_id(f" {word}"), label_weight) for offset, word in row.step_labels
    ]
    weight = verdict_weight if row.kind.startswith("judge") else 1.0
    return Segment.of_response(turn, tokenizer.encode_response(row.response), weight, labels)


def tokenise(
    videos: Sequence[Video], tokenizer: Tokenizer, *, label_weight: float, verdict_weight: float
) -> list[SegmentsByKind]:
    """All labelled rows of each video, by kind."""
    out: list[SegmentsByKind] = []
    for video in videos:
        kinds: dict[str, list[Segment]] = {}
        for row in video.sft_rows:
            segment = to_segment(row, tokenizer, label_weight=label_weight, verdict_weight=verdict_weight)
            kinds.setdefault(row.kind, []).append(segment)
        out.append(kinds)
    return out


def longest(segments: Sequence[SegmentsByKind]) -> dict[str, tuple[int, int]]:
    """The most tokens, and the most predictions, of any row of each kind."""
    sizes: dict[str, tuple[int, int]] = {}
    for kinds in segments:
        for kind, rows in kinds.items():
            tokens, predictions = sizes.get(kind, (0, 0))
            for row in rows:
                tokens, predictions = max(tokens, len(row.tokens)), max(predictions, len(row.predictions))
            sizes[kind] = tokens, predictions
    return sizes


def check_kinds(phase: SftPhase, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Raises:
    ConfigError: when the phase names a kind that no labelled row has.
    """
    wanted = {*phase.mixture, *([phase.text_kind] if phase.text_rows else [])}
    if unknown := sorted(wanted - sizes.keys()):
        raise ConfigError(f"sft.phases: no labelled row is of kind `{unknown[0]}`; the kinds are {sorted(sizes)}.")


def phase_batches(
    phase: SftPhase,
    number: int,
    seed: int,
    segments: Sequence[SegmentsByKind],
    frames: Callable[[int], np.ndarray],
    *,
    prefix_length: int,
    image_size: int,
    first_step: int = 0,
) -> Iterator[SftBatch]:
    """The batches of a phase; batch i is a function of (seed, phase, i) alone, so that a resume sees the same ones.

    A fractional entry of the mixture is the share of steps in which every row has one more segment of that kind, so
    that rows of one step are equally wide.
    """
    sizes = longest(segments)
    check_kinds(phase, sizes)

    def room(kinds: Mapping[str, int]) -> tuple[int, int]:
        """A width and a number of predictions that any row of these kinds fits."""
        tokens = sum(count * sizes[kind][0] for kind, count in kinds.items())
        return bucket(tokens, 16), bucket(sum(count * sizes[kind][1] for kind, count in kinds.items()), 16)

    for step in range(first_step, phase.steps):
        rng = np.random.default_rng([seed, number, step])
        draw_of_step = rng.random()  # one for all kinds, so that few combinations, and few shapes, occur
        kinds = {kind: int(share) + int(draw_of_step < share % 1) for kind, share in phase.mixture.items()}
        kinds = {kind: count for kind, count in kinds.items() if count}
        chosen = [
            _shuffled(len(segments), seed, number, step * phase.batch_videos + i) for i in range(phase.batch_videos)
        ]

        def draw(video: int, kind: str, count: int, rng=rng) -> list[Segment]:
            options = segments[video][kind]
            return [options[k] for k in rng.choice(len(options), count, replace=count > len(options))]

        rows = [[s for kind, count in kinds.items() for s in draw(v, kind, count)] for v in chosen]
        video_rows, video_weights = pack_segments(rows, prefix_length, *room(kinds))
        pixels = np.stack([preprocess(frames(v), image_size) for v in chosen])
        text_rows = text_weights = None
        if phase.text_rows:
            picked = rng.choice(len(segments), phase.text_rows, replace=phase.text_rows > len(segments))
            texts = [draw(int(v), phase.text_kind, 1) for v in picked]
            text_rows, text_weights = pack_segments(texts, prefix_length, *room({phase.text_kind: 1}))
        yield SftBatch(pixels, _rows(video_rows), video_weights, text_rows and _rows(text_rows), text_weights)


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, number: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, number, epoch, count]).permutation(count)


def _shuffled(count: int, seed: int, number: int, index: int) -> int:
    """The index-th video of an endless sequence of shuffled epochs."""
    epoch, place = divmod(index, count)
    return int(_permutation(count, seed, number, epoch)[place])


def _rows(arrays: PackedArrays) -> PackedRows:
    return PackedRows(*arrays)


def initial_params(config: ModelConfig, mesh: Mesh, seed: int):
    """Random parameters, created where they belong: no host ever holds the whole tree."""
    shardings = parameter_shardings(mesh, logical_axes(config), abstract_params(config))
    return jax.jit(init, static_argnums=0, out_shardings=shardings)(config, jax.random.key(seed))


def phase_optimizer(phase: SftPhase, sft: SftConfig) -> optax.GradientTransformation:
    """Muon under a warm-up and a cosine to zero."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, phase.learning_rate, min(sft.warmup_steps, phase.steps // 2), phase.steps
    )
    return muon(
        schedule,
        ratio=sft.muon_ratio,
        b1=sft.b1,
        b2=sft.b2,
        weight_decay=sft.weight_decay,
        clip_norm=sft.clip_norm,
    )


def train_phase(
    state: TrainState,
    batches: Iterator[SftBatch],
    phase: SftPhase,
    optimizer: optax.GradientTransformation,
    *,
    config: ModelConfig,
    prefix_ids: Sequence[int],
    mesh: Mesh,
    on_step: Callable[[TrainState, dict[str, jax.Array]], None],
) -> TrainState:
    """Runs the steps that `batches` delivers; `on_step` sees each state and its metrics while they are on the device.

    Raises:
        DivergedError: an update was not finite.
    """
    ids = jax.device_put(np.asarray(prefix_ids, np.int32), replicated(mesh))
    for batch in batches:
        state, metrics = sft_step(
            state,
            jax.device_put(batch, batch_sharding(mesh)),
            ids,
            config=config,
            optimizer=optimizer,
            text_weight=phase.text_weight,
        )
        if int(state.bad_updates):
            raise DivergedError(
                f"sft: the update of step {int(state.step)} is not finite. Lower sft.phases.*.learning_rate."
            )
        on_step(state, metrics)
    return state
