"""YAML as study files need it."""

from __future__ import annotations

import pytest

from pipeline.errors import StudyError
from pipeline.study.yamlfile import parse


def test_scalars_mean_what_they_look_like():
    text = "{lr: 1e-4, on: no, n: 12, half: .5, none: null, yes: true, id: 0x1, date: 2020-01-01, big: 1_000}"
    assert parse(text, "f") == {
        "lr": 1e-4,
        "on": "no",
        "n": 12,
        "half": 0.5,
        "none": None,
        "yes": True,
        "id": "0x1",
        "date": "2020-01-01",
        "big": 1000,
    }


def test_a_key_twice_is_an_error_with_its_line():
    with pytest.raises(StudyError, match=r"study.yaml: line 3: key 'steps' stands twice"):
        parse("base:\n  steps: 1\n  steps: 2\n", "study.yaml")


def test_python_objects_stay_text():
    with pytest.raises(StudyError, match="not YAML"):
        parse("!!python/object/apply:os.system ['true']", "study.yaml")


def test_broken_yaml_names_the_place():
    with pytest.raises(StudyError, match=r"study.yaml: line 2, column"):
        parse("a: [1,\nb: }", "study.yaml")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"line 6: not a study file: more than 100000 values, those behind aliases counted"),
        (f"a: &a {'x' * 9000}\nb: [{', '.join(['*a'] * 9000)}]", r"line 2: not a study file: more than 100000 values"),
        ("a: &a [1, *a]", r"line 1: \*a stands within what it names"),
        ("[" * 50_000, r"nested more than 40 levels deep"),
        ("a: " + "[" * 45_000 + "]" * 45_000, r"nested more than 40 levels deep"),
        ("- " * 45_000, r"line 1: not a study file: nested more than 40 levels deep"),
        (f"seeds: {list(range(20_000))}", r"\d+ characters \(allowed: at most 100000\)"),
        ('\nurl: "bo\\0oks"', r"line 2: text with the character '\\x00'.*Fix: remove it"),
        ('url: "\\ud800"', r"line 1: text with the character '\\ud800'"),
        ('"\\0": 1', r"line 1: text with the character"),
    ],
    ids=range(10),
)
def test_what_no_person_writes_is_refused_at_once(text: str, message: str):
    with pytest.raises(StudyError, match=f"^study.yaml: .*{message}"):
        parse(text, "study.yaml")


def test_an_alias_stands_for_what_it_names():
    assert parse("a: &a {n: [1, 2]}\nb: *a\nc: [*a, *a]", "f")["c"] == [{"n": [1, 2]}] * 2
