"""matplotlib's SVG files as markup within a page."""

from __future__ import annotations

import re
from collections.abc import Mapping


def inline(svg: str, name: str, label: str, colours: Mapping[str, str], namespaces: str = "") -> str:
    """The drawing without prolog, comments and metadata, its ids unique by ``name``, its ``colours`` (variable of the
    page -> colour) those of the page, which fall back to their own where there is no page. ``label``: for those who
    hear the page. ``namespaces``: attributes that let the markup stand as a file too."""
    from markupsafe import escape

    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.S)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'url\(#|href="#', lambda match: f"{match.group()}{name}-", body)
    end = body.index(">") + 1
    box = re.search(r'viewBox="[^"]*"', body[:end])
    assert box is not None
    attributes = " ".join(filter(None, [namespaces, box.group(), 'role="img"', f'aria-label="{escape(label)}"']))
    body = f"<svg {attributes}>{body[end:]}"
    for variable, colour in colours.items():
        body = body.replace(f": {colour}", f": var({variable}, {colour})")
    return body
