"""A loopback proxy before an S3 server that breaks a share of its requests, seeded, and counts what it did.

    with proxying(endpoint, Weather(seed=1, share=0.1)) as proxy:   # proxy.url is the endpoint to use
        ...
    proxy.injected   # {"503": 12, "lost answer": 9, ...}

A request is refused before the server sees it (``503``, ``500``), cut off (``reset``), *done and not answered*
(``lost answer``: what a conditional create must survive), half answered (``short answer``), or late (``slow``).
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, cast
from urllib.parse import urlsplit

Fault = Literal["503", "500", "reset", "lost answer", "short answer", "slow"]
ALL: tuple[Fault, ...] = ("503", "500", "reset", "lost answer", "short answer", "slow")
_HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection", "expect"}
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>injected</Message></Error>"
_INTERNAL = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>injected</Message></Error>"


@dataclass
class Weather:
    """share: of the requests that meet a fault; latency: seconds every answer takes besides; kinds: which faults."""

    seed: int = 0
    share: float = 0.0
    latency: float = 0.0
    kinds: tuple[Fault, ...] = ALL
    slow: float = 0.5  # seconds


@dataclass
class Proxy:
    """A running proxy: change ``weather`` at any time; ``requests`` and ``injected`` count by method and fault."""

    url: str
    weather: Weather
    requests: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _random: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._random.seed(self.weather.seed)

    def draw(self, method: str) -> Fault | None:
        """The fault of the next request, counted."""
        with self._lock:
            self.requests[method] += 1
            if self._random.random() >= self.weather.share:
                return None
            fault = self._random.choice(self.weather.kinds)
            self.injected[fault] += 1
            return fault


@contextlib.contextmanager
def proxying(endpoint: str, weather: Weather | None = None, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """A proxy in a thread of this process, on a free port of ``host``, to the server at ``endpoint``."""
    server = _Server((host, 0), _Handler)
    upstream = urlsplit(endpoint)
    assert upstream.hostname is not None and upstream.port is not None
    server.upstream = (upstream.hostname, upstream.port)
    server.proxy = Proxy(f"http://{host}:{server.server_address[1]}", weather or Weather())
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.proxy
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    upstream: tuple[str, int]
    proxy: Proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.upstream: http.client.HTTPConnection | None = None

    def finish(self) -> None:
        if self.upstream is not None:
            self.upstream.close()
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _handle(self) -> None:
        proxy = cast(_Server, self.server).proxy
        fault = proxy.draw(self.command)
        body = self._body()
        if proxy.weather.latency:
            time.sleep(proxy.weather.latency)
        if fault in ("503", "500"):
            self._answer(int(fault), [], _SLOW_DOWN if fault == "503" else _INTERNAL)
            return
        if fault == "reset":
            self._cut()
            return
        if fault == "slow":
            time.sleep(proxy.weather.slow)
        status, headers, data = self._ask(body)
        if fault == "lost answer":
            self._cut()
        elif fault == "short answer" and data and self.command == "GET":
            self._answer(status, headers, data, send=len(data) // 2)
            self._cut()
        else:
            self._answer(status, headers, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # the names http.server looks for

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(parts)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """The server's answer; a kept connection that it has closed meanwhile is opened anew."""
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        headers["Content-Length"] = str(len(body))
        for fresh in (self.upstream is None, True):
            if self.upstream is None or fresh:
                self.upstream = http.client.HTTPConnection(*cast(_Server, self.server).upstream, timeout=60)
            try:
                self.upstream.request(self.command, self.path, body or None, headers)
                answer = self.upstream.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            except (http.client.HTTPException, OSError):
                self.upstream.close()
                if fresh:
                    raise
        raise AssertionError("the second try is always fresh")

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, send: int | None = None) -> None:
        self.send_response_only(status)
        length = None
        for name, value in headers:
            if name.lower() == "content-length":
                length = value
            elif name.lower() not in _HOP:
                self.send_header(name, value)
        if status != 204:  # the answer to HEAD says how long the body would be
            self.send_header("Content-Length", length if length and self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:send])

    def _cut(self) -> None:
        """End the connection as a broken network does."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
            self.connection.close()
