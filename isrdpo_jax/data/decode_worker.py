"""The process that decodes for `decode_pool`: answers each (path, num_frames, timeout_s) with a video or its error.

Run as `python -m isrdpo_jax.data.decode_worker FD`, where FD is a duplex connection to the parent.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

from isrdpo_jax.data.frames import DecodedVideo
from isrdpo_jax.data.video import decode_video
from isrdpo_jax.errors import VideoError


def serve(connection: Connection) -> None:
    """Says that it is ready, then answers requests until the parent closes its end or is gone."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the alarm kills, also inside a decoder that never returns
    try:
        connection.send("ready")
        while True:
            path, num_frames, timeout_s = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            answer: DecodedVideo | VideoError
            try:
                answer = decode_video(path, num_frames)
            except VideoError as error:
                answer = error
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
