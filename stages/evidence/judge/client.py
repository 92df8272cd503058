"""Answers of a server that speaks OpenAI's chat completions: paced, retried, within the budget, each kept at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from stages.evidence.judge.cache import Cache
from stages.evidence.judge.config import Endpoint
from stages.evidence.judge.ledger import Ledger, Usage, estimate
from stages.evidence.judge.reachable import api_key
from stages.evidence.judge.requests import Request
from stages.stage import StageError

LONGEST_WAIT_S = 60.0
RETRIED = (408, 409, 425, 429)
REFUSED = (400, 413, 422)  # this request cannot be answered; others may be


@dataclass(frozen=True)
class Reply:
    """What came back. ``text``: the answer as it is; None where the server refused this one, with ``reason``."""

    text: str | None
    usage: Usage
    model: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For the cache."""
        return {
            "text": self.text,
            "read": self.usage.read,
            "written": self.usage.written,
            "estimated": self.usage.estimated,
            "model": self.model,
            "reason": self.reason,
        }

    @classmethod
    def of(cls, value: dict[str, Any]) -> Reply:
        """Raises KeyError for something else."""
        usage = Usage(value["read"], value["written"], value["estimated"])
        return cls(value["text"], usage, value["model"], value["reason"])


class _TryAgain(Exception):
    """No answer this time. ``after``: seconds the server asks to wait; ``charged``: it may have worked on it."""

    def __init__(self, reason: str, *, after: float | None = None, charged: bool = True) -> None:
        super().__init__(reason)
        self.after, self.charged = after, charged


def ask_all(
    asked: Sequence[Request], endpoint: Endpoint, cache: Cache, ledger: Ledger, progress: Callable[[int], None]
) -> dict[str, Reply]:
    """digest -> reply of every request; what the cache has is not sent.

    Raises StageError where the budget is reached, the server refuses the key or the model, or stays silent; what was
    answered until then is in the cache.
    """
    key = api_key(endpoint)
    return asyncio.run(_Asking(endpoint, key, cache, ledger, progress).all(asked))


class _Asking:
    """As many workers as may ask at once, over one list. When one meets what ends the run, the others finish the
    request they are at, which may be paid already, and begin no other."""

    def __init__(
        self, endpoint: Endpoint, key: str | None, cache: Cache, ledger: Ledger, progress: Callable[[int], None]
    ) -> None:
        self.endpoint, self.key, self.cache, self.ledger, self.progress = endpoint, key, cache, ledger, progress
        self.next_start = 0.0
        self.end: StageError | None = None
        self.found: dict[str, Reply] = {}

    async def all(self, asked: Sequence[Request]) -> dict[str, Reply]:
        waiting: dict[str, Request] = {}
        for one in asked:
            if one.digest in self.found or one.digest in waiting:
                continue
            known = self.cache.get(one.digest)
            if known is None:
                waiting[one.digest] = one
            else:
                self.found[one.digest] = Reply.of(known)
                self.ledger.cached += 1
        self.progress(len(self.found))
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        limits = aiohttp.ClientTimeout(total=self.endpoint.timeout_s)
        todo = iter(waiting.values())
        async with aiohttp.ClientSession(headers=headers, timeout=limits) as session:
            await asyncio.gather(*(self._work(session, todo) for _ in range(self.endpoint.concurrency)))
        if self.end is not None:
            raise self.end
        return self.found

    async def _work(self, session: aiohttp.ClientSession, todo: Iterator[Request]) -> None:
        for one in todo:
            if self.end is not None:
                return
            try:
                reply = await self._retried(session, one)
            except StageError as error:
                self.end = self.end or error
                return
            self.cache.put(one.digest, {"body": one.body, "reply": reply.to_dict()})
            self.found[one.digest] = reply
            self.progress(len(self.found))

    async def _retried(self, session: aiohttp.ClientSession, one: Request) -> Reply:
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_TryAgain),
            stop=lambda state: self.end is not None or stop_after_attempt(self.endpoint.attempts)(state),
            wait=_wait,
            reraise=True,
        )
        try:
            return await attempts(self._once, session, one)
        except _TryAgain as error:
            raise StageError(
                f"no answer after {self.endpoint.attempts} attempts ({error}); {len(self.found)} answers are kept",
                field="judge.endpoint.url",
                value=self.endpoint.url,
                fix="see that the server is up and run again: what is answered is not asked again",
            ) from error

    async def _once(self, session: aiohttp.ClientSession, one: Request) -> Reply:
        await self._paced()
        reserved = estimate(one.characters, one.body["max_tokens"])
        self.ledger.reserve(reserved)
        try:
            reply = await self._sent(session, one, reserved)
        except _TryAgain as error:
            self.ledger.lose(reserved, charged=error.charged)
            raise
        except BaseException:
            self.ledger.lose(reserved, charged=False)
            raise
        self.ledger.settle(reserved, reply.usage)
        return reply

    async def _paced(self) -> None:
        """Waits until a request may begin: so many a minute, evenly."""
        if self.endpoint.requests_per_minute is not None:
            now = time.monotonic()
            start = max(now, self.next_start)
            self.next_start = start + 60 / self.endpoint.requests_per_minute
            await asyncio.sleep(start - now)

    async def _sent(self, session: aiohttp.ClientSession, one: Request, reserved: Usage) -> Reply:
        try:
            to = f"{self.endpoint.url}/chat/completions"
            async with session.post(to, json=one.body, allow_redirects=False) as response:  # the key goes nowhere else
                content = await response.read()
                status, after = response.status, response.headers.get("Retry-After")
        except TimeoutError as error:
            raise _TryAgain(f"nothing within {self.endpoint.timeout_s:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise _TryAgain(f"cannot connect: {error.os_error.strerror}", charged=False) from error
        except aiohttp.ClientError as error:
            raise _TryAgain(f"the connection broke: {type(error).__name__}") from error
        if status in RETRIED or status >= 500:
            raise _TryAgain(f"status {status}", after=_seconds(after), charged=False)
        if status in REFUSED:
            return Reply(None, Usage(0, 0), reason=f"status {status}: {_said(content, self.key)}")
        if status != 200:
            raise StageError(
                f"the server answers with status {status}: {_said(content, self.key)}",
                field="judge.endpoint",
                value=self.endpoint.url,
                fix="check url, model and the API key",
            )
        return _reply(content, reserved)


def _reply(content: bytes, reserved: Usage) -> Reply:
    """Raises _TryAgain for what is no whole answer of the protocol."""
    try:
        value = json.loads(content)
        message = value["choices"][0]["message"]
        text = message.get("content")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise _TryAgain("the answer is not JSON of the protocol, or is cut") from error
    usage = value.get("usage") or {}
    said = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else [None]
    used = Usage(*said) if all(type(n) is int and n >= 0 for n in said) else reserved
    plain = "" if text is None else str(text).encode("utf-8", "replace").decode()  # JSON may hold half a character
    return Reply(plain, used, str(value.get("model", "")))


_backoff = wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_S)


def _wait(state: RetryCallState) -> float:
    """As long as the server asks, else exponentially longer, at random."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, _TryAgain) and error.after is not None:
        return min(error.after, LONGEST_WAIT_S)
    return _backoff(state)


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:  # a date
        return None


def _said(content: bytes, key: str | None) -> str:
    """The beginning of what a server says, without the key."""
    text = " ".join(content[:600].decode("utf-8", "replace").split())[:300]
    return text.replace(key, "***") if key else text
