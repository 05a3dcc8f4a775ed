"""How a video and its questions are stored: the features that all our TFDS builders share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from isrdpo_jax.data.records import Question, SftRow, Video


def video_features() -> tfds.features.FeaturesDict:
    """One example per video; structured fields are JSON, empty where a data set has none."""
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "frames": tfds.features.Tensor(shape=(None, None, None, 3), dtype=np.uint8, encoding="bytes"),
            "questions": tfds.features.Text(),
            "truth": tfds.features.Text(),
            "sft_rows": tfds.features.Text(),
        }
    )


def to_example(video: Video) -> dict[str, Any]:
    return {
        "id": video.id,
        "frames": video.frames,
        "questions": json.dumps([asdict(question) for question in video.questions]),
        "truth": "" if video.truth is None else json.dumps(video.truth),
        "sft_rows": json.dumps([asdict(row) for row in video.sft_rows]) if video.sft_rows else "",
    }


def from_example(example: Mapping[str, Any]) -> Video:
    """The inverse of `to_example`; TFDS returns text as bytes."""
    questions, truth, rows = (example[name].decode() for name in ("questions", "truth", "sft_rows"))
    return Video(
        id=example["id"].decode(),
        frames=example["frames"],
        questions=tuple(Question(**question) for question in json.loads(questions)),
        truth=json.loads(truth) if truth else None,
        sft_rows=tuple(_sft_row(row) for row in json.loads(rows)) if rows else (),
    )


def _sft_row(row: dict[str, Any]) -> SftRow:
    labels = tuple((offset, label) for offset, label in row["step_labels"])
    return SftRow(kind=row["kind"], prompt=row["prompt"], response=row["response"], step_labels=labels)
