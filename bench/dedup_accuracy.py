"""What is found of planted repeats, and what is dropped wrongly: ``python -m bench.dedup_accuracy [FOLDER]``.

The text is that of ``FOLDER/**/*.txt``, or the manuals that come with Python. It is cut into pieces that share nothing;
each kind of repeat is made from pieces of its own and searched for among all of them in one run with the defaults.
"""

from __future__ import annotations

import hashlib
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stages.data.corpus.documents import DocumentsWriter
from stages.data.dedup.config import DedupConfig
from stages.data.dedup.run import finding
from stages.folder import FolderArtifact

PIECE_WORDS = 3000
PER_KIND = 40
LETTERS = "abcdefghilmnorstu"

Change = Callable[[list[str], list[str], random.Random], str]
"""(words of a piece, words of another piece that stands nowhere else, chance) -> the planted text."""


class Kind(NamedTuple):
    """How a repeat is made, and whether the default rules are meant to find it."""

    name: str
    change: Change
    repeat: bool = True


def lines(words: Iterable[str], width: int = 11) -> str:
    """Words as text in lines."""
    words = list(words)
    return "\n".join(" ".join(words[i : i + width]) for i in range(0, len(words), width)) + "\n"


def _retyped(words: list[str], _: list[str], chance: random.Random) -> str:
    return lines((w.upper() if chance.random() < 0.1 else w.replace("'", "’") for w in words), 8)


def _edited(share: float) -> Change:
    def change(words: list[str], _: list[str], chance: random.Random) -> str:
        return lines(chance.choice(words) + "e" if chance.random() < share else w for w in words)

    return change


def _scanned(share: float) -> Change:
    def change(words: list[str], _: list[str], chance: random.Random) -> str:
        text = lines(words)
        return "".join(chance.choice(LETTERS) if c.isalpha() and chance.random() < share else c for c in text)

    return change


KINDS = (
    Kind("whole copy under another name", lambda words, other, chance: lines(words)),
    Kind("retyped: case, quotes, line breaks", _retyped),
    Kind("edition, 1 word in 100 differs", _edited(0.01)),
    Kind("edition, 2 words in 100 differ", _edited(0.02)),
    Kind("edition, 3 words in 100 differ", _edited(0.03)),
    Kind("scanned, 0.5% wrong letters", _scanned(0.005)),
    Kind("with a preface of a fifth", lambda words, other, chance: lines([*other[: len(words) // 5], *words])),
    Kind("volume: the second half", lambda words, other, chance: lines(words[len(words) // 2 :])),
    Kind(
        "abridged: every other 50 words",
        lambda words, other, chance: lines(w for k, w in enumerate(words) if k // 50 % 2),
    ),
    Kind("in an anthology of twice the length", lambda words, other, chance: lines([*other, *words])),
    Kind("edition, 5 words in 100 differ", _edited(0.05), repeat=False),
    Kind("a tenth quoted in another text", lambda words, other, chance: lines([*words[:300], *other]), repeat=False),
)


@dataclass(frozen=True)
class Result:
    """Of ``planted`` pairs of a kind: in how many exactly one document was dropped in favour of the other."""

    kind: Kind
    planted: int
    found: int
    rules: Counter[str]


def measure(texts: Iterable[str], seed: int = 0, config: DedupConfig | None = None) -> tuple[list[Result], int, int]:
    """(a result per kind, documents without a repeat, how many of those were dropped)."""
    chance, config = random.Random(seed), config or DedupConfig()
    pieces = _unrelated(_pieces(texts), config)
    chance.shuffle(pieces)
    each = min(PER_KIND, len(pieces) // (2 * len(KINDS) + 1))
    if not each:
        raise SystemExit(
            f"too little text: {len(pieces)} pieces of {PIECE_WORDS} words, {2 * len(KINDS) + 1} are needed"
        )
    documents = {}
    for k, kind in enumerate(KINDS):
        for i in range(each):
            words, other = pieces.pop(), pieces.pop()
            documents[f"{k:02}/{i:03}/a"] = lines(words)
            documents[f"{k:02}/{i:03}/b"] = kind.change(words, other, chance)
    documents |= {f"alone/{i:03}": lines(words) for i, words in enumerate(pieces)}
    dropped = _dropped(documents, config)
    results = []
    for k, kind in enumerate(KINDS):
        rules: Counter[str] = Counter()
        for i in range(each):
            a, b = f"{k:02}/{i:03}/a", f"{k:02}/{i:03}/b"
            hits = [dropped[x][1] for x, y in ((a, b), (b, a)) if x in dropped and dropped[x][0] == y]
            rules.update(hits[:1] if len(hits) == 1 else ())
        results.append(Result(kind, each, rules.total(), rules))
    return results, len(pieces), sum(name.startswith("alone/") for name in dropped)


def _dropped(documents: dict[str, str], config: DedupConfig) -> dict[str, tuple[str, str]]:
    """Id of a dropped document -> id of the one that stands for it, rule."""
    with tempfile.TemporaryDirectory() as folder:
        writer = DocumentsWriter(Path(folder, "documents"))
        for name, text in sorted(documents.items()):
            row = {"doc_id": name, "source": "s", "title": None, "author": None, "year": None, "split": "train"}
            writer.write({**row, "text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})
        writer.close()
        with finding(config, FolderArtifact(Path(folder)), f"{folder}/work", lambda done, total, unit: None) as found:
            return found.dropped()


def _pieces(texts: Iterable[str]) -> list[list[str]]:
    pieces = []
    for text in texts:
        words = text.split()
        pieces += [words[i : i + PIECE_WORDS] for i in range(0, len(words) - PIECE_WORDS, PIECE_WORDS)]
    return pieces[: (2 * len(KINDS) + 2) * PER_KIND]


def _unrelated(pieces: list[list[str]], config: DedupConfig) -> list[list[str]]:
    """Those that repeat no other one: what the corpus repeats by itself is not what is measured."""
    dropped = _dropped({f"{i:06}": lines(words) for i, words in enumerate(pieces)}, config)
    return [words for i, words in enumerate(pieces) if f"{i:06}" not in dropped]


def texts_at_hand(folder: str | None) -> Iterator[str]:
    """The text files below ``folder``, or the manuals of the installed packages."""
    if folder is not None:
        for path in sorted(Path(folder).rglob("*.txt")):
            yield path.read_text(encoding="utf-8", errors="ignore")
        return
    from stages.data.corpus.config import PythonDocs
    from stages.data.corpus.files import DigestCache
    from stages.data.corpus.pin import list_files
    from stages.data.corpus.readers import read

    source = PythonDocs(name="manuals")
    for file in list_files(source, DigestCache(None), "manuals"):
        yield from (raw.text.decode() for raw in read(source, file) if not raw.problem)


def main(arguments: list[str]) -> None:
    """Print the table."""
    results, alone, wrong = measure(texts_at_hand(arguments[0] if arguments else None))
    print(f"{'':38} {'planted':>8} {'dropped':>8} {'':>6}  by rule")
    for result in results:
        rules = ", ".join(f"{n} {rule}" for rule, n in sorted(result.rules.items()))
        meant = "" if result.kind.repeat else "  (below the thresholds)"
        share = result.found / result.planted
        print(f"{result.kind.name:38} {result.planted:8} {result.found:8} {share:6.0%}  {rules}{meant}")
    print(f"{'unrelated texts':38} {alone:8} {wrong:8} {wrong / max(1, alone):6.0%}  (meant to stay)")


if __name__ == "__main__":
    main(sys.argv[1:])
