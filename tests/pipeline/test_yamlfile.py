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
