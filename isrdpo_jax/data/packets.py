"""The packets of a video stream in decoding order, found without decoding: what seeking to a numbered frame needs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from av.container import InputContainer
from av.video.stream import VideoStream

Clock = Literal["dts", "pts"]


@dataclass(frozen=True)
class PacketTable:
    """Every packet of a stream, one frame each, in decoding order.

    Attributes:
        clock: the timestamp of a packet that `times` holds: decoding or presentation time.
        times: int [n], in the stream's time base, unique.
        keyframes: bool [n].
        frames_before: int [n], frames shown among the packets ahead of each.
        total: frames shown; fewer than packets where an edit list hides some.
        end: end of the last frame in seconds, where the packets say it.
        missing: shown frames whose bytes lie behind the end of the file.
    """

    clock: Clock
    times: tuple[int, ...]
    keyframes: tuple[bool, ...]
    frames_before: tuple[int, ...]
    total: int
    end: float | None = None
    missing: int = 0


def packet_table(container: InputContainer, stream: VideoStream, file_size: int) -> PacketTable | None:
    """Reads the table from the container's index where that is complete, else by reading all packets.

    None where packets have no usable timestamps, or there are none; such a stream can only be decoded from its start.
    """
    if stream.frames and (is_mp4(container) or len(stream.index_entries) == stream.frames):
        return _from_index(stream, file_size)
    return _from_packets(container, stream)


def is_mp4(container: InputContainer) -> bool:
    return "mp4" in container.format.name.split(",")


def _from_index(stream: VideoStream, file_size: int) -> PacketTable | None:
    entries = list(stream.index_entries)
    missing = sum(entry.pos + entry.size > file_size for entry in entries if not entry.is_discard)
    times = [entry.timestamp for entry in entries]
    return _table("dts", times, [(entry.is_keyframe, not entry.is_discard) for entry in entries], missing=missing)


def _from_packets(container: InputContainer, stream: VideoStream) -> PacketTable | None:
    decoding_times, shown_times, flags = [], [], []
    end = 0
    for packet in container.demux(stream):
        if not packet.size:  # the end
            continue
        if packet.pts is None:
            return None
        decoding_times.append(packet.dts)
        shown_times.append(packet.pts)
        flags.append((packet.is_keyframe, not packet.is_discard))
        end = max(end, packet.pts + (packet.duration or 0))
    seconds = float(end * stream.time_base) if stream.time_base else None
    known = [time for time in decoding_times if time is not None]
    if len(known) < len(flags):
        return _table("pts", shown_times, flags, end=seconds)
    return _table("dts", known, flags, end=seconds)


def _table(
    clock: Clock, times: list[int], flags: list[tuple[bool, bool]], *, end: float | None = None, missing: int = 0
) -> PacketTable | None:
    """Builds the table from the packets' times and (is keyframe, is shown)."""
    if not times or len(set(times)) < len(times):
        return None
    keyframes = tuple(is_key for is_key, _ in flags)
    *frames_before, total = accumulate((is_shown for _, is_shown in flags), initial=0)
    return PacketTable(clock, tuple(times), keyframes, tuple(frames_before), total, end, missing)
