"""datatrove's n-gram decontamination of a folder's texts: ``python matching_datatrove.py FOLDER``, in a venv apart.

``FOLDER/evaluation/*.txt`` are indexed, the texts of each other subfolder filtered. The index file is written with the
filter's own normalisation, tokenizer and hash, as its indexer does, which itself cannot be used without ``lighteval``.
Prints one JSON object: subfolder -> bytes, CPU seconds, documents found; and the peak memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(folder: Path) -> dict[str, Any]:
    """Measure each subfolder once after a warm-up on a short text."""
    import numpy as np
    from datatrove.data import Document
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.utils.text import ngrams, simplify_text

    config = NGramsDecontConfig(n_grams=13)
    with tempfile.TemporaryDirectory() as index_folder:
        decontaminate = NGramsDecontFilter(index_folder, config)
        started = time.process_time()
        hashes: set[int] = set()
        for path in sorted((folder / "evaluation").glob("*.txt")):
            text = simplify_text(path.read_text(encoding="utf-8"), config.norm_config)
            tokens = decontaminate.tokenizer.word_tokenize(text)
            hashes.update(decontaminate.hash_func(" ".join(gram)) for gram in ngrams(tokens, config.n_grams))
        array = np.array(sorted(hashes), dtype=config.hash_config.np_descr)
        array.tofile(Path(index_folder, "evaluation.index.hashes"))
        result: dict[str, Any] = {"index_seconds": time.process_time() - started}
        decontaminate.filter(Document(text="warm up " * 100, id="warm"))
        for part in sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name != "evaluation"):
            texts = [path.read_text(encoding="utf-8") for path in sorted((folder / part).glob("*.txt"))]
            started = time.process_time()
            kept = [decontaminate.filter(Document(text=text, id=str(n))) for n, text in enumerate(texts)]
            seconds = time.process_time() - started
            found = sum(answer is not True for answer in kept)
            result[part] = {"bytes": sum(len(t.encode()) for t in texts), "seconds": seconds, "found": found}
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    result["peak_mb"] = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), float("nan"))
    return result


if __name__ == "__main__":
    with open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet):
        answer = main(Path(sys.argv[1]))
    print(json.dumps(answer))
