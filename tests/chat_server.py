"""A server of OpenAI's chat completions that runs a real (tiny, untrained) model, and a proxy before it that faults.

The server answers as servers with guided choice do: of a few allowed answers the one that the model finds likeliest
after the prompt. Nothing it says is canned; what it says is worth nothing, which the judge's own numbers must show.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from aiohttp import ClientSession, web

from model.decoder import Decoder
from tests.stages.evaluation_inputs import decoder

PAIR = tuple(json.dumps({"winner": winner, "reason": "likelier"}) for winner in ("A", "B", "tie"))
SENTENCES = tuple(
    json.dumps({"confusing": rows}) for rows in ([], [{"sentence": 1, "labels": ["salience"]}], "not a list")
)
READ = 400  # bytes of the prompt's end that the model reads


@dataclass
class ChatServer:
    """``seen``: bodies of the requests that were answered. ``keys``: Authorization headers."""

    key: str | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    refuse: str | None = None  # a text whose requests get status 400
    prose: bool = False  # the model writes freely instead
    model: Decoder = field(default_factory=lambda: decoder("full", vocab_size=256))

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("Authorization"))
        if self.key is not None and self.keys[-1] != f"Bearer {self.key}":
            return web.json_response({"error": f"wrong key {self.keys[-1]}"}, status=401)
        body = await request.json()
        text = body["messages"][-1]["content"]
        if self.refuse is not None and self.refuse in text:
            return web.json_response({"error": "context length exceeded"}, status=400)
        self.seen.append(body)
        said = self._free(text) if self.prose else self._choice(text)
        usage = {"prompt_tokens": len(text.encode()), "completion_tokens": len(said.encode())}
        message = {"role": "assistant", "content": said}
        return web.json_response({"model": body["model"], "choices": [{"message": message}], "usage": usage})

    def _choice(self, text: str) -> str:
        prompt = list(text.encode())[-READ:]
        allowed = PAIR if '"winner"' in text else SENTENCES

        def nats(said: str) -> float:
            own = list(said.encode())
            nll = self.model.nll(torch.tensor([prompt + own]))
            return float(nll[0, -len(own) :].mean())

        with torch.no_grad():
            return min(allowed, key=nats)

    def _free(self, text: str) -> str:
        from model.generate import generate

        said = generate(self.model, [list(text.encode())[-READ:]], 24)[0]
        return bytes(said).decode("latin-1")


@dataclass
class Proxy:
    """Forwards to ``upstream``; before that, one of ``faults`` per request while there are any: a status, ``hang``,
    ``cut`` (half an answer, then the connection ends), ``broken`` (half an answer as a whole one), or ``ok``."""

    upstream: str
    faults: deque[str] = field(default_factory=deque)
    requests: int = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.forward)
        return app

    async def forward(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        fault = self.faults.popleft() if self.faults else "ok"
        if fault.isdigit():
            return web.Response(status=int(fault), headers={"Retry-After": "0"}, text="busy")
        if fault == "hang":
            await asyncio.sleep(30)
        content = await request.read()
        headers = {n: request.headers[n] for n in ("Authorization", "Content-Type") if n in request.headers}
        async with (
            ClientSession() as session,
            session.post(f"{self.upstream}/chat/completions", data=content, headers=headers) as response,
        ):
            answer = await response.read()
            status = response.status
        if fault == "broken":
            return web.Response(body=answer[: len(answer) // 2], content_type="application/json")
        if fault == "cut":
            cut = web.StreamResponse(headers={"Content-Length": str(len(answer))})
            await cut.prepare(request)
            await cut.write(answer[: len(answer) // 2])
            assert request.transport is not None
            request.transport.close()
            return cut
        return web.Response(body=answer, status=status, content_type="application/json")


@contextlib.contextmanager
def serving(app: web.Application) -> Iterator[str]:
    """The app on loopback, in a thread of its own; its address up to /v1."""
    started = threading.Event()
    address: list[str] = []
    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        return runner

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    started.wait(30)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
