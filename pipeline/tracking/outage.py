"""A tracking server that goes away while a study runs: what is to be written waits until it is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

# Of the package requests, which MLflow asks its server with; RetryError: too many answers 5xx.
_NO_ANSWER = {f"requests.exceptions.{name}" for name in ("ConnectionError", "Timeout", "RetryError")}
PATIENCE = 60.0  # seconds to wait for the server after the last step
_LONGEST_PAUSE = 10.0


def no_answer(error: BaseException | None) -> bool:
    """Did the server not answer at all? What it refused it will refuse again."""
    while error is not None:
        if any(f"{kind.__module__}.{kind.__name__}" in _NO_ANSWER for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass
class Outage:
    """Since when the server does not answer, and how long to wait before the next try. ``ending``: of the last step,
    ``clock`` seconds, once there was one."""

    clock: Callable[[], float] = time.monotonic
    since: float | None = None
    ending: float | None = None
    pause: float = 0.0

    def goes_on(self) -> float | None:
        """Seconds to wait before trying again; None: for too long."""
        now = self.clock()
        if self.since is None:
            self.since, self.pause = now, 0.5
        if self.ending is not None and now - max(self.ending, self.since) > PATIENCE:
            return None
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)
        return self.pause

    def over(self) -> float | None:
        """It answers: how long it did not, in seconds; None where it always did."""
        since, self.since = self.since, None
        return None if since is None else self.clock() - since
