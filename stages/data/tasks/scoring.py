"""How an answer is read off what a model said, and how right it is: 0 (wrong) to 1 (right)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!,?\d)")


def ungrouped(text: str) -> str:
    """Numbers without the commas between their thousands: 12,345 is one number, not 12."""
    return _GROUPED.sub(lambda found: found.group().replace(",", ""), text)


def first_number(text: str) -> str:
    """The first whole number in ``text`` without leading zeros, "" if there is none; of 12,345 it is 12345."""
    found = re.search(r"\d+", ungrouped(text))
    return str(int(found.group())) if found else ""


def everything(text: str) -> str:
    """All that was said: control characters are line ends, and the space around it does not count (RULER's
    post-processing, arXiv:2404.06654)."""
    return re.sub(r"[\x00-\x1f]", "\n", text.strip()).strip()


def same(answer: str, answers: Sequence[str]) -> float:
    """Is it the answer?"""
    return float(answer == answers[0])


def all_in(answer: str, answers: Sequence[str]) -> float:
    """Share of the answers that stand in what was said, in any case of letters (RULER's ``string_match_all``,
    arXiv:2404.06654)."""
    return sum(each.lower() in answer.lower() for each in answers) / len(answers)


def whole_in(answer: str, answers: Sequence[str]) -> float:
    """``all_in``, but each by itself: 12 stands neither in 112 nor in 12,345."""
    text = ungrouped(answer)
    return sum(_stands(each, text) for each in answers) / len(answers)


def any_whole_in(answer: str, answers: Sequence[str]) -> float:
    """``any_in``, but by itself."""
    text = ungrouped(answer)
    return float(any(_stands(each, text) for each in answers))


def _stands(answer: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w|\.\d)", text, re.IGNORECASE) is not None


def starts(answer: str, answers: Sequence[str]) -> float:
    """Does what was said begin with the answer, by itself? Naming everything that might be it is not enough."""
    return float(re.match(rf"\W*{re.escape(answers[0])}(?!\w)", answer, re.IGNORECASE) is not None)


def in_order(answer: str, answers: Sequence[str]) -> float:
    """Share of the answers that were said at their own place: naming the set in any order is not enough."""
    said: list[str] = re.findall(r"\w+", ungrouped(answer).lower())
    return sum(one == each.lower() for one, each in zip(said, answers, strict=False)) / len(answers)


def any_in(answer: str, answers: Sequence[str]) -> float:
    """Does one of the answers stand in what was said (RULER's ``string_match_part``, for answers that are
    alternatives)?"""
    return float(any(each.lower() in answer.lower() for each in answers))


def set_f1(answer: str, answers: Sequence[str], *, alternatives: bool = False) -> float:
    """F1 of the set that was said against the answers, each by itself (0 to 1); with ``alternatives`` against the one
    of them that it is best for.

    What was said: where all answers are numbers, every number; where each is a single word, every word but "and"
    and the numbers of a list; else what stands between commas, semicolons, line ends and "and".
    """
    if alternatives:
        return max(set_f1(answer, [each]) for each in answers)
    wanted = {_plain(ungrouped(each)) for each in answers}
    found = set(_said(ungrouped(answer), wanted))
    return 2 * len(found & wanted) / (len(found) + len(wanted))


def first_said(answer: str, answers: Sequence[str]) -> float:
    """Share of the answers, in any order, among as many as were said first: who goes on afterwards loses nothing, who
    says everything there is finds nothing by that."""
    wanted = {_plain(ungrouped(each)) for each in answers}
    found = list(dict.fromkeys(_said(ungrouped(answer), wanted)))[: len(wanted)]
    return len(wanted.intersection(found)) / len(wanted)


def _said(text: str, wanted: set[str]) -> list[str]:
    if all(each.isdigit() for each in wanted):
        return re.findall(r"(?<!\w)\d+(?!\w|\.\d)", text)
    unnumbered = re.sub(r"(?<!\w)\d+[.)](?!\d)", "\n", text)
    if not any(re.search(r"[^\w-]", each) for each in wanted):
        said = (_plain(one) for one in re.findall(r"\w[\w-]*", unnumbered))
        return [one for one in said if one != "and" or one in wanted]
    return [plain for one in re.split(r"[,;\n]|\band\b", unnumbered) if (plain := _plain(one))]


def _plain(text: str) -> str:
    return text.strip(" .:!?\"'\t").lower()
