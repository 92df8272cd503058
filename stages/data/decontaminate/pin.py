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
    from stages.data.corpus.pin import list_files, listing_digest, located

    digests = DigestCache(cache)
    pinned = []
    for number, excluded in enumerate(config.exclude):
        field = f"decontaminate.exclude.{number}"
        here = excluded.model_copy(update={"url": located(excluded.url, base_dir)})
        digest = listing_digest(list_files(here.source(), digests, field))
        found = agreed(digest, excluded.pin, field=f"{field}.pin", what="the text to exclude")
        pinned.append(here.model_copy(update={"pin": found}))
    digests.save()
    return config.model_copy(update={"exclude": tuple(pinned)})
