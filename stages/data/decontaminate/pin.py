"""Lists of excluded documents, pinned by digest."""

from __future__ import annotations

from pathlib import Path

from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.pinned import agreed


def pin_exclusions(config: DecontaminateConfig, base_dir: Path, cache: Path | None = None) -> DecontaminateConfig:
    """The config with absolute locations and pins of the texts to exclude.

    ``cache``: see ``stages.data.corpus.pin.pin``. Raises StageError for a missing file and where a pin does not match.
    """
    if not config.exclude:
        return config
    from stages.data.corpus.files import DigestCache
    from stages.data.corpus.pin import list_files, listing_digest, resolve

    digests = DigestCache(cache)
    pinned = []
    for number, excluded in enumerate(config.exclude):
        field = f"decontaminate.exclude.{number}"
        source = resolve(excluded.source(), base_dir)
        digest = listing_digest(list_files(source, digests, field))
        found = agreed(digest, excluded.pin, field=f"{field}.pin", what="the text to exclude")
        pinned.append(excluded.model_copy(update={"url": source.url, "pin": found}))
    digests.save()
    return config.model_copy(update={"exclude": tuple(pinned)})
