"""A session that reads as one: own stories, two raters, the first of them in a browser; its picture and its result.

``HUMAN_PICTURE=docs/human.png pytest tests/stages/test_human_picture.py`` takes the picture of docs/summaries.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from stages.evidence.human.export import choose, write
from stages.evidence.summarize import baselines
from stages.evidence.summarize.items import SummaryExample
from stages.evidence.summarize.items import write as write_items
from stages.evidence.summarize.lexical import SourceText, measured
from stages.evidence.summarize.write import BASELINES, SUMMARIES
from stages.evidence.summarize.written import everything
from tests.browser import BROWSER, browsing
from tests.support import LocalArtifact

STORIES = {
    "The ferry": (
        "For thirty years Marta took people over the river in her father's boat. When the bridge was opened "
        "nobody came any more, and she sold the oars to a man who hung them over his door. In spring the ice "
        "broke two piers, and the mayor walked down to the landing with his hat in his hand. Marta said that she "
        "had a boat and no oars. That evening the man brought them back, newly painted, and wanted nothing for "
        "them.",
        "A ferrywoman loses her living to a bridge and sells her oars; when ice breaks the bridge she is needed "
        "again, and the buyer returns them.",
        "Marta's ferry is made useless by a new bridge. She sells her oars, the bridge breaks, and she gets them back.",
        "The mayor walked down to the landing with his hat in his hand and wanted nothing for them.",
    ),
    "The clock": (
        "The clock of the town hall had been slow by four minutes for as long as anyone knew, and the trains "
        "waited for it. A new stationmaster came who did not. On his first morning half the town stood on an "
        "empty platform. They went to the council, which voted to mend the clock, and found that the only man who "
        "could was on the train.",
        "A town lives by a clock that is slow; a punctual stationmaster makes it miss its train, and the "
        "clockmaker leaves on it.",
        "People miss the train since their clock is late. The council wants it mended, but the clockmaker has gone.",
        "A clock is a thing that tells the time, and the time is four minutes, and the minutes are on the platform.",
    ),
    "The wall": (
        "Two brothers who shared a garden quarrelled over a pear tree and built a wall through it, each from his "
        "own side. The stones came from one heap, so the wall grew slowly and was nowhere straight. By autumn it "
        "stood as high as a knee. The pears fell on both sides of it, and their children sat on it to eat them.",
        "Brothers divide their garden by a wall because of a pear tree; their children use it as a bench and "
        "share the fruit.",
        "Two brothers build a wall after a quarrel about a tree, and the children sit on it and eat the pears.",
        "The brothers sold the garden to a soldier, who cut down the tree and went to sea.",
    ),
}


def own(root: Path) -> dict[str, LocalArtifact]:
    """Artifacts of two arms over the stories."""
    items = [
        SummaryExample("condense", "chapter", name, name, name, text, (summary,), rows=(row,))
        for row, (name, (text, summary, *_)) in enumerate(STORIES.items(), 1)
    ]

    def named(item: SummaryExample) -> dict[str, Any]:
        return {"doc_id": item.doc_id, "book": item.book, "task": item.task, "level": item.level}

    def table(folder: Path, file: str, rows: list[dict[str, Any]], schema: pa.Schema) -> LocalArtifact:
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / file)
        return LocalArtifact(folder)

    rows = []
    for item, other in zip(items, baselines.shuffled(items), strict=True):
        for system, text in (("lead", item.text[:110]), ("shuffled", other or "")):
            rows.append(
                {
                    "system": system,
                    **named(item),
                    "hypothesis": text,
                    **measured(item.references, text, SourceText.of(item.text)),
                }
            )
    made = {"references": table(root / "references", "baselines.parquet", rows, BASELINES)}
    write_items(items, root / "references" / "items.parquet")
    for place, arm in enumerate(("infini-delta", "local")):
        rows = [
            {**named(item), "length": "96", "prompt_tokens": 96, "decoding": "sample", "tokens": 30}
            | {"reference": item.references[0], "hypothesis": (text := STORIES[item.title][2 + place])}
            | measured(item.references, text, SourceText.of(item.text))
            for item in items
        ]
        made[f"summarize/{arm}/0"] = table(root / arm, "summaries.parquet", rows, SUMMARIES)
    return made


def rank(system: str) -> int:
    return ("shuffled", "lead", "local", "infini-delta", "reference").index(system)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_session_its_picture_and_its_result(tmp_path: Path) -> None:
    chosen = choose(everything(own(tmp_path / "made")), items=12, against=["local"], baselines=["lead"], seed=1)
    kit = tmp_path / "kit"
    write(chosen, "stories", kit, {})
    systems = {one.id: (one.left.system, one.right.system) for one in chosen}
    shown = {(one.left.text, one.right.text): one.id for one in chosen}
    (tmp_path / "profile").mkdir()

    async def session() -> None:
        async with browsing(tmp_path / "profile", tmp_path) as page:
            await page.open((kit / "rate.html").as_uri())
            for letter in "ann":
                await page.press(letter)
            await page.press("Enter")
            for number in range(len(chosen)):
                await page.until(f"document.getElementById('count').textContent.startsWith('Pair {number + 1} ')")
                sides = [
                    await page.value(f"document.getElementById('{side}').textContent") for side in ("left", "right")
                ]
                left, right = systems[shown[sides[0], sides[1]]]
                if number == 4:
                    await page.screenshot(tmp_path / "page.png")
                await page.press("ArrowLeft" if rank(left) > rank(right) else "ArrowRight")
            await page.press("s")
            for _ in range(600):
                if list(tmp_path.glob("ratings-*.json")):
                    break
                await asyncio.sleep(0.05)

    asyncio.run(session())
    (saved,) = tmp_path.glob("ratings-*.json")
    other = json.loads(saved.read_text()) | {"rater": "bob"}  # who sees no difference between an arm and the beginning
    for item, (left, right) in systems.items():
        if "lead" in (left, right):
            other["answers"][item]["choice"] = "tie"
    (tmp_path / "bob.json").write_text(json.dumps(other))
    arguments = [
        "human",
        "import",
        str(kit / "key.json"),
        str(saved),
        str(tmp_path / "bob.json"),
        "--out",
        str(tmp_path / "r.json"),
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    print(result.output)
    assert (
        result.exit_code == 0
        and f"ann {len(chosen)} of {len(chosen)}, bob {len(chosen)} of {len(chosen)}" in result.output
    )
    assert "Krippendorff's alpha" in result.output and "infini-delta" in result.output
    size = (tmp_path / "page.png").stat().st_size
    assert 10_000 < size < 300_000
    if picture := os.environ.get("HUMAN_PICTURE"):
        shutil.copy(tmp_path / "page.png", picture)
