"""Links within a page that is shown in a sandboxed frame without an address of its own, as MLflow shows HTML.

There a link to a place of the same page does nothing: the frame's blob address belongs to no origin. The frame may run
scripts, so such a page gets one, fixed here and allowed by its hash alone; pages elsewhere keep running none.
"""

from __future__ import annotations

import base64
import hashlib

SCRIPT = """
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (!link) return;
  event.preventDefault();
  const target = document.getElementById(link.getAttribute("href").slice(1));
  for (let outer = target; outer; outer = outer.parentElement) if (outer.tagName === "DETAILS") outer.open = true;
  if (target) target.scrollIntoView();
});
"""
_POLICY = "default-src 'none';"


def framed(html: str) -> str:
    """The page with working links to its own places. Raises ValueError for a page without this project's policy."""
    if _POLICY not in html or "</body>" not in html:
        raise ValueError("html: allowed are pages whose content policy begins with default-src 'none'")
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    html = html.replace(_POLICY, f"{_POLICY} script-src 'sha256-{digest}';", 1)
    end = html.rindex("</body>")
    return f"{html[:end]}<script>{SCRIPT}</script>{html[end:]}"
