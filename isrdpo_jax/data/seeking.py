"""Decodes single frames out of a long video by jumping to the keyframe before each."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from isrdpo_jax.data.packets import PacketTable, is_mp4

# Keyframes to try, going backwards: frames that are decoded after a keyframe but shown before it need an earlier one.
_ATTEMPTS = 3


class LostCountError(Exception):
    """The numbers of decoded frames do not follow from the packet table: decode the file in full."""


class Seeker:
    """Decodes numbered frames of an open stream.

    Attributes:
        decoded: frames that the decoder has put out so far.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, table: PacketTable):
        self.decoded = 0
        self._container = container
        self._stream = stream
        self._table = table
        self._positions = {time: position for position, time in enumerate(table.times)}
        self._keyframes = [position for position, is_key in enumerate(table.keyframes) if is_key]
        # MP4 is sought by presentation time, which lags behind the decoding times of its index.
        self._lag = (stream.start_time or 0) - table.times[0] if is_mp4(container) else 0

    def frames(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yields (number, frame) for every number in `wanted` (ascending, without repeats).

        Raises:
            LostCountError: frames are missing, out of order, or not where the table says.
            av.FFmpegError: the decoder fails.
        """
        position = 0
        while position < len(wanted):
            for number, frame in self._frames_from(wanted[position]):
                if number != wanted[position]:
                    continue
                yield number, frame
                position += 1
                if position == len(wanted) or self._is_jump_shorter(number, wanted[position]):
                    break
            else:
                raise LostCountError

    def _is_jump_shorter(self, current: int, wanted: int) -> bool:
        """Whether a keyframe lies between the current frame and the wanted one."""
        return self._table.frames_before[self._keyframes[self._keyframe_before(wanted)]] > current

    def _keyframe_before(self, number: int) -> int:
        """The last of the keyframes that has at most `number` frames ahead of it; the first where none has."""
        place = bisect_right(self._keyframes, number, key=lambda position: self._table.frames_before[position])
        return max(place - 1, 0)

    def _frames_from(self, wanted: int) -> Iterator[tuple[int, VideoFrame]]:
        """Numbered frames without a gap, from a keyframe shown no later than `wanted`."""
        last = self._keyframe_before(wanted)
        for keyframe in reversed(self._keyframes[max(last - _ATTEMPTS + 1, 0) : last + 1]):
            frames = self._frames_after_seek(self._table.times[keyframe] + self._lag)
            first = next(frames, None)
            if first is not None and first[0] <= wanted:
                yield first
                yield from frames
                return
        raise LostCountError

    def _frames_after_seek(self, time: int) -> Iterator[tuple[int, VideoFrame]]:
        """Numbered frames without a gap from the keyframe at which a seek lands; nothing if that is no keyframe.

        Every frame that is decoded before a keyframe is also shown before it. So a frame shown at or after the keyframe
        has the number: frames decoded before the keyframe, plus those decoded since that are shown earlier. What is
        decoded after the keyframe but shown before it may hang on frames that were skipped, and is dropped.
        """
        self._container.seek(time, stream=self._stream, backward=True)
        landed: int | None = None
        key_time = expected = None
        shown: list[int] = []
        for packet in self._container.demux(self._stream):
            if packet.size:
                if packet.pts is None:
                    raise LostCountError
                if landed is None:
                    landed = self._positions.get(getattr(packet, self._table.clock))
                    key_time = packet.pts
                    if landed is None or not self._table.keyframes[landed]:
                        return
                if not packet.is_discard:
                    insort(shown, packet.pts)
            for frame in packet.decode():
                self.decoded += 1
                if frame.pts is None or key_time is None or landed is None:
                    raise LostCountError
                if frame.pts < key_time:
                    continue
                number = self._table.frames_before[landed] + bisect_left(shown, frame.pts)
                if expected is not None and number != expected:
                    raise LostCountError
                expected = number + 1
                yield number, frame
