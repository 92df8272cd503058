"""Keys: one way to write a value, no way for what has none, and golden keys that must not churn."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.engine.keys import artifact_key, canonical


def test_order_of_fields_and_kind_of_sequence_do_not_matter():
    assert canonical({"b": (1, 2), "a": None}) == canonical({"a": None, "b": [1, 2]}) == '{"a":null,"b":[1,2]}'


@pytest.mark.parametrize("value", [{"x": {1, 2}}, {"x": object()}, {1: "x"}, {"x": b"y"}])
def test_what_has_no_canonical_form_is_refused_and_its_place_named(value):
    with pytest.raises(TypeError, match=r"^\$"):
        canonical(value)


def test_not_a_number_is_refused():
    with pytest.raises(ValueError, match=r"\$\.lr: nan"):
        canonical({"lr": float("nan")})


def test_int_and_float_are_different_values():
    assert canonical(1) != canonical(1.0)


def test_golden_key():
    """Changing this value makes every artifact of every user stale: do so knowingly."""
    key = artifact_key("tokenize", 3, {"lr": 1e-4, "names": ["é"], "n": None}, {"documents": "ab" * 32})
    assert key == "24c7f558e5787bb7cb7a028205a49c945175ea090497abdfbfcc958aab4da0f7"


def test_keys_are_equal_under_another_hash_seed():
    code = "from pipeline.engine.keys import artifact_key as k; print(k('s', 1, {c: c for c in 'zyxab'}, {'i': '0'}))"
    keys = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(keys) == 1


@pytest.mark.parametrize("changed", ["stage", "version", "config", "input", "input name"])
def test_everything_counts(changed):
    base = artifact_key("s", 1, {"a": 1}, {"x": "k"})
    other = {
        "stage": artifact_key("t", 1, {"a": 1}, {"x": "k"}),
        "version": artifact_key("s", 2, {"a": 1}, {"x": "k"}),
        "config": artifact_key("s", 1, {"a": 2}, {"x": "k"}),
        "input": artifact_key("s", 1, {"a": 1}, {"x": "l"}),
        "input name": artifact_key("s", 1, {"a": 1}, {"y": "k"}),
    }
    assert other[changed] != base
