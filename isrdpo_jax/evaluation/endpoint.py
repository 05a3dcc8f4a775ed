"""An OpenAI-compatible chat endpoint: one call, tried again with patience, and every way in which it can go wrong.

The key is read from the environment and goes into one header. It is never stored, and cut out of whatever the server
says before anybody else sees it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.evaluation.reply_log import Reply
from isrdpo_jax.schema import EvaluationJudgeConfig

LONGEST_WAIT_S = 300.0  # a server that asks for more patience is not waited for
LARGEST_BODY = 1 << 20  # bytes
_LONGEST_BACKOFF_S = 60.0


@dataclass(frozen=True)
class Failure:
    """A call without a reply.

    Attributes:
        reason: in few words, to be counted by.
        detail: what was seen.
        again: whether trying again may help.
        wait_s: how long the server asks to wait, seconds.
    """

    reason: str
    detail: str
    again: bool = True
    wait_s: float | None = None


class Endpoint:
    """Calls to one server; an async context manager that holds its connections.

    Attributes:
        tries: requests sent so far.

    Raises:
        ConfigError: the address or the key cannot be used.
    """

    def __init__(self, judge: EvaluationJudgeConfig, backoff_s: float = 1.0):
        self.tries = 0
        self._judge = judge
        self._backoff_s = backoff_s
        self._url = check_base_url(judge.base_url) + "/chat/completions"
        self._key = read_key(judge.key_variable)
        self._not_before = 0.0  # on the monotonic clock: a server that asks one caller to wait means them all
        self._tls = httpx.create_ssl_context()
        # One connection each: in a pool of n connections httpx looks through all n for every call.
        self._idle: list[httpx.AsyncClient] = []

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._idle:
            await client.aclose()

    async def ask(self, body: Mapping[str, Any]) -> Reply | Failure:
        """Posts a call until there is a reply, trying again will not help, or the attempts are used up.

        Raises:
            ConfigError: the server refuses the key, the address or the model.
        """
        for attempt in range(self._judge.attempts):
            while (left := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(left)
            outcome = await self._try(body)
            if isinstance(outcome, Reply) or not outcome.again or (outcome.wait_s or 0) > LONGEST_WAIT_S:
                break
            if outcome.wait_s is not None:
                self._not_before = max(self._not_before, time.monotonic() + outcome.wait_s)
            if attempt + 1 < self._judge.attempts:
                backoff = min(_LONGEST_BACKOFF_S, self._backoff_s * 2**attempt)
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
        return outcome

    async def _try(self, body: Mapping[str, Any]) -> Reply | Failure:
        self.tries += 1
        client = self._idle.pop() if self._idle else self._open()
        try:
            async with (
                asyncio.timeout(self._judge.timeout_s),  # of the whole try; httpx's own is between two bytes
                client.stream("POST", self._url, json=body) as response,
            ):
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > LARGEST_BODY:
                        return Failure("reply too large", f"more than {LARGEST_BODY} bytes", again=False)
        except (TimeoutError, httpx.TimeoutException):
            return Failure("timeout", f"no whole reply in {self._judge.timeout_s:g} s")
        except httpx.UnsupportedProtocol as error:
            raise ConfigError(f"evaluation.judge.base_url: {self._url}: {error}") from error
        except (httpx.RequestError, httpx.StreamError) as error:
            return Failure("no connection", self._clean(f"{type(error).__name__}: {error}"))
        finally:
            self._idle.append(client)
        return self._read(response, bytes(content))

    def _open(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return httpx.AsyncClient(headers=headers, timeout=self._judge.timeout_s, verify=self._tls)

    def _read(self, response: httpx.Response, content: bytes) -> Reply | Failure:
        said = self._clean(content[:500].decode(errors="replace"))
        status, wait_s = response.status_code, retry_after(response.headers.get("Retry-After"))
        if status in (401, 403):
            sent = "" if self._key else "; it is not set, so no key was sent"
            raise self._refused(status, said, f"check the key in ${self._judge.key_variable}{sent}")
        if status == 404 or 300 <= status < 400:
            raise self._refused(status, said, "check evaluation.judge.base_url and evaluation.judge.model")
        if status == 429:
            return Failure("rate limit", said, wait_s=wait_s)
        if status >= 500 or status == 408:
            return Failure(f"server error {status}", said, wait_s=wait_s)
        if status != 200:
            return Failure(f"refused with {status}", said, again=False)
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            return Failure("not JSON", said)
        if isinstance(value, dict) and value.get("error"):
            return Failure("error object", said, wait_s=wait_s)
        reply = read_completion(value)
        if reply is None:
            return Failure("not a chat completion", said)
        return Reply(
            self._clean(reply.text),
            reply.finish and self._clean(reply.finish),
            reply.model and self._clean(reply.model),
            reply.prompt_tokens,
            reply.completion_tokens,
        )

    def _refused(self, status: int, said: str, hint: str) -> ConfigError:
        return ConfigError(f"{self._url} answers {status} for the model {self._judge.model}: {said!r}; {hint}.")

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def read_completion(value: Any) -> Reply | None:
    """The reply in a response body; none where it is no chat completion. Null content is an empty reply."""
    try:
        choice = value["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    if text is not None and not isinstance(text, str):
        return None
    text = (text or "").encode(errors="replace").decode()  # half a character (a lone surrogate) cannot be shown
    usage = value.get("usage")
    return Reply(
        text,
        _text(choice.get("finish_reason")),
        _text(value.get("model")),
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
    )


def retry_after(header: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for, given as a number or as a date; none where it cannot be read."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


def check_base_url(base_url: str) -> str:
    """The address without a slash at its end.

    Raises:
        ConfigError: it is no http(s) address, or holds what would be written down with it (a user, a query).
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"evaluation.judge.base_url: no address that can be read ({error}).") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"evaluation.judge.base_url: {base_url!r} is no http(s) address such as http://host:8000/v1.")
    if url.userinfo or url.query or url.fragment:
        raise ConfigError(
            "evaluation.judge.base_url: give the bare address; a key belongs into the environment variable that "
            "evaluation.judge.key_variable names."
        )
    return base_url.rstrip("/")


def read_key(variable: str) -> str | None:
    """The key in the environment, if it is set.

    Raises:
        ConfigError: it cannot stand in a header. The message does not show it.
    """
    key = os.environ.get(variable, "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(f"${variable}: the key holds white space or characters that no key has; set it anew.")
    return key or None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
