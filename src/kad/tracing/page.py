"""The page of a trace: one HTML file with everything in it, from the files in `assets/`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files

_ASSETS = files("kad.tracing") / "assets"
# What both pages are made of, in the order in which the browser reads it.
COMPONENTS = ("words", "rules", "reading", "panel", "timeline", "controls", "files")


DATA = "<!-- kad:data -->"
"""The place of the data in a page."""


def trace_page(title: str, traces: Sequence[str]) -> str:
    """The page of some traces, given as JSON, side by side.

    It loads nothing, and its content security policy forbids loading. Text of the models reaches the page only as JSON
    without any `<`. The script shows it as text nodes.
    """
    return blank_page(title).replace(DATA, script_safe(f"[{','.join(traces)}]"))


def blank_page(title: str) -> str:
    """The page without its data."""
    script = components() + asset("trace.js")
    return fill(asset("trace.html"), title=html.escape(title), style=asset("common.css"), script=script)


def components() -> str:
    """The script of the components that every page shares. They define `kad`, and do nothing."""
    return "".join(asset(f"{name}.js") for name in COMPONENTS)


def fill(page: str, **parts: str) -> str:
    """A page with each `<!-- kad:name -->` replaced by the part of that name."""
    for name, text in parts.items():
        page = page.replace(f"<!-- kad:{name} -->", text)
    return page


def notebook_frame(page: str, height: int = 720) -> str:
    """A page in a frame of its own, so that the styles of a notebook do not affect it."""
    return (
        f'<iframe title="kad trace" style="width:100%;height:{height}px;border:0;border-radius:8px" '
        f'sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(page, quote=True)}"></iframe>'
    )


def asset(name: str) -> str:
    """A file of the page."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def script_safe(json_text: str) -> str:
    """JSON that cannot end its script element, and that old JavaScript can read."""
    for character in "<>&\u2028\u2029":
        json_text = json_text.replace(character, f"\\u{ord(character):04x}")
    return json_text
