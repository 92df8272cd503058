"""LaTeX sources cut into papers (a source's ``papers: true``): which files are one paper, and which papers one text is.

As arXiv gives its sources: a folder a paper, its files put together by ``\\input`` and ``\\include``; or a file, or a
row of a table, a paper or several, one after the other. Text stays as it is, comments and preamble too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from posixpath import normpath

from stages.data.corpus.config import SplitName, SplitShares
from stages.data.corpus.files import split_of, without_suffix

_BEGINS = re.compile(rb"^[ \t]*\\document(?:class|style)\b", re.MULTILINE)
_ENDS = re.compile(rb"^[^%\n]*\\end[ \t]*\{document\}", re.MULTILINE)
_SPLICED = re.compile(
    rb"\\(?:input|include|subfile)(?![A-Za-z@])"
    rb"(?:[ \t]*\{[ \t]*(?P<name>[^{}\n]+?)[ \t]*\}|[ \t]+(?P<word>[^\s{}%\\]+))"
    rb"|\\.|%[^\n]*",  # what is escaped, and comments, stay
    re.DOTALL,
)
_NESTED = 16  # files within files


@dataclass(frozen=True)
class Papers:
    """What the files of one folder are: papers by name, and files that no paper takes in."""

    texts: Mapping[str, bytes]
    unused: tuple[str, ...]


def cut(text: bytes) -> list[bytes]:
    """The papers of a text: a new one begins with a ``\\documentclass`` behind an ``\\end{document}``. Together they
    are the text."""
    edges, done = [0], 0
    for begin in _BEGINS.finditer(text):
        end = _ENDS.search(text, done, begin.start())
        if end is not None:
            edges.append(begin.start())
            done = begin.start()
    return [text[a:b] for a, b in zip(edges, [*edges[1:], len(text)], strict=True)]


def numbered(name: str, number: int) -> str:
    """The id of the ``number``-th paper (from 0) of what is called ``name``."""
    return name if number == 0 else f"{name}/{number + 1}"


def paper_folders(names: Iterable[str]) -> dict[str, str]:
    """File -> the folder that is its paper: the topmost that holds a file itself; "" for files beside all folders,
    each of which is by itself."""
    listed = list(names)
    holding = {str(PurePosixPath(name).parent) for name in listed} - {"."}
    found = {}
    for name in listed:
        above = [str(folder) for folder in reversed(PurePosixPath(name).parents)]
        found[name] = next((folder for folder in above if folder in holding), "")
    return found


def split_of_paper(name: str, folder: str, split: SplitName | SplitShares | None) -> str:
    """All that lies in one folder is on one side, under any number of files."""
    return split_of(folder or without_suffix(name), split)


def together(folder: str, files: Mapping[str, bytes]) -> Papers:
    """The papers of a folder, of whose files the texts are given by name. A file that begins a document is a paper,
    with what it takes in in its place; where none does (chapters), each file is one."""
    roots = [name for name, text in files.items() if _BEGINS.search(text)]
    if not roots:
        return Papers(dict(files), ())
    taken: dict[str, set[str]] = {}
    texts = {}
    for root in roots:
        taken[root] = set()
        texts[root] = _spliced(root, files, str(PurePosixPath(root).parent), folder, taken[root], (root,))
    inner = {name for root in roots for name in taken[root] if name != root}
    mains = [root for root in roots if root not in inner] or roots
    named = {root: folder if len(mains) == 1 else root for root in mains}
    used = inner.union(mains)
    return Papers({named[root]: texts[root] for root in mains}, tuple(name for name in files if name not in used))


def _spliced(
    name: str, files: Mapping[str, bytes], beside: str, folder: str, taken: set[str], within: tuple[str, ...]
) -> bytes:
    def inner(found: re.Match[bytes]) -> bytes:
        wanted = (found["name"] or found["word"] or b"").decode(errors="replace")
        known = _there(wanted, files, (beside, folder))
        if known is None or known in within or len(within) > _NESTED:
            return found.group()
        taken.add(known)
        return _spliced(known, files, beside, folder, taken, (*within, known))

    return _SPLICED.sub(inner, files[name])


def _there(wanted: str, files: Mapping[str, bytes], places: Iterable[str]) -> str | None:
    for place in places if wanted else ():
        for suffix in ("", ".tex"):
            if (path := normpath(f"{place}/{wanted}{suffix}")) in files:
                return path
    return None
