"""The kinds of arms: one record each. Importable without torch.

What a kind needs beside its mixer's own file stands in its record: which options mean something to it, which of its
parameters are treated apart in training, its cost formula and its sentence in a report. Those of this repository are
in ``kinds.py``; a kind from elsewhere is made known with ``register`` before its study is read.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A kind of ``MixerConfig``.

    mixer, stream: ``module:name``, imported when they are needed (a leading dot: of this package). mixer: a
    ``mixers.base.Mixer``. stream: a ``mixers.stream.Stream`` where more than the text passes through the layers.
    formula: (ModelConfig, tokens) -> ``formulas.Parts``, without torch. options: fields of MixerConfig that not every
    kind has; set for another kind they are an error. whole_segments: sequences are a whole number of segments long.
    as_built: parameters, by the end of their name, that start as the mixer made them, not at random. undecayed:
    matrices without weight decay. sequence_parallel: ranks can share a sequence (see ``mixers.base.Mixer.ranks``).
    reach: MixerConfig -> tokens that softmax attention with positions reaches back, the token itself included (None:
    all). bounded: MixerConfig -> does its state stop growing, so that training can carry it from sequence to
    sequence? placed: its state holds keys with their positions, so that documents go on in one batch only where
    equally much was read of them. variants: names under which a study usually has the kind, with their fields
    (default: its own name).
    """

    kind: str
    mixer: str
    formula: Callable[[Any, int], Any]
    sentence: Callable[[Any], str]
    """MixerConfig -> what the arm attends to, and what it keeps of the rest."""
    stream: str = ".mixers.stream:Stream"
    options: tuple[str, ...] = ()
    whole_segments: bool = True
    sequence_parallel: bool = False
    as_built: tuple[str, ...] = ()
    undecayed: tuple[str, ...] = ()
    reach: Callable[[Any], int | None] = lambda m: m.segment_length
    bounded: Callable[[Any], bool] = lambda m: False
    placed: bool = False
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


KINDS: dict[str, Arm] = {}


def register(arm: Arm) -> None:
    """Make a kind known. Raises ValueError if another one has its name."""
    if KINDS.setdefault(arm.kind, arm) is not arm:
        raise ValueError(f"kind = {arm.kind!r}: there is such an arm already. Fix: another name")


def arm_of(kind: str) -> Arm:
    """The record. Raises ValueError naming what is allowed."""
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1)
        raise ValueError(
            f"kind = {kind!r}: allowed are {', '.join(KINDS)}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return KINDS[kind]


def named(place: str) -> Any:
    """What stands at ``module:name``."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module, __package__), name)


def has_effect(option: str, kind: str) -> bool:
    """Does the field ``option`` of MixerConfig mean something to ``kind``?"""
    kinds = kinds_with(option)
    return kind in kinds or not kinds


def kinds_with(option: str) -> tuple[str, ...]:
    """The kinds that ``option`` is special to; none: it means something to all."""
    return tuple(arm.kind for arm in KINDS.values() if option in arm.options)


def reach_of(mixer: Any) -> int | None:
    """Tokens that attention of a MixerConfig reaches back; None: all."""
    return arm_of(mixer.kind).reach(mixer)


def why_whole(mixer: Any) -> str | None:
    """Why ranks cannot share the sequences of an arm of this MixerConfig; None: they can."""
    if not arm_of(mixer.kind).sequence_parallel:
        able = ", ".join(arm.kind for arm in KINDS.values() if arm.sequence_parallel)
        return f"kind = {mixer.kind!r}: ranks cannot share its sequences (allowed: {able})"
    if mixer.bptt_segments is not None:
        return f"bptt_segments = {mixer.bptt_segments}: ranks cannot share sequences with it (allowed: None)"
    if mixer.state_dtype == "bfloat16":  # rounding at every segment is not affine
        return "state_dtype = 'bfloat16': ranks cannot share sequences with it (allowed: float32, float64)"
    return None


def why_not_carried(mixer: Any) -> str | None:
    """Why training cannot carry the state of an arm of this MixerConfig from sequence to sequence; None: it can."""
    if arm_of(mixer.kind).bounded(mixer):
        return None
    if mixer.cache_tokens is None and has_effect("cache_tokens", mixer.kind):
        return f"cache_tokens = None: kind = {mixer.kind!r} then keeps all of a book (allowed: a number of tokens)"
    able = ", ".join(arm.kind for arm in KINDS.values() if arm.bounded(mixer))
    return f"kind = {mixer.kind!r}: what it holds grows with the book (allowed: {able})"


def goes_on_alone(mixer: Any) -> bool:
    """Do documents of an arm of this MixerConfig go on in one batch only where equally much was read of them?"""
    return arm_of(mixer.kind).placed or mixer.bptt_segments is not None


def variants() -> dict[str, dict[str, Any]]:
    """Usual name of an arm -> what of ``MixerConfig`` makes it, the segment length and options aside."""
    return {
        name: {"kind": arm.kind, **fields}
        for arm in KINDS.values()
        for name, fields in (arm.variants or {arm.kind: {}}).items()
    }
