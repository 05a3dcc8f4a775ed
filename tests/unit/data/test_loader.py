"""Prepared splits of the embedded world."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from isrdpo_jax.data import loader
from isrdpo_jax.data.loader import open_split
from isrdpo_jax.data.shapes_world import language
from isrdpo_jax.data.video import decode_video
from isrdpo_jax.errors import DataError
from isrdpo_jax.schema import Config, DataConfig


def _config(folder, **numbers):
    return Config(data=DataConfig(dir=str(folder), train_videos=6, eval_videos=4, sft_videos=3, **numbers))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def train(folder):
    return open_split(_config(folder), "train", num_frames=8)


def test_videos_come_in_the_order_of_their_ids_with_what_belongs_to_them(folder, train):
    assert len(train) == 6 and train.ids == sorted(set(train.ids))
    for video_id, video in zip(train.ids, train, strict=True):
        assert video.id == video_id
        assert video.frames.shape == (8, 32, 32, 3) and video.frames.dtype == np.uint8
        path = next(folder.glob(f"shapes_world/videos/*/{video_id}.mp4"))
        np.testing.assert_array_equal(video.frames, decode_video(path, 8).frames)
        assert len(video.questions) == 2 and video.sft_rows == ()
        for question in video.questions:
            assert question.id.startswith(video_id)
            assert language.grade(question.answer, question.text, video.truth).core


def test_only_the_split_that_is_asked_for_is_built(folder, train):
    assert not list(folder.glob("shapes_world/sft*"))
    with pytest.raises(DataError, match="not prepared"):
        open_split(_config(folder), "eval", num_frames=8, prepare=False)


def test_a_second_open_does_not_build_again(folder, train, monkeypatch):
    monkeypatch.setattr(loader, "_prepare", lambda builder: pytest.fail("built again"))
    again = open_split(_config(folder), "train", num_frames=8)
    assert (again.ids, again.digest) == (train.ids, train.digest)


def test_who_wants_a_split_that_another_is_building_waits_for_it(tmp_path, monkeypatch):
    builds, build = [], loader._prepare

    def slowly(builder):
        builds.append(builder.name)
        time.sleep(0.2)
        build(builder)

    monkeypatch.setattr(loader, "_prepare", slowly)
    with ThreadPoolExecutor() as pool:
        found = [pool.submit(open_split, _config(tmp_path), "train", num_frames=8) for _ in range(2)]
        one, other = (each.result() for each in found)
    assert builds == ["shapes_world"] and one.digest == other.digest


def test_other_numbers_build_anew(folder, train):
    other = open_split(_config(folder, world_seed=1), "train", num_frames=8)
    assert other.folder != train.folder and other.digest != train.digest and other.ids != train.ids
    assert open_split(_config(folder), "train", num_frames=8).digest == train.digest


def test_supervised_rows_survive_storage(tmp_path):
    video = open_split(_config(tmp_path), "sft", num_frames=8)[0]
    kinds = {row.kind for row in video.sft_rows}
    assert kinds == {"describe", "retrospect", "look", "answer", "judge", "judge_plain"}
    judged = next(row for row in video.sft_rows if row.kind == "judge")
    assert judged.step_labels and all(label in ("yes", "no") for _, label in judged.step_labels)


def test_a_build_that_dies_leaves_nothing_that_counts(tmp_path, monkeypatch):
    config = _config(tmp_path)
    from isrdpo_jax.data.datasets import shapes_world

    def dies(path, num_frames):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes_world, "decode_video", dies)
        with pytest.raises(KeyboardInterrupt):
            open_split(config, "train", num_frames=8)
    with pytest.raises(DataError, match="not prepared"):
        open_split(config, "train", num_frames=8, prepare=False)
    assert len(open_split(config, "train", num_frames=8)) == 6


def test_a_split_without_videos_is_refused(tmp_path):
    config = Config(data=DataConfig(dir=str(tmp_path), eval_videos=0))
    with pytest.raises(DataError, match="eval_videos is 0"):
        open_split(config, "eval", num_frames=8)


def test_neither_tensorflow_nor_jax_is_imported(folder, train):
    code = (
        "import sys; from isrdpo_jax.data.loader import open_split; from isrdpo_jax.schema import *;"
        f"s = open_split(Config(data=DataConfig(dir={str(folder)!r}, train_videos=6)), 'train', num_frames=8); s[0];"
        "print(sorted({'tensorflow', 'jax'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""
