"""A real HTTP server that speaks OpenAI's chat protocol, in a thread: it counts, and says whatever a test wants."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What goes over the wire. `body` is sent as it is, byte by byte where there is a `drip` between two, seconds; a
    `delay` comes first, seconds; `drop` closes instead."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    drop: bool = False


def completion(text: str | None, finish: str = "stop", **usage: Any) -> Answer:
    value: dict[str, Any] = {
        "model": "judge-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
    }
    return Answer(json.dumps(value | ({"usage": usage} if usage else {})).encode())


def refusal(status: int, **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(json.dumps({"error": {"message": f"status {status}"}}).encode(), status, names)


Handler = Callable[[dict[str, Any], int], Answer]


class ChatServer:
    """Answers `POST /v1/chat/completions` by `handler(body, times)`: times this body was seen before.

    Attributes:
        bodies: every request's body, in order.
        headers: every request's headers, names in lower case.
        most_at_once: the largest number of requests that were open together.
    """

    def __init__(self, handler: Handler):
        self.handler = handler
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self._open = 0
        self._seen: Counter[bytes] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def asked(self) -> Counter[str]:
        """How often each last user message came."""
        return Counter(body["messages"][-1]["content"] for body in self.bodies)

    def __enter__(self) -> ChatServer:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                pairs = (line.split(": ", 1) for line in head[1:] if line)
                headers = {name.lower(): value for name, value in pairs}
                content = await reader.readexactly(int(headers["content-length"]))
                assert head[0] == "POST /v1/chat/completions HTTP/1.1", head[0]
                self.headers.append(headers)
                self.bodies.append(json.loads(content))
                self._open += 1
                self.most_at_once = max(self.most_at_once, self._open)
                try:
                    answer = self.handler(self.bodies[-1], self._seen[content])
                    self._seen[content] += 1
                    await asyncio.sleep(answer.delay)
                finally:
                    self._open -= 1
                if answer.drop:
                    return
                lines = [f"HTTP/1.1 {answer.status} Whatever", f"Content-Length: {len(answer.body)}"]
                lines += [f"{name}: {value}" for name, value in answer.headers.items()]
                writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
                for byte in answer.body if answer.drip else ():
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(answer.drip)
                writer.write(b"" if answer.drip else answer.body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
