"""Where a tokenizer's tokens never reach across: a text cut there gives the tokens of the whole, part by part.

Byte-level, whitespace and Metaspace tokenizers split a text into words before anything else. Which places they split
at is found out by trial, kind by kind: before the space in front of a letter, before the line end in front of a letter,
between a letter or digit and a punctuation mark. Only kinds that hold in every trial are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# No apostrophe: "'s" is one token after a letter and two after a quotation mark.
PUNCTUATION = '!"#$%&()*+,-./:;<=>?@[\\]^`{|}~“”’—'
LAST = "\uffff"  # characters after this one count as nothing: the kernel has a table of the others

_LEFT = ("The", "cat", "don't", "x_1", "a 12", "naïve", "日本語", "End.\n\nNew", "\tlist", "«Да", "I am", "the dogs'")
_BETWEEN = (" ", "\n", "  ", " \n", "\n ", "\n\n", "\t ", ".\n", ", ", "; ", " “", "' ", '."\n', " (", "1 ", "... ")
_RIGHT = ("next", "Word, and", "élan\n", "x", "s is", "ll", "tis", "да", "the\n\nend.", "'tis", "12")


class Seams(NamedTuple):
    """Before which characters a text may be cut. space, line: before a space or line end that a letter follows;
    punctuation: before these marks where a letter or digit stands in front."""

    space: bool = False
    line: bool = False
    punctuation: str = ""


def find_seams(tokenizer: Tokenizer, sample: Sequence[str] = ()) -> Seams | None:
    """The seams that hold for ``tokenizer`` in made-up texts and in ``sample``; None where there are none.

    Marks and line ends that stand in an added token are no seams, nor is anything where one has a space in it or
    reaches for the spaces around it.
    """
    added = list(tokenizer.get_added_tokens_decoder().values())
    if tokenizer.pre_tokenizer is None or any(t.lstrip or t.rstrip or " " in t.content for t in added):
        return None
    letters = {character for token in added for character in token.content}
    marks = "".join(mark for mark in PUNCTUATION if mark not in letters)
    # Each in one text: splitting looks at neighbours only, and a library call for each would take long.
    words = " ".join(left + between + right for left in _LEFT for between in _BETWEEN for right in _RIGHT)
    ends = ("", "next", " x", "\n\n", "12", "'s", "//next", "S.", "-")
    after_words = " ".join(left + mark + right for left in _LEFT for mark in marks for right in ends)
    tried = [words, after_words, *sample]
    everything = Seams(space=True, line="\n" not in letters, punctuation=marks)
    if _hold(tokenizer, everything, tried):
        return everything
    found = Seams(space=True)
    if not _hold(tokenizer, found, tried):
        return None
    for more in (found._replace(line=everything.line), found._replace(punctuation=marks)):
        if more != found and _hold(tokenizer, more, tried):
            return more
    return found


def cut(text: str, seams: Seams) -> list[str]:
    """``text`` in parts, character by character: what the kernel of ``known`` does faster."""
    places = [0]
    for i in range(1, len(text)):
        here, after = text[i], text[i + 1 : i + 2]
        if here in " \n":
            seam = (seams.space if here == " " else seams.line) and after.isalpha() and after <= LAST
        else:
            seam = here in seams.punctuation and text[i - 1].isalnum() and text[i - 1] <= LAST
        if seam:
            places.append(i)
    return [text[start:end] for start, end in zip(places, [*places[1:], len(text)], strict=True)] if text else []


def _hold(tokenizer: Tokenizer, seams: Seams, texts: Sequence[str]) -> bool:
    """Do the parts have the tokens of the whole, and does the pre-tokenizer split at every seam (so that no token that
    it has not shown here can cross)?"""
    normal = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    parts = [cut(text, seams) for text in texts]
    distinct = list(dict.fromkeys(part for of_text in parts for part in of_text))
    both = tokenizer.encode_batch_fast([*texts, *distinct], add_special_tokens=False)
    ids = dict(zip(distinct, (encoding.ids for encoding in both[len(texts) :]), strict=True))
    for text, of_text, whole in zip(texts, parts, both, strict=False):
        if whole.ids != [i for part in of_text for i in ids[part]]:
            return False
        if len(of_text) > 1:
            ends = set(accumulate(len(normal(part)) for part in of_text[:-1]))
            assert tokenizer.pre_tokenizer is not None
            spans = tokenizer.pre_tokenizer.pre_tokenize_str(normal(text))
            if not ends.isdisjoint(i for _, (start, end) in spans for i in range(start + 1, end)):
                return False
    return True
