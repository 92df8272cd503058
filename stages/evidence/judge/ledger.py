"""What answers cost: counted before a request is sent, so that the cap holds whatever is under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.evidence.judge.config import Endpoint
from stages.stage import StageError

CHARACTERS_PER_TOKEN = 3  # a careful estimate: English has about 4


@dataclass(frozen=True)
class Usage:
    """Tokens read and written, as the server counts them; estimated where it does not say."""

    read: int
    written: int
    estimated: bool = False


def estimate(characters: int, answer_tokens: int) -> Usage:
    """The most that a request is expected to take."""
    return Usage(-(-characters // CHARACTERS_PER_TOKEN) + 16, answer_tokens, True)


def money(usage: Usage, endpoint: Endpoint | None) -> float | None:
    """Its price; None where no prices are given."""
    if endpoint is None or endpoint.price_input is None or endpoint.price_output is None:
        return None
    return (usage.read * endpoint.price_input + usage.written * endpoint.price_output) / 1e6


@dataclass
class Ledger:
    """``read``, ``written``: tokens that were paid. ``lost``: tokens, at most, of attempts that brought no answer,
    which a server may charge. ``reserved``: of what is under way."""

    endpoint: Endpoint | None
    read: int = 0
    written: int = 0
    lost: Usage = field(default_factory=lambda: Usage(0, 0))
    sent: int = 0
    failed: int = 0
    answered: int = 0
    cached: int = 0
    reserved: Usage = field(default_factory=lambda: Usage(0, 0))

    def reserve(self, usage: Usage) -> None:
        """Before a request is sent. Raises StageError where it could pass the cap."""
        after = Usage(
            self._read + self.reserved.read + usage.read, self._written + self.reserved.written + usage.written
        )
        budget = self.endpoint.budget if self.endpoint else None
        tokens, price = after.read + after.written, money(after, self.endpoint)
        if budget is not None and budget.tokens is not None and tokens > budget.tokens:
            raise self._spent("tokens", budget.tokens, f"{self._read + self._written:,} tokens")
        if budget is not None and budget.money is not None and price is not None and price > budget.money:
            raise self._spent("money", budget.money, f"{self.money():.4f}")
        self.reserved = Usage(self.reserved.read + usage.read, self.reserved.written + usage.written)
        self.sent += 1

    def settle(self, reserved: Usage, used: Usage) -> None:
        """An answer came: ``used`` is paid, the reservation is over."""
        self._release(reserved)
        self.read, self.written, self.answered = self.read + used.read, self.written + used.written, self.answered + 1

    def lose(self, reserved: Usage, *, charged: bool) -> None:
        """No answer came. ``charged``: the server may have worked on it."""
        self._release(reserved)
        self.failed += 1
        if charged:
            self.lost = Usage(self.lost.read + reserved.read, self.lost.written + reserved.written)

    def money(self) -> float:
        """Paid so far, what may be charged for lost attempts included; 0 without prices."""
        return money(Usage(self._read, self._written), self.endpoint) or 0.0

    def to_dict(self) -> dict[str, float | int | None]:
        """For cost.json."""
        lost = self.lost.read + self.lost.written
        return {
            "requests": self.answered + self.cached,
            "cached": self.cached,
            "sent": self.sent,
            "failed": self.failed,
            "tokens_read": self.read,
            "tokens_written": self.written,
            "tokens_lost_at_most": lost,
            "money": money(Usage(self._read, self._written), self.endpoint),
        }

    @property
    def _read(self) -> int:
        return self.read + self.lost.read

    @property
    def _written(self) -> int:
        return self.written + self.lost.written

    def _release(self, usage: Usage) -> None:
        self.reserved = Usage(self.reserved.read - usage.read, self.reserved.written - usage.written)

    def _spent(self, name: str, cap: float, spent: str) -> StageError:
        return StageError(
            f"the next request could pass it: {spent} are spent, {self.answered + self.cached} answers are kept",
            field=f"judge.endpoint.budget.{name}",
            value=cap,
            fix="raise it and run again (what is answered is not asked again), or ask less: documents, arms, repeats",
        )
