"""Functions with gradients written by hand: how they are called, and what ``torch.compile`` traces instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def traced_as(plain: Callable[P, R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The decorated function, but ``plain``, the same in plain torch, where ``torch.compile`` traces."""

    def decorate(by_hand: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(by_hand)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            return (plain if torch.compiler.is_compiling() else by_hand)(*args, **kwargs)

        return called

    return decorate


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)``, which torch leaves without types."""
    return function.apply(*args)
