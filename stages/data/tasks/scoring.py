"""How an answer is read off what a model said, and how right it is: 0 (wrong) to 1 (right)."""

from __future__ import annotations

import re
from collections.abc import Sequence


def first_integer(text: str) -> str:
    """The first whole number in ``text`` without leading zeros, "" if there is none."""
    found = re.search(r"\d+", text)
    return str(int(found.group())) if found else ""


def everything(text: str) -> str:
    """All that was said, without the space around it."""
    return text.strip()


def same(answer: str, answers: Sequence[str]) -> float:
    """Is it the answer?"""
    return float(answer == answers[0])


def all_in(answer: str, answers: Sequence[str]) -> float:
    """Share of the answers that stand in what was said, in any case of letters (RULER's ``string_match_all``,
    arXiv:2404.06654)."""
    return sum(each.lower() in answer.lower() for each in answers) / len(answers)


def any_in(answer: str, answers: Sequence[str]) -> float:
    """Does one of the answers stand in what was said (RULER's ``string_match_part``, for answers that are
    alternatives)?"""
    return float(any(each.lower() in answer.lower() for each in answers))


def same_set(answer: str, answers: Sequence[str]) -> float:
    """Are the words that were said the answers, no more and no less, in any order?"""
    return float(set(re.findall(r"\w+", answer.lower())) == {each.lower() for each in answers})
