"""Long files are sampled by seeking: the same frames as full decoding, at a cost that does not grow with length."""

import av
import numpy as np
import pytest
from make_videos import counting_frames, encode

from isrdpo_jax.data import packets, seeking, video_file
from isrdpo_jax.data.video import decode_video

CLOSED = {"preset": "veryfast", "x264-params": "keyint=20:bframes=3"}
OPEN = {"preset": "veryfast", "x264-params": "keyint=20:bframes=3:open-gop=1:b-pyramid=normal"}
HEVC_OPEN = {"preset": "veryfast", "x265-params": "keyint=20:open-gop=1:bframes=4:log-level=none"}
LONG_FILES = {
    "h264.mp4": {"codec": "libx264", "options": CLOSED},
    "h264_open_gop.mp4": {"codec": "libx264", "options": OPEN},
    "h264.mkv": {"codec": "libx264", "options": CLOSED},
    "h264.ts": {"codec": "libx264", "options": CLOSED},
    "hevc_open_gop.mp4": {"codec": "libx265", "options": HEVC_OPEN},
    "vp9.webm": {"codec": "libvpx-vp9", "gop": 20},
    "vp9_hidden_frames.mp4": {
        "codec": "libvpx-vp9",
        "gop": 20,
        "options": {"cpu-used": "8", "deadline": "good", "lag-in-frames": "12", "auto-alt-ref": "1"},
    },
    "av1.mp4": {"codec": "libsvtav1", "gop": 20},
    "mpeg4_bframes.mp4": {"codec": "mpeg4", "gop": 20, "bframes": 2},
    "mpeg4_bframes.avi": {"codec": "mpeg4", "gop": 20, "bframes": 2},
    "h264_variable_rate.mp4": {
        "codec": "libx264",
        "options": CLOSED,
        "times": np.cumsum(np.random.default_rng(0).integers(1500, 20000, 150)).tolist(),
    },
}


@pytest.fixture
def decode_in_full(monkeypatch):
    def decode(path, num_frames):
        with monkeypatch.context() as context:
            context.setattr(video_file, "SEEK_ABOVE", 10**9)
            video = decode_video(path, num_frames)
        assert video.decoded == video.total
        return video

    return decode


@pytest.mark.parametrize("name", LONG_FILES)
def test_seeking_gives_the_frames_of_full_decoding(tmp_path, decode_in_full, monkeypatch, name):
    path = encode(tmp_path / name, counting_frames(150), **LONG_FILES[name])
    monkeypatch.setattr(video_file, "SEEK_ABOVE", 1)
    for num_frames in (1, 2, 5, 8, 31):
        full = decode_in_full(path, num_frames)
        sought = decode_video(path, num_frames)
        assert sought.indices == full.indices
        assert (sought.total, sought.declared) == (150, full.declared)
        np.testing.assert_array_equal(sought.frames, full.frames)
        if num_frames <= 2:
            assert sought.decoded < full.decoded / 2, "the file was decoded in full"


def test_cost_does_not_grow_with_length(tmp_path):
    decoded = {}
    for count in (300, 3000):
        path = encode(tmp_path / f"{count}.mp4", counting_frames(count, 16, 16), gop=15)
        video = decode_video(path, 8)
        assert video.total == count
        decoded[count] = video.decoded
    assert max(decoded.values()) <= 8 * 2 * 15
    assert decoded[3000] <= decoded[300] + 8 * 15


def test_every_single_frame_can_be_sought(tmp_path, decode_in_full):
    path = encode(tmp_path / "video.mp4", counting_frames(60), "libx265", options=HEVC_OPEN)
    full = decode_in_full(path, 60)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        table = packets.packet_table(container, stream, path.stat().st_size)
        for wanted in range(60):
            [(number, frame)] = seeking.Seeker(container, stream, table).frames([wanted])
            assert number == wanted
            np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), full.frames[wanted])


def test_hidden_by_an_edit_list(tmp_path, decode_in_full):
    """A clip cut without encoding keeps frames that an edit list hides: they are no frames, and nothing is missing."""
    frames = counting_frames(120)
    times = [(number - 35) * 3000 for number in range(120)]
    path = encode(tmp_path / "video.mp4", frames, gop=20, options={"preset": "ultrafast"}, times=times)
    full = decode_in_full(path, 8)
    assert full.declared == full.total == 85
    sought = decode_video(path, 8)
    assert sought.decoded < full.decoded + 35
    np.testing.assert_array_equal(sought.frames, full.frames)
    np.testing.assert_allclose(full.frames[0, :, 4:28].mean(), frames[35, 0, 0, 0], atol=5)


def test_a_wrong_table_falls_back_to_full_decoding(tmp_path, decode_in_full, monkeypatch):
    path = encode(tmp_path / "video.mp4", counting_frames(100), gop=10)

    def lost(*_):
        raise seeking.LostCountError

    full = decode_in_full(path, 3)
    monkeypatch.setattr(seeking.Seeker, "frames", lost)
    video = decode_video(path, 3)
    assert video.decoded == 100
    np.testing.assert_array_equal(video.frames, full.frames)
