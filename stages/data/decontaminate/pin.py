"""Lists of excluded documents, pinned by digest."""

from __future__ import annotations

from pathlib import Path

from stages.data.decontaminate.config import DecontaminateConfig
from stages.stage import StageError


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
        found = listing_digest(list_files(here.source(), digests, field))
        if excluded.pin not in (None, found):
            raise StageError(
                f"the texts to exclude are not the pinned ones; they now have the digest {found}",
                field=f"{field}.pin",
                value=excluded.pin,
                fix="restore the files, or accept them by writing the new digest (or no pin) into the study file",
            )
        pinned.append(here.model_copy(update={"pin": found}))
    digests.save()
    return config.model_copy(update={"exclude": tuple(pinned)})
