"""audit.html with all its evidence in one page, for places where a page cannot lead to another (MLflow's viewer)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from stages.display.framed import framed

_BODY = re.compile(r"<body><main>\n?(.*)</main></body>", re.S)


def join(folder: Path) -> None:
    """Put the pages of ``folder``/evidence into ``folder``/audit.html, with links within the page, and remove them.

    Only the templates' own markup is touched: texts are escaped, so no quotation mark of theirs stands in the pages.
    """
    pages = sorted((folder / "evidence").glob("*.html"))
    whole = (folder / "audit.html").read_text(encoding="utf-8")
    parts = [_within(page.read_text(encoding="utf-8"), page.stem) for page in pages]
    whole = re.sub(r'href="evidence/(\d+)\.html#(\w+)"', r'href="#e\1-\2"', whole)
    whole = re.sub(r'href="evidence/(\d+)\.html"', r'href="#e\1"', whole)
    whole = whole.replace("<body><main>", '<body id="top"><main>', 1)
    end = whole.rindex("</main></body>")
    whole = framed(whole[:end] + "".join(parts) + whole[end:])
    (folder / "audit.html").write_text(whole, encoding="utf-8")
    shutil.rmtree(folder / "evidence", ignore_errors=True)


def _within(text: str, name: str) -> str:
    """The body of one page of evidence as a section of another page; ids and links bear its name."""
    found = _BODY.search(text)
    assert found is not None, name
    body = re.sub(r'\bid="(\w+)"', rf'id="e{name}-\1"', found.group(1))
    body = re.sub(r'href="#(\w+)"', rf'href="#e{name}-\1"', body)
    body = re.sub(r'href="(\d+)\.html"', r'href="#e\1"', body).replace('href="../audit.html"', 'href="#top"')
    return f'<section id="e{name}">\n{body.replace("<h1>", "<h2>").replace("</h1>", "</h2>")}</section>\n'
