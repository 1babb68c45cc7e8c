"""The page of a trace: one HTML file with everything in it, from the files in `assets/`."""

from __future__ import annotations

import html
from importlib.resources import files

from kad.tracing.schema import Trace

_ASSETS = files("kad.tracing") / "assets"


def trace_page(trace: Trace) -> str:
    """The page as text. It loads nothing, and its content security policy forbids loading.

    Text of the models reaches the page only as JSON without any `<`. The script shows it as text nodes.
    """
    parts = {
        "title": html.escape(f"kad trace · {trace.rule_text}"),
        "style": _asset("trace.css"),
        "script": _asset("rules.js") + _asset("trace.js"),
        "data": _script_safe(trace.to_json()),
    }
    page = _asset("trace.html")
    for name, text in parts.items():
        page = page.replace(f"<!-- kad:{name} -->", text)
    return page


def notebook_frame(trace: Trace, height: int = 720) -> str:
    """The page in a frame of its own, so that the styles of a notebook do not affect it."""
    source = html.escape(trace_page(trace), quote=True)
    return (
        f'<iframe title="kad trace" style="width:100%;height:{height}px;border:0;border-radius:8px" '
        f'sandbox="allow-scripts" srcdoc="{source}"></iframe>'
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _script_safe(json_text: str) -> str:
    """JSON that cannot end its script element, and that old JavaScript can read."""
    for character in "<>&\u2028\u2029":
        json_text = json_text.replace(character, f"\\u{ord(character):04x}")
    return json_text
