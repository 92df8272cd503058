"""audit.html and the pages of evidence."""

from __future__ import annotations

from pathlib import Path


def write_pages(folder: Path) -> list[str]:
    (folder / "audit.html").write_text("<!doctype html>", encoding="utf-8")
    return ["audit.html"]
