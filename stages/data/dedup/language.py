"""The language of a document, from three passages of it, by a naive Bayes model that comes with ``py3langid``."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

PASSAGE = 2000  # bytes, at the beginning, in the middle and at the end: foreign front matter does not decide
UNKNOWN = "und"


@functools.cache
def identifier() -> Any:
    """The model, loaded once per process (0.4 s) and only where a language filter is set."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: NDArray[np.uint8], min_confidence: float) -> tuple[str, float]:
    """(ISO 639 code, confidence in 0..1); ``und`` below ``min_confidence`` and for text without language."""
    if len(text) <= 3 * PASSAGE:
        sample = text.tobytes()
    else:
        middle, last = len(text) // 2, len(text) - PASSAGE
        sample = b"\n".join(text[at : at + PASSAGE].tobytes() for at in (0, middle, last))
    code, confidence = identifier().classify(sample.decode(errors="ignore"))
    return (str(code) if confidence >= min_confidence and code != "zxx" else UNKNOWN), float(confidence)
