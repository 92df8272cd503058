"""What reading one line costs."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

from stages.data.corpus.config import JsonLines
from stages.data.corpus.files import ExternalFile
from stages.data.corpus.readers import read


def test_a_long_text_with_brackets_costs_little_more_than_its_size(tmp_path: Path) -> None:
    row = json.dumps({"text": 'word [x] said "\\no" ' * 50_000})
    (tmp_path / "t.jsonl").write_text(f'{row}\n{{"text": "{"[" * 1000}')
    file = ExternalFile("t.jsonl", str(tmp_path / "t.jsonl"), 0, "")
    tracemalloc.start()
    whole, cut = read(JsonLines(name="j", url="t.jsonl", split="train"), file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(whole.text) == len(json.loads(row)["text"]) and peak < 20 * len(row)
    assert "line 2 is not JSON" in cut.detail, "brackets of a text that was cut short are text"
