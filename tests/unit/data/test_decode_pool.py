"""Decoding in worker processes: order, errors, and decoders that hang or crash."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from isrdpo_jax.data import decode_pool
from isrdpo_jax.data.decode_pool import _Worker, decode_many
from isrdpo_jax.data.frames import DecodedVideo
from isrdpo_jax.data.video_writer import write_video
from isrdpo_jax.errors import VideoError


@pytest.fixture
def videos(tmp_path):
    paths = []
    for number in range(12):
        paths.append(tmp_path / f"{number}.mp4")
        write_video(paths[-1], np.full((4, 16, 16, 3), 10 * number, np.uint8), fps=8)
    return paths


@pytest.fixture
def hanging(tmp_path):
    """A pipe that nobody writes to: opening it never returns."""
    os.mkfifo(tmp_path / "hanging.mp4")
    return tmp_path / "hanging.mp4"


def test_results_come_in_order_and_errors_take_their_place(videos, tmp_path):
    paths = [*videos[:6], tmp_path / "missing.mp4", *videos[6:]]
    results = list(decode_many(paths, 2, timeout_s=30, workers=2))
    error = results.pop(6)
    assert isinstance(error, VideoError) and error.reason == "missing"
    for number, video in enumerate(results):
        assert isinstance(video, DecodedVideo)
        np.testing.assert_allclose(video.frames, 10 * number, atol=3)


def test_a_hanging_decoder_costs_one_video(videos, hanging):
    start = time.monotonic()
    results = list(decode_many([videos[0], hanging, *videos[1:]], 2, timeout_s=0.5, workers=1))
    assert time.monotonic() - start < decode_pool._GRACE_S, "the worker's own alarm did not end it"
    error = results.pop(1)
    assert isinstance(error, VideoError)
    assert (error.reason, error.path) == ("timeout", str(hanging))
    assert all(isinstance(video, DecodedVideo) for video in results) and len(results) == 12


def test_a_crashing_decoder_costs_one_video(videos, hanging):
    worker = _Worker()
    try:
        worker.connection.poll(60)
        assert worker.take() is None and worker.idle
        worker.give(7, str(hanging), 2, timeout_s=60)
        worker._process.kill()
        worker.connection.poll(60)
        index, error = worker.take()
        assert (index, error.reason) == (7, "corrupt")
        assert "-9" in str(error)
        worker.connection.poll(60)
        assert worker.take() is None and worker.idle
        worker.give(8, str(videos[0]), 2, timeout_s=60)
        worker.connection.poll(60)
        index, video = worker.take()
        assert index == 8 and video.total == 4
    finally:
        worker.kill()


def test_a_worker_that_no_alarm_reaches_is_abandoned(hanging, monkeypatch):
    monkeypatch.setattr(decode_pool, "_GRACE_S", 0.1)
    worker = _Worker()
    try:
        worker.connection.poll(60)
        assert worker.take() is None
        os.kill(worker._process.pid, signal.SIGSTOP)
        worker.give(0, str(hanging), 2, timeout_s=0.1)
        assert decode_pool._wait([worker]) == [worker]
        index, error = worker.take()
        assert (index, error.reason) == (0, "timeout")
    finally:
        worker.kill()


def children():
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def test_stopping_early_leaves_no_process(videos):
    before = children()
    results = decode_many(videos, 2, timeout_s=30, workers=2)
    next(results)
    assert len(children() - before) == 2
    results.close()
    assert children() <= before


def test_nothing_to_do():
    assert list(decode_many([], 2, timeout_s=1)) == []


def test_importing_the_decoder_does_not_import_jax():
    code = "import sys, isrdpo_jax.data.decode_worker, isrdpo_jax.data.decode_pool, isrdpo_jax.data.pixels; "
    code += "assert not {'jax', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
