"""Numbers as people read them: percent, points, margins, bytes and times, with a true minus sign."""

from __future__ import annotations

LARGEST = 700.0
"""Nats whose exponential is a number still."""


def percent(value: float, digits: int = 1) -> str:
    """0.1234 -> '12.3%'."""
    return f"{100 * value:.{digits}f}%"


def share(value: float) -> str:
    """0.0123 -> '1.2%'; what is neither 0 nor 100% never looks so."""
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value:.0%}" if value in (0, 1) else f"{value:.1%}"


def signed_percent(value: float, digits: int = 2) -> str:
    """-0.01234 -> '−1.23%'."""
    return minus(f"{100 * value:+.{digits}f}%")


def points(value: float) -> str:
    """A difference of scores in points: 0.0123 -> '+1.2 points'."""
    return minus(f"{100 * value:+.1f} points")


def margin(value: float) -> str:
    """12 -> '+12', -0.8 -> '−0.8'."""
    return minus(f"{value:+,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:+.1f}")


def minus(text: str) -> str:
    """The number with a true minus sign."""
    return text.replace("-", "−")


def size(value: float | None, form: str = ".1f") -> str:
    """1023 B, 12.0 KiB, 1.0 MiB (of 1,000 KiB and more); ``form``: of the number, from 1 KiB on."""
    if value is None:
        return "–"
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= max(1024, 1000 * factor / 1024):  # no number has four digits
            return f"{value / factor:{form}} {unit}"
    return f"{value:.0f} B"


def seconds(value: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 10 min."""
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{int(value // 60)} min {int(value % 60):02d} s"
    return f"{int(value // 3600)} h {int(value % 3600 // 60):02d} min"
