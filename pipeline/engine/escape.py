"""Text from documents, files and errors as a terminal may show it: what would move its cursor, colour it, name its
window or turn the direction of writing is spelled out."""

from __future__ import annotations

import re

_STRANGE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def escaped(text: str, keep: str = "") -> str:
    """``text`` with control characters as Python writes them (``\\x1b``), but for those of ``keep``."""
    return _STRANGE.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)
