"""Video files for the tests of decoding."""

from fractions import Fraction

import av
import numpy as np
from PIL import Image

FFMPEG_CODECS = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"},
    "libsvtav1": {"preset": "12"},
    "mpeg4": {},
}


def counting_frames(count, height=48, width=64):
    """Frames that show their number: the brightness of the left half, and a bar that walks through the right half."""
    frames = np.full((count, height, width, 3), 128, np.uint8)
    for number, frame in enumerate(frames):
        frame[:, : width // 2] = 20 + 200 * number // max(count - 1, 1)
        frame[:, width // 2 + number % (width // 2)] = 255
    return frames


def encode(path, frames, codec="libx264", *, options=None, rate=30, gop=None, bframes=None, times=None, format=None):
    """Encodes with every knob that a test needs; `times` are presentation times in units of 1/90000 s."""
    with av.open(str(path), "w", format=format and format[0], options=format[1] if format else {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or FFMPEG_CODECS.get(codec, {}))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        if gop is not None:
            stream.codec_context.gop_size = gop
        if bframes is not None:
            stream.codec_context.max_b_frames = bframes
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 90000)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def encode_faststart(path, frames):
    return encode(path, frames, format=("mp4", {"movflags": "faststart"}))


def save_images(folder, names, size=(8, 6)):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", size, (number, 0, 0)).save(folder / name)
    return folder
