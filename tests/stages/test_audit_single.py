"""The audit as one page, for MLflow's viewer, which shows each file in a frame of its own that leads to no other."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from pathlib import Path

import pytest

from stages.data.audit import page
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.decontaminate.stage import STAGE
from stages.display.framed import SCRIPT
from stages.stage import Place
from tests.stages.test_certify import artifact, prose
from tests.stages.test_report import Page
from tests.support import LocalContext


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit with several pages of evidence."""
    folder = tmp_path_factory.mktemp("audit")
    texts = {f"train/{i}": prose(20 + i, 3000) for i in range(8)} | {f"test/{i}": prose(i, 4000) for i in range(3)}
    for i in range(6):
        texts[f"train/{i}"][700:700] = texts[f"test/{i % 3}"][500 * i : 500 * i + 200]
    texts["train/0"][0:0] = ["<a", 'href="evidence/001.html"', 'id="p1">'] * 3
    output = folder / "output"
    output.mkdir()
    rule = DecontaminateConfig(canaries={"count": 0})
    documents = artifact(folder / "in", {name: " ".join(text) for name, text in texts.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "PAGE_SPANS", 2)
        STAGE.run(rule, {"documents": documents}, output, LocalContext(str(folder)))
    assert len(list((output / "evidence").glob("*.html"))) > 2
    return output


def test_where_pages_can_be_linked_nothing_changes(audit: Path, tmp_path: Path):
    shutil.copytree(audit, tmp_path / "copy")
    STAGE.publish(tmp_path / "copy", Place())
    assert {p: p.read_bytes() for p in audit.glob("**/*.html")} == {
        audit / p.relative_to(tmp_path / "copy"): p.read_bytes() for p in (tmp_path / "copy").glob("**/*.html")
    }


def test_the_single_page_holds_all_evidence_and_every_link_stays_in_it(audit: Path, tmp_path: Path):
    shutil.copytree(audit, tmp_path / "copy")
    STAGE.publish(tmp_path / "copy", Place(file=""))
    text = (tmp_path / "copy" / "audit.html").read_text()
    single = Page(text)
    assert not [target for target in single.loads if not target.startswith("data:")]
    assert len(single.ids) == len(set(single.ids))
    assert {anchor[1:] for anchor in single.anchors} <= set(single.ids) and len(single.anchors) > 10
    spans = sum(len(re.findall('class="span"', p.read_text())) for p in (audit / "evidence").glob("*.html"))
    assert len(re.findall('class="span" id="e', text)) == spans > 4
    assert not (tmp_path / "copy" / "evidence").exists()
    assert single.tags.count("script") == 1 and text.count(SCRIPT) == 1, "the frame's own way to follow a link"
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'; style-src" in text, "no other script may run"
