"""Models of transformers, which fills what a checkpoint lacks with random numbers and goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def load_whole(kind: str, path: str | Path, *, unused: str = "", **options: Any) -> Any:
    """The model of the Auto class ``kind`` in a local folder, every weight from its files. ``unused``: begins the names
    of parts that nobody asks, which may be missing.

    Raises ValueError, which says why in a line, for weights that are missing, of another shape, of more layers than
    config.json names, or unreadable; code of the folder's own is not run.
    """
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what it warns of is an error below
    try:
        model, info = getattr(transformers, kind).from_pretrained(
            path, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except Exception as error:  # of a dozen kinds
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from error
    finally:
        logging.set_verbosity(before)
    lost = sorted(name for name in info["missing_keys"] if not (unused and name.startswith(unused)))
    layers = {re.sub(r"\d+", "#", name) for name in model.state_dict()}
    more = sorted(name for name in info["unexpected_keys"] if re.sub(r"\d+", "#", name) in layers)
    other = sorted(name for name, *_ in info["mismatched_keys"])
    for names, what in (
        (lost, "are not in its files"),
        (other, "have another shape in its files than config.json says"),
        (more, "are in its files and not in config.json's model"),
    ):
        if names:
            raise ValueError(f"{len(names)} of the weights {what}, such as {names[0]}")
    return model
