"""The page on a telephone, as Chromium lays it out: nothing to scroll sideways, no letter too small to read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.report.figures.style import LETTERS, NARROW, WIDE
from stages.verdict.report.stage import STAGE, ReportConfig
from tests.stages.synthetic import ARMS, CONTROL_ARMS, TRUNK, Synthetic
from tests.stages.synthetic_report import RECIPE, calibrate, with_pages
from tests.support import LocalContext

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
WIDTH = 390  # CSS pixels
SMALLEST = 12.0

MEASURE = """
<html><body style="margin:0"><iframe src="report.html" style="width:%dpx;height:900px;border:0"></iframe><pre></pre>
<script>
onload = () => {
  const page = document.querySelector("iframe").contentDocument, view = page.defaultView, found = {};
  page.querySelectorAll("details").forEach((details) => { details.open = true; });
  found.width = page.documentElement.scrollWidth;
  const seen = (element) => element.getClientRects().length > 0;
  const texts = [...page.body.querySelectorAll("*")].filter((element) => seen(element) && !element.closest("svg") &&
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  found.font = Math.min(...texts.map((element) => parseFloat(view.getComputedStyle(element).fontSize)));
  found.outside = texts.filter((element) => element.getBoundingClientRect().right > %d + 0.5).map((e) => e.className);
  found.drawn = [...page.querySelectorAll("figure svg")].filter(seen)
    .map((svg) => [svg.parentElement.className, svg.getBoundingClientRect().width, svg.viewBox.baseVal.width]);
  found.texts = texts.length;
  document.querySelector("pre").textContent = JSON.stringify(found);
};
</script></body></html>
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    folder = tmp_path_factory.mktemp("phone")
    output = folder / "output"
    output.mkdir()
    study = calibrate(Synthetic(folder / "artifacts", title="A title " + "without any end " * 10).everything())
    config = ReportConfig(
        study="a_name_as_long_as_names_of_studies_are_and_longer",
        arms=ARMS,
        trunk=TRUNK,
        seeds=(0, 1, 2),
        claims=ClaimsConfig(),
        control_arms=CONTROL_ARMS,
        recipe=RECIPE,
    )
    STAGE.run(config, with_pages(study.inputs), output, LocalContext(str(folder)))
    return output


@pytest.mark.parametrize(("width", "form"), [(WIDTH, "narrow"), (760, "narrow"), (1024, "wide"), (1280, "wide")])
def test_the_page_fits_and_can_be_read(report: Path, tmp_path: Path, width: int, form: str):
    page = report / f"measure-{width}.html"
    page.write_text(MEASURE % (width, width))
    command = [
        str(BROWSER),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path}",
        f"--window-size={width},900",
        "--virtual-time-budget=10000",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    text = re.search(r"<pre>(.+?)</pre>", done.stdout, re.S)
    assert text, done.stderr[-2000:]
    found = json.loads(text.group(1))
    assert found["width"] <= width and not found["outside"], "something is wider than the screen"
    assert found["texts"] > 300 and found["font"] >= SMALLEST
    figures = json.loads((report / "report.json").read_text())["figures"]
    assert len(found["drawn"]) == len(figures) >= 20 and {kind for kind, _, _ in found["drawn"]} == {form}
    inches = {"narrow": NARROW, "wide": WIDE}[form]
    for _, shown, box in found["drawn"]:
        assert box == pytest.approx(72 * inches, rel=0.01)
        assert LETTERS * shown / box >= SMALLEST, "letters of a figure"
