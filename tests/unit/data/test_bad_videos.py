"""Videos that cannot be used: each is refused with its reason."""

import os

import av
import numpy as np
import pytest
from make_videos import counting_frames, encode, encode_faststart, save_images
from PIL import Image

from isrdpo_jax.data.video import decode_video
from isrdpo_jax.data.video_writer import write_video
from isrdpo_jax.errors import VIDEO_REASONS, VideoError


def reason_of(path, num_frames=8):
    with pytest.raises(VideoError) as caught:
        decode_video(path, num_frames)
    assert caught.value.reason in VIDEO_REASONS
    assert caught.value.path == str(path)
    return caught.value.reason


def missing(folder):
    return folder / "nothing.mp4"


def below_a_file(folder):
    (folder / "file.mp4").write_bytes(b"x")
    return folder / "file.mp4" / "video.mp4"


def zero_bytes(folder):
    (folder / "video.mp4").touch()
    return folder / "video.mp4"


def text_as_mp4(folder):
    (folder / "video.mp4").write_text("This is not a video.\n" * 500)
    return folder / "video.mp4"


def text_file(folder):
    (folder / "video.txt").write_text("FFmpeg would play this as a terminal recording.\n" * 500)
    return folder / "video.txt"


def image_as_mp4(folder):
    Image.new("RGB", (8, 8)).save(folder / "video.mp4", format="png")
    return folder / "video.mp4"


def playlist(folder):
    write_video(folder / "other.mp4", counting_frames(4), fps=8)
    (folder / "video.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n")
    return folder / "video.m3u8"


def noise(folder):
    (folder / "video.mp4").write_bytes(np.random.default_rng(0).bytes(30_000))
    return folder / "video.mp4"


def truncated_plain(folder):
    path = encode(folder / "video.mp4", counting_frames(30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def truncated_faststart(folder):
    path = encode_faststart(folder / "video.mp4", counting_frames(30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def long_truncated_faststart(folder):
    path = encode_faststart(folder / "video.mp4", counting_frames(200))
    path.write_bytes(path.read_bytes()[:-20])
    return path


def truncated_webm(folder):
    path = encode(folder / "video.webm", counting_frames(60), "libvpx-vp9")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def truncated_avi(folder):
    path = encode(folder / "video.avi", counting_frames(60), "mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def audio_only(folder):
    with av.open(str(folder / "video.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux(stream.encode(samples))
        container.mux(stream.encode())
    return folder / "video.mp4"


def no_stream(folder):
    with av.open(str(folder / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    return folder / "video.mp4"


def head_without_frames(folder):
    path = encode(folder / "video.avi", counting_frames(10), "mpeg4")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"movi") + 4])
    return path


def corrupt_middle(codec, suffix):
    def make(folder):
        path = encode(folder / f"video.{suffix}", counting_frames(30), codec)
        content = bytearray(path.read_bytes())
        middle = len(content) // 3
        content[middle : middle + 300] = np.random.default_rng(1).bytes(300)
        path.write_bytes(content)
        return path

    make.__name__ = f"corrupt_middle_{codec}"
    return make


def damaged_slice(folder):
    """Damage inside one picture, which FFmpeg conceals: it only marks the frame."""
    noise = np.random.default_rng(0).integers(0, 256, (10, 48, 64, 3), dtype=np.uint8)
    path = encode(folder / "video.mp4", noise)
    with av.open(str(path)) as container:
        entry = container.streams.video[0].index_entries[5]
        middle = entry.pos + entry.size // 2
    content = bytearray(path.read_bytes())
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 10
    return path


def empty_folder(folder):
    (folder / "frames").mkdir()
    return folder / "frames"


def folder_of_strays(folder):
    (folder / "frames").mkdir()
    (folder / "frames" / ".DS_Store").write_bytes(b"x")
    (folder / "frames" / "readme.txt").write_text("x")
    return folder / "frames"


def folder_with_a_torn_image(folder):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    frames = save_images(folder / "frames", ["1.jpg", "2.jpg"], (32, 32))
    Image.fromarray(noise).save(frames / "2.jpg")
    (frames / "2.jpg").write_bytes((frames / "2.jpg").read_bytes()[:-400])
    return frames


def folder_of_two_sizes(folder):
    save_images(folder / "frames", ["1.png"])
    Image.new("RGB", (4, 4)).save(folder / "frames" / "2.png")
    return folder / "frames"


def link_to_itself(folder):
    (folder / "video.mp4").symlink_to(folder / "video.mp4")
    return folder / "video.mp4"


BAD = [
    (missing, "missing"),
    (below_a_file, "missing"),
    (zero_bytes, "empty"),
    (text_as_mp4, "not_a_video"),
    (text_file, "not_a_video"),
    (image_as_mp4, "not_a_video"),
    (playlist, "not_a_video"),
    (noise, "not_a_video"),
    (truncated_plain, "not_a_video"),
    (truncated_faststart, "short_decode"),
    (long_truncated_faststart, "short_decode"),
    (truncated_webm, "short_decode"),
    (truncated_avi, "short_decode"),
    (audio_only, "no_video_stream"),
    (no_stream, "zero_frames"),
    (head_without_frames, "zero_frames"),
    (corrupt_middle("libx264", "mp4"), "corrupt"),
    (corrupt_middle("mpeg4", "mp4"), "corrupt"),
    (corrupt_middle("libsvtav1", "mp4"), "corrupt"),
    (damaged_slice, "corrupt"),
    (empty_folder, "empty"),
    (folder_of_strays, "empty"),
    (folder_with_a_torn_image, "corrupt"),
    (folder_of_two_sizes, "corrupt"),
    (link_to_itself, "unreadable"),
]


@pytest.mark.parametrize(("make", "reason"), BAD, ids=lambda value: getattr(value, "__name__", value))
def test_bad_videos_are_refused_with_their_reason(tmp_path, make, reason):
    assert reason_of(make(tmp_path)) == reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    write_video(tmp_path / "video.mp4", counting_frames(4), fps=8)
    (tmp_path / "video.mp4").chmod(0)
    assert reason_of(tmp_path / "video.mp4") == "unreadable"


def test_a_name_with_a_null():
    assert reason_of("a\0b.mp4") == "missing"


def test_short_decode_counts_what_is_there(tmp_path):
    with pytest.raises(VideoError, match=r"declares 30 frames and holds \d+: the file is cut off"):
        decode_video(truncated_faststart(tmp_path), 8)


def test_fewer_frames_than_declared_without_a_cut(tmp_path, monkeypatch):
    """The count itself is compared too, for damage that leaves the file whole."""
    path = encode(tmp_path / "video.avi", counting_frames(30), "mpeg4")
    content = path.read_bytes()
    for field in (b"avih", b"strh"):
        offset = content.index(field) + (24 if field == b"avih" else 40)
        content = content[:offset] + (40).to_bytes(4, "little") + content[offset + 4 :]
    path.write_bytes(content)
    with pytest.raises(VideoError, match="declares 40 frames and 30 decode"):
        decode_video(path, 8)
