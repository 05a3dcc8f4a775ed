"""Videos in, frames out: files and folders of images, one call for both.

Every failure is a `VideoError` with a reason from `errors.VIDEO_REASONS`. A decoder can also hang or crash; where
that must not stop the caller, `decode_pool.decode_many` runs decoders in processes of their own.
"""

from __future__ import annotations

import stat
from pathlib import Path

from isrdpo_jax.data.frame_folder import read_folder
from isrdpo_jax.data.frames import DecodedVideo
from isrdpo_jax.data.video_file import read_file
from isrdpo_jax.errors import VideoError


def decode_video(path: str | Path, num_frames: int) -> DecodedVideo:
    """Decodes the frames of a video that the model sees.

    Args:
        path: a video file, or a folder of images whose names number the frames.
        num_frames: how many frames to take (t), spread evenly; a short video repeats some.

    Raises:
        VideoError: the video cannot be used; says why.
    """
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the name
        raise VideoError(str(path), "missing", "no such file or folder") from error
    except OSError as error:
        raise VideoError(str(path), "unreadable", f"cannot be looked up ({error.strerror})") from error
    if stat.S_ISDIR(status.st_mode):
        return read_folder(path, num_frames)
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise VideoError(str(path), "empty", "the file has no content")
    return read_file(path, num_frames)
