"""Errors that speak to the user: what happened, where, and what to do.

Every error that a user can cause derives from `IsrdpoError` and carries the exit code of the command line:
2 bad input or configuration, 75 stopped and resumable (EX_TEMPFAIL), 1 a fault of ours or of the machine.
"""

from __future__ import annotations

from typing import Literal, get_args

VideoReason = Literal[
    "missing",  # no such file or folder
    "empty",  # a file of zero bytes, or a folder without frames
    "unreadable",  # not permitted, or an I/O error
    "not_a_video",  # no container that the decoder knows (text, noise, a torn header)
    "no_video_stream",  # audio only
    "zero_frames",  # a container without a single decodable frame
    "short_decode",  # fewer frames decoded than the file declares (a truncated file)
    "corrupt",  # the decoder failed in the middle
    "timeout",  # the decoder did not come back
]
VIDEO_REASONS: tuple[str, ...] = get_args(VideoReason)


class IsrdpoError(Exception):
    """Base of all errors whose message is meant for the user: one paragraph, no traceback."""

    exit_code: int = 2


class ConfigError(IsrdpoError):
    """A configuration that cannot be run; raised before any device is touched."""


class DataError(IsrdpoError):
    """A data set, prompt or record that cannot be used."""


class VideoError(IsrdpoError):
    """One video that cannot be decoded.

    Attributes:
        path: the file or folder as the user named it.
        reason: one of `VIDEO_REASONS`; skips are counted under it.
    """

    def __init__(self, path: str, reason: VideoReason, detail: str):
        super().__init__(f"{path}: {detail} [{reason}]")
        self.path = path
        self.reason: VideoReason = reason
        self.detail = detail

    def __reduce__(self):
        return type(self), (self.path, self.reason, self.detail)


class CheckpointError(IsrdpoError):
    """A checkpoint or a stored file that is missing, incomplete, or not what its manifest says."""


class RunLockedError(IsrdpoError):
    """Another process is writing this run."""


class StoppedError(IsrdpoError):
    """The run stopped on request (SIGTERM) after saving; the same command resumes it."""

    exit_code = 75


class EndpointDownError(IsrdpoError):
    """A judge on a server does not answer; what was judged is kept, and the same command goes on when it does."""

    exit_code = 75


class DivergedError(IsrdpoError):
    """Training was stopped: several updates in a row were not finite, or the reference check failed."""

    exit_code = 1
