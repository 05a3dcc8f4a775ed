"""Decoding of what is in order: five codecs, odd sizes, rotation, variable frame rate, folders of images."""

import os

import av
import numpy as np
import pytest
from make_videos import counting_frames, encode, save_images
from PIL import Image

from isrdpo_jax.data.video import decode_video
from isrdpo_jax.data.video_writer import write_video


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("libx264", "mp4"), ("libx265", "mp4"), ("libvpx-vp9", "webm"), ("libsvtav1", "mp4"), ("mpeg4", "avi")],
)
def test_codecs(tmp_path, codec, suffix):
    frames = counting_frames(16)
    video = decode_video(encode(tmp_path / f"video.{suffix}", frames, codec), 8)
    assert video.indices == (0, 2, 4, 6, 8, 10, 12, 15)
    assert (video.total, video.decoded) == (16, 16)
    assert video.declared == (None if suffix == "webm" else 16)
    assert video.frames.dtype == np.uint8 and video.frames.shape == (8, 48, 64, 3)
    seen = video.frames[:, :, 4:28].mean(axis=(1, 2, 3))
    wanted = frames[list(video.indices), :, 4:28].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(seen, wanted, atol=5)


def test_writer_is_nearly_lossless(tmp_path):
    rows, columns = np.mgrid[:32, :32]
    frame = np.stack([rows * 7, columns * 7, rows * 3 + columns * 3], axis=-1).astype(np.uint8)
    frames = np.stack([frame + np.uint8(number) for number in range(16)])
    write_video(tmp_path / "video.mp4", frames, fps=8)
    video = decode_video(tmp_path / "video.mp4", 16)
    difference = np.abs(video.frames.astype(int) - frames)
    assert difference.mean() < 3 and difference.max() < 12


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (2, 3)])
def test_odd_sizes(tmp_path, size):
    frames = np.full((3, *size, 3), 90, np.uint8)
    write_video(tmp_path / "video.mp4", frames, fps=8)
    video = decode_video(tmp_path / "video.mp4", 3)
    np.testing.assert_allclose(video.frames, frames, atol=3)


def test_writer_refuses_floats(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "video.mp4", np.zeros((2, 8, 8, 3), np.float32), fps=8)


def test_one_frame_repeats(tmp_path):
    write_video(tmp_path / "video.mp4", counting_frames(1), fps=8)
    video = decode_video(tmp_path / "video.mp4", 8)
    assert video.indices == (0,) * 8
    assert video.declared == video.total == 1
    np.testing.assert_array_equal(video.frames, np.repeat(video.frames[:1], 8, axis=0))


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_rotation_metadata_is_applied(tmp_path, degrees):
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:8, :16] = 200
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast", "crf": "4"})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.set_display_rotation(degrees)  # counter-clockwise
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    upright = np.rot90(picture, degrees // 90)
    video = decode_video(path, 2)
    assert video.frames.shape[1:] == upright.shape
    assert np.abs(video.frames[0].astype(int) - upright).mean() < 3


def test_variable_frame_rate_counts_frames_and_not_seconds(tmp_path):
    frames = counting_frames(12)
    steps = [3000, 3000, 90000, 3000, 1500, 4500, 180000, 3000, 3000, 3000, 9000, 3000]
    path = encode(tmp_path / "video.mp4", frames, times=np.cumsum([0, *steps])[:-1].tolist())
    video = decode_video(path, 12)
    assert video.declared == video.total == 12
    np.testing.assert_allclose(video.frames[:, :, 4:28].mean(axis=(1, 2, 3)), frames[:, 0, 0, 0], atol=5)


def test_name_that_looks_like_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "plain.mp4", counting_frames(4), fps=8)
    os.rename("plain.mp4", "http:x?y%20#z.mp4")
    assert decode_video("http:x?y%20#z.mp4", 4).total == 4


def test_folder_is_sorted_by_number(tmp_path):
    names = [f"c01_{number}.png" for number in (9, 10, 9999, 10000, 100000)]
    folder = save_images(tmp_path / "frames", names)
    video = decode_video(folder, 5)
    assert video.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert (video.declared, video.total, video.decoded) == (5, 5, 5)


def test_folder_ignores_strays_and_reads_only_what_is_sampled(tmp_path):
    folder = save_images(tmp_path / "frames", [f"{number:04d}.png" for number in range(100)])
    for stray in (".DS_Store", "Thumbs.db", "._0001.png", "notes.txt"):
        (folder / stray).write_bytes(b"stray")
    (folder / "deeper.png").mkdir()
    (folder / "0001.png").write_bytes(b"never looked at")
    video = decode_video(folder, 4)
    assert video.frames[:, 0, 0, 0].tolist() == [0, 33, 66, 99]
    assert (video.total, video.decoded) == (100, 4)


def test_jpeg_and_grey_images(tmp_path):
    folder = save_images(tmp_path / "frames", ["1.jpeg"])
    Image.new("L", (8, 6), 77).save(folder / "2.JPG")
    video = decode_video(folder, 2)
    assert video.frames.shape == (2, 6, 8, 3)
    np.testing.assert_allclose(video.frames[1], 77, atol=1)
