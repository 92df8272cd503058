"""Chromium without a window, driven over its DevTools protocol: real keys, real downloads, a screenshot."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Backspace": 8, "Enter": 13}


class Page:
    """One page."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self.socket, self.number = socket, 0

    async def send(self, method: str, **params: Any) -> Any:
        """A command of the protocol, and its result."""
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params})
        while True:
            value = json.loads((await self.socket.receive(timeout=60)).data)
            if value.get("id") == self.number:
                assert "error" not in value, value
                return value["result"]

    async def open(self, address: str) -> None:
        """Go there, and wait until it is loaded."""
        await self.send("Page.navigate", url=address)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def value(self, expression: str) -> Any:
        """Of a JavaScript expression."""
        found = await self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Waits until it is true."""
        end = time.monotonic() + 60
        while not await self.value(expression):
            assert time.monotonic() < end, expression
            await asyncio.sleep(0.05)

    async def press(self, key: str) -> None:
        """A key, as a keyboard sends it."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = KEYS.get(key, ord(key.upper()[0]))
        for kind in ("keyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                **(text if kind == "keyDown" else {}),
            )

    async def screenshot(self, path: Path) -> None:
        """PNG of what is seen."""
        path.write_bytes(base64.b64decode((await self.send("Page.captureScreenshot"))["data"]))


@contextlib.asynccontextmanager
async def browsing(folder: Path, downloads: Path) -> AsyncIterator[Page]:
    """A browser with its data in ``folder``, which keeps it for the next; files are saved to ``downloads``."""
    port = folder / "DevToolsActivePort"
    port.unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            str(BROWSER),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={folder}",
            "--remote-debugging-port=0",
            "--window-size=1100,900",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 120
        while not port.is_file() or len(port.read_text().split()) < 2:
            assert process.poll() is None and time.monotonic() < end, "the browser does not start"
            await asyncio.sleep(0.1)
        address = f"http://127.0.0.1:{port.read_text().split()[0]}"
        async with ClientSession() as session:
            async with session.get(f"{address}/json/list") as response:
                pages = [page for page in await response.json() if page["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=2**26) as socket:
                page = Page(socket)
                await page.send("Page.enable")
                await page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
                yield page
                await page.send("Browser.close")
        process.wait(60)
    finally:
        process.kill()
        process.wait()
