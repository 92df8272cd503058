"""How far an evaluation is: tokens read by this process, or by workers who tell them to one desk."""

from __future__ import annotations

import time
from typing import Any

from stages.stage import Context

EVERY = 0.5  # seconds between two messages of a worker


class Told:
    """Of ``total`` tokens so many are read; in this process, each ``add`` is shown at once."""

    def __init__(self, context: Context, total: int) -> None:
        self.context, self.total = context, total
        self.told = self.resumed = self.finished = 0

    def add(self, tokens: int) -> None:
        self.told += tokens
        self.show()

    def part(self, tokens: int, resumed: bool) -> None:
        """A part is finished, or was so by an earlier attempt."""
        self.finished += tokens
        self.resumed += tokens * resumed
        self.show()

    def all(self) -> None:
        """Nothing is left; prompts may have been shorter than asked for."""
        self.finished = self.total
        self.show()

    def show(self) -> None:
        done = max(self.finished, self.told + self.resumed)
        self.context.progress(min(done, self.total), self.total, "tokens")


class Desk:
    """A Ray actor that adds up what workers tell it."""

    def __init__(self) -> None:
        self.tokens = 0

    def add(self, tokens: int) -> None:
        self.tokens += tokens

    def total(self) -> int:
        return self.tokens


class ToDesk:
    """A worker's end: what it has read, twice a second."""

    def __init__(self, desk: Any) -> None:
        self.desk, self.tokens, self.said = desk, 0, 0.0

    def add(self, tokens: int) -> None:
        self.tokens += tokens
        if (now := time.monotonic()) - self.said >= EVERY:
            self.desk.add.remote(self.tokens)
            self.tokens, self.said = 0, now
