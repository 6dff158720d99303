"""The page: HTML with JavaScript and data in one file, in which names from outside are text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rllib_kd.text import filled, for_html

_ASSETS = Path(__file__).parent / "assets"


def page(title: str, lead: str, data: Mapping[str, Any]) -> str:
    """Return the page.

    Only its own two scripts run: a policy in its head names them by their hashes, and allows no request.

    Args:
        title: text.
        lead: text below the title.
        data: what player.js shows, as JSON.
    """
    student = f"\n{asset('student.js')}{asset('cartpole.js')}"
    player = f"\n{asset('player.js')}"
    values = {
        "TITLE": for_html(title),
        "LEAD": for_html(lead),
        "STYLE": asset("page.css"),
        "POLICY": f"{_hash(student)} {_hash(player)}",
        "DATA": _json(data),
        "STUDENT": student,
        "PLAYER": player,
    }
    return filled(asset("page.html"), values)


def data_of(page: str) -> dict[str, Any]:
    """Return the data of a page."""
    return json.loads(_script(page, 'type="application/json" id="data"'))


def student_code_of(page: str) -> str:
    """Return the JavaScript of a page's student, which needs no page."""
    return _script(page, 'id="student"')


def _script(page: str, attributes: str) -> str:
    found = re.search(rf"<script {re.escape(attributes)}>(.*?)</script>", page, re.DOTALL)
    if found is None:
        raise ValueError("This is not a page that `rllib export --format web` wrote: it has no student.")
    return found[1]


def asset(name: str) -> str:
    """Return the text of a file of the page."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Return a script as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(data: Any) -> str:
    """Return JSON in ASCII that cannot end a <script> element, nor begin a comment in it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)
