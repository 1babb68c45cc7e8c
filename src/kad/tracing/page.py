"""Pages: one HTML file with everything in it, from the files in `assets/`. The page of a trace is one."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib.resources import files

from kad import palette

_ASSETS = files("kad.tracing") / "assets"
# The scripts of every page, in the order in which the browser reads them. They only define `kad`.
COMPONENTS = ("words", "rules", "reading", "panel", "timeline", "controls", "files")
DATA = "<!-- kad:data -->"
"""The place of the data in a page."""


def trace_page(title: str, traces: Sequence[str]) -> str:
    """A page with some traces beside each other. The traces are JSON.

    It loads nothing, and its content security policy forbids loading. Text of the models reaches the page only as JSON
    without any `<`. The script shows it as text nodes.
    """
    return blank_page(title).replace(DATA, script_safe(f"[{','.join(traces)}]"))


def blank_page(title: str) -> str:
    """The page of a trace without its data."""
    return fill(title, asset("trace.html"), asset("trace.js"))


def fill(title: str, body: str, script: str, *, style: str = "", data: str = DATA, connect: str = "'none'") -> str:
    """A page around a body: what all pages share, and then its own.

    Args:
        title, body, script, style, data: parts of the page; `data` is JSON that `script_safe` made.
        connect: the servers that the page may use, as in a content security policy.
    """
    style, script = asset("common.css") + style, "".join(asset(f"{name}.js") for name in COMPONENTS) + script
    parts = {"connect": connect, "title": html.escape(title), "style": style, "body": body, "script": script}
    return _filled(asset("page.html"), parts | {"data": data})


def notebook_frame(page: str, height: int = 720) -> str:
    """A page in a frame of its own, so that the styles of a notebook do not affect it."""
    return (
        f'<iframe title="kad trace" style="width:100%;height:{height}px;border:0;border-radius:8px" '
        f'sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(page, quote=True)}"></iframe>'
    )


def asset(name: str) -> str:
    """A file of the page, with the colors in it."""
    colors = {"light": palette.css(palette.LIGHT), "dark": palette.css(palette.DARK)}
    return _filled((_ASSETS / name).read_text(encoding="utf-8"), colors)


def _filled(page: str, parts: Mapping[str, str]) -> str:
    """A page with each `<!-- kad:name -->` replaced by the part of that name."""
    for name, text in parts.items():
        page = page.replace(f"<!-- kad:{name} -->", text)
    return page


def script_safe(json_text: str) -> str:
    """JSON that cannot end its script element, and that old JavaScript can read."""
    for character in "<>&\u2028\u2029":
        json_text = json_text.replace(character, f"\\u{ord(character):04x}")
    return json_text
