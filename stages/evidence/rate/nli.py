"""Entailment of summaries by a natural-language-inference model, sentence by sentence (as SummaC's zero-shot form,
Laban et al., 2022, on windows).

faithful: mean over the summary's sentences of the largest probability that a window of the book entails it. A copied
beginning is faithful throughout, so that alone ranks nothing: covered is the mean over the reference's sentences of the
largest probability that a window of the summary entails it, and ``nli`` is the harmonic mean of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stages.evidence.rate.config import Nli, entailment
from stages.evidence.rate.encoder import longest_input, open_model
from stages.evidence.summarize.lexical import words
from stages.evidence.summarize.rouge import sentences

if TYPE_CHECKING:
    from stages.evidence.summarize.written import Everything

BATCH = 32
MOST_SENTENCES = 60  # of one text that are asked
Entails = Callable[[Sequence[tuple[str, str]]], list[float]]
"""(premise, hypothesis) pairs to the probability that the first entails the second."""


class TextWindows:
    """A text in windows of so many words, half overlapping, found by the words they share with a sentence."""

    def __init__(self, text: str, size: int) -> None:
        said = text.split()
        starts = range(0, max(1, len(said) - size // 2), max(1, size // 2))
        self.texts = [" ".join(said[start : start + size]) for start in starts]
        self._words = [frozenset(words(text)) for text in self.texts]
        counts = Counter(word for known in self._words for word in known)
        self._weight = {word: 1 / count for word, count in counts.items()}

    def nearest(self, sentence: str, n: int) -> list[str]:
        """The ``n`` windows that share most of its words, rare words counting more."""
        own = set(words(sentence))
        shared = [sum(self._weight[word] for word in own & known) for known in self._words]
        order = sorted(range(len(shared)), key=lambda i: (-shared[i], i))
        return [self.texts[i] for i in order[:n]]


def share_entailed(text: str, windows: TextWindows, entails: Entails, n: int) -> float | None:
    """Mean over the sentences of ``text`` of the largest probability over ``n`` windows; None for no sentence."""
    asked = [s for s in sentences(text) if words(s)][:MOST_SENTENCES]
    pairs = [(window, sentence) for sentence in asked for window in windows.nearest(sentence, n)]
    if not pairs:
        return None
    p = entails(pairs)
    best: dict[int, float] = {}
    each = len(pairs) // len(asked)
    for index, value in enumerate(p):
        best[index // each] = max(best.get(index // each, 0.0), value)
    return sum(best.values()) / len(best)


def harmonic(a: float | None, b: float | None) -> float | None:
    """2ab / (a + b); None where either is unknown."""
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def entailments(
    config: Nli, device: str
) -> Callable[[Everything, Callable[[int], None]], list[dict[str, float | None]]]:
    """nli, nli_faithful and nli_covered of every summary; covered by the best of its references."""

    def rated(found: Everything, progress: Callable[[int], None]) -> list[dict[str, float | None]]:
        entails = classifier(config.path, device)
        books = {name: TextWindows(item.text, config.window_words) for name, item in found.items.items()}
        rows: list[dict[str, float | None]] = []
        for written in found.written:
            references = found.items[written.name].references[1 if written.system == "reference" else 0 :]
            if any(words(sentence) for sentence in sentences(written.text)):
                faithful = share_entailed(written.text, books[written.name], entails, config.windows)
                own = TextWindows(written.text, config.window_words)
                shares = [share_entailed(text, own, entails, config.windows) for text in references]
                covered = max((share for share in shares if share is not None), default=None)
            else:
                faithful = covered = 0.0  # what says nothing is neither true nor complete
            rows.append({"nli": harmonic(faithful, covered), "nli_faithful": faithful, "nli_covered": covered})
            progress(len(rows))
        return rows

    return rated


def classifier(path: str, device: str) -> Entails:
    """Raises StageError for a model without a label that begins with ``entail``."""
    import torch

    tokenizer, model = open_model(path, "AutoModelForSequenceClassification", device, "rate.nli")
    label = entailment(model.config.id2label, path)
    room = longest_input(tokenizer, model)

    def entails(pairs: Sequence[tuple[str, str]]) -> list[float]:
        found: list[Any] = [0.0] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            first, second = zip(*(pairs[i] for i in chosen), strict=True)
            read = tokenizer(
                list(first),
                list(second),
                padding=True,
                truncation="longest_first",
                max_length=room,
                return_tensors="pt",
            ).to(model.device)
            with torch.inference_mode():
                p = model(**read).logits.float().softmax(-1)[:, label].tolist()
            for place, value in zip(chosen, p, strict=True):
                found[place] = value
        return found

    return entails
